"""A manifest of a million files: seconds and memory past DVC's import.

A project is made in a temporary folder whose one tracked folder has a generated listing of a
million entries. A fresh process imports DVC, notes its memory, and then builds the manifest.

Usage: ``python benchmarks/manifest.py [ENTRIES]``
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ENTRIES = 1_000_000
RUNS = 5
GOAL_SECONDS = 5.0
GOAL_MB = 150.0

MEASURE = """
import json, time
from pathlib import Path
import dvc.repo  # the ground that the goal is measured from
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3
Path("/proc/self/clear_refs").write_text("5")  # forget the peak that the parent left behind
before, clock = peak(), time.perf_counter()
from dvc_integrity import Repository
manifest = Repository().manifest()
print(json.dumps([len(manifest), time.perf_counter() - clock, peak() - before]))
"""


def main() -> None:
    """Build the project, measure, print the table."""
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    with tempfile.TemporaryDirectory() as folder:
        make_project(Path(folder), entries)
        runs = [measure(folder) for _ in range(RUNS)]
    seconds = [run[1] for run in runs]
    megabytes = [run[2] for run in runs]
    print(f"| manifest of {entries:,} files | median | spread | goal |\n|---|---|---|---|")
    print(row("seconds past importing DVC", seconds, GOAL_SECONDS))
    print(row("peak MB past importing DVC", megabytes, GOAL_MB))


def row(name: str, values: list[float], goal: float) -> str:
    """Return one row of the table."""
    middle = statistics.median(values)
    return f"| {name} | {middle:.2f} | {min(values):.2f}-{max(values):.2f} | <= {goal:g} |"


def make_project(root: Path, entries: int) -> None:
    """Make a Git and DVC project with one tracked folder of ``entries`` files."""
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    listing = generated_listing(entries)
    digest = hashlib.md5(listing, usedforsecurity=False).hexdigest()
    cached = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / f"{digest[2:]}.dir"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(listing)
    (root / "data.dvc").write_text(
        f"outs:\n- md5: {digest}.dir\n  nfiles: {entries}\n  hash: md5\n  path: data\n"
    )
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    subprocess.run(["git", *identity, "commit", "-qm", "data"], cwd=root, check=True)


def generated_listing(entries: int) -> bytes:
    """Return a listing as DVC writes it, with names like ImageNet's."""
    listed = [
        {
            "md5": hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest(),
            "relpath": f"train/n{number // 1300:08d}/image_{number:08d}.jpeg",
        }
        for number in range(entries)
    ]
    return json.dumps(listed, sort_keys=True).encode()


def measure(root: str) -> list[float]:
    """Return entries, seconds and megabytes of one build in a fresh process."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    result: list[float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()

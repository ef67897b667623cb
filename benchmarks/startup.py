"""What a command costs before it reads a byte, next to importing DVC.

Usage: ``python benchmarks/startup.py``
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAIRS = 7
TOOL = [sys.executable, "-m", "dvc_integrity"]
IMPORT_DVC = [sys.executable, "-c", "import dvc.repo"]


def main() -> None:
    """Time ``--help`` and a verify of one small file, in turn with importing DVC."""
    with tempfile.TemporaryDirectory() as folder:
        make_project(Path(folder))
        rounds = [
            [seconds(command, folder) for command in (IMPORT_DVC, [*TOOL, "verify"])]
            for _ in range(PAIRS)
        ]
        helps = [seconds([*TOOL, "--help"], folder) for _ in range(PAIRS)]
    extra = [verify - imported for imported, verify in rounds]
    print("| | median s | spread | goal |\n|---|---|---|---|")
    print(row("`--help`", helps, "<= 0.2"))
    print(row("importing DVC", [imported for imported, _ in rounds], ""))
    print(row("`verify` of one small file, less importing DVC", extra, "<= 0.5"))


def row(name: str, values: list[float], goal: str) -> str:
    """Return one row of the table."""
    spread = f"{min(values):.2f}-{max(values):.2f}"
    return f"| {name} | {statistics.median(values):.2f} | {spread} | {goal} |"


def make_project(root: Path) -> None:
    """Make a Git and DVC project with one tracked file."""
    (root / "data.csv").write_text("1,2,3\n")
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for command in (
        ["git", "init", "-q"],
        ["dvc", "init", "-q"],
        ["dvc", "add", "-q", "data.csv"],
        ["git", "add", "-A"],
        ["git", *identity, "commit", "-qm", "data"],
    ):
        subprocess.run(command, cwd=root, check=True)


def seconds(command: list[str], folder: str) -> float:
    """Return how long a command takes, from its start to its end."""
    clock = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - clock


if __name__ == "__main__":
    main()

"""A manifest of a million files: seconds and memory past DVC's import.

The one tracked folder of a project has a generated listing of a million entries. A fresh process
imports DVC, notes its memory, and then builds the manifest.

Usage: ``python benchmarks/manifest.py [--scale X] [--pairs N] [--json FILE]``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from timing import Options, Row, main
from workload import PEAK_MB, BenchmarkError, Workplace, plant_listing

ENTRIES = 1_000_000
MOST_SECONDS = 5.0
MOST_MB = 150.0

MEASURE = f"""{PEAK_MB}
import json, time
import dvc.repo  # the ground that the goal is measured from
Path("/proc/self/clear_refs").write_text("5")  # forget a peak during the import
before, clock = peak(), time.perf_counter()
from dvc_integrity import Repository
manifest = Repository().manifest()
print(json.dumps([len(manifest), time.perf_counter() - clock, peak() - before]))
"""


def rows(options: Options, place: Workplace) -> list[Row]:
    """Build the manifest again and again, each time in a fresh process."""
    entries = options.scaled(ENTRIES)
    with place.project("listing") as root:
        plant_listing(root, entries)
        place.commit(root)
        runs = [measure(place, root, entries) for _ in range(options.pairs)]
    seconds, megabytes = zip(*runs, strict=True)
    work = f"manifest of {entries:,} files, past importing DVC"
    return [
        Row(work, seconds, most=MOST_SECONDS),
        Row(f"{work}: peak memory", megabytes, unit="MB", most=MOST_MB),
    ]


def measure(place: Workplace, root: Path, entries: int) -> tuple[float, float]:
    """Return the seconds and the megabytes of one build in a fresh process."""
    _, printed = place.run([sys.executable, "-c", MEASURE], root)
    length, seconds, megabytes = json.loads(printed)
    if length != entries:
        raise BenchmarkError(f"The manifest has {length} files, not {entries}.")
    return seconds, megabytes


if __name__ == "__main__":
    main(rows)

"""``dvc-integrity restore`` into an empty cache and work tree, next to ``dvc pull``.

Ours proves every byte and brings it down to the disk before it has its name; DVC does neither.

Usage: ``python benchmarks/restore.py [--scale X] [--pairs N] [--json FILE]``
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from timing import Options, Row, in_pairs, main
from workload import DVC, SEED, TOOL, Workplace, read_all, write_files

FILES, BYTES = 20_000, (55_000, 165_000)


def rows(options: Options, place: Workplace) -> list[Row]:
    """Compare a restore of 20,000 files from a local remote with ``dvc pull``."""
    files = options.scaled(FILES)
    low, high = BYTES
    sizes = np.random.default_rng(SEED).integers(low, high, files, endpoint=True).tolist()
    with place.project("restored") as root:
        remote = root.with_name("restored-remote")
        try:
            place.run([*DVC, "remote", "add", "-q", "-d", "disk", str(remote)], root)
            write_files(root / "data", sizes)
            place.track(root, "data")
            place.run([*DVC, "push", "-q"], root)
            values = in_pairs(
                lambda: fill(place, root, remote, [*TOOL, "restore", "--quiet"]),
                lambda: fill(place, root, remote, [*DVC, "pull", "--quiet"]),
                options.pairs,
            )
        finally:
            shutil.rmtree(remote, ignore_errors=True)
    work = f"restore {files:,} files of 55-165 kB from a local remote"
    return [Row(work, *values, peer="`dvc pull`", compared=True, least_ratio=1.5)]


def fill(place: Workplace, root: Path, remote: Path, command: Sequence[str]) -> float:
    """Return the seconds of a program that fills an empty cache and work tree.

    The remote is in the page cache; what ours wrote it reads from the device, on purpose.
    """
    shutil.rmtree(root / "data", ignore_errors=True)
    shutil.rmtree(root / ".dvc" / "cache", ignore_errors=True)
    read_all(remote)
    return place.run(command, root)[0]


if __name__ == "__main__":
    main(rows)

"""``dvc-integrity verify``, end to end, next to ``md5sum`` on all cores and DVC's own re-hash.

Every timed run finds its files in the page cache. Where start-up is taken off, it is the time of
a verify of one small file in another project, measured right before.

Usage: ``python benchmarks/verify.py [--scale X] [--pairs N] [--json FILE] [--million]``
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from startup import one_small_file
from timing import Options, Row, in_pairs, main
from workload import SEED, Workplace, listed_name, plant_listing, warmed, write_files

MEDIUM_FILES, MEDIUM_BYTES = 20_000, (55_000, 165_000)
SMALL_FILES, SMALL_BYTES = 100_000, 4_000
LARGE_FILES, LARGE_BYTES = 4, 1 << 30
MILLION = 1_000_000

MOST_MB = 300.0
MD5SUM = "md5sum on all cores"


def rows(options: Options, place: Workplace) -> list[Row]:
    """Measure medium, small and large files, and on demand a million of them."""
    with one_small_file(place) as tiny:
        measured = [*medium(options, place, tiny), *small(options, place, tiny)]
    measured += large(options, place)
    return [*measured, *million(options, place)] if options.million else measured


def medium(options: Options, place: Workplace, tiny: Path) -> list[Row]:
    """Compare 20,000 files of 55 to 165 kB with md5sum and with DVC."""
    files = options.scaled(MEDIUM_FILES)
    low, high = MEDIUM_BYTES
    sizes = np.random.default_rng(SEED).integers(low, high, files, endpoint=True).tolist()
    work = f"verify {files:,} files of 55-165 kB"
    with place.project("medium") as root:
        data = root / "data"
        write_files(data, sizes)
        place.track(root, "data")
        by_md5sum = in_pairs(
            warmed(data, lambda: without_start_up(place, root, tiny)),
            warmed(data, lambda: place.md5sum(data, files)),
            options.pairs,
        )
        by_dvc = in_pairs(
            warmed(data, lambda: place.verify(root)),
            warmed(data, lambda: place.dvc_rehash(root)),
            options.pairs,
        )
    return [
        Row(f"{work}, less start-up", *by_md5sum, peer=MD5SUM, compared=True, least_ratio=3.5),
        Row(
            f"{work}, with start-up",
            *by_dvc,
            peer="`dvc status`, state database removed",
            compared=True,
            least_ratio=8.0,
        ),
    ]


def small(options: Options, place: Workplace, tiny: Path) -> list[Row]:
    """Compare 100,000 files of 4 kB with md5sum, and measure memory."""
    files = options.scaled(SMALL_FILES)
    work = f"verify {files:,} files of 4 kB"
    with place.project("small-files") as root:
        data = root / "data"
        write_files(data, [SMALL_BYTES] * files)
        place.track(root, "data")
        values = in_pairs(
            warmed(data, lambda: without_start_up(place, root, tiny)),
            warmed(data, lambda: place.md5sum(data, files)),
            options.pairs,
        )
        peaks = tuple(place.peak(root) for _ in range(options.pairs))
    return [
        Row(f"{work}, less start-up", *values, peer=MD5SUM, compared=True, least_ratio=1.2),
        Row(f"{work}: peak memory", peaks, unit="MB", most=MOST_MB),
    ]


def large(options: Options, place: Workplace) -> list[Row]:
    """Compare the first verify of 4 x 1 GiB, then later ones, with md5sum, and measure memory.

    The first one reads with MD5 and may record digests of blocks for the later ones. It happens
    once to a project, so that each pair of it has its own, with the same files.
    """
    size = options.scaled(LARGE_BYTES)
    work = f"{LARGE_FILES} files of {size / (1 << 20):,.4g} MiB"
    with place.project("large") as root:
        data = root / "data"
        write_files(data, [size] * LARGE_FILES)
        place.track(root, "data")
        ours = warmed(data, lambda: place.verify(root))
        theirs = warmed(data, lambda: place.md5sum(data, LARGE_FILES))
        first = in_pairs(warmed(data, lambda: first_verify(place, root)), theirs, options.pairs)
        ours()  # records what the later ones use
        later = in_pairs(ours, theirs, options.pairs)
        peaks = tuple(place.peak(root) for _ in range(options.pairs))
    return [
        Row(
            f"first verify of {work}, which records digests of blocks",
            *first,
            peer=MD5SUM,
            compared=True,
        ),
        Row(f"second verify of {work}", *later, peer=MD5SUM, compared=True, least_ratio=3.0),
        Row(f"verify {work}: peak memory", peaks, unit="MB", most=MOST_MB),
    ]


def first_verify(place: Workplace, root: Path) -> float:
    """Return the seconds of a verify in a project that has never been verified."""
    with place.twin(root) as fresh:
        return place.verify(fresh)


def million(options: Options, place: Workplace) -> list[Row]:
    """Measure the memory of a verify of 1,000,000 files of a few bytes."""
    files = options.scaled(MILLION)
    with place.project("million") as root:
        plant_listing(root, files)
        for number in range(files):
            path = root / "data" / listed_name(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(number), encoding="utf-8")
        place.commit(root)
        peaks = tuple(place.peak(root) for _ in range(options.pairs))
    return [Row(f"verify {files:,} tiny files: peak memory", peaks, unit="MB", most=MOST_MB)]


def without_start_up(place: Workplace, root: Path, tiny: Path) -> float:
    """Return the seconds of a verify, less those of a verify of one small file."""
    start_up = place.verify(tiny)
    return place.verify(root) - start_up


if __name__ == "__main__":
    main(rows)

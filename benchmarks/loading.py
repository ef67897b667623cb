"""Epochs of the datasets next to the same data unverified, and rows of a large array.

An epoch is timed in a process of its own, over a loader whose two workers have already read
one epoch; the samples are in the page cache.

Usage: ``python benchmarks/loading.py [--scale X] [--pairs N] [--json FILE]``
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np

from timing import Options, Row, in_pairs, main
from workload import SEED, BenchmarkError, Workplace, warmed, write_files

EPOCHS = str(Path(__file__).with_name("epochs.py"))

RAW_FILES, RAW_BYTES = 20_000, 110_000
IMAGES, IMAGE_SIDE, IMAGE_QUALITY = 2_000, 352, 90
ROW_BYTES, ARRAY_ROWS = 1 << 10, 1 << 20
LEAST_ROWS = 32 << 10

IMAGES_RATIO, RAW_RATIO, SHARE_RATIO = 1.05, 1.4, 1.05
MOST_MIB_A_ROW = 1.1
UNVERIFIED = "the same unverified"


def rows(options: Options, place: Workplace) -> list[Row]:
    """Measure images, raw arrays and rows of an array."""
    return [*images(options, place), *raw(options, place), *array(options, place)]


def images(options: Options, place: Workplace) -> list[Row]:
    """Compare an epoch of JPEG images, decoded with Pillow."""
    count = options.scaled(IMAGES)
    with place.project("images") as root:
        size = write_images(root / "data", count)
        place.track(root, "data")
        pairs = compared(place, root, "jpeg", "always", "plain", options.pairs)
    work = f"an epoch of {count:,} JPEGs of {size / 1000:.0f} kB, 2 workers"
    return [Row(work, *pairs, peer=UNVERIFIED, compared=True, most_ratio=IMAGES_RATIO)]


def raw(options: Options, place: Workplace) -> list[Row]:
    """Compare an epoch of raw arrays, with every read hashed, and with a tenth of them."""
    count = options.scaled(RAW_FILES)
    work = f"an epoch of {count:,} raw arrays of {RAW_BYTES // 1000} kB, 2 workers"
    with place.project("raw") as root:
        write_files(root / "data", [RAW_BYTES] * count)
        place.track(root, "data")
        always = compared(place, root, "raw", "always", "plain", options.pairs)
        tenth = compared(place, root, "raw", "0.1", "plain", options.pairs)
        beside = streaming(options, place, root)
    return [
        Row(work, *always, peer=UNVERIFIED, compared=True, most_ratio=RAW_RATIO),
        Row(f"{work}, check=0.1", *tenth, peer=UNVERIFIED, compared=True, most_ratio=SHARE_RATIO),
        *(Row(f"{work}, the first", *pairs, peer=peer, compared=True) for peer, pairs in beside),
    ]


Pairs = tuple[tuple[float, ...], tuple[float, ...]]


def streaming(options: Options, place: Workplace, root: Path) -> list[tuple[str, Pairs]]:
    """Compare with MosaicML Streaming on the same samples, where it can be imported."""
    try:
        place.run([sys.executable, EPOCHS, "write", "data"], root)
    except BenchmarkError as error:
        reason = str(error).splitlines()[-1]
        print(f"left out: MosaicML Streaming cannot be used here ({reason})", file=sys.stderr)
        return []
    pairs = compared(place, root, "streamed", "always", "streaming", options.pairs)
    return [("MosaicML Streaming, validate_hash", pairs)]


def array(options: Options, place: Workplace) -> list[Row]:
    """Count what is hashed for random rows of a large array, and time them."""
    count = options.scaled(ARRAY_ROWS, least=LEAST_ROWS)
    work = f"random rows of 1 KiB of an array of {count * ROW_BYTES >> 20:,} MiB"
    with place.project("array") as root:
        write_array(root / "data.npy", count)
        place.track(root, "data.npy")
        place.verify(root)  # puts the blocks on record
        told: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}

        def timed(reader: str) -> float:
            told[reader].append(measured(place, root, "rows", reader))
            return 0.0

        in_pairs(
            warmed(root, lambda: timed("ours")), warmed(root, lambda: timed("plain")), options.pairs
        )

    def values(name: str, reader: str = "ours") -> tuple[float, ...]:
        return tuple(each[name] for each in told[reader][-options.pairs :])

    peer = "memory map"
    first, again = (
        (values(f"{turn} seconds"), values(f"{turn} seconds", "plain"))
        for turn in ("first", "again")
    )
    return [
        Row(f"{work}: hashed a row", values("first MiB"), unit="MiB", most=MOST_MIB_A_ROW),
        Row(f"{work}, blocks proven: hashed a row", values("again MiB"), unit="MiB", most=0.0),
        Row(f"{work}: 2,000 rows", *first, peer=peer, compared=True),
        Row(f"{work}, blocks proven: 2,000 rows", *again, peer=peer, compared=True),
    ]


def compared(place: Workplace, root: Path, work: str, ours: str, theirs: str, pairs: int) -> Pairs:
    """Time an epoch of two readers in turn."""
    return in_pairs(
        warmed(root, lambda: measured(place, root, work, ours)["seconds"]),
        warmed(root, lambda: measured(place, root, work, theirs)["seconds"]),
        pairs,
    )


def measured(place: Workplace, root: Path, work: str, reader: str) -> dict[str, float]:
    """Return what one process measured."""
    _, printed = place.run([sys.executable, EPOCHS, work, reader], root)
    told: dict[str, float] = json.loads(printed.splitlines()[-1])
    return told


def write_images(data: Path, count: int) -> float:
    """Write images of noise, the same in every run; return their mean size in bytes."""
    from PIL import Image  # noqa: PLC0415 (only the images need it)

    source = np.random.default_rng(SEED)
    data.mkdir()
    sizes = []
    for number in range(count):
        pixels = source.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=IMAGE_QUALITY)
        sizes.append((data / f"{number:05d}.jpg").write_bytes(file.getvalue()))
    return sum(sizes) / len(sizes)


def write_array(path: Path, count: int) -> None:
    """Write an array of random rows."""
    source = np.random.default_rng(SEED)
    kept = np.lib.format.open_memmap(path, "w+", np.uint8, (count, ROW_BYTES))
    for start in range(0, count, LEAST_ROWS):
        part = kept[start : start + LEAST_ROWS]
        part[:] = source.integers(0, 256, part.shape, np.uint8)
    kept.flush()


if __name__ == "__main__":
    main(rows)

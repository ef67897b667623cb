"""Bad bytes beside good ones: how many differ, and where.

The comparison goes through both contents once, a piece at a time, so that files of any size
need the same memory. It counts exactly; the map has a fixed number of cells, and of the ranges
only the first are kept.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.hashing import drop_cached_pages, file_state, open_file
from dvc_integrity.observation import FileState

__all__ = [
    "BLOCK_BYTES",
    "LINE_BYTES",
    "PAGE_BYTES",
    "SECTOR_BYTES",
    "Cell",
    "CellKind",
    "Content",
    "Damage",
    "DamageMap",
    "compare",
]

LINE_BYTES = 64
"""A cache line of the usual processors."""
SECTOR_BYTES = 512
"""What a disk reads and writes at the least."""
PAGE_BYTES = 4096
"""A page of memory, a block of the usual file systems."""
BLOCK_BYTES = 1 << 20
"""A block of a large file, as ``verify`` records them; also what is compared at a time."""

MAP_CELLS = 256
"""A map has at most so many cells; their size is a power of two."""

NEAR_BYTES = 16
"""Bytes that differ and have fewer equal bytes than this between them are one range."""

RANGES_KEPT = 64
"""Ranges that are kept; all are counted."""

PAGES_KEPT = 1024
"""Numbers of differing pages that are kept; all are counted."""

IN_MEMORY_BYTES = 8 << 20
"""What comes from a remote is kept in memory up to this size, else in a temporary file."""

_BITS = np.array([[value >> bit & 1 for bit in range(8)] for value in range(256)], np.int64)


class Content:
    """Bytes that can be read at any place; a context manager that closes them.

    Parameters
    ----------
    file
        Where they are: seekable, and not buffered if it is a file on a disk.
    size
        Their number.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._before = self._state()

    @classmethod
    def of_bytes(cls, data: bytes) -> Content:
        """Return bytes in memory."""
        return cls(io.BytesIO(data), len(data))

    @classmethod
    def of_file(cls, path: str | bytes, *, cold: bool = False) -> Content:
        """Open a regular file, and drop its cached pages first if ``cold``.

        Raises
        ------
        OSError
            If it cannot be opened, or is a folder or a special file.
        """
        descriptor, state = open_file(path)
        if cold:
            drop_cached_pages(descriptor)
        return cls(open(descriptor, "rb", buffering=0), state.size)

    @classmethod
    def of_stream(cls, chunks: Iterable[bytes], folder: str) -> Content:
        """Take in a stream; what is large lies in a file without a name in ``folder``.

        Raises
        ------
        OSError
            If the stream cannot be read, or the folder not written.
        """
        file: BinaryIO = io.BytesIO()
        try:
            for chunk in chunks:
                if isinstance(file, io.BytesIO) and file.tell() + len(chunk) > IN_MEMORY_BYTES:
                    file = _on_disk(file, folder)
                file.write(chunk)
            return cls(file, file.tell())
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Content:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def stable(self) -> bool:
        """Whether the file looks as it did when it was opened."""
        return self._before == self._state()

    def read_at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes, fewer at the end.

        Raises
        ------
        OSError
            If they cannot be read, or the file has become shorter.
        """
        wanted = max(0, min(count, self.size - offset))
        self._file.seek(offset)
        data = self._file.read(wanted)
        while len(data) < wanted:
            more = self._file.read(wanted - len(data))
            if not more:
                raise OSError(errno.EIO, "it became shorter while it was read")
            data += more
        return data

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a stretch, by default all, in pieces."""
        end = self.size if stop is None else min(stop, self.size)
        for offset in range(start, end, BLOCK_BYTES):
            yield self.read_at(offset, min(BLOCK_BYTES, end - offset))

    def reader(self) -> BinaryIO:
        """Return a file object over the bytes, with a position of its own."""
        return io.BufferedReader(_Window(self))

    def _state(self) -> FileState | None:
        if isinstance(self._file, io.FileIO):
            return file_state(self._file.fileno())
        return None  # nobody else writes there


class _Window(io.RawIOBase):
    """A position in a content."""

    def __init__(self, content: Content) -> None:
        super().__init__()
        self._content = content
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._content.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _on_disk(memory: io.BytesIO, folder: str) -> BinaryIO:
    os.makedirs(folder, exist_ok=True)
    file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (its Content closes it)
    file.write(memory.getbuffer())
    return file


class CellKind(str, Enum):
    """What a cell of a map shows."""

    GOOD = "good"
    DIFFERS = "differs"
    LACKS = "lacks"
    """Only the good content has bytes there."""
    SURPLUS = "surplus"
    """Only the bad content has bytes there."""


class Cell(NamedTuple):
    """A stretch of the contents, from ``start`` up to ``stop``, and how many bytes differ there."""

    start: int
    stop: int
    differing: int
    kind: CellKind

    def level(self, levels: int) -> int:
        """Return the share that differs as one of 1 to ``levels``; 0 if nothing does."""
        return -(-self.differing * levels // (self.stop - self.start))


@dataclass(frozen=True, slots=True)
class DamageMap:
    """Where bytes differ, in a fixed number of cells.

    Attributes
    ----------
    cell_bytes
        How many bytes a cell stands for, a power of two; the last one may be shorter.
    cells
        How many bytes of each cell differ. What only one of the two has, differs.
    """

    cell_bytes: int
    cells: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the map as a JSON object."""
        return {"cell_bytes": self.cell_bytes, "cells": list(self.cells)}


@dataclass(frozen=True, slots=True)
class Damage:
    """What differs between a bad content and the good one. Offsets and sizes are in bytes.

    Attributes
    ----------
    bad_bytes, good_bytes
        The two sizes.
    bits, bytes
        How many differ where both have bytes.
    bits_set
        Those of the differing bits that the bad content has as 1.
    first, last
        Offsets of the first and the last byte that differs; None if none does.
    flips
        How many of the differing bits are bit 0, 1, … 7 of their byte.
    stride
        The largest number that divides the distances between all bytes that differ; 0 if
        fewer than two do.
    sectors, pages, blocks
        How many aligned ones of 512 B, 4 KiB and 1 MiB differ.
    zeroed_pages, zeroed_sectors, zeroed
        How many of the differing bytes lie in pages that are zero throughout in the bad content,
        in such sectors, and are zero themselves.
    page_numbers
        Which pages differ, the first ``PAGES_KEPT`` of them.
    range_count
        How many ranges differ; equal stretches shorter than ``NEAR_BYTES`` part none.
    ranges
        The first ``RANGES_KEPT`` of them, as half-open ranges.
    map
        Where they lie. The only member that tells of the bytes past the end of the shorter one.
    """

    bad_bytes: int
    good_bytes: int
    bits: int
    bytes: int
    bits_set: int
    first: int | None
    last: int | None
    flips: tuple[int, ...]
    stride: int
    sectors: int
    pages: int
    blocks: int
    zeroed_pages: int
    zeroed_sectors: int
    zeroed: int
    page_numbers: tuple[int, ...]
    range_count: int
    ranges: tuple[tuple[int, int], ...]
    map: DamageMap

    @property
    def common(self) -> int:
        """How many bytes both have a place for."""
        return min(self.bad_bytes, self.good_bytes)

    @property
    def lacking(self) -> int:
        """How many bytes the bad content has too few."""
        return max(0, self.good_bytes - self.bad_bytes)

    @property
    def surplus(self) -> int:
        """How many bytes the bad content has too many."""
        return max(0, self.bad_bytes - self.good_bytes)

    @property
    def total(self) -> int:
        """How many bytes are to be explained: those that differ, lack, or are too many."""
        return self.bytes + self.lacking + self.surplus

    @property
    def span(self) -> int:
        """How many bytes there are from the first that differs to the last."""
        return 0 if self.first is None or self.last is None else self.last - self.first + 1

    def cells(self) -> Iterator[Cell]:
        """Yield the cells of the map, in order."""
        size = max(self.bad_bytes, self.good_bytes)
        tail = CellKind.LACKS if self.lacking else CellKind.SURPLUS
        for number, differing in enumerate(self.map.cells):
            start = number * self.map.cell_bytes
            kind = tail if start >= self.common else CellKind.DIFFERS
            stop = min(start + self.map.cell_bytes, size)
            yield Cell(start, stop, differing, kind if differing else CellKind.GOOD)

    def to_json(self) -> dict[str, Any]:
        """Return the damage as a JSON object."""
        return {
            "bad_bytes": self.bad_bytes,
            "good_bytes": self.good_bytes,
            "bits": self.bits,
            "bits_set": self.bits_set,
            "bytes": self.bytes,
            "lacking": self.lacking,
            "surplus": self.surplus,
            "first": self.first,
            "last": self.last,
            "flips": list(self.flips),
            "stride": self.stride,
            "sectors": self.sectors,
            "pages": self.pages,
            "blocks": self.blocks,
            "range_count": self.range_count,
            "ranges": [list(each) for each in self.ranges],
            "map": self.map.to_json(),
        }


def compare(
    bad: Content, good: Content, algorithm: Algorithm = Algorithm.MD5
) -> tuple[Damage, Digest, Digest]:
    """Compare two contents byte by byte, and hash the very bytes that are compared.

    Returns
    -------
    tuple[Damage, Digest, Digest]
        What differs, the digest of the bad content, and the one of the good content.

    Raises
    ------
    OSError
        If one cannot be read.
    """
    tally = _Tally(bad.size, good.size)
    hashers = algorithm.hasher(), algorithm.hasher()
    for offset in range(0, max(bad.size, good.size), BLOCK_BYTES):
        theirs, ours = (each.read_at(offset, BLOCK_BYTES) for each in (bad, good))
        for hasher, data in zip(hashers, (theirs, ours), strict=True):
            hasher.update(data)
        common = min(len(theirs), len(ours))
        if theirs[:common] != ours[:common]:
            tally.add(
                offset,
                np.frombuffer(theirs, np.uint8, common),
                np.frombuffer(ours, np.uint8, common),
            )
    found, proven = (Digest(algorithm, hasher.digest()) for hasher in hashers)
    return tally.damage(), found, proven


@dataclass(slots=True)
class _Tally:
    """Counts what differs, piece after piece."""

    bad_bytes: int
    good_bytes: int
    xor: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    bits_set: int = 0
    first: int | None = None
    last: int | None = None
    stride: int = 0
    units: dict[int, int] = field(
        default_factory=lambda: {SECTOR_BYTES: 0, PAGE_BYTES: 0, BLOCK_BYTES: 0}
    )
    zeroed_in: dict[int, int] = field(
        default_factory=lambda: {1: 0, SECTOR_BYTES: 0, PAGE_BYTES: 0}
    )
    pages: list[int] = field(default_factory=list)
    range_count: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    pending: tuple[int, int] | None = None
    cell_bytes: int = field(init=False)
    cells: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        size = max(self.bad_bytes, self.good_bytes)
        self.cell_bytes = 1 << max(0, -(-size // MAP_CELLS) - 1).bit_length()
        self.cells = np.zeros(-(-size // self.cell_bytes), np.int64)
        self._mark_tail(min(self.bad_bytes, self.good_bytes), size)

    def add(self, offset: int, bad: NDArray[np.uint8], good: NDArray[np.uint8]) -> None:
        """Take in a piece that differs; ``offset`` is a multiple of ``BLOCK_BYTES``."""
        xor = bad ^ good
        differs = xor != 0
        self.xor += np.bincount(xor, minlength=256)
        self.bits_set += int(np.bincount(xor & bad, minlength=256) @ _BITS.sum(axis=1))
        positions = np.flatnonzero(differs)
        if self.stride != 1:
            anchor = positions[0] if self.last is None else self.last - offset
            distances = np.abs(positions - anchor)
            self.stride = int(np.gcd(self.stride, np.gcd.reduce(distances)))
        if self.first is None:
            self.first = offset + int(positions[0])
        self.last = offset + int(positions[-1])
        self._add_units(offset, bad, differs)
        self._add_cells(offset, differs)
        self._add_ranges(offset, differs)

    def damage(self) -> Damage:
        """Return what was counted."""
        self._close()
        flips = self.xor @ _BITS
        return Damage(
            bad_bytes=self.bad_bytes,
            good_bytes=self.good_bytes,
            bits=int(flips.sum()),
            bytes=int(self.xor[1:].sum()),
            bits_set=self.bits_set,
            first=self.first,
            last=self.last,
            flips=tuple(flips.tolist()),
            stride=self.stride,
            sectors=self.units[SECTOR_BYTES],
            pages=self.units[PAGE_BYTES],
            blocks=self.units[BLOCK_BYTES],
            zeroed_pages=self.zeroed_in[PAGE_BYTES],
            zeroed_sectors=self.zeroed_in[SECTOR_BYTES],
            zeroed=self.zeroed_in[1],
            page_numbers=tuple(self.pages),
            range_count=self.range_count,
            ranges=tuple(self.ranges),
            map=DamageMap(self.cell_bytes, tuple(self.cells.tolist())),
        )

    def _mark_tail(self, start: int, stop: int) -> None:
        """Count what only one of the two has as differing, on the map alone."""
        edges = np.arange(len(self.cells) + 1, dtype=np.int64) * self.cell_bytes
        edges = np.clip(edges, start, stop)
        self.cells += np.diff(edges)

    def _add_units(self, offset: int, bad: NDArray[np.uint8], differs: NDArray[np.bool_]) -> None:
        self.zeroed_in[1] += int(np.count_nonzero(differs & (bad == 0)))
        self.units[BLOCK_BYTES] += 1
        for unit in (SECTOR_BYTES, PAGE_BYTES):
            counts = _per(unit, differs)
            zero = _per(unit, bad != 0) == 0
            self.units[unit] += int(np.count_nonzero(counts))
            self.zeroed_in[unit] += int(counts[zero].sum())
        numbers = np.flatnonzero(counts)[: PAGES_KEPT - len(self.pages)] + offset // PAGE_BYTES
        self.pages += numbers.tolist()

    def _add_cells(self, offset: int, differs: NDArray[np.bool_]) -> None:
        counts = _per(min(self.cell_bytes, BLOCK_BYTES), differs)
        start = offset // self.cell_bytes
        self.cells[start : start + len(counts)] += counts

    def _add_ranges(self, offset: int, differs: NDArray[np.bool_]) -> None:
        edges = np.flatnonzero(np.diff(differs.view(np.int8), prepend=0, append=0)) + offset
        starts, stops = edges[::2], edges[1::2]
        apart = np.flatnonzero(starts[1:] - stops[:-1] >= NEAR_BYTES)
        starts = starts[np.concatenate(([0], apart + 1))]
        stops = stops[np.concatenate((apart, [len(stops) - 1]))]
        if self.pending and starts[0] - self.pending[1] < NEAR_BYTES:
            starts[0] = self.pending[0]
        else:
            self._close()
        closed = len(starts) - 1
        room = min(closed, RANGES_KEPT - len(self.ranges))
        self.ranges += zip(starts[:room].tolist(), stops[:room].tolist(), strict=True)
        self.range_count += closed
        self.pending = int(starts[-1]), int(stops[-1])

    def _close(self) -> None:
        """End the range that the next piece might have gone on with."""
        if self.pending is None:
            return
        self.range_count += 1
        if len(self.ranges) < RANGES_KEPT:
            self.ranges.append(self.pending)
        self.pending = None


def _per(unit: int, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count what is true in each unit, the last of which may be shorter."""
    whole = len(flags) // unit * unit
    counts = np.count_nonzero(flags[:whole].reshape(-1, unit), axis=1)
    rest = [np.count_nonzero(flags[whole:])] if whole < len(flags) else []
    return np.append(counts, np.array(rest, np.int64)).astype(np.int64)

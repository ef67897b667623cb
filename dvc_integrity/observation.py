"""What reading files showed: one file as a value, many files as columns.

An observation says which bytes were read and what the file system said before and after, on
the same descriptor. It never says whether that is good.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.digest import DIGEST_BYTES

__all__ = ["RECORD", "FileState", "Observation", "Observations", "SpecialFileError"]

_STATE = (np.int64, (6,))
RECORD = np.dtype(
    [
        ("digest", np.uint8, (DIGEST_BYTES,)),
        ("size", np.int64),
        ("before", *_STATE),
        ("after", *_STATE),
        ("error", np.int64),
    ]
)
"""One file as the native kernel writes it (``record`` in ``_lanes.c``), and as a row of columns."""

_PACKED = struct.Struct(f"{DIGEST_BYTES}s14q")
_NO_DIGEST = bytes(DIGEST_BYTES)
_NO_STATE = (0,) * 6
_MODE = 5

_SIGN = 1 << 63


class FileState(NamedTuple):
    """What ``fstat`` said of an open file, in signed 64-bit numbers. Times are in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int

    @classmethod
    def of(cls, result: os.stat_result) -> FileState:
        """Keep the fields that tell whether a file was touched."""
        return cls(
            result.st_dev,
            result.st_ino,
            result.st_size,
            result.st_mtime_ns,
            result.st_ctime_ns,
            result.st_mode,
        )


class Observation(NamedTuple):
    """What one read of one file showed.

    Attributes
    ----------
    digest
        Of the bytes that were read; None if ``error`` is set, and after a read by blocks that
        showed other blocks than the recorded ones.
    size
        Bytes that were read, also when the read failed half way.
    before, after
        The state of the file on the descriptor that was read; None where there is none.
    error
        Why it could not be read.
    blocks
        Digests of its blocks, 32 bytes each, where they were taken and somebody will look.
    by_blocks
        Whether the digest was shown by the digests of blocks that are bound to it.
    """

    digest: bytes | None
    size: int
    before: FileState | None
    after: FileState | None
    error: OSError | None
    blocks: bytes | None = None
    by_blocks: bool = False

    @property
    def stable(self) -> bool:
        """Whether the file looked the same before and after it was read."""
        return self.before == self.after


class Observations(Sequence[Observation]):
    """What the reads of several files showed, in columns.

    Parameters
    ----------
    positions
        Which of the inputs each row is about; int64[n].
    records
        The columns; ``RECORD``[n], with an ``error`` other than 0 where the read failed.
    errors
        The error of each row that failed.
    blocks
        Digests of blocks, by row.
    by_blocks
        Whether all of it was read by blocks.
    """

    def __init__(
        self,
        positions: NDArray[np.int64],
        records: NDArray[np.void],
        errors: Mapping[int, OSError],
        blocks: Mapping[int, bytes] | None = None,
        *,
        by_blocks: bool = False,
    ) -> None:
        self.positions = positions
        self._records = records
        self._errors = errors
        self._blocks = blocks or {}
        self.by_blocks = by_blocks

    @classmethod
    def of(cls, positions: Sequence[int], seen: Sequence[Observation]) -> Observations:
        """Bring single observations, all by blocks or none, into columns."""
        packed = b"".join(map(_packed, seen))
        return cls(
            np.asarray(positions, np.int64),
            np.frombuffer(packed, RECORD),
            {row: each.error for row, each in enumerate(seen) if each.error},
            {row: each.blocks for row, each in enumerate(seen) if each.blocks is not None},
            by_blocks=any(each.by_blocks for each in seen),
        )

    @property
    def digests(self) -> NDArray[np.uint8]:
        """Digests, uint8[n, 16]; zeros where there is none."""
        return self._records["digest"]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes that were read; int64[n]."""
        return self._records["size"]

    @property
    def modes(self) -> NDArray[np.int64]:
        """File modes after the read, 0 where there is none; int64[n]."""
        return self._records["after"][:, _MODE]

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Whether there is no digest; bool[n]."""
        return self._records["error"] != 0  # type: ignore[no-any-return]

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Whether a file looked the same before and after it was read; bool[n]."""
        same: NDArray[np.bool_] = (self._records["before"] == self._records["after"]).all(axis=1)
        return same

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Observation:  # type: ignore[override]  # no slices
        record = self._records[row]
        failed = bool(record["error"])
        return Observation(
            None if failed else record["digest"].tobytes(),
            int(record["size"]),
            _state(record["before"]),
            _state(record["after"]),
            self._errors.get(row),
            self._blocks.get(row),
            self.by_blocks,
        )

    def __iter__(self) -> Iterator[Observation]:
        return map(self.__getitem__, range(len(self)))


class SpecialFileError(OSError):
    """A FIFO, a socket or a device lies where a file should be."""


def _packed(seen: Observation) -> bytes:
    return _PACKED.pack(
        seen.digest or _NO_DIGEST,
        seen.size,
        *map(_signed, seen.before or _NO_STATE),
        *map(_signed, seen.after or _NO_STATE),
        seen.digest is None,
    )


def _signed(number: int) -> int:
    """Wrap what does not fit, as the native kernel does: inode numbers may use the 64th bit."""
    return (number + _SIGN) % (2 * _SIGN) - _SIGN


def _state(numbers: NDArray[np.int64]) -> FileState | None:
    state = FileState(*numbers.tolist())
    return state if state.mode else None

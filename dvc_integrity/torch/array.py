"""Rows of a large ``.npy`` file as a map-style dataset, proven block by block."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from dvc_integrity.errors import ManifestError, printable
from dvc_integrity.incidents import TooManyIncidents
from dvc_integrity.reader import OnCorrupt
from dvc_integrity.report import CorruptDataError
from dvc_integrity.torch.samples import VerifiedSamples, call, open_reader, share_inherited_memory

__all__ = ["VerifiedArray"]

LARGEST_HEADER_BYTES = 1 << 16


class VerifiedArray(VerifiedSamples[Any]):
    """The rows (along the first axis) of a ``.npy`` file, as tensors.

    Of a file of 16 MiB or more only the blocks of 1 MiB that a row lies in are read, and each is
    proven when this process touches it first. Where its blocks are not on record, the file is
    read in full once, and then they are. A smaller file is read whole, and kept.

    Parameters
    ----------
    target
        A tracked ``.npy`` file, relative to ``root``.
    rev
        The Git revision that the file is held to, as for ``VerifiedFiles``.
    source
        Where the bytes come from: ``workspace``, ``cache``, ``remote`` or ``remote:NAME``.
    transform
        Turns a row (a tensor) into a sample. What it raises keeps its type, as ``decode`` of
        ``VerifiedFiles``.
    on_corrupt
        ``raise``; ``restore``: a proven copy from the cache or a remote takes the file's place,
        and reading goes on with it; ``substitute``: another row, chosen by ``seed``, epoch and
        index alone, takes the place of one that lies in a bad block. Samples are then pairs of
        the sample and whether it is the one that was asked for. The block with the header has
        no substitute.
    error_budget
        Bad blocks that are permitted, over all workers, before the run ends with
        ``TooManyIncidents``: a count, or a share of the rows that were read as a float.
    seed
        For substitutes.
    root
        A folder inside the DVC project.

    Attributes
    ----------
    shape
        Of the whole array.
    dtype
        Of a row's tensor.

    Raises
    ------
    RepositoryError, NothingToVerify
        As ``VerifiedFiles``.
    ManifestError
        If the target is not one ``.npy`` file of a numeric type, in C order.
    CorruptDataError
        If the file is not what was committed, as far as it was read.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        rev: str | None = None,
        source: str = "workspace",
        transform: Callable[[torch.Tensor], Any] | None = None,
        on_corrupt: OnCorrupt = "raise",
        error_budget: float | None = None,
        seed: int = 0,
        root: str | os.PathLike[str] = ".",
    ) -> None:
        reader = open_reader(
            target,
            root=root,
            rev=rev,
            source=source,
            on_corrupt=on_corrupt,
            error_budget=error_budget,
            seed=seed,
        )
        super().__init__(reader, on_corrupt, seed)
        if len(self.manifest) != 1:
            raise ManifestError(
                f"'{printable(os.fspath(target))}' holds {len(self.manifest)} files; name one "
                f"'.npy' file."
            )
        self._transform = transform
        self._whole: bytes | None = None
        self.shape, self._type, self._start = self._header()
        if reader.incidents is not None:
            reader.incidents.samples = len(self)
        self.dtype = torch.from_numpy(np.empty(0, self._type.newbyteorder("="))).dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the rows of a batch, tensors of shape ``shape[1:]``, transformed."""
        share_inherited_memory()
        if self.reader.incidents is not None:
            self.reader.incidents.add_reads(len(indices))
        return [self._sample(self._position(index)) for index in indices]

    def _sample(self, index: int) -> Any:
        intact = True
        try:
            at, row = self._row(index)
        except TooManyIncidents:
            raise
        except CorruptDataError as error:
            if not self._substitutes or self._whole is not None:
                raise
            intact = False
            at, row = self._instead(index, error, self._row)
        if self._transform is not None:
            row = call(
                self._transform,
                row,
                what="transform",
                where=lambda: f"row {at} of '{self._name}'",
            )
        return (row, intact) if self._substitutes else row

    def _row(self, index: int) -> tuple[int, torch.Tensor]:
        return index, self.rows(index, 1)[0]

    def rows(self, start: int, count: int) -> torch.Tensor:
        """Return ``count`` rows from ``start`` on, a tensor of shape ``(count, *shape[1:])``."""
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"rows {start} to {start + count} of an array of {len(self)}")
        values = np.empty((count, *self.shape[1:]), self._type)
        size = values.nbytes
        offset = self._start + start * (size // count if count else 0)
        if size:
            self._read(offset, values.reshape(-1).view(np.uint8).data)
        return torch.from_numpy(values.astype(self._type.newbyteorder("="), copy=False))

    def _read(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the proven bytes at ``offset``."""
        if self._whole is None and self.reader.open_blocks(0) is None:
            (whole,) = self.reader.read_rows([0])
            if self.reader.open_blocks(0) is None:  # else it was restored: there is no need
                self._whole = whole
        if self._whole is None:
            count = self.reader.read_at(0, offset, view)
        else:
            part = self._whole[offset : offset + len(view)]
            count = len(part)
            view[:count] = part
        if count != len(view):
            raise ManifestError(
                f"'{self._name}' ends before the rows that its header promises. It was committed "
                f"like this: write it anew, 'dvc add' and commit."
            )

    def _header(self) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Return shape, type and where the values begin, from the file's proven header."""
        with self.reader.open(self.manifest[0].path) as file:
            header = io.BytesIO(file.read(LARGEST_HEADER_BYTES))
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        try:
            version = npy.read_magic(header)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy warns where it guesses
                shape, by_column, dtype = read[version](header)
        except (ValueError, KeyError, UserWarning) as error:
            raise ManifestError(
                f"'{self._name}' is not a '.npy' file that can be read by rows: {error}."
            ) from error
        if by_column or dtype.hasobject or not shape or dtype.kind not in "biufc":
            raise ManifestError(
                f"'{self._name}' cannot be read by rows: it must hold numbers, in C order, with at "
                f"least one axis, and has {dtype} of shape {shape}"
                f"{' in Fortran order' if by_column else ''}. Save it with "
                f"numpy.save(…, numpy.ascontiguousarray(…))."
            )
        return shape, dtype, header.tell()

    @property
    def _name(self) -> str:
        return printable(self.manifest[0].path)

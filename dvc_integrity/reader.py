"""Bytes that were proven as they were read.

A ``Reader`` reads a file once, hashes the buffer it read, compares it with the manifest, and
hands on that very buffer. It knows neither DVC nor PyTorch, pickles to a manifest and what a
store is, and opens nothing until it is asked for bytes.
"""

from __future__ import annotations

import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn

import numpy as np

from dvc_integrity.blocks import Blocks, BlockUse, ProvenFile
from dvc_integrity.digest import Algorithm
from dvc_integrity.errors import ManifestError, RestoreError, printable
from dvc_integrity.hashing import LARGE_BYTES
from dvc_integrity.incidents import Incidents
from dvc_integrity.judgement import is_expected, judge
from dvc_integrity.manifest import Entry, Manifest
from dvc_integrity.observation import Observation
from dvc_integrity.report import CorruptDataError, Finding, Hint, Status
from dvc_integrity.restore import Restorer
from dvc_integrity.schedule import Schedule
from dvc_integrity.stores import ObjectStore, Workspace

__all__ = ["Reader"]

logger = logging.getLogger(__name__)


class Reader:
    """Reads files of a manifest; what it returns is what was committed.

    Parameters
    ----------
    manifest
        What the files must be.
    store
        Where the bytes come from: ``Repository(…).workspace``, or its cache or a remote, so that
        another version of the data can be read than the one that is checked out.
    restorer
        Brings a file back that is not good; None: it is an error.
    incidents
        Where what was met is written down, and how much of it ends the run.
    schedule
        Which reads are hashed; by default all of them.
    refusal
        What the log says was done about a file that is not handed on.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: Workspace | ObjectStore,
        *,
        restorer: Restorer | None = None,
        incidents: Incidents | None = None,
        schedule: Schedule | None = None,
        refusal: str = "raised",
    ) -> None:
        self.manifest = manifest
        self.restorer = restorer
        self.incidents = incidents
        self.schedule = schedule or Schedule()
        self._refusal = refusal
        self._store = store.detached()
        self._checked = bytearray(len(manifest) if self.schedule.once else 0)
        self._opened: dict[int, ProvenFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": bytearray(len(self._checked)), "_opened": {}}

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """Return the bytes of a file, proven.

        Parameters
        ----------
        path
            As the manifest has it (relative to the DVC root), or absolute.

        Raises
        ------
        CorruptDataError
            If the bytes are not the committed ones, twice; or there are none to read.
        ManifestError
            If the manifest does not list the path.
        """
        (data,) = self.read_rows([self.row(path)])
        return data

    def read_many(self, paths: Iterable[str | os.PathLike[str]]) -> list[bytes]:
        """Return the bytes of several files, each proven, in order; they are hashed together.

        Raises
        ------
        CorruptDataError, ManifestError
            As ``read``; the first file that is not good decides.
        """
        return self.read_rows([self.row(path) for path in paths])

    def read_rows(self, rows: Sequence[int], *, epoch: int = 0) -> list[bytes]:
        """Return the bytes of entries of the manifest, in order.

        Parameters
        ----------
        rows
            Positions in the manifest.
        epoch
            Which epoch this is, for a schedule that does not hash every read.

        Raises
        ------
        CorruptDataError
            As ``read``.
        """
        for row in rows:
            if not self.manifest.has_digest(row):
                entry = self.manifest[row]
                why = "no content hash is committed for it"
                self._raise(Finding(entry.path, entry.out, Status.UNVERIFIABLE, detail=why))
        if self.incidents is not None:
            self.incidents.add_reads(len(rows))
        due = self._due(rows, epoch)
        read = self._store.read(self.manifest, rows, hashed=due)
        return [
            self._judged(row, data, seen) if check or seen.error else data
            for row, check, (data, seen) in zip(rows, due, read, strict=True)
        ]

    def open(self, path: str | os.PathLike[str]) -> BinaryIO:
        """Return a file object over the proven bytes of a file.

        A file of 16 MiB or more that lies on this machine is read in blocks of 1 MiB: only those
        that are touched, each proven when it is touched first in this process. Where its blocks
        are not on record, it is read in full once.

        Raises
        ------
        CorruptDataError, ManifestError
            As ``read``: before the first byte can be taken, or when a damaged block is touched.
        """
        row = self.row(path)
        proven = self.open_blocks(row)
        return io.BufferedReader(_View(proven)) if proven else io.BytesIO(self.read_rows([row])[0])

    def open_blocks(self, row: int) -> ProvenFile | None:
        """Return a file of which only the blocks that are touched are read, kept open.

        None if the file is small, or has no blocks on record and none can be recorded.

        Raises
        ------
        CorruptDataError
            If the file is not what was committed, as far as that is known by now.
        """
        if row not in self._opened:
            path = self._store.place(self.manifest, row)
            if path is None or not self._is_large(path):
                return None
            blocks = self._blocks(row)
            if blocks is None or os.path.getsize(path) != blocks.size:
                return None  # read in full, it says for itself what is wrong
            self._opened[row] = ProvenFile(path, blocks, self._damaged(row))
        return self._opened[row]

    def row(self, path: str | os.PathLike[str]) -> int:
        """Return the position of a path in the manifest.

        Raises
        ------
        ManifestError
            If the manifest does not list it.
        """
        name = os.path.normpath(os.fspath(path))
        if os.path.isabs(name) and isinstance(self._store, Workspace):
            name = os.path.relpath(name, self._store.root)
        row = self.manifest.find(name)
        if row is None:
            raise ManifestError(
                f"'{printable(name)}' is not in the manifest of "
                f"{', '.join(map(printable, self.manifest.targets))} at {self.manifest.rev}, so "
                f"there is nothing to hold it to. Track it with DVC and commit, or widen the "
                f"target."
            )
        return row

    def _due(self, rows: Sequence[int], epoch: int) -> list[bool]:
        if self.schedule.once:
            return [not self._checked[row] for row in rows]
        if self.schedule.epochs == 1:
            return [True] * len(rows)
        due: list[bool] = self.schedule.due(np.asarray(rows, np.int64), epoch).tolist()
        return due

    def _judged(self, row: int, data: bytes, first: Observation) -> bytes:
        """Return bytes that are good; else read again, restore, or raise."""
        entry = self.manifest[row]
        if not is_expected(entry, first):
            ((data, second),) = self._store.read(self.manifest, [row], cold=True)
            finding = judge(entry, first, second, lambda _: Hint(), immutable=self._store.immutable)
            if is_expected(entry, second) or finding is None:
                why = finding.detail if finding else "it was written while it was read first"
                self._note(_transient(entry, why), "transient")
            else:
                data = self._mended(row, finding)
        if self.schedule.once:
            self._checked[row] = 1
        return data

    def _mended(self, row: int, finding: Finding) -> bytes:
        if self.restorer is None:
            self._raise(finding)
        try:
            data, source = self.restorer.bring_back(self.manifest, row)
        except RestoreError as error:
            self._raise(replace(finding, detail=f"{finding.detail}; {error}".lstrip("; ")))
        if source != self._store.name:  # else another process has put it on record
            self._note(finding, "restored", source=source)
        return data

    def _raise(self, finding: Finding) -> NoReturn:
        self._note(finding, self._refusal)
        raise CorruptDataError(finding=finding)

    def _note(self, finding: Finding, action: str, **more: Any) -> None:
        if self.incidents is not None:
            self.incidents.note(finding, action, **more)
        elif action == "transient":
            logger.warning(
                "'%s' gave the committed bytes only when read again", printable(finding.path)
            )

    def _is_large(self, path: bytes) -> bool:
        try:
            return os.path.getsize(path) >= LARGE_BYTES
        except OSError:
            return False  # read in full, it says for itself what is wrong

    def _blocks(self, row: int) -> Blocks | None:
        """Return the record of a file's blocks; read the file in full if there is none yet."""
        entry, records = self.manifest[row], self._store.blocks
        if records is None or entry.digest is None or entry.digest.algorithm is not Algorithm.MD5:
            return None
        blocks = records.find(entry.digest, entry.size)
        if blocks is None:
            rows = np.array([row], np.int64)
            read = self._store.observe(
                self.manifest, rows, entry.digest.algorithm, blocks=BlockUse.RECORD
            )
            deque(read, maxlen=0)  # what it saw is on record, if it was good
            blocks = records.find(entry.digest, entry.size)
        return blocks

    def _damaged(self, row: int) -> Callable[[int, int], Exception]:
        entry, immutable = self.manifest[row], self._store.immutable

        def error(start: int, stop: int) -> Exception:
            finding = Finding(
                entry.path,
                entry.out,
                Status.CORRUPT if immutable else Status.MODIFIED,
                expected=entry.digest,
                detail=f"bytes {start}-{stop - 1} differ",
                ranges=((start, stop),),
            )
            try:
                self._note(finding, self._refusal)
            except CorruptDataError as over_budget:
                return over_budget
            return CorruptDataError(finding=finding)

        return error


def _transient(entry: Entry, why: str) -> Finding:
    return Finding(
        entry.path,
        entry.out,
        Status.OK,
        expected=entry.digest,
        found=entry.digest,
        size=entry.size,
        transient=True,
        detail=why,
    )


class _View(io.RawIOBase):
    """A position of its own in a file that stays open."""

    def __init__(self, file: ProvenFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}
        if start[whence] + offset < 0:
            raise ValueError(f"negative position {start[whence] + offset}")
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = self._file.read_at(self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count

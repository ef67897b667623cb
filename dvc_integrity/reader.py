"""Bytes that were proven as they were read.

A ``Reader`` reads a file once, hashes the buffer it read, compares it with the manifest, and
hands on that very buffer. It knows neither DVC nor PyTorch, pickles to a manifest and what a
store is, and opens nothing until it is asked for bytes.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO, Literal

import numpy as np

from dvc_integrity.blocks import BlockDiffers, Blocks, BlockUse, ProvenFile
from dvc_integrity.digest import DIGEST_BYTES, Algorithm
from dvc_integrity.errors import ManifestError, RestoreError, printable
from dvc_integrity.hashing import LARGE_BYTES
from dvc_integrity.incidents import Incidents, TooManyIncidents
from dvc_integrity.judgement import is_expected, judge
from dvc_integrity.manifest import UNKNOWN_SIZE, Entry, Manifest
from dvc_integrity.observation import FileState, Observation
from dvc_integrity.report import CorruptDataError, Finding, Hint, Status
from dvc_integrity.restore import Restorer
from dvc_integrity.schedule import Schedule
from dvc_integrity.stores import ObjectStore, Workspace

__all__ = ["OnCorrupt", "Reader"]

logger = logging.getLogger(__name__)

OnCorrupt = Literal["raise", "restore", "substitute"]
"""What is done about a file that is not what was committed."""

MOST_OPEN = 16
"""Large files that a reader keeps open; each holds a descriptor and up to 4 MiB."""

MOST_SETTLEMENTS = 5
"""How often in a row a block may differ from a file that is good as a whole."""


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

    Attributes
    ----------
    epoch
        Which epoch this is, for a schedule that hashes a share of the files an epoch. While it is
        None every read is hashed.
    """

    _process = 0

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
        self.epoch: int | None = None
        self._store = store.detached()
        self._checked = bytearray(len(manifest) if self.schedule.once else 0)
        self._opened: dict[int, ProvenFile] = {}
        self._settled: dict[int, Blocks] = {}
        self._verdicts: dict[int, tuple[FileState, Finding]] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"_checked": bytearray(len(self._checked)), "_opened": {}, "_verdicts": {}}
        state = {**self.__dict__, **fresh}
        del state["_process"]  # it is another one
        return state

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

    def read_rows(self, rows: Sequence[int], *, epoch: int | None = None) -> list[bytes]:
        """Return the bytes of entries of the manifest, in order.

        Parameters
        ----------
        rows
            Positions in the manifest.
        epoch
            Which epoch this is, as the attribute, which it stands in for.

        Raises
        ------
        CorruptDataError
            As ``read``.
        """
        return list(self.stream_rows(rows, epoch=epoch))

    def stream_rows(self, rows: Sequence[int], *, epoch: int | None = None) -> Iterator[bytes]:
        """Yield what ``read_rows`` returns.

        What is hashed is read at once and hashed together. A file that the schedule leaves out is
        read when it is asked for, so that it can be used while it is in the processor's cache.
        """
        for row in rows:
            self._refuse_unverifiable(row)
        for row, settled, data, seen in self._taken(rows, epoch):
            yield data if settled else self._judged(row, data, seen)

    def read_each(
        self, rows: Sequence[int], *, epoch: int | None = None
    ) -> list[bytes | CorruptDataError]:
        """Return the bytes of entries as ``read_rows``, and for a bad one the error as a value.

        Raises
        ------
        TooManyIncidents
            If there are more incidents than the error budget permits.
        """
        found: list[bytes | CorruptDataError] = []
        for row, settled, data, seen in self._taken(rows, epoch):
            try:
                self._refuse_unverifiable(row)
                found.append(data if settled else self._judged(row, data, seen))
            except TooManyIncidents:
                raise
            except CorruptDataError as error:
                found.append(error)
        return found

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
        size = self.open_blocks(row)
        if size is None:
            return io.BytesIO(self.read_rows([row])[0])
        return io.BufferedReader(_View(self, row, size))

    def open_blocks(self, row: int) -> int | None:
        """Open a file for ``read_at``, and return its size in bytes.

        None if it is to be read in full: it is small or not on this machine, or it is not what
        was committed and its blocks are not on record.
        """
        file = self._open_file(row)
        return file.blocks.size if file else None

    def read_at(self, row: int, offset: int, view: memoryview) -> int:
        """Fill ``view`` with proven bytes of a file; return how many there are.

        Only the blocks that are touched are read. Where one differs from its record, the file's
        MD5 decides: if that is good the record was wrong, and is written anew.

        Raises
        ------
        CorruptDataError
            If the file is not what was committed, and is not restored.
        """
        for _ in range(MOST_SETTLEMENTS):
            file = self._open_file(row)
            if file is None:  # it became small, or vanished: read in full, it is judged
                part = self.read_rows([row])[0][offset : offset + len(view)]
                view[: len(part)] = part
                return len(part)
            try:
                return file.read_at(offset, view)
            except (BlockDiffers, OSError) as error:
                self._opened.pop(row, None)
                self._settle(row, file.blocks, error)
        entry = self.manifest[row]
        why = "its blocks keep differing while the file as a whole is good"
        raise self._refused(
            Finding(entry.path, entry.out, Status.UNSTABLE, entry.digest, detail=why)
        )

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

    def _refuse_unverifiable(self, row: int) -> None:
        if not self.manifest.has_digest(row):
            entry = self.manifest[row]
            why = "no content hash is committed for it"
            raise self._refused(Finding(entry.path, entry.out, Status.UNVERIFIABLE, detail=why))

    def _taken(
        self, rows: Sequence[int], epoch: int | None
    ) -> Iterator[tuple[int, bool, bytes, Observation]]:
        """Read entries; yield each with whether that settles it, and what was seen.

        Nearly every file is good, so whole columns are compared; the judgement decides on the rest.
        """
        self._forget_other_process()
        if self.incidents is not None:
            self.incidents.add_reads(len(rows))
        due = self._due(rows, self.epoch if epoch is None else epoch)
        hashed = [row for row, check in zip(rows, due, strict=True) if check]
        read = iter(self._store.read(self.manifest, hashed))
        digests = self.manifest.digests[hashed].tobytes()
        sizes = self.manifest.sizes[hashed].tolist()
        at = 0
        for row, check in zip(rows, due, strict=True):
            if not check:
                data, seen = self._store.read_unhashed(self.manifest, row)
                size = int(self.manifest.sizes[row])
                plausible = seen.error is None and seen.stable
                yield row, plausible and size in (UNKNOWN_SIZE, seen.size), data, seen
                continue
            data, seen = next(read)
            expected = digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES]
            settled = seen.digest == expected and sizes[at] in (UNKNOWN_SIZE, seen.size)
            if settled and self.schedule.once:
                self._checked[row] = 1
            yield row, settled, data, seen
            at += 1

    def _due(self, rows: Sequence[int], epoch: int | None) -> list[bool]:
        if self.schedule.once:
            return [not self._checked[row] for row in rows]
        if self.schedule.epochs == 1 or epoch is None:
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
            raise self._refused(finding)
        try:
            data, source = self.restorer.bring_back(self.manifest, row)
        except RestoreError as error:
            finding = replace(finding, detail=f"{finding.detail}; {error}".lstrip("; "))
            raise self._refused(finding) from error
        if source != self._store.name:  # else another process has put it on record
            self._note(finding, "restored", source=source)
        return data

    def _refused(self, finding: Finding, noted: Finding | None = None) -> CorruptDataError:
        """Write down that a file is not handed on; return the error to raise."""
        self._note(noted or finding, self._refusal)
        return CorruptDataError(finding=finding)

    def _note(self, finding: Finding, action: str, **more: Any) -> None:
        if self.incidents is not None:
            self.incidents.note(finding, action, **more)
        elif action == "transient":
            logger.warning(
                "'%s' gave the committed bytes only when read again", printable(finding.path)
            )

    def _forget_other_process(self) -> None:
        """Believe nothing that the process proved from which this one was forked."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._checked = bytearray(len(self._checked))
            self._opened = {}
            self._verdicts = {}

    def _is_large(self, path: bytes) -> bool:
        try:
            return os.path.getsize(path) >= LARGE_BYTES
        except OSError:
            return False  # read in full, it says for itself what is wrong

    def _open_file(self, row: int) -> ProvenFile | None:
        """Return a large file that stays open until so many others were used after it."""
        self._forget_other_process()
        file = self._opened.pop(row, None) or self._opened_anew(row)
        if file is not None:
            self._opened[row] = file
            if len(self._opened) > MOST_OPEN:
                del self._opened[next(iter(self._opened))]
        return file

    def _opened_anew(self, row: int) -> ProvenFile | None:
        place, entry = self._store.place(self.manifest, row), self.manifest[row]
        if place is None or self._store.blocks is None or not self._is_large(place):
            return None
        if entry.digest is None or entry.digest.algorithm is not Algorithm.MD5:
            return None
        blocks = self._settled.get(row) or self._store.blocks.find(entry.digest, entry.size)
        try:
            if blocks is None or blocks.size != os.path.getsize(place):
                blocks = self._recorded(row, self._observed_whole(row))
            return ProvenFile(place, blocks) if blocks else None
        except OSError:
            return None  # read in full, it says for itself what is wrong

    def _observed_whole(self, row: int) -> Observation:
        """Read a file in full, past the page cache; digests of its blocks are taken with it."""
        rows = np.array([row], np.int64)
        observed = self._store.observe(
            self.manifest, rows, Algorithm.MD5, jobs=1, cold=True, blocks=BlockUse.RECORD
        )
        (seen,) = chain.from_iterable(observed)
        return seen

    def _recorded(self, row: int, seen: Observation) -> Blocks | None:
        """Return the blocks of a file that is good as a whole, else None."""
        entry = self.manifest[row]
        if entry.digest is None or seen.blocks is None or not seen.stable:
            return None
        if not is_expected(entry, seen):
            return None
        self._settled[row] = Blocks(entry.digest, seen.size, seen.blocks)
        return self._settled[row]

    def _settle(self, row: int, blocks: Blocks, error: BlockDiffers | OSError) -> None:
        """Let the whole MD5 judge a file of which a block differs, twice, or cannot be read.

        It returns if the file is good, or was restored.
        """
        self._refuse_known(row, error)
        seen = self._observed_whole(row)
        fresh = self._recorded(row, seen)
        entry, immutable = self.manifest[row], self._store.immutable
        finding = judge(entry, seen, None, lambda _: Hint(), immutable=immutable)
        if fresh is None and finding is not None:
            self._settle_damage(row, blocks, error, seen, finding)
        elif fresh is None or fresh.digests == blocks.digests:
            self._note(
                _transient(entry, f"{_where(error)}, but not when all was read"), "transient"
            )
        else:
            logger.warning(
                "The record of the blocks of '%s' was wrong, its MD5 is good: the record is "
                "written anew",
                printable(entry.path),
            )

    def _settle_damage(
        self,
        row: int,
        blocks: Blocks,
        error: BlockDiffers | OSError,
        seen: Observation,
        finding: Finding,
    ) -> None:
        touched = ((error.start, error.stop),) if isinstance(error, BlockDiffers) else ()
        ranges = blocks.differing(seen.blocks, seen.size) if seen.blocks else touched
        finding = replace(finding, ranges=ranges)
        if self.restorer is not None:
            self._mended(row, finding)
            return
        if seen.after is not None:
            self._verdicts[row] = (seen.after, finding)
        raise self._refused(finding, replace(finding, ranges=touched))

    def _refuse_known(self, row: int, error: BlockDiffers | OSError) -> None:
        """Raise at once if the whole file was judged before, and this block found bad then."""
        state, finding = self._verdicts.get(row, (None, None))
        if finding is None or not isinstance(error, BlockDiffers) or error.state != state:
            return
        if any(start <= error.start < stop for start, stop in finding.ranges):
            raise self._refused(finding, replace(finding, ranges=((error.start, error.stop),)))


def _where(error: BlockDiffers | OSError) -> str:
    if isinstance(error, BlockDiffers):
        return f"bytes {error.start}-{error.stop - 1} differed twice"
    return f"it could not be read ({error.strerror or error})"


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
    """A position of its own in a large file of a reader."""

    def __init__(self, reader: Reader, row: int, size: int) -> None:
        super().__init__()
        self._reader = reader
        self._row = row
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._refuse_closed()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        if start[whence] + offset < 0:
            raise ValueError(f"negative position {start[whence] + offset}")
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def readinto(self, buffer: Any) -> int:
        self._refuse_closed()
        count = self._reader.read_at(self._row, self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count

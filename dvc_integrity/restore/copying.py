"""From a source to new files: the bytes that are hashed are the bytes that are written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

from dvc_integrity.digest import Algorithm
from dvc_integrity.durable import begin_writing, sync_files
from dvc_integrity.errors import StoreError
from dvc_integrity.hashing import LARGE_BYTES, Meter, hash_chunks, hash_files
from dvc_integrity.judgement import is_expected
from dvc_integrity.observation import Observation
from dvc_integrity.restore.plan import TWIN, WORKSPACE
from dvc_integrity.restore.sources import why_not
from dvc_integrity.restore.work import Place, Places, Staged, Work
from dvc_integrity.stores import ObjectStore, Store

__all__ = ["NEW_FILE_MODE", "STAGED_NAME", "Copier"]

GROUP_FILES, GROUP_BYTES = 32, 1 << 24
"""Small files that are read and hashed side by side; so many groups are in memory at a time."""

STREAMS_HERE, STREAMS_FAR = 2, 4
"""Threads that read and write: from a disk they keep it busy, from a network they wait, and a
remote is asked for all files of a group at a time."""

STAGED_NAME = re.compile("[0-9a-f]{16}")
"""Names of copies in the staging folder."""

OBJECT_MODE = 0o444
"""DVC protects its objects (``dvc_data.hashfile.db.local.LocalHashFileDB.CACHE_MODE``)."""

NEW_FILE_MODE, PERMISSIONS = 0o666, 0o777
"""Before the umask, as DVC makes files; what of an old file's mode a new one takes over."""

OWNER_READS_AND_WRITES = 0o600


class Copier:
    """Copies entries into a staging folder, hashed on the way and brought down to the disk.

    Parameters
    ----------
    places
        The stores.
    staging
        The folder for the copies.
    cold
        Whether every copy is read back, and not only one that takes the place of something bad.
    jobs
        Threads that read back.
    meter
        Totals to add to.
    """

    def __init__(
        self, places: Places, staging: str, *, cold: bool, jobs: int | None, meter: Meter | None
    ) -> None:
        self.staging = staging
        self.places = places
        self._cold = cold
        self._jobs = jobs
        self._meter = meter
        self._file_system = -1

    def __enter__(self) -> Copier:
        self._file_system = os.open(self.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file_system)

    def copies(self, works: Sequence[Work]) -> list[Staged]:
        """Copy each work's entry to the places it turned to, from its next source that is good.

        A work whose sources are all bad is hopeless afterwards; one whose copy cannot be
        written has failed. The copies that are returned are proven.
        """
        done: list[Staged] = []
        queue = list(works)
        while queue:
            by_source: dict[str, list[Work]] = defaultdict(list)
            for work in queue:
                if work.untried:
                    by_source[work.untried.pop(0)].append(work)
                    continue
                for place in work.into:
                    if place in work.left:
                        work.hopeless(place)
            made: list[Staged] = []
            for name, some in by_source.items():
                streams = STREAMS_HERE if self._is_here(name) else STREAMS_FAR
                with ThreadPoolExecutor(streams, "dvc-integrity-restore") as executor:
                    for staged in executor.map(lambda task: task(), self._tasks(name, some)):
                        made += staged
            done += self.proven(made)
            copied = {id(staged.work) for staged in made}
            queue = [
                work
                for some in by_source.values()
                for work in some
                if id(work) not in copied and any(place in work.left for place in work.into)
            ]
        return done

    def path(self) -> str:
        """Return a new path in the staging folder."""
        return os.path.join(self.staging, secrets.token_hex(8))

    # ------------------------------------------------------------- reading

    def _tasks(self, name: str, works: list[Work]) -> Iterator[partial[list[Staged]]]:
        """Yield what reads and writes: small files in groups, a large one for itself."""
        group: list[Work] = []
        size = 0
        for work in works:
            bytes_of_one = work.step.size
            if work.row is None or bytes_of_one is None or bytes_of_one >= LARGE_BYTES:
                yield partial(self._stream, name, work)
                continue
            if group and (len(group) == GROUP_FILES or size + bytes_of_one > GROUP_BYTES):
                yield partial(self._read, name, group)
                group, size = [], 0
            group.append(work)
            size += bytes_of_one
        if group:
            yield partial(self._read, name, group)

    def _read(self, name: str, works: list[Work], *, cold: bool = False) -> list[Staged]:
        """Read some files whole, hash these very buffers side by side, and write them."""
        store, rows = self._source(name, works)
        try:
            read = store.read(self.places.manifest, rows, cold=cold)
        except StoreError as error:
            for work in works:
                work.tried.append(f"{name}: {error}")
            return []
        staged: list[Staged] = []
        doubtful = []
        for work, (data, seen) in zip(works, read, strict=True):
            if is_expected(work.entry, seen):
                writing = _Writing(self, work, name)
                writing.write(data)
                staged += writing.end(good=True)
            elif cold or isinstance(seen.error, FileNotFoundError):
                work.tried.append(f"{name}: {why_not(seen)}")
            else:
                doubtful.append(work)
        return staged + (self._read(name, doubtful, cold=True) if doubtful else [])

    def _is_here(self, name: str) -> bool:
        """Return whether a source is a folder of this machine."""
        store = self.places.stores.get(name)
        try:
            return not isinstance(store, ObjectStore) or store.is_local
        except StoreError:
            return True  # what is read tells why

    def _source(self, name: str, works: Sequence[Work]) -> tuple[Store, list[int]]:
        """Return a store, and the rows to read there: of other files where twins are meant."""
        if not name.startswith(TWIN):
            return self.places.stores[name], [work.row for work in works if work.row is not None]
        row = self.places.manifest.find(name.removeprefix(TWIN))
        return self.places.stores[WORKSPACE], [] if row is None else [row] * len(works)

    def _stream(self, name: str, work: Work) -> list[Staged]:
        """Copy a file in pieces, hashed as they are written; bad ones are read a second time."""
        digest = work.entry.digest
        if digest is None:
            return []
        staged: list[Staged] = []
        for _ in range(2):
            writing = _Writing(self, work, name)
            try:
                found, size = hash_chunks(
                    map(writing.write, self.chunks(name, work)), digest.algorithm
                )
                seen = Observation(found.value, size, None, None, None)
            except OSError as error:
                seen = Observation(None, 0, None, None, error)
            except StoreError as error:
                seen = Observation(None, 0, None, None, OSError(errno.EIO, str(error)))
            except BaseException:
                writing.end(good=False)
                raise
            staged = writing.end(good=is_expected(work.entry, seen))
            if staged or isinstance(seen.error, FileNotFoundError):
                break
            if not any(place in work.left for place in work.into):
                return []
        if not staged:
            work.tried.append(f"{name}: {why_not(seen)}")
        return staged

    def chunks(self, name: str, work: Work) -> Iterator[bytes]:
        """Yield what a source gives for an entry, in pieces."""
        if work.row is None and work.entry.digest:
            objects = self.places.stores[name]
            if isinstance(objects, ObjectStore):
                return objects.stream(work.entry.digest, listing=True)
        store, rows = self._source(name, [work])
        return store.chunks(self.places.manifest, rows[0])

    # ------------------------------------------------------------- writing

    def mode(self, work: Work, place: Place, fresh: os.stat_result) -> int:
        """Return the mode that a copy gets; a file of the work tree keeps its own."""
        if place.store != WORKSPACE:
            return OBJECT_MODE
        mode = stat.S_IMODE(fresh.st_mode)
        with contextlib.suppress(OSError):
            old = os.lstat(place.full)
            usable = old.st_mode & OWNER_READS_AND_WRITES == OWNER_READS_AND_WRITES
            if stat.S_ISREG(old.st_mode) and usable:  # an object's are 0444
                mode = stat.S_IMODE(old.st_mode) & PERMISSIONS
        return mode | (stat.S_IXUSR if work.entry.executable else 0)

    def proven(self, staged: list[Staged]) -> list[Staged]:
        """Bring copies down to the disk; return those that it took and, where asked, gives back."""
        errors = sync_files([each.path for each in staged], self._file_system)
        doubtful: dict[Algorithm, list[Staged]] = defaultdict(list)
        for each in staged:
            if each.path not in errors and each.work.entry.digest and self._is_doubtful(each):
                doubtful[each.work.entry.digest.algorithm].append(each)
        for algorithm, some in doubtful.items():
            errors |= self._read_back(some, algorithm)
        for each in staged:
            if each.path in errors:
                os.unlink(each.path)
                each.work.failed(each.place.store, errors[each.path])
            elif self._meter and each.place.store == each.work.into[0]:  # a file counts once
                self._meter.add(1, each.work.step.size or 0)
        return [each for each in staged if each.path not in errors]

    def _is_doubtful(self, staged: Staged) -> bool:
        """Return whether a disk that may be failing is to be asked for what it was given."""
        return self._cold or os.path.lexists(staged.place.full)

    def _read_back(self, some: list[Staged], algorithm: Algorithm) -> dict[str, OSError]:
        errors = {}
        paths = [each.path for each in some]
        for batch in hash_files(paths, algorithm, jobs=self._jobs, cold=True):
            for position, seen in zip(batch.positions.tolist(), batch, strict=True):
                each = some[position]
                if not is_expected(each.work.entry, seen):
                    why = f"what was written reads back as other bytes than {each.source} gave"
                    errors[each.path] = OSError(errno.EIO, why)
        return errors


class _Writing:
    """The new files that one copy is written to, one for each place that it goes to."""

    def __init__(self, copier: Copier, work: Work, source: str) -> None:
        self._copier = copier
        self._work = work
        self._files: dict[int, Staged] = {}
        for name in work.into:
            if name not in work.left:
                continue
            try:
                staged = Staged(work, copier.places.of(work, name), source, copier.path())
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._files[os.open(staged.path, flags, NEW_FILE_MODE)] = staged
            except (OSError, StoreError) as error:
                work.failed(name, error)

    def write(self, chunk: bytes) -> bytes:
        """Append to every file that takes it; one that does not has failed. Return the bytes."""
        for descriptor in list(self._files):
            try:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError as error:
                self._drop(descriptor, error)
        return chunk

    def end(self, *, good: bool) -> list[Staged]:
        """Close the files; return them, or remove them if what was written is not good."""
        for descriptor, staged in list(self._files.items()):
            if not good:
                self._drop(descriptor, None)
                continue
            try:
                fresh = os.fstat(descriptor)
                os.fchmod(descriptor, self._copier.mode(self._work, staged.place, fresh))
                begin_writing(descriptor)
            except OSError as error:
                self._drop(descriptor, error)
            else:
                os.close(descriptor)
        staged_files = list(self._files.values())
        self._files = {}
        return staged_files

    def _drop(self, descriptor: int, error: OSError | None) -> None:
        staged = self._files.pop(descriptor)
        os.close(descriptor)
        os.unlink(staged.path)
        if error:
            self._work.failed(staged.place.store, error)

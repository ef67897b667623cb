"""Plans carried out: what order places are made good in, and who may do it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.durable import clone, exclusive
from dvc_integrity.errors import RestoreError, StoreError, printable
from dvc_integrity.hashing import Meter, hash_files, open_file
from dvc_integrity.judgement import has_execute_bit, is_expected
from dvc_integrity.manifest import Manifest
from dvc_integrity.observation import Observation
from dvc_integrity.quarantine import Quarantine
from dvc_integrity.report import Finding, Status
from dvc_integrity.restore.copying import NEW_FILE_MODE, STAGED_NAME, Copier
from dvc_integrity.restore.naming import give_names, inside
from dvc_integrity.restore.outcome import Outcome, Result
from dvc_integrity.restore.plan import CACHE, WORKSPACE, Step
from dvc_integrity.restore.sources import why_not
from dvc_integrity.restore.work import Place, Places, Staged, Work
from dvc_integrity.stores import ObjectStore, SourceError, Workspace

__all__ = ["StoresJob"]

FILES_AT_A_TIME = 1 << 12
"""Files that are copied, proven and named together: a cache has 256 folders, each synced once."""

BYTES_AT_A_TIME = 1 << 30
"""No further file joins those that have so many bytes: the staging folder takes twice as much."""

UPLOADS = 8
"""Objects that are put into a remote at a time."""

_NO_SUCH_LINK = {
    errno.EPERM,
    errno.ENOTSUP,
    errno.EXDEV,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EAGAIN,
    errno.EMLINK,
}
"""After these DVC tries the next kind of link (``dvc_objects.fs.generic._try_links``)."""


@dataclass(frozen=True, slots=True)
class StoresJob:
    """Carries out steps in stores.

    Attributes
    ----------
    manifest
        What entries must be.
    workspace, sources
        The places that steps name.
    scratch
        The folder for quarantine, staging and lock.
    """

    manifest: Manifest
    workspace: Workspace
    sources: tuple[ObjectStore, ...]
    scratch: str

    def run(
        self, steps: Sequence[Step], *, jobs: int | None, meter: Meter | None, cold: bool
    ) -> list[Outcome]:
        """Carry out steps, alone among all processes.

        Raises
        ------
        RestoreError
            If the lock or the staging folder cannot be had.
        """
        staging = os.path.join(self.scratch, "staging")
        quarantine = Quarantine(os.path.join(self.scratch, "quarantine"))
        stores: list[Workspace | ObjectStore] = [self.workspace, *self.sources]
        places = Places(self.manifest, {store.name: store for store in stores})
        outcomes: list[Outcome] = []
        try:
            if not (steps or quarantine.unsettled()):
                return []
            with exclusive(os.path.join(self.scratch, "restore.lock")):
                os.makedirs(staging, exist_ok=True)
                for left in filter(STAGED_NAME.fullmatch, os.listdir(staging)):
                    os.unlink(os.path.join(staging, left))  # by a restore that was killed
                quarantine.settle()
                with Copier(places, staging, cold=cold, jobs=jobs, meter=meter) as copier:
                    batch = _Batch(places, copier, quarantine, jobs)
                    for some in _batches(steps):
                        works = list(map(Work, some))
                        batch.run(works)
                        outcomes += (each for work in works for each in work.outcomes)
        except OSError as error:
            raise RestoreError(
                f"Nothing more can be restored: {error.strerror or error} "
                f"('{printable(self.scratch)}' must be writable, with space left)."
            ) from error
        return outcomes


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Cut steps into batches that are bounded in files and, where sizes are known, in bytes."""
    batch: list[Step] = []
    size = 0
    for step in steps:
        batch.append(step)
        size += step.size or 0
        if len(batch) == FILES_AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Batch:
    """Makes places good, for some entries at a time."""

    def __init__(
        self, places: Places, copier: Copier, quarantine: Quarantine, jobs: int | None
    ) -> None:
        self._places = places
        self._copier = copier
        self._quarantine = quarantine
        self._jobs = jobs
        workspace = places.stores[WORKSPACE]
        links = workspace.links if isinstance(workspace, Workspace) else ()
        self._links = [kind for kind in links if kind != "reflink" or _can_clone(copier)]

    def run(self, works: list[Work]) -> None:
        """Make every place good that can be; the cache first, for the work tree is made from it."""
        self._look(works)
        for work in works:
            if WORKSPACE in work.left and CACHE not in work.left and self._through_cache(work):
                work.left.insert(0, CACHE)
        shared = [
            work for work in works if CACHE in work.left and self._places.is_object_itself(work)
        ]
        self._heal([work for work in works if CACHE in work.left], CACHE)
        for work in shared:  # a hard link still holds the bad bytes, which nobody wrote
            healed = work.outcome(CACHE)
            still = healed and healed.ok and not self._places.is_object_itself(work)
            settled = WORKSPACE in work.left or work.outcome(WORKSPACE) is not None
            if still and not settled and self._is_unwritten(work):
                work.left.insert(0, WORKSPACE)
        self._link([work for work in works if WORKSPACE in work.left])
        self._heal([work for work in works if WORKSPACE in work.left], WORKSPACE)
        for name in {name for work in works for name in work.left}:
            self._heal([work for work in works if name in work.left], name)

    def _through_cache(self, work: Work) -> bool:
        return work.out.cached and CACHE in self._places.stores

    def _is_unwritten(self, work: Work) -> bool:
        """Return whether nobody wrote the file of the work tree, as far as DVC's records tell."""
        found = None
        seen = work.seen.get(WORKSPACE) or work.seen.get(CACHE)
        if seen and seen.digest and work.entry.digest:
            found = Digest(work.entry.digest.algorithm, seen.digest)
        hint = self._places.stores[WORKSPACE].explain(work.entry.path, work.entry.digest, found)
        return hint.written is False

    # ------------------------------------------------------------- what lies there now

    def _look(self, works: list[Work]) -> None:
        """See what lies in the work tree: somebody may have mended it."""
        here = [work for work in works if WORKSPACE in work.left and work.row is not None]
        for work, seen in self._observed(here):
            work.seen[WORKSPACE] = seen
            if not is_expected(work.entry, seen) or not seen.stable:
                if _was_written(work.step.item.finding, seen):
                    why = "it was written since it was verified; verify again"
                    work.end(WORKSPACE, Result.FAILED, detail=why)
            elif work.entry.executable and not has_execute_bit(seen):
                self._make_executable(work)
            else:
                work.end(WORKSPACE, Result.GOOD)

    def _observed(self, works: Sequence[Work]) -> Iterator[tuple[Work, Observation]]:
        """Read entries in the work tree past the page cache."""
        store = self._places.stores[WORKSPACE]
        for algorithm, some in _by_algorithm(works).items():
            rows = np.array([work.row for work in some], np.int64)
            for batch in store.observe(
                self._places.manifest, rows, algorithm, jobs=self._jobs, cold=True
            ):
                for position, seen in zip(batch.positions.tolist(), batch, strict=True):
                    yield some[position], seen

    def _make_executable(self, work: Work) -> None:
        """Set a lost bit on a file of its own; a link is replaced by a copy later."""
        place = self._places.of(work, WORKSPACE)
        with contextlib.suppress(OSError), inside(place, None) as (folder, name):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                return
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
                try:
                    os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | stat.S_IXUSR)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                work.failed(WORKSPACE, error)
            else:
                work.end(WORKSPACE, Result.RESTORED, WORKSPACE, detail="executable again")

    def _not_good(self, works: list[Work], target: str) -> list[Work]:
        """Return what has no good object yet; a good one is left alone."""
        located: dict[int, Place] = {}
        for work in works:
            try:
                located[id(work)] = self._places.of(work, target)
            except StoreError as error:
                work.failed(target, error)
        wanting = []
        known = [work for work in works if id(work) in located]
        for algorithm, some in _by_algorithm(known).items():
            paths = [located[id(work)].full for work in some]
            for batch in hash_files(paths, algorithm, jobs=self._jobs, cold=True):
                for position, seen in zip(batch.positions.tolist(), batch, strict=True):
                    work = some[position]
                    if is_expected(work.entry, seen):
                        work.end(target, Result.GOOD)
                        continue
                    work.seen[target] = seen
                    work.tried = [f"{target}: {why_not(seen)}"]
                    wanting.append(work)
        return wanting

    # ------------------------------------------------------------- objects, and plain copies

    def _heal(self, works: list[Work], target: str) -> None:
        """Put good copies into a place; entries of one digest share an object."""
        shared: dict[Any, list[Work]] = defaultdict(list)
        for work in works:
            key = work.entry.path if target == WORKSPACE else (work.entry.digest, work.row is None)
            shared[key].append(work)
        groups = list(shared.values())
        while groups:  # where one entry knows no good copy, another one of its digest may
            self._fill([group[0] for group in groups], target)
            for first, *others in groups:
                outcome = first.outcome(target)
                if outcome is not None and outcome.result is not Result.HOPELESS:
                    for work in others:
                        result = Result.GOOD if outcome.ok else outcome.result
                        work.end(target, result, outcome.source, detail=outcome.detail)
            groups = [group[1:] for group in groups if len(group) > 1 and target in group[1].left]

    def _fill(self, works: list[Work], target: str) -> None:
        store = self._places.stores[target]
        if isinstance(store, ObjectStore) and not _is_folder(store):
            with ThreadPoolExecutor(UPLOADS, "dvc-integrity-put") as executor:
                list(executor.map(partial(self._put, store=store), works))
            return
        wanting = works if target == WORKSPACE else self._not_good(works, target)
        for work in wanting:
            also = target == CACHE and self._is_to_be_a_copy(work)
            work.begin(target, *([WORKSPACE] if also else []))
        staged = self._copier.copies(wanting)
        self._name([each for each in staged if each.place.store == target])
        self._name([each for each in staged if each.place.store != target])

    def _name(self, staged: list[Staged]) -> None:
        if staged:
            give_names(staged, self._places, self._quarantine)

    def _is_to_be_a_copy(self, work: Work) -> bool:
        """Return whether the file of the work tree is written with the object, from one read."""
        if WORKSPACE not in work.left or work.row is None:
            return False
        copied = work.entry.executable or self._links[:1] == ["copy"]
        return copied and not os.path.islink(self._places.of(work, WORKSPACE).full)

    def _put(self, work: Work, store: ObjectStore) -> None:
        """Put an entry into a remote, from the first source that gives the right bytes."""
        if work.entry.digest is None:
            return
        for name in [name for name in work.step.sources if name != store.name]:
            try:
                stored = store.put(
                    work.entry.digest,
                    partial(self._given, work, name),
                    listing=work.row is None,
                    quarantine=self._quarantine.folder,
                )
            except SourceError as error:
                work.tried.append(f"{name}: {error}")
            except (OSError, StoreError) as error:
                work.failed(store.name, error)
                return
            else:
                work.end(store.name, Result.RESTORED if stored else Result.GOOD, name)
                return
        work.hopeless(store.name)

    def _given(self, work: Work, name: str) -> Iterable[bytes]:
        """Yield what a source gives; that it fails is its own fault, not the target's."""
        try:
            yield from self._copier.chunks(name, work)
        except (OSError, StoreError) as error:
            raise SourceError(getattr(error, "strerror", None) or str(error)) from error

    # ------------------------------------------------------------- links to the cache

    def _link(self, works: list[Work]) -> None:
        """Make files of the work tree from good objects, as ``cache.type`` says."""
        cache = self._places.stores.get(CACHE)
        if not isinstance(cache, ObjectStore):
            return
        links: list[Staged] = []
        clones: list[Staged] = []
        copied: list[Work] = []
        for work in works:
            healed = work.outcome(CACHE)
            if healed is None or not healed.ok or not work.entry.digest:
                continue
            try:
                place = cache.locate(work.entry.digest)
                if place is None or self._mended_with_the_object(work, place, healed):
                    continue
                made = Staged(
                    work,
                    self._places.of(work, WORKSPACE),
                    healed.source or CACHE,
                    self._copier.path(),
                )
                kind = self._make_from_object(made, place)
            except (OSError, StoreError) as error:
                work.failed(WORKSPACE, error)
                continue
            if kind == "copy":
                work.begin(WORKSPACE)
                work.untried = [CACHE]
                copied.append(work)
            else:
                (clones if kind == "reflink" else links).append(made)
        proven = self._copier.proven(clones) + self._copier.copies(copied)
        self._name(links + proven)  # a link holds the bytes that were proven in the cache

    def _mended_with_the_object(self, work: Work, place: str, healed: Outcome) -> bool:
        """Return whether the file is a symbolic link to the object, which is good again."""
        file = self._places.of(work, WORKSPACE).full
        linked = os.path.islink(file) and os.path.realpath(file) == os.path.realpath(place)
        if linked and not work.entry.executable:
            source = healed.source or CACHE
            work.end(WORKSPACE, Result.RESTORED, source, detail="it is a link to the healed object")
            return True
        return False

    def _make_from_object(self, made: Staged, place: str) -> str:
        """Make a link to an object, or a clone of it; return its kind, ``copy`` if none can be."""
        for kind in [] if made.work.entry.executable else self._links:
            try:
                if kind == "symlink":
                    os.symlink(place, made.path)
                    return kind
                if kind == "hardlink" and os.path.getsize(place):
                    os.link(place, made.path)
                    return kind
                if kind == "reflink":
                    self._clone(made, place)
                    return kind
            except OSError as error:
                if error.errno not in _NO_SUCH_LINK:
                    raise
            else:
                break  # a copy is asked for, or DVC copies empty files
        return "copy"

    def _clone(self, made: Staged, place: str) -> None:
        source, _ = open_file(place)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(made.path, flags, NEW_FILE_MODE)
            try:
                clone(source, descriptor)
                mode = self._copier.mode(made.work, made.place, os.fstat(descriptor))
                os.fchmod(descriptor, mode)
            except BaseException:
                os.unlink(made.path)
                raise
            finally:
                os.close(descriptor)
        finally:
            os.close(source)


def _can_clone(copier: Copier) -> bool:
    """Return whether a file beside the copies can share another one's blocks."""
    paths = [copier.path(), copier.path()]
    try:
        with open(paths[0], "xb") as source, open(paths[1], "xb") as target:
            source.write(b"?")
            source.flush()
            clone(source.fileno(), target.fileno())
    except OSError:
        return False
    finally:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return True


def _is_folder(store: ObjectStore) -> bool:
    """Return whether a store is a folder of this machine; one that is not there fails later."""
    try:
        return store.is_local
    except StoreError:
        return True


def _by_algorithm(works: Iterable[Work]) -> dict[Algorithm, list[Work]]:
    found: dict[Algorithm, list[Work]] = defaultdict(list)
    for work in works:
        if work.entry.digest:
            found[work.entry.digest.algorithm].append(work)
    return found


def _was_written(finding: Finding | None, seen: Observation) -> bool:
    """Return whether a file is not any more what a verification found bad."""
    if finding is None or finding.status is Status.UNREADABLE:
        return False
    if seen.error is not None:
        return False  # nothing of it can be lost, or it is kept as it is
    found = finding.found.value if finding.found else None
    return not seen.stable or seen.digest != found

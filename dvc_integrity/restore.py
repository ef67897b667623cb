"""Proven bytes in the place of what is not what was committed.

``plan`` is pure: from what a survey saw it decides what is to be made good, and from where.
Applying it does the writing. A copy goes to a staging folder first, down to the disk, and is
read back past the page cache; only what has the committed digest then is given a name, after
the bad one was kept in the quarantine. A kill at any instant leaves the old bytes or the proven
new ones, what it left in the staging folder the next restore removes, and running again
converges. A disk or a source that fails is told in an outcome; the rest goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.durable import InTheWayError, clone, exclusive, folder_below, quarantine
from dvc_integrity.errors import RestoreError, StoreError, printable
from dvc_integrity.hashing import (
    Meter,
    drop_cached_pages,
    hash_chunks,
    hash_files,
    open_file,
    read_chunks,
)
from dvc_integrity.judgement import has_execute_bit, is_expected
from dvc_integrity.manifest import Entry, Manifest, Out
from dvc_integrity.observation import Observation
from dvc_integrity.report import Finding, Report, Status
from dvc_integrity.stores import ObjectStore, SourceError, Store, Workspace
from dvc_integrity.survey import Copy, Item, State, damaged_rows, judged, survey

__all__ = [
    "Choice",
    "Outcome",
    "Plan",
    "Restoration",
    "Restorer",
    "Result",
    "Step",
    "find_good",
    "plan",
    "restore",
]

Found = TypeVar("Found")
Source = TypeVar("Source", bound=Store)

FILES_AT_A_TIME = 1 << 12
"""Files that are staged, proven and named together: a cache has 256 folders, each synced once."""

BYTES_AT_A_TIME = 1 << 30
"""No further file joins those that have so many bytes: the staging folder takes as much space."""

STREAMS = 8
"""Files that are copied at a time: most of the time they wait for the disk."""

PIECE_BYTES = 1 << 20
"""Bytes copied at a time."""

OBJECT_MODE = 0o444
"""DVC protects its objects (``dvc_data.hashfile.db.local.LocalHashFileDB.CACHE_MODE``)."""

NEW_FILE_MODE, NEW_FOLDER_MODE = 0o666, 0o777
"""Before the umask, as DVC makes them."""

OWNER_READS_AND_WRITES = 0o600

WORKSPACE, CACHE = Workspace.name, "cache"

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

_RESTORED_UNASKED = {Status.MISSING, Status.CORRUPT, Status.UNREADABLE}
_NEVER = {
    Status.EXTRA: "never touched",
    Status.UNSTABLE: "somebody writes it",
    Status.UNVERIFIABLE: "no content hash is committed for it",
}


# ----------------------------------------------------------------- the plan


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be restored, and from where.

    Attributes
    ----------
    judged
        The store that was verified.
    sources
        Names of the stores to take bytes from, in order.
    modified
        Whether what was written since it was committed goes back too.
    push
        Names of the remotes whose bad or absent objects are put.
    everywhere
        Whether places beside the judged one are made good although the judged one is.
    """

    judged: str
    sources: tuple[str, ...]
    modified: bool = False
    push: tuple[str, ...] = ()
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One entry, the places to make good in order, and the places to take it from in order."""

    item: Item
    targets: tuple[str, ...]
    sources: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the step as a JSON object."""
        return {
            **self.item.to_json(),
            "targets": list(self.targets),
            "sources": list(self.sources),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore will do.

    Attributes
    ----------
    steps
        What will be made good.
    hopeless
        What has no copy anywhere that could be good.
    untouched
        What is left as it is, each with the reason.
    """

    steps: tuple[Step, ...]
    hopeless: tuple[Item, ...]
    untouched: tuple[tuple[Finding, str], ...]
    _job: _Job | None = field(default=None, repr=False, compare=False)

    SCHEMA = "dvc-integrity/plan/1"

    def apply(self, *, jobs: int | None = None, meter: Meter | None = None) -> Restoration:
        """Carry the plan out; what somebody else mended meanwhile is left alone.

        Raises
        ------
        RestoreError
            If the lock or the staging folder cannot be had: then nothing was changed.
        """
        if self._job is None:
            raise RestoreError("This plan names no stores. Make one with 'restore'.")
        outcomes = self._job.run(self.steps, jobs, meter) if self.steps else ()
        return Restoration(tuple(outcomes), self.hopeless, self.untouched)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON document (schema ``dvc-integrity/plan/1``)."""
        return {
            "schema": self.SCHEMA,
            "steps": [step.to_json() for step in self.steps],
            "hopeless": [item.to_json() for item in self.hopeless],
            "untouched": _untouched(self.untouched),
        }


class Result(str, Enum):
    """How one place of one entry ended."""

    RESTORED = "restored"
    """Proven bytes lie there now."""
    GOOD = "good"
    """They lay there already."""
    HOPELESS = "hopeless"
    """No copy was good; what lay there still does."""
    FAILED = "failed"
    """A good copy could not be put there; what lay there still does, or is in quarantine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry in one place.

    Attributes
    ----------
    path, out, listing
        The entry; as in ``Item``.
    place
        The store that was to be made good.
    result
        How it ended.
    source
        The store that the bytes came from.
    quarantine
        The folder that what lay there before is kept in.
    detail
        Why not, or what else is worth a word.
    """

    path: str
    out: str
    listing: bool
    place: str
    result: Result
    source: str | None = None
    quarantine: str | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the committed bytes lie there."""
        return self.result in (Result.RESTORED, Result.GOOD)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as a JSON object."""
        return {
            "path": self.path,
            "out": self.out,
            "listing": self.listing,
            "place": self.place,
            "result": self.result.value,
            "source": self.source,
            "quarantine": self.quarantine,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Restoration:
    """What a restore did; ``hopeless`` and ``untouched`` as in its plan."""

    outcomes: tuple[Outcome, ...]
    hopeless: tuple[Item, ...]
    untouched: tuple[tuple[Finding, str], ...]

    SCHEMA = "dvc-integrity/restoration/1"

    @property
    def damaged(self) -> bool:
        """Whether something that was asked for is known not to be good."""
        bad = (Status.MODIFIED, Status.CORRUPT, Status.MISSING)
        left = any(finding.status in bad for finding, _ in self.untouched)
        return bool(self.hopeless) or left or not all(each.ok for each in self.outcomes)

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for is good now; extra files aside."""
        return not self.damaged and not self.unknown

    @property
    def unknown(self) -> bool:
        """Whether something could not be told."""
        unsure = (Status.UNSTABLE, Status.UNVERIFIABLE, Status.UNREADABLE)
        return any(finding.status in unsure for finding, _ in self.untouched)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document (schema ``dvc-integrity/restoration/1``)."""
        return {
            "schema": self.SCHEMA,
            "ok": self.ok,
            "outcomes": [each.to_json() for each in self.outcomes],
            "hopeless": [item.to_json() for item in self.hopeless],
            "untouched": _untouched(self.untouched),
        }


def plan(items: Iterable[Item], findings: Iterable[Finding], choice: Choice) -> Plan:
    """Decide what to restore. Pure: the same arguments give the same plan.

    Parameters
    ----------
    items
        What a survey saw, with what the verification of ``choice.judged`` found.
    findings
        What else that verification found: about no entry of the manifest.
    choice
        What is asked for.
    """
    steps: list[Step] = []
    hopeless: list[Item] = []
    untouched = [(each, _NEVER.get(each.status, "no entry")) for each in findings]
    for item in items:
        reason = _why_not_wanted(item, choice)
        if reason and item.finding:
            untouched.append((item.finding, reason))
            continue
        untouched += _left_alone(item, choice)
        targets = _targets(item, choice)
        sources = _sources(item, targets, choice)
        if targets and sources:
            steps.append(Step(item, targets, sources))
        elif targets:
            hopeless.append(item)
    return Plan(tuple(steps), tuple(hopeless), tuple(untouched))


def _why_not_wanted(item: Item, choice: Choice) -> str:
    status = item.finding.status if item.finding else Status.OK
    if status is Status.MODIFIED and not choice.modified:
        return "somebody may have meant it: '--modified' restores it too"
    return _NEVER.get(status, "")


def _left_alone(item: Item, choice: Choice) -> Iterator[tuple[Finding, str]]:
    """Yield what was seen to be bad, or could not be seen, in places that are not healed."""
    if not (item.finding or choice.everywhere or item.listing):
        return
    for copy in item.copies:
        if copy.store == choice.judged:
            continue
        healed = copy.store in choice.push or (copy.store == CACHE and CACHE in choice.sources)
        about = f"in the {copy.store}: {copy.detail or copy.state.value}"
        if copy.state is State.UNREADABLE and choice.everywhere:
            status, reason = Status.UNREADABLE, "it could not be read"
        elif copy.state is State.BAD and not healed and choice.everywhere:
            status, reason = Status.CORRUPT, "'--push' heals remotes"
        else:
            continue
        yield (
            Finding(item.entry.path, item.out.path, status, item.entry.digest, detail=about),
            reason,
        )


def _targets(item: Item, choice: Choice) -> tuple[str, ...]:
    """Return the places to make good: the cache first, because the work tree is made from it."""
    targets = [choice.judged] if item.finding else []
    for copy in item.copies:
        wrong = copy.state in (State.BAD, State.ABSENT)
        asked = bool(item.finding) or choice.everywhere or item.listing
        if copy.store == CACHE and wrong and asked and CACHE in choice.sources:
            targets.append(CACHE)
        elif copy.store in choice.push and wrong and asked:
            targets.append(copy.store)
    order = {CACHE: 0, WORKSPACE: 1}
    return tuple(sorted(dict.fromkeys(targets), key=lambda name: order.get(name, 2)))


def _sources(item: Item, targets: tuple[str, ...], choice: Choice) -> tuple[str, ...]:
    """Return the places whose copy may be good, in order; the work tree serves if it is."""
    worth = {
        copy.store
        for copy in item.copies
        if copy.state in (State.GOOD, State.PRESENT, State.UNREADABLE)
    }
    named = [name for name in choice.sources if name in worth]
    if WORKSPACE in worth and targets != (WORKSPACE,) and WORKSPACE not in named:
        named.append(WORKSPACE)
    itself = item.state(WORKSPACE) is State.GOOD and WORKSPACE in targets  # it lost a mode only
    return tuple(named) if named or not itself else (WORKSPACE,)


def _untouched(untouched: Iterable[tuple[Finding, str]]) -> list[dict[str, Any]]:
    return [{**finding.to_json(), "reason": reason} for finding, reason in untouched]


def restore(
    report: Report,
    workspace: Workspace,
    sources: Sequence[ObjectStore],
    *,
    modified: bool = False,
    push: Sequence[str] = (),
    everywhere: bool = False,
    prove: bool = False,
    scratch: str | None = None,
    jobs: int | None = None,
) -> Plan:
    """Plan how what a report found wrong is made good; ``apply`` of the plan does it.

    Parameters
    ----------
    report
        A verification of the workspace, or of the cache.
    workspace
        The files of the work tree.
    sources
        Where good copies may lie, in order of preference. The store named ``cache`` is healed
        too where it is among them.
    modified
        Restore what was written since it was committed, too; by default it is left alone.
    push
        Names of remotes among ``sources`` whose bad or absent objects are put.
    everywhere
        Look at every entry in every place, and heal what is bad or absent there.
    prove
        Read the copies for the plan already; each is proven in any case before it is used.
    scratch
        The folder for quarantine, staging and lock; by default ``Repository.scratch``.
    jobs
        Reading threads.

    Raises
    ------
    RestoreError
        If the report was not made by ``verify``, or is on a remote.
    """
    if report.expected is None or report.store not in (WORKSPACE, CACHE):
        raise RestoreError(
            f"What 'verify' reports on the workspace or the cache can be restored, not this "
            f"report on '{printable(report.store)}'."
        )
    manifest = report.expected
    stores: list[Workspace | ObjectStore] = [workspace, *sources]
    others = [store for store in stores if store.name != report.store]
    rows = range(len(manifest)) if everywhere else damaged_rows(report, manifest)
    seen = survey(manifest, rows, others, prove=prove or everywhere or bool(push), jobs=jobs)
    items = list(judged(seen, report, manifest))
    used = {item.finding for item in items}
    rest = [each for each in report.findings if each not in used and not each.transient]
    names = tuple(store.name for store in sources)
    choice = Choice(report.store, names, modified, tuple(push), everywhere)
    found = plan(items, rest, choice)
    folder = scratch or os.path.join(workspace.root, ".dvc", "tmp", "integrity")
    job = _Job(manifest, workspace, tuple(sources), folder)
    return Plan(found.steps, found.hopeless, found.untouched, job)


@dataclass(frozen=True)
class Restorer:
    """Brings files of the work tree back from stores that hold a good copy; picklable.

    Attributes
    ----------
    workspace
        Where the files lie.
    sources
        Where good copies may lie, the cheapest first.
    scratch
        The folder for the quarantine and the lock, ``Repository.scratch``.
    """

    workspace: Workspace
    sources: Sequence[ObjectStore]
    scratch: str

    def bring_back(self, manifest: Manifest, row: int) -> tuple[bytes, str]:
        """Put a proven copy in the place of one file, and heal the cache on the way.

        Several processes that meet the same file restore it once.

        Parameters
        ----------
        manifest
            What the file must be.
        row
            Which of its entries.

        Returns
        -------
        tuple[bytes, str]
            The bytes that lie there now, and the name of the store that they came from;
            ``workspace`` if somebody else had brought them back meanwhile.

        Raises
        ------
        RestoreError
            If no store holds a good copy, or the file cannot be replaced; the message tells
            what was tried. The file is then what it was.
        """
        entry, out = manifest[row], manifest.outs[int(manifest.out_index[row])]
        names = tuple(store.name for store in self.sources)
        copies = tuple(Copy(name, State.PRESENT) for name in names)
        step = Step(Item(entry, out, row, copies), (WORKSPACE,), names)
        job = _Job(manifest, self.workspace, tuple(self.sources), self.scratch)
        outcomes = job.run([step], None, None)
        outcome = next(each for each in outcomes if each.place == WORKSPACE)
        if outcome.result is Result.HOPELESS:
            places = outcome.detail or "no cache and no remote was given"
            raise RestoreError(
                f"'{printable(entry.path)}' has no good copy anywhere ({places}). Bring one back "
                f"from a machine that has it ('dvc push' there), or from a backup."
            )
        ((data, seen),) = self.workspace.read(manifest, [row])
        if not outcome.ok or not is_expected(entry, seen):
            why = outcome.detail or seen.error or "it changed again"
            raise _not_restored(entry.path, str(why), self.scratch)
        return data, outcome.source or self.workspace.name


def _not_restored(path: str, why: str, scratch: str) -> RestoreError:
    return RestoreError(
        f"'{printable(path)}' could not be restored: {why}. The file is what it was. Mend that "
        f"('{printable(scratch)}' and the file's folder must be writable, with space left), and "
        f"run again."
    )


def find_good(
    manifest: Manifest,
    row: int,
    sources: Iterable[Source],
    read: Callable[[Source], tuple[Found, Observation]],
) -> tuple[Found, str]:
    """Return the first good copy of a file among some stores, and the store's name.

    Parameters
    ----------
    manifest
        What the file must be.
    row
        Which of its entries.
    sources
        Where good copies may lie, the cheapest first.
    read
        Reads the copy of one store, in any form, and says what was seen of it.

    Raises
    ------
    RestoreError
        If no store holds a good copy; the message tells what was tried.
    """
    entry = manifest[row]
    tried = []
    for source in sources:
        try:
            copy, seen = read(source)
        except StoreError as error:
            tried.append(f"{source.name}: {error}")
            continue
        if is_expected(entry, seen):
            return copy, source.name
        tried.append(f"{source.name}: {_why_not(seen)}")
    places = "; ".join(tried) or "no cache and no remote was given"
    raise RestoreError(
        f"'{printable(entry.path)}' has no good copy anywhere ({places}). Bring one back "
        f"from a machine that has it ('dvc push' there), or from a backup."
    )


# ----------------------------------------------------------------- the apply


class _SourceError(Exception):
    """A source does not give its copy."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Where a plan is carried out."""

    manifest: Manifest
    workspace: Workspace
    sources: tuple[ObjectStore, ...]
    scratch: str

    def run(self, steps: Sequence[Step], jobs: int | None, meter: Meter | None) -> list[Outcome]:
        """Carry out steps, alone among all processes."""
        staging = os.path.join(self.scratch, "staging")
        outcomes: list[Outcome] = []
        try:
            with exclusive(os.path.join(self.scratch, "restore.lock")):
                os.makedirs(staging, exist_ok=True)
                for left in os.listdir(staging):  # by a restore that was killed
                    os.unlink(os.path.join(staging, left))
                for some in _batches(steps):
                    works = list(map(_Work, some))
                    _Batch(self, staging, jobs, meter).run(works)
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
        known = [copy.size for copy in step.item.copies if copy.size is not None]
        size += step.item.entry.size or max(known, default=0)
        if len(batch) == FILES_AT_A_TIME or size >= BYTES_AT_A_TIME:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Work:
    """A step, and how far it is."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.entry: Entry = step.item.entry
        self.out: Out = step.item.out
        self.row = step.item.row
        self.left = list(step.targets)
        self.tried: list[str] = []
        self.untried = list(step.sources)
        self.seen: Observation | None = None
        self.outcomes: list[Outcome] = []

    def end(self, place: str, result: Result, source: str | None = None, **more: Any) -> None:
        """Write down what became of one place."""
        if place in self.left:
            self.left.remove(place)
        self.outcomes.append(
            Outcome(
                self.entry.path,
                self.out.path,
                self.step.item.listing,
                place,
                result,
                source,
                **more,
            )
        )

    def failed(self, place: str, error: OSError | StoreError) -> None:
        """Write down that a place could not be made good."""
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, InTheWayError):
            why += f" ('{printable(error.place)}'); move it aside and run again"
        self.end(place, Result.FAILED, detail=why)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file is to lie: a path below a root, which no link may lead out of."""

    store: str
    root: str
    path: str

    @property
    def full(self) -> str:
        return os.path.join(self.root, self.path)


class _Staged(NamedTuple):
    """A file in the staging folder."""

    work: _Work
    source: str
    path: str


class _Batch:
    """Files that are restored together."""

    def __init__(self, job: _Job, staging: str, jobs: int | None, meter: Meter | None) -> None:
        self._job = job
        self._staging = staging
        self._jobs = jobs
        self._meter = meter
        stores: list[Workspace | ObjectStore] = [job.workspace, *job.sources]
        self._stores = {store.name: store for store in stores}
        self._kept: dict[tuple[int, ...], str] = {}
        self._keeping = threading.Lock()

    def run(self, works: list[_Work]) -> None:
        """Make every place good that can be."""
        self._look(works)
        for work in works:  # what the work tree is made from comes first
            if WORKSPACE in work.left and CACHE not in work.left and self._through_cache(work):
                work.left.insert(0, CACHE)
        shared = [work for work in works if CACHE in work.left and self._shares_object(work)]
        self._heal([work for work in works if CACHE in work.left], CACHE)
        for work in shared:  # a hard link still holds the bad bytes, which nobody wrote
            if work.outcomes[-1].ok and not self._shares_object(work) and self._is_unwritten(work):
                work.left = list(dict.fromkeys([WORKSPACE, *work.left]))
        self._link([work for work in works if WORKSPACE in work.left])
        self._heal([work for work in works if WORKSPACE in work.left], WORKSPACE)
        for name in {name for work in works for name in work.left}:
            self._heal([work for work in works if name in work.left], name)

    def _through_cache(self, work: _Work) -> bool:
        return work.out.cached and CACHE in self._stores

    def _shares_object(self, work: _Work) -> bool:
        """Return whether the file of the work tree is the object in the cache itself."""
        if work.row is None:
            return False
        try:
            file, place = (self._place(work, name).full for name in (WORKSPACE, CACHE))
            return os.path.samefile(file, place)
        except (OSError, StoreError):
            return False

    def _is_unwritten(self, work: _Work) -> bool:
        """Return whether nobody wrote the file of the work tree, as far as DVC's records tell."""
        found = None
        if work.seen and work.seen.digest and work.entry.digest:
            found = Digest(work.entry.digest.algorithm, work.seen.digest)
        hint = self._job.workspace.explain(work.entry.path, work.entry.digest, found)
        return hint.written is False

    def _look(self, works: list[_Work]) -> None:
        """See what lies in the work tree now: somebody may have mended it."""
        here = [work for work in works if WORKSPACE in work.left and work.row is not None]
        for work, seen in self._observed(self._job.workspace, here):
            work.seen = seen
            if not is_expected(work.entry, seen) or not seen.stable:
                if _was_written(work.step.item.finding, seen):
                    why = "it was written since it was verified; verify again"
                    work.end(WORKSPACE, Result.FAILED, detail=why)
                continue
            if work.entry.executable and not has_execute_bit(seen):
                self._make_executable(work)
            else:
                work.end(WORKSPACE, Result.GOOD)

    def _make_executable(self, work: _Work) -> None:
        """Set a lost bit on a file of its own; a link is replaced by a copy later."""
        place = self._place(work, WORKSPACE)
        with contextlib.suppress(OSError), _inside(place, None) as (folder, name):
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

    def _observed(
        self, store: Workspace | ObjectStore, works: Sequence[_Work]
    ) -> Iterator[tuple[_Work, Observation]]:
        """Read entries in a store past the page cache."""
        by_algorithm = defaultdict(list)
        for work in works:
            if work.entry.digest:
                by_algorithm[work.entry.digest.algorithm].append(work)
        for algorithm, some in by_algorithm.items():
            rows = np.array([work.row for work in some], np.int64)
            for batch in store.observe(
                self._job.manifest, rows, algorithm, jobs=self._jobs, cold=True
            ):
                for position, seen in zip(batch.positions.tolist(), batch, strict=True):
                    yield some[position], seen

    # ------------------------------------------------------------- objects, and plain copies

    def _heal(self, works: list[_Work], target: str) -> None:
        """Put copies into a place from one source after the other, until one is good."""
        if not works:
            return
        leaders: dict[Any, _Work] = {}
        for work in works:
            key = work.entry.path if target == WORKSPACE else (work.entry.digest, work.row is None)
            leaders.setdefault(key, work)
        store = self._stores[target]
        if isinstance(store, ObjectStore) and not self._is_folder(store):
            with ThreadPoolExecutor(STREAMS, "dvc-integrity-put") as executor:
                list(executor.map(partial(self._put, store=store), leaders.values()))
            self._follow(works, target)
            return
        queue = self._not_good(list(leaders.values()), target)
        for work in queue:
            work.untried = [name for name in work.step.sources if name != target]
        while queue:
            with ThreadPoolExecutor(STREAMS, "dvc-integrity-restore") as executor:
                staged = list(executor.map(partial(self._stage, target=target), queue))
            good, bad = self._proven([each for each in staged if each is not None])
            self._name(good, target)
            queue = [each.work for each in bad if not self._blamed(each, target)]
        self._follow(works, target)

    def _is_folder(self, store: ObjectStore) -> bool:
        """Return whether a store is a folder of this machine; one that is not there fails later."""
        try:
            return store.is_local
        except StoreError:
            return True

    def _put(self, work: _Work, store: ObjectStore) -> None:
        """Put an entry into a remote, from the first source that gives the right bytes."""
        for name in [name for name in work.step.sources if name != store.name]:
            try:
                stored = store.put(
                    work.entry.digest,  # type: ignore[arg-type]  # it has one
                    partial(self._given, work, name),
                    listing=work.row is None,
                    quarantine=os.path.join(self._job.scratch, "quarantine"),
                )
            except SourceError as error:
                work.tried.append(f"{name}: {error}")
            except (OSError, StoreError) as error:
                work.failed(store.name, error)
                return
            else:
                work.end(store.name, Result.RESTORED if stored else Result.GOOD, name)
                return
        work.end(store.name, Result.HOPELESS, detail="; ".join(dict.fromkeys(work.tried)))

    def _given(self, work: _Work, name: str) -> Iterator[bytes]:
        """Yield what a source gives; that it fails is its own fault, not the target's."""
        try:
            yield from self._chunks(work, self._stores[name])
        except (OSError, StoreError) as error:
            raise SourceError(getattr(error, "strerror", None) or str(error)) from error

    def _not_good(self, works: list[_Work], target: str) -> list[_Work]:
        """Return what has no good object yet; a good one is left alone."""
        if target == WORKSPACE:
            return works
        places: dict[Algorithm, list[tuple[_Work, str]]] = defaultdict(list)
        for work in works:
            try:
                place = self._place(work, target)
            except StoreError as error:
                work.failed(target, error)
            else:
                if work.entry.digest:
                    places[work.entry.digest.algorithm].append((work, place.full))
        wanting = []
        for algorithm, some in places.items():
            paths = [path for _, path in some]
            for batch in hash_files(paths, algorithm, jobs=self._jobs, cold=True):
                for position, seen in zip(batch.positions.tolist(), batch, strict=True):
                    work = some[position][0]
                    if is_expected(work.entry, seen):
                        work.end(target, Result.GOOD)
                        continue
                    work.seen = work.seen if WORKSPACE in work.left else seen
                    work.tried = [f"{target}: {_why_not(seen)}"]
                    wanting.append(work)
        return wanting

    def _follow(self, works: list[_Work], target: str) -> None:
        """Give entries of one digest the outcome of the one that was done for all."""
        done = {
            (work.entry.digest, work.row is None): outcome
            for work in works
            for outcome in work.outcomes
            if outcome.place == target
        }
        for work in works:
            outcome = done.get((work.entry.digest, work.row is None))
            if target in work.left and outcome is not None:
                result = Result.GOOD if outcome.ok else outcome.result
                work.end(target, result, outcome.source, detail=outcome.detail)

    def _stage(self, work: _Work, target: str) -> _Staged | None:
        """Copy an entry from its next source that gives one; None if it is over with it."""
        while work.untried:
            name = work.untried.pop(0)
            path = os.path.join(self._staging, secrets.token_hex(8))
            try:
                self._copy(work, self._stores[name], path, target)
            except _SourceError as error:
                work.tried.append(f"{name}: {error}")
            except (OSError, StoreError) as error:
                work.failed(target, error)
                return None
            else:
                return _Staged(work, name, path)
        work.end(target, Result.HOPELESS, detail="; ".join(dict.fromkeys(work.tried)))
        return None

    def _copy(self, work: _Work, store: Workspace | ObjectStore, path: str, target: str) -> None:
        """Copy an entry to a new file and bring it down to the disk."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, NEW_FILE_MODE)
        try:
            self._fill(descriptor, work, store)
            os.fchmod(descriptor, self._mode(work, target, os.fstat(descriptor)))
            os.fsync(descriptor)
            drop_cached_pages(descriptor)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, work: _Work, store: Workspace | ObjectStore) -> None:
        chunks = self._chunks(work, store)
        while True:
            try:
                chunk = next(chunks, b"")
            except StoreError as error:
                raise _SourceError(str(error)) from error
            except OSError as error:
                absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
                why = "absent" if absent else f"unreadable ({error.strerror or error})"
                raise _SourceError(why) from error
            if not chunk:
                return
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]

    def _chunks(self, work: _Work, store: Workspace | ObjectStore) -> Iterator[bytes]:
        if isinstance(store, ObjectStore) and work.entry.digest:
            return store.stream(work.entry.digest, listing=work.row is None)
        return store.chunks(self._job.manifest, work.row)  # type: ignore[arg-type]  # a file has one

    def _mode(self, work: _Work, target: str, fresh: os.stat_result) -> int:
        """Return the mode that a copy gets; a file of the work tree keeps its own."""
        if target != WORKSPACE:
            return OBJECT_MODE
        mode = stat.S_IMODE(fresh.st_mode)
        with contextlib.suppress(OSError):
            old = os.lstat(self._place(work, WORKSPACE).full)
            usable = old.st_mode & OWNER_READS_AND_WRITES == OWNER_READS_AND_WRITES
            if stat.S_ISREG(old.st_mode) and usable:  # an object's are 0444
                mode = stat.S_IMODE(old.st_mode) & NEW_FOLDER_MODE
        return mode | (stat.S_IXUSR if work.entry.executable else 0)

    # ------------------------------------------------------------- links to the cache

    def _link(self, works: list[_Work]) -> None:
        """Make files of the work tree from healed objects, as ``cache.type`` says."""
        cache = self._stores.get(CACHE)
        if not isinstance(cache, ObjectStore):
            return
        links: list[_Staged] = []
        staged: list[_Staged] = []
        sources = {}
        for work in works:
            healed = next((each for each in work.outcomes if each.place == CACHE), None)
            if healed is None or not healed.ok or not work.entry.digest:
                continue
            sources[id(work)] = healed.source or CACHE
            try:
                place = cache.locate(work.entry.digest)
                if place is None or self._mended_with_the_object(work, place, sources[id(work)]):
                    continue
                made = _Staged(
                    work, sources[id(work)], os.path.join(self._staging, secrets.token_hex(8))
                )
                shares = self._make_from_object(work, place, made.path)
                (links if shares else staged).append(made)
            except (OSError, StoreError) as error:
                work.failed(WORKSPACE, error)
        good, bad = self._proven(staged)
        self._name(links + good, WORKSPACE)  # a link holds the bytes that were proven in the cache
        for each in bad:
            os.unlink(each.path)
            why = OSError(errno.EIO, "what was made from the cache reads back as other bytes")
            each.work.failed(WORKSPACE, why)

    def _mended_with_the_object(self, work: _Work, place: str, source: str) -> bool:
        """Return whether the file is a symbolic link to the object, which is good again."""
        file = self._place(work, WORKSPACE).full
        linked = os.path.islink(file) and os.path.realpath(file) == os.path.realpath(place)
        if linked and not work.entry.executable:
            work.end(WORKSPACE, Result.RESTORED, source, detail="it is a link to the healed object")
            return True
        return False

    def _make_from_object(self, work: _Work, place: str, path: str) -> bool:
        """Make a file from an object; return whether it is the object itself, by a link."""
        kinds = ["copy"] if work.entry.executable else list(self._job.workspace.links)
        for kind in kinds:
            try:
                if kind == "symlink":
                    os.symlink(place, path)
                    return True
                if kind == "hardlink" and os.path.getsize(place):
                    os.link(place, path)
                    return True
                if kind == "reflink":
                    self._clone(work, place, path)
                    return False
            except OSError as error:
                if error.errno not in _NO_SUCH_LINK:
                    raise
            if kind in ("copy", "hardlink") and (kind == "copy" or not os.path.getsize(place)):
                break
        try:
            self._copy(work, self._stores[CACHE], path, WORKSPACE)
        except _SourceError as error:
            raise OSError(errno.EIO, f"the cache: {error}") from error
        return False

    def _clone(self, work: _Work, place: str, path: str) -> None:
        source, _ = open_file(place)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, NEW_FILE_MODE)
            try:
                clone(source, descriptor)
                os.fchmod(descriptor, self._mode(work, WORKSPACE, os.fstat(descriptor)))
                os.fsync(descriptor)
            except BaseException:
                os.unlink(path)
                raise
            finally:
                os.close(descriptor)
        finally:
            os.close(source)

    # ------------------------------------------------------------- proof, then the name

    def _proven(self, staged: list[_Staged]) -> tuple[list[_Staged], list[_Staged]]:
        """Read staged files back from the device, and part the good from the bad."""
        by_algorithm = defaultdict(list)
        for each in staged:
            if each.work.entry.digest:
                by_algorithm[each.work.entry.digest.algorithm].append(each)
        good: list[_Staged] = []
        bad: list[_Staged] = []
        for algorithm, some in by_algorithm.items():
            paths = [each.path for each in some]
            for batch in hash_files(
                paths, algorithm, jobs=self._jobs, cold=True, meter=self._meter
            ):
                for position, seen in zip(batch.positions.tolist(), batch, strict=True):
                    each = some[position]
                    (good if is_expected(each.work.entry, seen) else bad).append(each)
        return good, bad

    def _blamed(self, staged: _Staged, target: str) -> bool:
        """Say whose fault a bad copy is; True if it was the disk's, and the place has failed."""
        os.unlink(staged.path)
        work = staged.work
        try:
            chunks = self._chunks(work, self._stores[staged.source])
            found, size = hash_chunks(chunks, work.entry.digest.algorithm)  # type: ignore[union-attr]  # it has one
        except (OSError, StoreError):
            work.tried.append(f"{staged.source}: unreadable")
            return False
        if is_expected(work.entry, Observation(found.value, size, None, None, None)):
            why = f"what was written reads back as other bytes than {staged.source} gave"
            work.failed(target, OSError(errno.EIO, why))
            return True
        work.tried.append(f"{staged.source}: damaged too")
        return False

    def _name(self, staged: list[_Staged], target: str) -> None:
        """Give proven files their names, folder by folder; each is synced once."""
        folders: dict[tuple[str, str], list[tuple[_Place, _Staged]]] = defaultdict(list)
        for each in staged:
            place = self._place(each.work, target)
            folders[place.root, os.path.dirname(place.path)].append((place, each))
        if len(folders) == 1:  # a reader's one file needs no threads
            self._name_in_folder(*folders.values())
            return
        with ThreadPoolExecutor(STREAMS, "dvc-integrity-name") as executor:
            list(executor.map(self._name_in_folder, folders.values()))

    def _name_in_folder(self, placed: list[tuple[_Place, _Staged]]) -> None:
        named: list[tuple[_Place, _Staged, str | None]] = []
        try:
            if placed[0][0].store != WORKSPACE:
                os.makedirs(placed[0][0].root, exist_ok=True)
            store = self._stores[placed[0][0].store]
            mode = store.folder_mode if isinstance(store, ObjectStore) else NEW_FOLDER_MODE
            with _inside(placed[0][0], mode) as (folder, _):
                for place, each in placed:
                    try:
                        before = _identity(folder, place)
                        with self._keeping:  # what several names share is kept once
                            kept = self._set_aside(folder, place, each.work)
                        _refuse_other(folder, place, before)
                        _rename(each, folder, os.path.basename(place.path))
                        named.append((place, each, kept))
                    except OSError as error:
                        each.work.failed(place.store, error)
                os.fsync(folder)
        except OSError as error:
            for place, each in placed:
                if place.store in each.work.left:
                    each.work.failed(place.store, error)
            return
        finally:
            for _, each in placed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each.path)
        for place, each, kept in named:
            each.work.end(place.store, Result.RESTORED, each.source, quarantine=kept)

    def _set_aside(self, folder: int, place: _Place, work: _Work) -> str | None:
        """Keep what lies there; what several names share is kept once."""
        try:
            found = os.stat(os.path.basename(place.path), dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        if key in self._kept and stat.S_ISREG(found.st_mode):
            return self._kept[key]
        note = {
            "expected": str(work.entry.digest),
            "found": work.seen.digest.hex() if work.seen and work.seen.digest else None,
            "size": work.seen.size if work.seen else None,
            "store": place.store,
        }
        where = os.path.join(self._job.scratch, "quarantine")
        self._kept[key] = quarantine(place.full, where, note, within=folder)
        return self._kept[key]

    def _place(self, work: _Work, target: str) -> _Place:
        store = self._stores[target]
        if isinstance(store, Workspace):
            return _Place(target, store.root, work.entry.path)
        full = work.entry.digest and store.locate(work.entry.digest, listing=work.row is None)
        if not full:
            raise StoreError(f"Objects cannot be put into the {target}.")
        folder, name = os.path.split(full)
        root, prefix = os.path.split(folder)
        return _Place(target, root, f"{prefix}/{name}")


def _identity(folder: int, place: _Place) -> tuple[int, ...] | None:
    """Return what tells a file from another one of its name; None if there is none."""
    try:
        found = os.stat(os.path.basename(place.path), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_other(folder: int, place: _Place, before: tuple[int, ...] | None) -> None:
    """Refuse to give a name that went to another file since what lay there was kept."""
    if _identity(folder, place) not in (before, None):
        raise OSError(errno.EBUSY, "somebody wrote it meanwhile", place.path)


@contextlib.contextmanager
def _inside(place: _Place, make: int | None) -> Iterator[tuple[int, str]]:
    """Open the folder of a place without following a link below its root."""
    folder, name = os.path.split(place.path)
    with folder_below(place.root, folder, make=make) as descriptor:
        yield descriptor, name


def _was_written(finding: Finding | None, seen: Observation) -> bool:
    """Return whether a file is not any more what a verification found bad."""
    if finding is None or finding.status is Status.UNREADABLE:
        return False
    if seen.error is not None:
        return False  # nothing of it can be lost, or it is kept as it is
    found = finding.found.value if finding.found else None
    return not seen.stable or seen.digest != found


def _rename(staged: _Staged, folder: int, name: str) -> None:
    """Give a staged file its name, by way of a hidden one beside it on another file system."""
    try:
        os.replace(staged.path, name, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    hidden = f".{secrets.token_hex(8)}.dvc-integrity.tmp"
    try:
        _carry(staged, folder, hidden)
        os.replace(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=folder)
        raise


def _carry(staged: _Staged, folder: int, name: str) -> None:
    """Copy a staged file to another file system, and prove it there again."""
    if os.path.islink(staged.path):
        os.symlink(os.readlink(staged.path), name, dir_fd=folder)
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(name, flags, NEW_FILE_MODE, dir_fd=folder)
    with open(descriptor, "w+b", buffering=0) as file:
        for chunk in read_chunks(staged.path):
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        os.fchmod(descriptor, stat.S_IMODE(os.stat(staged.path).st_mode))
        os.fsync(descriptor)
        drop_cached_pages(descriptor)
        file.seek(0)
        digest = staged.work.entry.digest
        read: Callable[[], bytes] = lambda: file.read(PIECE_BYTES)  # noqa: E731 (for iter)
        found, _ = hash_chunks(iter(read, b""), digest.algorithm)  # type: ignore[union-attr]  # it has one
        if found != digest:
            raise OSError(errno.EIO, f"what was written reads back as {found}")


def _why_not(seen: Observation) -> str:
    if isinstance(seen.error, FileNotFoundError):
        return "absent"
    return f"unreadable ({seen.error.strerror})" if seen.error else "damaged too"

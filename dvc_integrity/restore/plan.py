"""What is to be made good, and from where: decided without touching a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dvc_integrity.digest import Digest
from dvc_integrity.errors import RestoreError
from dvc_integrity.hashing import Meter
from dvc_integrity.report import Finding, Status
from dvc_integrity.restore.outcome import Outcome, Restoration, untouched_to_json
from dvc_integrity.stores import Workspace
from dvc_integrity.survey import Item, State

__all__ = ["CACHE", "TWIN", "WORKSPACE", "Choice", "Job", "Plan", "Step", "plan"]

WORKSPACE, CACHE = Workspace.name, "cache"

TWIN = f"{WORKSPACE}:"
"""Before the path of another file of the work tree that must have the same bytes."""

_NEVER = {
    Status.EXTRA: "never touched",
    Status.UNSTABLE: "somebody writes it",
    Status.UNVERIFIABLE: "no content hash is committed for it",
}


class Job(Protocol):
    """Carries out steps."""

    def run(
        self, steps: Sequence[Step], *, jobs: int | None, meter: Meter | None, cold: bool
    ) -> list[Outcome]:
        """Make the places of each step good, and say how each ended."""


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

    @property
    def size(self) -> int | None:
        """How long the entry is, in bytes, as far as that is known; bad copies may be longer."""
        if self.item.entry.size is not None:
            return self.item.entry.size
        known = [copy.size for copy in self.item.copies if copy.size is not None]
        return max(known, default=None)

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
    job
        What carries it out; None for a plan that names no stores.
    """

    steps: tuple[Step, ...]
    hopeless: tuple[Item, ...]
    untouched: tuple[tuple[Finding, str], ...]
    job: Job | None = field(default=None, repr=False, compare=False)

    SCHEMA = "dvc-integrity/plan/1"

    def apply(
        self, *, jobs: int | None = None, meter: Meter | None = None, cold: bool = False
    ) -> Restoration:
        """Carry the plan out; what somebody else mended meanwhile is left alone.

        Parameters
        ----------
        jobs
            Reading threads.
        meter
            Totals to add to while the work goes on.
        cold
            Read everything that was written back past the page cache before it gets its name,
            not only what takes the place of something bad.

        Raises
        ------
        RestoreError
            If the lock or the staging folder cannot be had: then nothing was changed.
        """
        if self.job is None:
            raise RestoreError("This plan names no stores. Make one with 'restore'.")
        outcomes = self.job.run(self.steps, jobs=jobs, meter=meter, cold=cold)
        return Restoration(tuple(outcomes), self.hopeless, self.untouched)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON document (schema ``dvc-integrity/plan/1``)."""
        return {
            "schema": self.SCHEMA,
            "steps": [step.to_json() for step in self.steps],
            "hopeless": [item.to_json() for item in self.hopeless],
            "untouched": untouched_to_json(self.untouched),
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
    lacking: list[tuple[Item, tuple[str, ...]]] = []
    untouched = [(each, _NEVER.get(each.status, "no entry")) for each in findings]
    for item in items:
        reason = _why_not_wanted(item, choice)
        targets = _targets(item, choice)
        if reason and item.finding:
            untouched.append((item.finding, reason))
            if item.finding.status is not Status.MODIFIED:
                continue
            targets = tuple(name for name in targets if name != choice.judged)
        untouched += _left_alone(item, choice)
        sources = _sources(item, targets, choice)
        if targets and sources:
            steps.append(Step(item, targets, sources))
        elif targets:
            lacking.append((item, targets))
    healed = {_object(step.item) for step in steps if CACHE in step.targets}
    after = [
        Step(item, targets, (CACHE,))
        for item, targets in lacking
        if CACHE in targets and _object(item) in healed
    ]
    served = {step.item for step in after}
    hopeless = tuple(item for item, _ in lacking if item not in served)
    return Plan((*steps, *after), hopeless, tuple(untouched))


def _object(item: Item) -> tuple[Digest | None, bool]:
    """Return what tells the object of an entry in the cache from others; some share it."""
    return item.entry.digest, item.listing


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
        elif copy.state is State.ABSENT and not healed and choice.everywhere:
            status, reason = Status.MISSING, "'--push' heals remotes"
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
    named += sorted(name for name in worth if name.startswith(TWIN))
    itself = item.state(WORKSPACE) is State.GOOD and WORKSPACE in targets  # it lost a mode only
    return tuple(named) if named or not itself else (WORKSPACE,)

"""Proven bytes in the place of what is not what was committed.

``plan`` is pure: from what a survey saw it decides what is to be made good, and from where.
Applying it does the writing. The bytes that are hashed are the bytes that are written, first to
a staging folder and down to the disk; what takes the place of something bad is read back past
the page cache as well. Only then it gets its name, in exchange for the bad one, which stays in
the quarantine. A kill at any instant leaves the old bytes or the proven new ones, what it left
half done the next restore ends, and running again converges. A disk or a source that fails is
told in an outcome; the rest goes on.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dvc_integrity.errors import RestoreError, printable
from dvc_integrity.judgement import is_expected
from dvc_integrity.manifest import Manifest
from dvc_integrity.report import Report
from dvc_integrity.restore.apply import StoresJob
from dvc_integrity.restore.outcome import Outcome, Restoration, Result
from dvc_integrity.restore.plan import CACHE, TWIN, WORKSPACE, Choice, Plan, Step, plan
from dvc_integrity.restore.sources import find_good, no_good_copy
from dvc_integrity.stores import ObjectStore, Workspace
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
        If the report was not made by ``verify``, or is on a remote, or on a cache that is not
        among the sources.
    """
    if report.expected is None or report.store not in (WORKSPACE, CACHE):
        raise RestoreError(
            f"What 'verify' reports on the workspace or the cache can be restored, not this "
            f"report on '{printable(report.store)}'."
        )
    if report.store not in (WORKSPACE, *(store.name for store in sources)):
        raise RestoreError("A report on the cache is made good with the cache among the sources.")
    manifest = report.expected
    stores: list[Workspace | ObjectStore] = [workspace, *sources]
    others = [store for store in stores if store.name != report.store]
    rows = range(len(manifest)) if everywhere else damaged_rows(report, manifest)
    seen = survey(manifest, rows, others, prove=prove or everywhere or bool(push), jobs=jobs)
    items = _with_twins(list(judged(seen, report, manifest)), manifest)
    used = {item.finding for item in items}
    rest = [each for each in report.findings if each not in used and not each.transient]
    names = tuple(store.name for store in sources)
    choice = Choice(report.store, names, modified, tuple(push), everywhere)
    found = plan(items, rest, choice)
    folder = scratch or os.path.join(workspace.root, ".dvc", "tmp", "integrity")
    job = StoresJob(manifest, workspace, tuple(sources), folder)
    return Plan(found.steps, found.hopeless, found.untouched, job)


def _with_twins(items: list[Item], manifest: Manifest) -> list[Item]:
    """Add to each bad file another one of the work tree that must have the same bytes."""
    bad = {item.row for item in items if item.row is not None and item.finding}
    wanted = np.array(sorted(bad), np.int64)
    keys = np.ascontiguousarray(manifest.digests[:, :8]).view(np.uint64).ravel()
    twins: dict[bytes, list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.isin(keys, keys[wanted])).tolist():
        if row not in bad and manifest.has_digest(row):
            twins[manifest.digests[row].tobytes()].append(row)
    if not twins:
        return items
    return [_with_twin(item, manifest, twins) for item in items]


def _with_twin(item: Item, manifest: Manifest, twins: dict[bytes, list[int]]) -> Item:
    digest = item.entry.digest
    for row in twins.get(digest.value, ()) if digest and item.row is not None else ():
        entry = manifest[row]
        if entry.digest == digest and row != item.row:
            twin = Copy(f"{TWIN}{entry.path}", State.PRESENT)
            return replace(item, copies=(*item.copies, twin))
    return item


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
        job = StoresJob(manifest, self.workspace, tuple(self.sources), self.scratch)
        outcomes = job.run([step], jobs=None, meter=None, cold=False)
        outcome = next(each for each in outcomes if each.place == WORKSPACE)
        if outcome.result is Result.HOPELESS:
            raise no_good_copy(entry.path, outcome.detail)
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

"""Who holds a good copy: entries of a manifest against every place that may have them.

A survey reads and never writes. It says what was seen in each place, and of nothing that it
only saw the name of does it say that it is good: that is ``present``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.digest import Algorithm
from dvc_integrity.errors import StoreError
from dvc_integrity.hashing import Meter
from dvc_integrity.judgement import has_execute_bit, is_absent, is_expected
from dvc_integrity.manifest import Entry, Manifest, Out
from dvc_integrity.observation import Observation, SpecialFileError
from dvc_integrity.report import Finding, Report, Status
from dvc_integrity.stores import ObjectStore, Workspace

__all__ = ["Copy", "Item", "State", "damaged_rows", "judged", "survey"]

ROWS_AT_A_TIME = 1 << 13
"""Entries that are looked at together: bounds memory."""


class State(str, Enum):
    """What is known of one copy."""

    GOOD = "good"
    """Its bytes were read, and are the committed ones."""
    BAD = "bad"
    """They are others."""
    ABSENT = "absent"
    """There is none."""
    UNREADABLE = "unreadable"
    """It, or the whole place, could not be read."""
    PRESENT = "present"
    """There is one; its bytes were not read."""
    NOT_KEPT = "not-kept"
    """This place is not to have one (``cache: false``, ``push: false``, another ``remote:``)."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of an entry.

    Attributes
    ----------
    store
        The place: ``workspace``, ``cache``, ``remote:NAME``.
    state
        What is known of it.
    detail
        Why, in a few words.
    size
        Bytes that lie there, where that is known.
    """

    store: str
    state: State
    detail: str = ""
    size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the copy as a JSON object."""
        return {
            "store": self.store,
            "state": self.state.value,
            "detail": self.detail,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Item:
    """An entry, or the listing of a folder, and its copies.

    Attributes
    ----------
    entry
        What it must be; for a listing the path is that of its folder.
    out
        The output that it belongs to.
    row
        Its position in the manifest; None for a listing.
    copies
        One for each place that was asked.
    finding
        What a verification found wrong with it in the place that it judged.
    """

    entry: Entry
    out: Out
    row: int | None
    copies: tuple[Copy, ...]
    finding: Finding | None = None

    @property
    def listing(self) -> bool:
        """Whether this is the listing of a folder."""
        return self.row is None

    @property
    def good(self) -> bool:
        """Whether every place that is to have it holds it, proven."""
        return self.finding is None and all(
            each.state in (State.GOOD, State.NOT_KEPT) for each in self.copies
        )

    def state(self, store: str) -> State | None:
        """Return what is known of the copy in a place; None if that was not asked."""
        return next((each.state for each in self.copies if each.store == store), None)

    def to_json(self) -> dict[str, Any]:
        """Return the item as a JSON object."""
        return {
            "path": self.entry.path,
            "out": self.out.path,
            "listing": self.listing,
            "expected": str(self.entry.digest) if self.entry.digest else None,
            "status": self.finding.status.value if self.finding else Status.OK.value,
            "detail": self.finding.detail if self.finding else "",
            "copies": [each.to_json() for each in self.copies],
        }


def survey(
    manifest: Manifest,
    rows: Sequence[int] | NDArray[np.int64],
    stores: Sequence[Workspace | ObjectStore],
    *,
    prove: bool,
    listings: bool = True,
    jobs: int | None = None,
    meter: Meter | None = None,
) -> Iterator[Item]:
    """Ask every store for entries of a manifest, and for the listings of its folders.

    Parameters
    ----------
    manifest
        What the files must be.
    rows
        Which of its entries; those without a content hash are passed over.
    stores
        The places to ask.
    prove
        Read and hash each copy; a bad one a second time, past the page cache. False: only ask
        whether something is there, and prove listings alone.
    listings
        Whether the listings of all folders of the manifest are asked for too.
    jobs
        Reading threads.
    meter
        Totals to add to while the work goes on.

    Yields
    ------
    Item
        The entries in ascending order, then the listings.
    """
    wanted = np.asarray(sorted(rows), np.int64)
    looks = [_Look(manifest, store, prove, jobs, meter) for store in stores]
    for start in range(0, len(wanted), ROWS_AT_A_TIME):
        window = wanted[start : start + ROWS_AT_A_TIME]
        window = window[[manifest.has_digest(row) for row in window.tolist()]]
        columns = [look.copies(window) for look in looks]
        for at, row in enumerate(window.tolist()):
            out = manifest.outs[int(manifest.out_index[row])]
            yield Item(manifest[row], out, row, tuple(column[at] for column in columns))
    for out in manifest.outs if listings else ():
        if out.directory and out.digest and not out.external:
            entry = Entry(out.path, out.digest, None, executable=False, out=out.path)
            objects = [look for look in looks if isinstance(look.store, ObjectStore)]
            yield Item(entry, out, None, tuple(look.listing(out, entry) for look in objects))


def judged(items: Iterable[Item], report: Report, manifest: Manifest) -> Iterator[Item]:
    """Put what a report says into the items: the copy in its store, and the finding.

    Every entry and listing of ``manifest`` must have been asked for in that report: what it has
    no finding about is good there.
    """
    entries, listings = _findings(report, manifest)
    for item in items:
        found = entries.get(item.row) if item.row is not None else listings.get(item.out.path)
        if item.listing and report.store == "workspace":
            yield item  # it is no file of the work tree
            continue
        copy = _copy_of(report.store, found)
        yield replace(item, copies=(copy, *item.copies), finding=found)


def damaged_rows(report: Report, manifest: Manifest) -> list[int]:
    """Return the entries of a manifest that a report has something to say about."""
    entries, _ = _findings(report, manifest)
    return sorted(entries)


def _findings(report: Report, manifest: Manifest) -> tuple[dict[int, Finding], dict[str, Finding]]:
    """Return findings by the row of their entry, and those on listings by their folder."""
    entries, listings = {}, {}
    for finding in report.findings:
        row = manifest.find(finding.path)
        if finding.status is Status.OK:
            continue
        if row is not None and (
            manifest.has_digest(row) or finding.status is Status.UNVERIFIABLE
        ):  # else it is about the listing of a folder that is an entry of the same path
            entries[row] = finding
        elif finding.path == finding.out and report.store != "workspace":
            listings[finding.path] = finding
    return entries, listings


_STATES = {
    Status.MISSING: State.ABSENT,
    Status.CORRUPT: State.BAD,
    Status.MODIFIED: State.BAD,
}


def _copy_of(store: str, finding: Finding | None) -> Copy:
    if finding is None:
        return Copy(store, State.GOOD)
    if finding.found is not None and finding.found == finding.expected:
        return Copy(store, State.GOOD, finding.detail, finding.size)
    state = _STATES.get(finding.status, State.UNREADABLE)
    return Copy(store, state, finding.detail, finding.size)


class _Look:
    """What one store holds of some entries."""

    def __init__(
        self,
        manifest: Manifest,
        store: Workspace | ObjectStore,
        prove: bool,
        jobs: int | None,
        meter: Meter | None,
    ) -> None:
        self.store = store
        self._manifest = manifest
        self._prove = prove
        self._jobs = jobs
        self._meter = meter
        self._kept = np.array([store.holds(out) for out in manifest.outs], np.bool_)
        self._listings = {out.path: observe for out, observe in store.listings(manifest)}

    def copies(self, rows: NDArray[np.int64]) -> list[Copy]:
        """Return the copy of each of ``rows``."""
        kept = self._kept[self._manifest.out_index[rows]]
        asked = rows[kept]
        try:
            found = iter(self._proven(asked) if self._prove else self._present(asked))
        except StoreError as error:
            found = iter([Copy(self.store.name, State.UNREADABLE, str(error))] * len(asked))
        not_kept = Copy(self.store.name, State.NOT_KEPT)
        outs = map(self._manifest.outs.__getitem__, self._manifest.out_index[rows].tolist())
        return [
            self._at_home(next(found), out) if keeps else not_kept
            for keeps, out in zip(kept.tolist(), outs, strict=True)
        ]

    def _at_home(self, copy: Copy, out: Out) -> Copy:
        """Return a copy; one that is absent where DVC does not push to is not kept there."""
        if copy.state is State.ABSENT and isinstance(self.store, ObjectStore):
            return copy if self.store.is_home(out) else replace(copy, state=State.NOT_KEPT)
        return copy

    def listing(self, out: Out, entry: Entry) -> Copy:
        """Return the copy of a folder's listing; it is always read."""
        observe = self._listings.get(out.path)
        if observe is None:
            return Copy(self.store.name, State.NOT_KEPT)
        try:
            seen = observe()
            if not (is_expected(entry, seen) or is_absent(seen.error)):
                seen = observe(cold=True)
        except StoreError as error:
            return Copy(self.store.name, State.UNREADABLE, str(error))
        return self._at_home(self._copy(entry, seen), out)

    def _present(self, rows: NDArray[np.int64]) -> list[Copy]:
        return [
            _failed(self.store.name, found.error)
            if found.error
            else Copy(self.store.name, State.PRESENT, size=found.size)
            for found in self.store.stat(self._manifest, rows.tolist())
        ]

    def _proven(self, rows: NDArray[np.int64]) -> list[Copy]:
        copies: dict[int, Copy] = {}
        for algorithm in Algorithm:
            some = np.intersect1d(rows, self._manifest.rows(algorithm), assume_unique=True)
            first = self._observe(some, algorithm, cold=False, meter=self._meter)
            again = np.array(
                [
                    row
                    for row, seen in first.items()
                    if not (is_expected(self._manifest[row], seen) or is_absent(seen.error))
                ],
                np.int64,
            )
            seen_last = first | self._observe(again, algorithm, cold=True, meter=None)
            copies |= {
                row: self._copy(self._manifest[row], seen) for row, seen in seen_last.items()
            }
        return [copies[row] for row in rows.tolist()]

    def _observe(
        self, rows: NDArray[np.int64], algorithm: Algorithm, *, cold: bool, meter: Meter | None
    ) -> dict[int, Observation]:
        if not len(rows):
            return {}
        batches = self.store.observe(
            self._manifest, rows, algorithm, jobs=self._jobs, cold=cold, meter=meter
        )
        return {
            int(rows[position]): seen
            for batch in batches
            for position, seen in zip(batch.positions.tolist(), batch, strict=True)
        }

    def _copy(self, entry: Entry, seen: Observation) -> Copy:
        if seen.error is not None:
            return _failed(self.store.name, seen.error)
        if not seen.stable:
            return Copy(self.store.name, State.UNREADABLE, "it changed while it was read")
        if not is_expected(entry, seen):
            return Copy(self.store.name, State.BAD, size=seen.size)
        if entry.executable and not self.store.immutable and not has_execute_bit(seen):
            return Copy(self.store.name, State.GOOD, "not executable", seen.size)
        return Copy(self.store.name, State.GOOD, size=seen.size)


def _failed(store: str, error: OSError) -> Copy:
    if is_absent(error):
        return Copy(store, State.ABSENT)
    reason = error.strerror or str(error)
    other = isinstance(error, (IsADirectoryError, SpecialFileError))
    return Copy(store, State.BAD if other else State.UNREADABLE, reason)

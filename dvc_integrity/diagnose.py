"""What kind of damage is this: the bad bytes of one file beside a proven good copy.

Nothing is written to the workspace, the cache or a remote. What comes from a remote and is
large lies in a file without a name in the scratch folder while the comparison lasts. Memory
does not grow with the size of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from dvc_integrity.damage import Content, Damage, compare
from dvc_integrity.digest import Digest
from dvc_integrity.errors import IntegrityError, RestoreError, StoreError, printable
from dvc_integrity.hashing import hash_chunks
from dvc_integrity.judgement import is_absent, is_expected, judge
from dvc_integrity.manifest import Entry, Manifest
from dvc_integrity.matching import find_matches, guess
from dvc_integrity.observation import Observation
from dvc_integrity.patterns import Elsewhere, Known, Match, Version
from dvc_integrity.report import Finding, Hint, Status
from dvc_integrity.restore import find_good
from dvc_integrity.stores import ObjectStore, Workspace

__all__ = ["SCHEMA", "Context", "Diagnosis", "diagnose", "examine"]

SCHEMA = "dvc-integrity/diagnosis/1"

ELSEWHERE_KEPT = 100
"""Other paths with the same digest that are kept."""

ELSEWHERE_READ = 3
"""Of how many of them the bytes are read, to tell an exchange from a copy."""

Place = Workspace | ObjectStore


@dataclass(frozen=True, slots=True)
class Context:
    """What is known about a bad content, beside its bytes.

    Attributes
    ----------
    rev, store
        As in a report.
    finding
        The judgement on it, with the expected digest and the one that was found.
    size
        The committed size in bytes; None where DVC records none.
    good_copy
        Which store the good copy is from; None without one.
    known
        What is known about the digest that was found.
    notes
        What could not be found out, and why.
    """

    rev: str
    store: str
    finding: Finding
    size: int | None = None
    good_copy: str | None = None
    known: Known = field(default_factory=Known)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What kind of damage a file has.

    Attributes
    ----------
    rev
        Full SHA of the commit, or ``workspace``.
    store
        Where the bad bytes lie.
    finding
        The judgement on them, as ``verify`` gives it.
    good_copy
        The store of the good copy that they were compared with; None without one.
    damage
        What differs; None where nothing was compared.
    matches
        The patterns that it fits; those that explain most come first.
    notes
        What could not be found out, and why.
    """

    rev: str
    store: str
    finding: Finding
    good_copy: str | None = None
    damage: Damage | None = None
    matches: tuple[Match, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as a JSON document (schema ``dvc-integrity/diagnosis/1``)."""
        finding = self.finding.to_json()
        del finding["ranges"]  # those of the damage are finer
        return {
            "schema": SCHEMA,
            "rev": self.rev,
            "store": self.store,
            **finding,
            "good_copy": self.good_copy,
            "damage": self.damage.to_json() if self.damage else None,
            "patterns": [match.to_json() for match in self.matches],
            "notes": list(self.notes),
        }


def diagnose(bad: Content, good: Content | None, context: Context) -> Diagnosis:
    """Say what kind of damage bad bytes have, beside good ones if there are any.

    Parameters
    ----------
    bad
        The bytes whose digest is ``context.finding.found``.
    good
        The bytes whose digest is ``context.finding.expected``; None if no copy is to be had.
    context
        What else is known.

    Raises
    ------
    StoreError
        If a content cannot be read, or is not the one that the context speaks of.
    """
    finding = context.finding
    if finding.expected is None or finding.found is None:
        raise ValueError("a diagnosis takes the digests that were expected and found")
    damage = None
    try:
        if good is None:
            matches = guess(bad, finding.expected, context.size, context.known)
        else:
            damage, found, proven = compare(bad, good, finding.expected.algorithm)
            _refuse_others(finding, found, proven)
            matches = find_matches(bad, good, damage, context.known)
    except OSError as error:
        raise _unreadable(finding.path, error) from error
    return Diagnosis(
        rev=context.rev,
        store=context.store,
        finding=finding,
        good_copy=context.good_copy,
        damage=damage,
        matches=matches,
        notes=context.notes,
    )


def examine(
    manifest: Manifest,
    row: int,
    store: Place,
    *,
    sources: Iterable[Place],
    scratch: str,
    everything: Callable[[], Manifest],
    versions: Callable[[str], Iterable[Version]],
) -> Diagnosis:
    """Judge one file of a store, and diagnose it if it is bad.

    Parameters
    ----------
    manifest
        What the file must be.
    row
        Which of its entries.
    store
        Where the bytes lie.
    sources
        Where good copies may lie, the cheapest first; ``store`` itself is left out.
    scratch
        The folder for large objects of remotes, ``Repository.scratch``.
    everything
        Gives the manifest of all outputs, where the digest that was found is looked up.
    versions
        Gives what a path was to be at other commits, the newest first.

    Returns
    -------
    Diagnosis
        Its finding is ``ok`` if the bytes are good; then there is nothing else in it.

    Raises
    ------
    ManifestError
        If no content hash is committed for the file.
    StoreError
        If the store or the file cannot be read, or the file changes meanwhile.
    """
    entry = manifest[row]
    finding = _judged(manifest, row, store)
    if not _is_readable_damage(entry, finding):
        return Diagnosis(manifest.rev, store.name, finding)
    with ExitStack() as opened:
        try:
            bad = opened.enter_context(_open(store, manifest, row, scratch))
        except OSError as error:
            raise _unreadable(entry.path, error) from error
        out = manifest.outs[int(manifest.out_index[row])]
        others = [each for each in sources if each.name != store.name and each.holds(out)]
        good, good_copy, notes = _good_copy(manifest, row, others, scratch, opened)
        known, more = _known(entry, finding, store, everything, versions)
        context = Context(
            manifest.rev, store.name, finding, entry.size, good_copy, known, (*notes, *more)
        )
        diagnosis = diagnose(bad, good, context)
        if not bad.stable or (good and not good.stable):
            raise StoreError(
                f"'{printable(entry.path)}' was written while it was read. Wait until nobody "
                f"writes it, and run again."
            )
    return diagnosis


def _judged(manifest: Manifest, row: int, store: Place) -> Finding:
    """Judge the file as ``verify`` does: what is not good is read a second time."""
    entry = manifest[row]
    first = _observe(manifest, row, store, cold=False)
    settled = is_expected(entry, first) or is_absent(first.error)
    second = None if settled else _observe(manifest, row, store, cold=True)

    def explain(found: Digest | None) -> Hint:
        return store.explain(entry.path, entry.digest, found)

    finding = judge(entry, first, second, explain, immutable=store.immutable)
    good = Finding(
        entry.path, entry.out, Status.OK, entry.digest, found=entry.digest, size=first.size
    )
    return finding or good


def _observe(manifest: Manifest, row: int, store: Place, *, cold: bool) -> Observation:
    (algorithm,) = manifest.algorithms([row])
    rows = np.array([row], np.int64)
    (seen,) = chain(*store.observe(manifest, rows, algorithm, jobs=1, cold=cold))
    return seen


def _is_readable_damage(entry: Entry, finding: Finding) -> bool:
    """Return whether there are bytes, and they are not the committed ones."""
    same = finding.found == entry.digest and entry.size in {None, finding.size}
    return finding.status.is_damage and finding.found is not None and not same


def _open(store: Place, manifest: Manifest, row: int, scratch: str) -> Content:
    place = store.place(manifest, row)
    if place is not None:
        return Content.of_file(place, cold=True)
    return Content.of_stream(store.chunks(manifest, row), scratch)


def _good_copy(
    manifest: Manifest, row: int, sources: Sequence[Place], scratch: str, opened: ExitStack
) -> tuple[Content | None, str | None, tuple[str, ...]]:
    """Return a proven copy and where it is from, or a note on why there is none."""
    (algorithm,) = manifest.algorithms([row])

    def read(source: Place) -> tuple[Content | None, Observation]:
        try:
            content = opened.enter_context(_open(source, manifest, row, scratch))
            digest, size = hash_chunks(content.chunks(), algorithm)
        except OSError as error:
            return None, Observation(None, 0, None, None, error)
        return content, Observation(digest.value, size, None, None, None)

    try:
        good, name = find_good(manifest, row, sources, read)
    except RestoreError as error:
        return None, None, (str(error),)
    return good, name, ()


def _known(
    entry: Entry,
    finding: Finding,
    store: Place,
    everything: Callable[[], Manifest],
    versions: Callable[[str], Iterable[Version]],
) -> tuple[Known, list[str]]:
    """Look the digest that was found up: at other paths, and at other commits."""
    found = finding.found
    if found is None or found == entry.digest:
        return Known(), []
    elsewhere: tuple[Elsewhere, ...] = ()
    version = None
    notes = []
    try:
        elsewhere = _elsewhere(everything(), entry, found, store)
    except IntegrityError as error:
        notes.append(f"Whether another path is to have these bytes is not known: {error}")
    try:
        version = next((each for each in versions(entry.path) if each.digest == found), None)
    except IntegrityError as error:
        notes.append(f"Whether another commit has these bytes is not known: {error}")
    return Known(elsewhere, version), notes


def _elsewhere(
    everything: Manifest, entry: Entry, found: Digest, store: Place
) -> tuple[Elsewhere, ...]:
    rows = everything.rows(found.algorithm)
    same = (everything.digests[rows] == np.frombuffer(found.value, np.uint8)).all(axis=1)
    paths = [
        (row, os.fsdecode(everything.path(row)))
        for row in rows[same][: ELSEWHERE_KEPT + 1].tolist()
    ]
    others = [(row, path) for row, path in paths if path != entry.path][:ELSEWHERE_KEPT]
    return tuple(
        Elsewhere(path, _holds(everything, row, store, entry) if at < ELSEWHERE_READ else None)
        for at, (row, path) in enumerate(others)
    )


def _holds(everything: Manifest, row: int, store: Place, entry: Entry) -> bool | None:
    """Return whether another path holds the bytes that are missed; None if it cannot be read."""
    if entry.digest is None or entry.digest.algorithm is not everything.algorithms([row])[0]:
        return None
    seen = _observe(everything, row, store, cold=False)
    return None if seen.error else seen.digest == entry.digest.value


def _refuse_others(finding: Finding, found: Digest, proven: Digest) -> None:
    """Refuse contents that are not those whose digests are known: reads that differ."""
    for what, now, before in (
        ("bad file", found, finding.found),
        ("good copy", proven, finding.expected),
    ):
        if now != before:
            raise StoreError(
                f"The {what} of '{printable(finding.path)}' was {before} and is now {now}, so "
                f"nothing can be said about the kind of damage. If nobody wrote it meanwhile, "
                f"reads of it differ: suspect the memory, the cable or the controller."
            )


def _unreadable(path: str, error: OSError) -> StoreError:
    return StoreError(
        f"'{printable(path)}' could not be read to the end: {error.strerror or error}. What could "
        f"not be read says nothing about its bytes: mend that and run again."
    )

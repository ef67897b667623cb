"""Hold a store to a manifest: the loop around the judgement.

Nearly every file is good, so the loop compares whole columns of digests and calls the
judgement only for the rest, after a second read past the page cache.
"""

from __future__ import annotations

import platform
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockUse
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import NothingToVerify, StoreError, printable
from dvc_integrity.hashing import Meter
from dvc_integrity.judgement import is_absent, is_expected, judge
from dvc_integrity.manifest import UNKNOWN_SIZE, Entry, Manifest
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import (
    BLOCKS,
    Coverage,
    Evidence,
    Finding,
    Hint,
    ManifestSummary,
    Report,
    Status,
)
from dvc_integrity.stores import ObjectStore, Store, StoredObject

__all__ = ["verify"]


def verify(
    manifest: Manifest,
    store: Store,
    *,
    jobs: int | None = None,
    cold: bool = False,
    meter: Meter | None = None,
    blocks: bool = True,
    attested: bool = False,
) -> Report:
    """Read every file of a manifest in a store, and judge it.

    Nothing is written to the store; the digests of large files' blocks are kept beside DVC's
    temporary files. What cannot be told is a finding, never an exception.

    Parameters
    ----------
    manifest
        What the files must be.
    store
        Where they lie.
    jobs
        Reading threads; by default one per usable processor.
    cold
        Drop cached pages first, so that the bytes come from the device.
    meter
        Totals to add to while the work goes on.
    blocks
        Compare large files block by block where their blocks are on record, and record them
        where not. False: insist on DVC's own digest, and record nothing.
    attested
        Read nothing: take what the service of a remote states for its objects. That shows what
        it received, not what lies at rest.

    Returns
    -------
    Report
        The verdict, what was really read, and every file that is not ok.

    Raises
    ------
    NothingToVerify
        If the manifest lists no file that this store is to have.
    StoreError
        If the store itself cannot be used.
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    left_out = tuple(out.path for out in manifest.outs if not store.holds(out))
    asked, manifest = manifest, manifest.of(store.holds)
    if not manifest.outs:
        raise NothingToVerify(_nothing_to_verify(asked, store))
    coverage = Coverage()
    findings = [*_unverifiable(manifest, coverage), *_extras(manifest, store)]
    if attested:
        findings += _Attestation(manifest, store).findings(coverage)
    else:
        findings += _listings(manifest, store)
        for algorithm in Algorithm:
            reading = _Reading(manifest, store, algorithm, jobs, cold, meter, blocks)
            findings += reading.findings(manifest.rows(algorithm), coverage)
    if not len(manifest) and not findings:
        raise NothingToVerify(_nothing_to_verify(asked, store))
    return Report(
        rev=manifest.rev,
        store=store.name,
        targets=manifest.targets,
        manifest=ManifestSummary(manifest.digest, len(manifest), manifest.total_bytes),
        coverage=coverage,
        findings=tuple(sorted(findings, key=lambda each: (each.status.severity, each.path))),
        started=started,
        seconds=time.monotonic() - clock,
        versions=_versions(),
        left_out=left_out,
        expected=manifest,
    )


class _Reading:
    """The loop around the judgement: first reads, second reads of the suspects, findings."""

    SUSPECTS_AT_A_TIME = 1024  # second reads run in parallel too, and memory stays bounded

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        algorithm: Algorithm,
        jobs: int | None,
        cold: bool,
        meter: Meter | None,
        blocks: bool,
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._algorithm = algorithm
        self._observe = partial(store.observe, manifest, algorithm=algorithm, jobs=jobs)
        self._cold = cold
        self._meter = meter
        self._blocks = blocks

    def findings(self, rows: NDArray[np.int64], coverage: Coverage) -> Iterator[Finding]:
        """Read the entries at ``rows`` and yield what is not good about them."""
        suspects: list[tuple[int, Observation]] = []
        read, count = np.zeros(len(rows), np.bool_), 0
        use = BlockUse.CHECK if self._blocks else BlockUse.NONE
        for batch in self._observe(rows=rows, cold=self._cold, meter=self._meter, blocks=use):
            at = rows[batch.positions]
            good = _are_good(self._manifest, at, batch, self._store.immutable)
            digest = BLOCKS if batch.by_blocks else self._algorithm.value
            size = int(batch.sizes[good].sum())
            coverage.add(Evidence.REHASHED, int(good.sum()), size, digest=digest)
            read[batch.positions] = True
            count += len(batch)
            for position in np.flatnonzero(~good).tolist():
                suspects.append((int(at[position]), batch[position]))
                if len(suspects) == self.SUSPECTS_AT_A_TIME:
                    yield from self._judge(suspects, coverage)
                    suspects = []
        yield from self._judge(suspects, coverage)
        if not read.all() or count != len(rows):
            raise RuntimeError(f"{len(rows)} files were to be read once each, {count} reads came")

    def _judge(
        self, suspects: list[tuple[int, Observation]], coverage: Coverage
    ) -> Iterator[Finding]:
        again = np.array([row for row, seen in suspects if not is_absent(seen.error)], np.int64)
        use = BlockUse.RECORD if self._blocks else BlockUse.NONE  # the whole digest decides
        second = {
            int(again[position]): seen
            for batch in self._observe(rows=again, cold=True, blocks=use)
            for position, seen in zip(batch.positions.tolist(), batch, strict=True)
        }
        for row, first in suspects:
            seen = second.get(row, first)
            if seen.error:
                coverage.add(Evidence.UNREAD, 1, 0)
            else:
                coverage.add(Evidence.REHASHED, 1, seen.size, digest=self._algorithm.value)
            entry = self._manifest[row]
            explain = partial(self._store.explain, entry.path, entry.digest)
            immutable = self._store.immutable
            finding = judge(entry, first, second.get(row), explain, immutable=immutable)
            if finding is not None:
                damaged = finding.status.is_damage
                yield replace(finding, ranges=self._differing(entry, seen) if damaged else ())

    def _differing(self, entry: Entry, seen: Observation) -> tuple[tuple[int, int], ...]:
        """Return which bytes of a file differ, where its blocks are on record."""
        if seen.blocks is None or entry.digest is None or self._store.blocks is None:
            return ()
        expected = self._store.blocks.find(entry.digest, entry.size)
        return expected.differing(seen.blocks, seen.size) if expected else ()


class _Attestation:
    """Compares what a service states for its objects, from one listing of them.

    Raises
    ------
    StoreError
        If the store has no service that could state anything, or cannot be listed.
    """

    def __init__(self, manifest: Manifest, store: Store) -> None:
        if not isinstance(store, ObjectStore) or not store.attests:
            raise StoreError(
                f"Nobody attests what lies in the {store.name}: it is no service that states "
                f"checksums, or a version-aware remote. Leave '--attested' out to read the objects."
            )
        self._manifest = manifest
        self._store = store
        try:
            wanted = set(self._wanted())
            self._objects = {
                (each.digest, each.listing): each
                for each in store.objects()
                if (each.digest, each.listing) in wanted
            }
        except OSError as error:
            raise StoreError(
                f"The {store.name} cannot be listed: {error.strerror or error}. Without a listing "
                f"nothing is attested; leave '--attested' out to read the objects."
            ) from error

    def _wanted(self) -> Iterator[tuple[Digest | None, bool]]:
        yield from ((self._manifest[row].digest, False) for row in range(len(self._manifest)))
        yield from ((out.digest, True) for out in self._manifest.outs if out.directory)

    def findings(self, coverage: Coverage) -> Iterator[Finding]:
        """Yield what is not good about the objects of the manifest, listings of folders too."""
        for row in range(len(self._manifest)):
            if self._manifest.has_digest(row):
                yield from self._judged(self._manifest[row], coverage)
        for out in self._manifest.outs:
            if out.directory and out.digest and self._store.holds(out):
                entry = Entry(out.path, out.digest, None, executable=False, out=out.path)
                yield from self._judged(entry, Coverage(), listing=True)

    def _judged(
        self, entry: Entry, coverage: Coverage, *, listing: bool = False
    ) -> Iterator[Finding]:
        held = self._objects.get((entry.digest, listing)) if entry.digest else None
        if held is None:
            coverage.add(Evidence.UNREAD, 1, 0)
            yield Finding(entry.path, entry.out, Status.MISSING, expected=entry.digest)
            return
        status, detail = self._status(entry, held)
        known = status is not Status.UNVERIFIABLE
        coverage.add(Evidence.ATTESTED if known else Evidence.UNREAD, 1, held.size or 0)
        if status is not Status.OK:
            yield Finding(
                entry.path,
                entry.out,
                status,
                expected=entry.digest,
                found=held.attested if status is Status.CORRUPT else None,
                size=held.size,
                detail=f"the folder's listing; {detail}" if listing else detail,
            )

    def _status(self, entry: Entry, held: StoredObject) -> tuple[Status, str]:
        if entry.size is not None and held.size is not None and entry.size != held.size:
            return Status.CORRUPT, f"it has {held.size} bytes, not {entry.size}"
        if held.attested is None:
            return Status.UNVERIFIABLE, "the service states no checksum of its content"
        if entry.digest and held.attested.value == entry.digest.value:
            return Status.OK, ""
        if held.digest.algorithm is not Algorithm.MD5:
            return Status.UNVERIFIABLE, "the service states no checksum of DVC 2's kind"
        try:
            if self._store.contradicts(held.digest, listing=held.listing):
                return Status.CORRUPT, "the service received other bytes"
        except OSError as error:
            return Status.UNREADABLE, error.strerror or str(error)
        return Status.UNVERIFIABLE, "what the service states need not be a checksum of its content"


def _are_good(
    manifest: Manifest, rows: NDArray[np.int64], seen: Observations, immutable: bool
) -> NDArray[np.bool_]:
    """Return which of ``seen`` the fast comparison settles; the judgement decides on all else."""
    sizes = manifest.sizes[rows]
    good: NDArray[np.bool_] = (manifest.digests[rows] == seen.digests).all(axis=1)
    good &= ~seen.failed & seen.stable
    good &= (sizes == UNKNOWN_SIZE) | (sizes == seen.sizes)
    if not immutable:
        good &= ~manifest.are_executable(rows) | (seen.modes & stat.S_IXUSR != 0)
    return good


def _unverifiable(manifest: Manifest, coverage: Coverage) -> Iterator[Finding]:
    for row in manifest.rows(None).tolist():
        entry = manifest[row]
        out = manifest.outs[int(manifest.out_index[row])]
        coverage.add(Evidence.UNREAD, 1, 0)
        yield Finding(entry.path, entry.out, Status.UNVERIFIABLE, detail=out.unverifiable or "")
    for out in manifest.outs:
        if out.external:
            coverage.add(Evidence.UNREAD, 1, 0)
            detail = out.unverifiable or ""
            yield Finding(out.path, out.path, Status.UNVERIFIABLE, detail=detail)


def _extras(manifest: Manifest, store: Store) -> Iterator[Finding]:
    for path, error in store.extras(manifest):
        out = _out_of(manifest, path)
        if error is not None:
            reason = f"the folder cannot be listed: {error.strerror or error}"
            yield Finding(path, out, Status.UNREADABLE, detail=reason)
        else:
            hint = store.explain(path, None, None)
            detail = hint.detail or "it is not in the committed listing"
            yield Finding(path, out, Status.EXTRA, adopted=hint.adopted, detail=detail)


def _out_of(manifest: Manifest, path: str) -> str:
    for out in manifest.outs:
        if path == out.path or path.startswith(f"{out.path}/"):
            return out.path
    return path


def _listings(manifest: Manifest, store: Store) -> Iterator[Finding]:
    """Judge the listings themselves, where the store keeps them as objects."""
    for out, observe in store.listings(manifest):
        entry = Entry(out.path, out.digest, None, executable=False, out=out.path)
        first = observe()
        settled = is_expected(entry, first) or is_absent(first.error)
        second = None if settled else observe(cold=True)
        finding = judge(entry, first, second, lambda _: Hint(), immutable=True)
        if finding is not None:
            yield replace(finding, detail=f"the folder's listing; {finding.detail}".rstrip("; "))


def _nothing_to_verify(manifest: Manifest, store: Store) -> str:
    asked = ", ".join(printable(target) for target in manifest.targets) or "the sources"
    if manifest.outs and not any(map(store.holds, manifest.outs)):
        return (
            f"Nothing was checked: the {store.name} is not to hold any file of {asked}. Choose "
            f"another store, or other targets."
        )
    return (
        f"Nothing was checked: no file is tracked under {asked} at {manifest.rev}. Give a target, "
        f"or '--all' for the outputs of stages too; 'dvc list . --dvc-only -R' shows what is "
        f"tracked."
    )


def _versions() -> dict[str, str]:
    return {
        "dvc-integrity": version("dvc-integrity"),
        "dvc": version("dvc"),
        "python": platform.python_version(),
    }

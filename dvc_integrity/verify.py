"""Hold a store to a manifest: the loop around the judgement.

Nearly every file is good, so the loop compares raw digests and calls the judgement only for
the rest, after a second read past the page cache.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.digest import Algorithm
from dvc_integrity.errors import NothingToVerify, printable
from dvc_integrity.hashing import Meter, Observation
from dvc_integrity.judgement import has_execute_bit, is_absent, is_expected, judge
from dvc_integrity.manifest import UNKNOWN_SIZE, Entry, Manifest
from dvc_integrity.report import Coverage, Evidence, Finding, Hint, ManifestSummary, Report, Status
from dvc_integrity.stores import Store

__all__ = ["verify"]


def verify(
    manifest: Manifest,
    store: Store,
    *,
    jobs: int | None = None,
    cold: bool = False,
    meter: Meter | None = None,
) -> Report:
    """Read every file of a manifest in a store, and judge it.

    Nothing is written anywhere. What cannot be told is a finding, never an exception.

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
    findings = [
        *_unverifiable(manifest, coverage),
        *_extras(manifest, store),
        *_listings(manifest, store),
    ]
    for algorithm in Algorithm:
        reading = _Reading(manifest, store, algorithm, jobs, cold, meter)
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
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._observe = partial(store.observe, manifest, algorithm=algorithm, jobs=jobs)
        self._cold = cold
        self._meter = meter

    def findings(self, rows: NDArray[np.int64], coverage: Coverage) -> Iterator[Finding]:
        """Read the entries at ``rows`` and yield what is not good about them."""
        suspects: list[tuple[int, Observation]] = []
        observations = self._observe(rows=rows, cold=self._cold, meter=self._meter)
        for row, seen in zip(rows.tolist(), observations, strict=True):
            if _is_good(self._manifest, row, seen, self._store.immutable):
                _count(coverage, seen)
            else:
                suspects.append((row, seen))
            if len(suspects) == self.SUSPECTS_AT_A_TIME:
                yield from self._judge(suspects, coverage)
                suspects = []
        yield from self._judge(suspects, coverage)

    def _judge(
        self, suspects: list[tuple[int, Observation]], coverage: Coverage
    ) -> Iterator[Finding]:
        again = [row for row, seen in suspects if not is_absent(seen.error)]
        second = dict(
            zip(again, self._observe(rows=np.array(again, np.int64), cold=True), strict=True)
        )
        for row, seen in suspects:
            _count(coverage, second.get(row, seen))
            entry = self._manifest[row]
            explain = partial(self._store.explain, entry.path, entry.digest)
            immutable = self._store.immutable
            finding = judge(entry, seen, second.get(row), explain, immutable=immutable)
            if finding is not None:
                yield finding


def _is_good(manifest: Manifest, row: int, seen: Observation, immutable: bool) -> bool:
    """Whether the fast comparison settles it; the judgement decides on all else."""
    if seen.digest != manifest.digests[row].tobytes() or not seen.stable:
        return False
    if manifest.sizes[row] not in (UNKNOWN_SIZE, seen.size):
        return False
    return immutable or not manifest.is_executable(row) or has_execute_bit(seen)


def _count(coverage: Coverage, seen: Observation) -> None:
    evidence = Evidence.UNREAD if seen.error else Evidence.REHASHED
    coverage.add(evidence, 1, 0 if seen.error else seen.size)


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

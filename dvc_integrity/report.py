"""What was found: statuses, findings, coverage, and the report that holds them.

A report says what was really read. ``verdict`` is ``clean`` only if something was read and
every file asked for is good; a file whose state could not be told makes it ``incomplete``,
damage makes it ``damaged``, and damage wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from dvc_integrity.digest import Digest
from dvc_integrity.errors import IntegrityError, printable
from dvc_integrity.manifest import Manifest

__all__ = [
    "BLOCKS",
    "CorruptDataError",
    "Coverage",
    "Evidence",
    "Finding",
    "Hint",
    "ManifestSummary",
    "Report",
    "Status",
    "Verdict",
]


BLOCKS = "blocks"
"""What coverage calls the digests of a large file's blocks, beside the names of DVC's digests."""


class Status(str, Enum):
    """The state of one file, from the worst to the best."""

    CORRUPT = "corrupt"
    """Its bytes differ though nothing wrote it, or it is an immutable object."""
    MISSING = "missing"
    """Nothing lies at its path."""
    MODIFIED = "modified"
    """Its bytes differ, and it was written since."""
    EXTRA = "extra"
    """It lies in a tracked folder, and the manifest does not list it."""
    UNREADABLE = "unreadable"
    """The system refused to read it (EIO, EACCES, …)."""
    UNSTABLE = "unstable"
    """It changed while it was read."""
    UNVERIFIABLE = "unverifiable"
    """No content hash is committed for it."""
    OK = "ok"
    """Its bytes are the committed ones."""

    @property
    def is_damage(self) -> bool:
        """Whether the file is not what was committed."""
        return self in _DAMAGE

    @property
    def severity(self) -> int:
        """Position in the order from the worst to the best; 0 is the worst."""
        return list(Status).index(self)


_DAMAGE = {Status.CORRUPT, Status.MISSING, Status.MODIFIED, Status.EXTRA}


class Evidence(str, Enum):
    """What a judgement rests on."""

    REHASHED = "rehashed"
    """The bytes were read and hashed now."""
    ATTESTED = "attested"
    """A storage service states its checksum."""
    REUSED = "reused"
    """An earlier verdict within its permitted age."""
    UNREAD = "unread"
    """No byte was read: missing, unreadable, or nothing to hold it to."""


class Verdict(str, Enum):
    """The outcome of a verification."""

    CLEAN = "clean"
    DAMAGED = "damaged"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Finding:
    """One judged file that deserves a word.

    Attributes
    ----------
    path
        Relative to the DVC root, with forward slashes.
    out
        The DVC output that it belongs to.
    status
        The judgement. ``ok`` only together with ``transient``.
    expected, found
        The committed digest, and the one of the bytes that were read; None where there is none.
    size
        Bytes that were found; None if nothing could be read.
    transient
        A first read gave other bytes and a second one the committed ones.
    adopted
        The metadata in the work tree already records what was found: DVC took the change over.
    detail
        Why, in a few words.
    ranges
        Which bytes differ, as half-open ranges; known where the digests of a large file's
        blocks had been recorded, and as fine as these.
    """

    path: str
    out: str
    status: Status
    expected: Digest | None = None
    found: Digest | None = None
    size: int | None = None
    transient: bool = False
    adopted: bool = False
    detail: str = ""
    ranges: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return {
            "path": self.path,
            "out": self.out,
            "status": self.status.value,
            "expected": str(self.expected) if self.expected else None,
            "found": str(self.found) if self.found else None,
            "size": self.size,
            "transient": self.transient,
            "adopted": self.adopted,
            "detail": self.detail,
            "ranges": [list(each) for each in self.ranges],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Finding:
        """Read what ``to_json`` gave."""
        return cls(
            path=document["path"],
            out=document["out"],
            status=Status(document["status"]),
            expected=Digest.parse(document["expected"]) if document["expected"] else None,
            found=Digest.parse(document["found"]) if document["found"] else None,
            size=document["size"],
            transient=document["transient"],
            adopted=document["adopted"],
            detail=document["detail"],
            ranges=tuple((start, end) for start, end in document["ranges"]),
        )


@dataclass(frozen=True, slots=True)
class Hint:
    """What is known about the cause of a difference. Never a reason to call a file good.

    Attributes
    ----------
    written
        Whether the file was written since DVC saw the committed bytes in it; None if DVC has
        no record.
    adopted
        Whether the metadata in the work tree already records what was found.
    detail
        The same in words, for people.
    """

    written: bool | None = None
    adopted: bool = False
    detail: str = ""


class CorruptDataError(IntegrityError):
    """A reader met a file that is not what was committed; ``finding`` tells which and how.

    A ``DataLoader`` rebuilds an exception from its text alone, so the text carries the finding
    as one line of JSON, and the finding is read back from there.
    """

    _MARK = "dvc-integrity-finding: "
    _LINE = re.compile(rf"{_MARK}(\{{.*\}})")

    def __init__(self, message: str = "", *, finding: Finding | None = None) -> None:
        if finding is not None:
            line = f"{self._MARK}{json.dumps(finding.to_json())}"
            if not message.endswith(line):
                message = f"{message or _describe(finding)}\n{line}"
        super().__init__(message)
        self.finding = finding if finding is not None else self._recover(message)

    @classmethod
    def _recover(cls, message: str) -> Finding | None:
        for line in reversed(cls._LINE.findall(message)):
            try:
                return Finding.from_json(json.loads(line))
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # a name can hold the mark too; only a whole finding is one
        return None


def _describe(finding: Finding) -> str:
    why = f" ({printable(finding.detail)})" if finding.detail else ""
    return (
        f"'{printable(finding.path)}' is {finding.status.value}: expected "
        f"{finding.expected or 'no digest'}, found {finding.found or 'no bytes'}{why}. The bytes "
        f"were not handed on. Run 'dvc-integrity verify' to see the extent, and bring the "
        f"committed bytes back before you go on."
    )


@dataclass(slots=True)
class Coverage:
    """How many files and bytes were judged, by which evidence.

    Attributes
    ----------
    files, bytes
        Counts by evidence.
    digests
        Files and bytes that were hashed now, by the digest that was computed: one of DVC's
        algorithms, or ``blocks`` (the digests of a large file's blocks).
    """

    files: dict[Evidence, int] = field(default_factory=lambda: dict.fromkeys(Evidence, 0))
    bytes: dict[Evidence, int] = field(default_factory=lambda: dict.fromkeys(Evidence, 0))
    digests: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, evidence: Evidence, files: int, size: int, *, digest: str = "") -> None:
        """Count ``files`` files of ``size`` bytes in all, hashed with ``digest`` if they were."""
        self.files[evidence] += files
        self.bytes[evidence] += size
        if files and digest:
            known_files, known_bytes = self.digests.get(digest, (0, 0))
            self.digests[digest] = (known_files + files, known_bytes + size)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return the counts as a JSON object, one member per evidence."""
        document: dict[str, dict[str, Any]] = {
            evidence.value: {"files": self.files[evidence], "bytes": self.bytes[evidence]}
            for evidence in Evidence
        }
        document[Evidence.REHASHED.value]["digests"] = {
            digest: {"files": files, "bytes": size}
            for digest, (files, size) in sorted(self.digests.items())
        }
        return document


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """Which manifest a report is about: its digest, files, and bytes where DVC records them."""

    digest: str
    files: int
    bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON object."""
        return {"digest": self.digest, "files": self.files, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of holding one store to one manifest.

    Attributes
    ----------
    rev
        Full SHA of the commit, or ``workspace``.
    store
        Name of the store: ``workspace``, ``cache``, ``remote:NAME``.
    targets
        What was asked for, relative to the DVC root.
    manifest
        The expectation.
    coverage
        What was really read.
    findings
        Every file that is not ok, and every transient one; the worst first, then by path.
    started
        When the verification began, in UTC.
    seconds
        How long it took.
    versions
        Versions of the programs that matter for it.
    left_out
        Outputs that were asked for and that the store is not to have; ``manifest`` is without
        them.
    expected
        The manifest itself; not in the JSON document.
    """

    rev: str
    store: str
    targets: tuple[str, ...]
    manifest: ManifestSummary
    coverage: Coverage
    findings: tuple[Finding, ...]
    started: datetime
    seconds: float
    versions: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    expected: Manifest | None = field(default=None, repr=False, compare=False)

    SCHEMA = "dvc-integrity/report/1"

    @property
    def verdict(self) -> Verdict:
        """``damaged`` if anything is, ``incomplete`` if anything is unknown, else ``clean``."""
        statuses = {finding.status for finding in self.findings}
        if any(status.is_damage for status in statuses):
            return Verdict.DAMAGED
        judged = sum(self.coverage.files.values()) - self.coverage.files[Evidence.UNREAD]
        if statuses - {Status.OK} or not judged or self.coverage.files[Evidence.UNREAD]:
            return Verdict.INCOMPLETE
        return Verdict.CLEAN

    @property
    def ok(self) -> bool:
        """Whether every file that was asked for was read and is good."""
        return self.verdict is Verdict.CLEAN

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document (schema ``dvc-integrity/report/1``)."""
        return {
            "schema": self.SCHEMA,
            "verdict": self.verdict.value,
            "rev": self.rev,
            "store": self.store,
            "targets": list(self.targets),
            "left_out": list(self.left_out),
            "manifest": self.manifest.to_json(),
            "coverage": self.coverage.to_json(),
            "findings": [finding.to_json() for finding in self.findings],
            "started": self.started.isoformat(),
            "seconds": round(self.seconds, 3),
            "versions": dict(self.versions),
        }

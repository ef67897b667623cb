"""What became of what was to be restored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dvc_integrity.report import Finding, Status
from dvc_integrity.survey import Item

__all__ = ["Outcome", "Restoration", "Result", "untouched_to_json"]


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
            "untouched": untouched_to_json(self.untouched),
        }


def untouched_to_json(untouched: Iterable[tuple[Finding, str]]) -> list[dict[str, Any]]:
    """Return what was left as it is as JSON objects, each with the reason."""
    return [{**finding.to_json(), "reason": reason} for finding, reason in untouched]

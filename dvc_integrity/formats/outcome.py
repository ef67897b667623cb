"""What the formats have in common: findings with the store and the line of metadata of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dvc_integrity.errors import printable
from dvc_integrity.manifest import Place
from dvc_integrity.report import Finding, Report, Status, Verdict
from dvc_integrity.survey import Copy, Item, State

__all__ = ["Located", "Outcome"]

_STATUSES = {
    State.BAD: Status.CORRUPT,
    State.ABSENT: Status.MISSING,
    State.UNREADABLE: Status.UNREADABLE,
}


@dataclass(frozen=True, slots=True)
class Located:
    """A finding, the store that it is about, and the line of metadata that holds the hash.

    Attributes
    ----------
    finding
        The judgement.
    store
        ``workspace``, ``cache`` or ``remote:NAME``.
    place
        Where the hash stands; None where that is not known.
    """

    finding: Finding
    store: str
    place: Place | None

    @property
    def label(self) -> str:
        """The status, or ``transient``: then the file is good, but a first read was not."""
        return "transient" if self.finding.transient else self.finding.status.value

    @property
    def sentence(self) -> str:
        """What was found, on one line that is safe to print."""
        finding = self.finding
        parts = [f"'{printable(finding.path)}' in the {printable(self.store)} is {self.label}"]
        if finding.expected is not None and finding.found not in (None, finding.expected):
            parts.append(f"expected {finding.expected}, found {finding.found}")
        if finding.detail:
            parts.append(printable(finding.detail))
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the command line found.

    Attributes
    ----------
    command
        ``verify`` or ``status``.
    report
        The verification that it rests on.
    located
        Everything that deserves a word, the worst first.
    verdict
        About all stores that were asked.
    """

    command: str
    report: Report
    located: tuple[Located, ...]
    verdict: Verdict

    @classmethod
    def of_report(cls, report: Report, places: Mapping[str, Place]) -> Outcome:
        """Return the outcome of a verification; ``places`` are by the path of the output."""
        located = tuple(
            Located(finding, report.store, places.get(finding.out)) for finding in report.findings
        )
        return cls("verify", report, located, report.verdict)

    @classmethod
    def of_survey(
        cls,
        report: Report,
        items: Iterable[Item],
        others: Iterable[Finding],
        places: Mapping[str, Place],
    ) -> Outcome:
        """Return the outcome of a survey: a finding for each copy that is not good."""
        found = [
            (_finding(item, copy, report.store), copy.store)
            for item in items
            for copy in item.copies
            if _deserves_a_word(item, copy, report.store)
        ]
        found += [(finding, report.store) for finding in others]
        found.sort(key=lambda each: (each[0].status.severity, each[0].path, each[1]))
        located = tuple(
            Located(finding, store, places.get(finding.out)) for finding, store in found
        )
        return cls("status", report, located, _verdict(report, located))

    @property
    def outs(self) -> tuple[str, ...]:
        """Paths of the outputs that were held to their hashes, and of those of the findings."""
        held = [out.path for out in self.report.expected.outs] if self.report.expected else []
        return tuple(dict.fromkeys([*held, *(each.finding.out for each in self.located)]))

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores that findings are about, and the one that the report is about."""
        return tuple(dict.fromkeys([self.report.store, *(each.store for each in self.located)]))

    @property
    def sentence(self) -> str:
        """The verdict and what it rests on, in one line."""
        files = self.report.manifest.files
        found = f"{len(self.located):,} {'finding' if len(self.located) == 1 else 'findings'}"
        return (
            f"{self.verdict.value}: {files:,} {'file' if files == 1 else 'files'}, "
            f"{printable(self.report.store)} at {self.report.rev[:12]}, {found} in "
            f"{self.report.seconds:.1f} s"
        )


def _deserves_a_word(item: Item, copy: Copy, store: str) -> bool:
    return copy.state in _STATUSES or (copy.store == store and item.finding is not None)


def _finding(item: Item, copy: Copy, store: str) -> Finding:
    if copy.store == store and item.finding is not None:
        return item.finding
    return Finding(
        path=item.entry.path,
        out=item.out.path,
        status=_STATUSES[copy.state],
        expected=item.entry.digest,
        size=copy.size,
        detail=copy.detail or ("the listing of the folder" if item.listing else ""),
    )


def _verdict(report: Report, located: Iterable[Located]) -> Verdict:
    statuses = {each.finding.status for each in located}
    if report.verdict is Verdict.DAMAGED or any(status.is_damage for status in statuses):
        return Verdict.DAMAGED
    return Verdict.INCOMPLETE if statuses - {Status.OK} else report.verdict

"""JUnit XML: a suite, and in it a case for each output.

Damage is a failure, what could not be told is an error. The elements, their attributes and their
order are those that the schema which Jenkins and Ant use has (Windy Road's ``JUnit.xsd``); that
has no time zone, so times are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timezone
from xml.sax.saxutils import escape, quoteattr

from dvc_integrity.errors import printable
from dvc_integrity.formats.outcome import Located, Outcome
from dvc_integrity.report import Status, Verdict

__all__ = ["junit"]

FINDINGS_IN_A_CASE = 100
"""Findings that the text of a case names."""


def junit(outcome: Outcome) -> str:
    """Return the outcome as JUnit XML."""
    found: dict[str, list[Located]] = {out: [] for out in outcome.outs}
    for each in outcome.located:
        found[each.finding.out].append(each)
    cases = {printable(out) or ".": _result(located) for out, located in found.items()}
    if outcome.verdict is not Verdict.CLEAN and not any(kind for kind, _ in cases.values()):
        cases["verdict"] = ("error", _element("error", outcome.verdict.value, outcome.sentence))
    kinds = [kind for kind, _ in cases.values()]
    report = outcome.report
    attributes = {
        "name": f"dvc-integrity {outcome.command}",
        "timestamp": f"{report.started.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}",
        "hostname": "localhost",
        "tests": len(cases),
        "failures": kinds.count("failure"),
        "errors": kinds.count("error"),
        "time": f"{report.seconds:.3f}",
    }
    store = printable(report.store)
    properties = {
        "rev": report.rev,
        "store": store,
        "verdict": outcome.verdict.value,
        "manifest": report.manifest.digest,
    }
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuite{_attributes(attributes)}>",
        "<properties>",
        *(
            f"<property{_attributes({'name': name, 'value': value})}/>"
            for name, value in properties.items()
        ),
        "</properties>",
        *(
            f"<testcase{_attributes({'name': name, 'classname': store, 'time': '0'})}>"
            f"{result}</testcase>"
            for name, (_, result) in cases.items()
        ),
        f"<system-out>{escape(_said(outcome))}</system-out>",
        "<system-err/>",
        "</testsuite>",
    ]
    return "\n".join(lines) + "\n"


def _result(located: Sequence[Located]) -> tuple[str, str]:
    """Return what a case is called that has these findings ("" for one that passes), and it."""
    serious = [each for each in located if each.finding.status is not Status.OK]
    if not serious:
        return "", ""
    kind = "failure" if any(each.finding.status.is_damage for each in serious) else "error"
    worst = serious[0]
    count = f" (and {len(serious) - 1:,} more)" if len(serious) > 1 else ""
    return kind, _element(kind, worst.label, worst.sentence + count, "\n".join(_lines(serious)))


def _lines(located: Sequence[Located]) -> Iterator[str]:
    for each in located[:FINDINGS_IN_A_CASE]:
        yield each.sentence
    hidden = len(located) - FINDINGS_IN_A_CASE
    if hidden > 0:
        yield f"… and {hidden:,} more not shown"


def _said(outcome: Outcome) -> str:
    transient = [each.sentence for each in outcome.located if each.finding.status is Status.OK]
    left_out = [f"left out: {printable(out)}" for out in outcome.report.left_out]
    return "\n".join([outcome.sentence, *transient[:FINDINGS_IN_A_CASE], *left_out])


def _element(name: str, kind: str, message: str, text: str = "") -> str:
    attributes = _attributes({"message": message, "type": kind})
    return f"<{name}{attributes}>{escape(text or message)}</{name}>"


def _attributes(values: dict[str, object]) -> str:
    return "".join(f" {name}={quoteattr(str(value))}" for name, value in values.items())

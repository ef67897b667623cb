"""GitHub Actions: workflow commands that annotate metadata, and the summary of a step.

The commands and their escaping are those of GitHub's runner (``ActionCommand.cs``).
"""

from __future__ import annotations

import string
from collections import Counter

from dvc_integrity.errors import printable
from dvc_integrity.formats.outcome import Located, Outcome

__all__ = ["summary", "workflow_commands"]

MOST_ANNOTATIONS = 10
"""GitHub shows ten of a kind in a step."""

ROWS_IN_A_SUMMARY = 100
"""Findings in the table of a summary."""

LONGEST_CELL = 300
"""Characters of a cell: GitHub takes 1 MiB of a summary."""

_MARKUP = {ord(char): f"&#{ord(char)};" for char in string.punctuation if char not in "/-"}


def workflow_commands(outcome: Outcome) -> str:
    """Return workflow commands for the worst findings, then the verdict as a line."""
    shown = outcome.located[:MOST_ANNOTATIONS]
    lines = [_command(each) for each in shown]
    lines.append(outcome.sentence)
    hidden = len(outcome.located) - len(shown)
    if hidden:
        lines.append(
            f"{hidden:,} more findings have no annotation: the summary of this step has the "
            f"first {ROWS_IN_A_SUMMARY}, '--format json' and '--format sarif' have all."
        )
    return "\n".join(lines) + "\n"


def _command(located: Located) -> str:
    status = located.finding.status
    level = "error" if status.is_damage else "notice" if located.finding.transient else "warning"
    properties = {"title": f"dvc-integrity: {located.label}"}
    if located.place is not None:
        where = {"file": printable(located.place.file), "line": str(located.place.line)}
        properties = where | properties
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {told}::{_data(located.sentence)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(outcome: Outcome) -> str:
    """Return the outcome as Markdown for the summary of a step."""
    lines = [f"### dvc-integrity {outcome.command}: {outcome.verdict.value}", ""]
    lines += [_cell(outcome.sentence), ""]
    if outcome.located:
        counts = Counter((each.label, each.store) for each in outcome.located)
        lines += ["| status | store | findings |", "|---|---|---:|"]
        lines += [f"| {name} | {_cell(store)} | {n} |" for (name, store), n in counts.items()]
        lines += ["", "| status | file | what |", "|---|---|---|"]
        lines += [_row(each) for each in outcome.located[:ROWS_IN_A_SUMMARY]]
        lines.append("")
    hidden = len(outcome.located) - ROWS_IN_A_SUMMARY
    if hidden > 0:
        lines += [f"… and {hidden:,} more.", ""]
    return "\n".join(lines) + "\n"


def _row(located: Located) -> str:
    path, sentence = _cell(located.finding.path), _cell(located.sentence)
    return f"| {located.label} | {path} | {sentence} |"


def _cell(text: str) -> str:
    """Return text that no Markdown or HTML is read from: punctuation as references."""
    text = printable(text)
    short = text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"
    return short.translate(_MARKUP)

"""Results of a matrix of tests, as a Markdown table.

A test takes part that records two properties: ``matrix`` (the fault, the places, the column) and
``result`` (what its cell says if the test passes).
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def matrix(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return the lines of the table: a row for each fault and place, results in the columns."""
    cells: dict[tuple[str, str], dict[str, set[str]]] = {}
    for report in reports:
        properties = dict(report.user_properties)
        if report.when != "call" or "matrix" not in properties:
            continue
        fault, places, column = properties["matrix"]
        row = cells.setdefault((fault, places), {})
        row.setdefault(column, set()).add(_result(report, properties))
    columns = sorted({column for row in cells.values() for column in row})
    lines = [_line("fault", "places", *columns), _line(*["---"] * (len(columns) + 2))]
    for (fault, places), row in sorted(cells.items()):
        results = [" / ".join(sorted(row.get(column, {"-"}))) for column in columns]
        lines.append(_line(fault, places, *results))
    return lines


def _result(report: pytest.TestReport, properties: dict[str, object]) -> str:
    if hasattr(report, "wasxfail"):
        return "XFAIL"
    return str(properties.get("result")) if report.passed else "FAILED"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

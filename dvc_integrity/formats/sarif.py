"""SARIF 2.1.0: a result for each finding, at the line of metadata that holds the hash.

The format is the OASIS standard "Static Analysis Results Interchange Format (SARIF) Version
2.1.0"; what GitHub takes of it, and how much, is told in its documentation on SARIF support for
code scanning.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any
from urllib.parse import quote

from dvc_integrity.errors import printable
from dvc_integrity.formats.outcome import Located, Outcome
from dvc_integrity.report import Status

__all__ = ["MOST_RESULTS", "sarif"]

MOST_RESULTS = 25_000
"""Results in a run that GitHub takes; it shows the first 5,000."""

FINGERPRINT = "dvcIntegrity/v1"
"""Names what is hashed: store, output, path and rule."""

_HELP = {
    "corrupt": "Its bytes differ though nothing wrote it. 'dvc-integrity restore' brings a proven "
    "copy back and keeps the bad one. Then look at the disk and the memory.",
    "missing": "Nothing lies at its path. 'dvc checkout', 'dvc fetch' or 'dvc push' bring it back.",
    "modified": "It was written since it was committed. If that is meant, record it with 'dvc add' "
    "or 'dvc commit' and commit. If not, 'dvc checkout' brings the committed file back.",
    "extra": "It lies in a tracked folder, and the commit does not list it. Track it or remove it.",
    "unreadable": "The system refused to read it. Nothing is known about its bytes.",
    "unstable": "It changed while it was read. Run again when nothing writes it.",
    "unverifiable": "No content hash is committed for it, so its bytes cannot be held to one.",
    "transient": "A first read gave other bytes, a second one the committed ones. The file is "
    "good; the memory, the disk or the way between may not be.",
}


_ESCAPES = {ord("{"): "{{", ord("}"): "}}", ord("["): r"\[", ord("]"): r"\]"}


def sarif(outcome: Outcome) -> str:
    """Return the outcome as a SARIF log with one run; results beyond the limit are counted."""
    report = outcome.report
    shown = outcome.located[:MOST_RESULTS]
    rules = list(_HELP)
    run = {
        "tool": {
            "driver": {
                "name": "dvc-integrity",
                "version": report.versions.get("dvc-integrity", "0"),
                "rules": [_rule(name) for name in rules],
            }
        },
        "automationDetails": {"id": f"dvc-integrity/{outcome.command}/{printable(report.store)}/"},
        "invocations": [
            {
                "executionSuccessful": True,
                "startTimeUtc": f"{report.started:%Y-%m-%dT%H:%M:%SZ}",
                "toolExecutionNotifications": _notifications(outcome, len(shown)),
            }
        ],
        "results": [_result(each, rules.index(each.label)) for each in shown],
        "properties": {
            "verdict": outcome.verdict.value,
            "rev": report.rev,
            "store": printable(report.store),
            "manifest": report.manifest.digest,
            "findings": len(outcome.located),
        },
    }
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json.dumps(log, indent=1) + "\n"


def _level(name: str) -> str:
    if name == "transient":
        return "note"
    return "error" if Status(name).is_damage else "warning"


def _rule(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "name": name.capitalize(),
        "shortDescription": {"text": f"A file that DVC tracks is {name}."},
        "fullDescription": {"text": _HELP[name]},
        "help": {"text": _HELP[name]},
        "defaultConfiguration": {"level": _level(name)},
    }


def _notifications(outcome: Outcome, shown: int) -> list[dict[str, Any]]:
    hidden = len(outcome.located) - shown
    texts = [outcome.sentence]
    if hidden:
        texts.append(f"{hidden:,} more findings were left out: GitHub takes {MOST_RESULTS:,}.")
    levels = ["note", "warning"]
    return [
        {"level": level, "message": {"text": _text(text)}}
        for level, text in zip(levels, texts, strict=False)
    ]


def _result(located: Located, index: int) -> dict[str, Any]:
    finding = located.finding
    return {
        "ruleId": located.label,
        "ruleIndex": index,
        "level": _level(located.label),
        "message": {"text": _text(located.sentence)},
        "locations": [{"physicalLocation": _location(located)}],
        "partialFingerprints": {FINGERPRINT: _fingerprint(located)},
        "properties": {
            "path": printable(finding.path),
            "out": printable(finding.out),
            "store": printable(located.store),
        },
    }


def _location(located: Located) -> dict[str, Any]:
    place = located.place
    file = place.file if place is not None else located.finding.out
    location: dict[str, Any] = {"artifactLocation": {"uri": quote(os.fsencode(file))}}
    if place is not None:
        location["region"] = {"startLine": place.line}
    return location


def _fingerprint(located: Located) -> str:
    """Return what stays the same from run to run while the same thing is wrong."""
    parts = [located.store, located.finding.out, located.finding.path, located.label]
    return hashlib.sha256(b"\0".join(map(os.fsencode, parts))).hexdigest()


def _text(text: str) -> str:
    """Return a message without placeholders and links (SARIF 2.1.0, 3.11.5 and 3.11.6)."""
    return text.translate(_ESCAPES)

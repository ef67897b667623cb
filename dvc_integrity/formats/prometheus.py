"""The textfile format of Prometheus' node_exporter. No path is a label: there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dvc_integrity.errors import printable
from dvc_integrity.formats.outcome import Outcome
from dvc_integrity.report import Evidence, Status, Verdict

__all__ = ["prometheus"]

_Samples = Iterable[tuple[Mapping[str, str], float]]

_LABELS = [*(status.value for status in Status if status is not Status.OK), "transient"]


def prometheus(outcome: Outcome) -> str:
    """Return the outcome as gauges."""
    report = outcome.report
    store = {"store": printable(report.store)}
    counts = Counter((each.store, each.label) for each in outcome.located)
    families = [
        _family(
            "verdict",
            "1 for the verdict of the last run, 0 for the others.",
            [({**store, "verdict": v.value}, v is outcome.verdict) for v in Verdict],
        ),
        _family(
            "last_verified_timestamp_seconds",
            "When the last run ended, in seconds since 1970.",
            [(store, report.started.timestamp() + report.seconds)],
        ),
        _family("duration_seconds", "How long the verification took.", [(store, report.seconds)]),
        _family(
            "files",
            "Files by the evidence that their judgement rests on.",
            [({**store, "evidence": e.value}, report.coverage.files[e]) for e in Evidence],
        ),
        _family(
            "bytes",
            "Bytes by the evidence that their judgement rests on.",
            [({**store, "evidence": e.value}, report.coverage.bytes[e]) for e in Evidence],
        ),
        _family(
            "findings",
            "Findings by status.",
            [
                ({"store": printable(each), "status": label}, counts[each, label])
                for each in outcome.stores
                for label in _LABELS
            ],
        ),
    ]
    return "".join(families)


def _family(name: str, text: str, samples: _Samples) -> str:
    full = f"dvc_integrity_{name}"
    lines = [f"# HELP {full} {text}", f"# TYPE {full} gauge"]
    for labels, value in samples:
        told = ",".join(f'{label}="{_escape(each)}"' for label, each in labels.items())
        lines.append(f"{full}{{{told}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.3f}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

"""A report says what was really read, and its parts survive every way that they travel."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import chain, combinations, product

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch._utils import ExceptionWrapper

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.report import (
    CorruptDataError,
    Coverage,
    Evidence,
    Finding,
    ManifestSummary,
    Report,
    Status,
    Verdict,
)

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA = "0123456789abcdef0123456789abcdef01234567"
DAMAGE = {Status.CORRUPT, Status.MISSING, Status.MODIFIED, Status.EXTRA}
UNKNOWN = {Status.UNREADABLE, Status.UNSTABLE, Status.UNVERIFIABLE}

MARK = "dvc-integrity-finding: "

digests = st.none() | st.builds(
    Digest, st.sampled_from(Algorithm), st.binary(min_size=16, max_size=16)
)
hostile = st.sampled_from(
    [
        "\n",
        '"',
        "'",
        "{",
        "}",
        "}\n{",
        "\\",
        "\x1b[31m",
        "\udc80",
        "\u2028",
        "\r\n",
        MARK,
        f"{MARK}{{}}",
        f'{MARK}{{"path": "other"}}',
        f"\n{MARK}{{}}\n",
        "é🙂",
    ]
)
names = st.lists(
    hostile | st.text(max_size=5) | st.binary(max_size=5).map(os.fsdecode), max_size=5
).map("".join)
findings = st.builds(
    Finding,
    path=names,
    out=names,
    status=st.sampled_from(Status),
    expected=digests,
    found=digests,
    size=st.none() | st.integers(0, 2**63),
    transient=st.booleans(),
    adopted=st.booleans(),
    detail=names,
)


def finding(status: Status, path: str = "data/a") -> Finding:
    return Finding(path, "data", status, transient=status is Status.OK)


def covering(**files: int) -> Coverage:
    """Return a coverage of so many files by evidence, ten bytes each."""
    coverage = Coverage()
    for name, count in files.items():
        coverage.add(Evidence(name), count, 10 * count)
    return coverage


def report(statuses: Iterable[Status] = (), coverage: Coverage | None = None) -> Report:
    return Report(
        rev=SHA,
        store="workspace",
        targets=("data",),
        manifest=ManifestSummary("f" * 64, 3, None),
        coverage=coverage or covering(rehashed=3),
        findings=tuple(map(finding, statuses)),
        started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        seconds=1.23456,
        versions={"dvc": "3.67.1"},
    )


# ----------------------------------------------------------------- the verdict

EVERY_SET = list(
    chain.from_iterable(combinations(Status, count) for count in range(len(Status) + 1))
)
COVERAGES = list(product([0, 1], repeat=len(Evidence)))


def test_every_set_of_findings_and_evidence_has_its_verdict() -> None:
    """Damage wins; then anything unknown, unread or nothing read at all; only then it is clean."""
    assert (256, 16) == (len(EVERY_SET), len(COVERAGES))
    for statuses, counts in product(EVERY_SET, COVERAGES):
        files = {evidence.value: count for evidence, count in zip(Evidence, counts, strict=True)}
        if DAMAGE & set(statuses):
            expected = Verdict.DAMAGED
        elif UNKNOWN & set(statuses) or files["unread"] or not any(counts):
            expected = Verdict.INCOMPLETE
        else:
            expected = Verdict.CLEAN
        judged = report(statuses, covering(**files))
        assert expected is judged.verdict, (statuses, files)
        assert (expected is Verdict.CLEAN) is judged.ok


def test_nothing_checked_is_not_clean() -> None:
    """Without a single file that was read, a report is not clean, whatever it does not find."""
    assert not report([], Coverage()).ok
    assert Verdict.INCOMPLETE is report([], covering(unread=5)).verdict


def test_damage_and_severity_name_every_status() -> None:
    """Each status is damage, or unknown, or ok; the order goes from the worst to the best."""
    assert {status for status in Status if status.is_damage} == DAMAGE
    assert set(Status) - DAMAGE - UNKNOWN == {Status.OK}
    ordered = sorted(Status, key=lambda status: status.severity)
    assert [
        "corrupt",
        "missing",
        "modified",
        "extra",
        "unreadable",
        "unstable",
        "unverifiable",
        "ok",
    ] == [status.value for status in ordered]


# ----------------------------------------------------------------- JSON


def test_the_json_report_is_as_documented() -> None:
    """The document has the schema, every key and every form that design.md promises."""
    expected_digest = Digest(Algorithm.MD5, b"E" * 16)
    found = Digest(Algorithm.MD5, b"F" * 16)
    one = Finding(
        path="data/é\n",
        out="data",
        status=Status.CORRUPT,
        expected=expected_digest,
        found=found,
        size=7,
        transient=False,
        adopted=False,
        detail="why",
        ranges=((0, 1 << 20),),
    )
    coverage = covering(unread=1)
    coverage.add(Evidence.REHASHED, 1, 4, digest="md5")
    coverage.add(Evidence.REHASHED, 1, 16, digest="blocks")
    document = replace(
        report(coverage=coverage),
        findings=(one, finding(Status.MISSING, "data/b")),
        left_out=("not-cached",),
    ).to_json()
    assert {
        "schema": "dvc-integrity/report/1",
        "verdict": "damaged",
        "rev": SHA,
        "store": "workspace",
        "targets": ["data"],
        "manifest": {"digest": "f" * 64, "files": 3, "bytes": None},
        "coverage": {
            "rehashed": {
                "files": 2,
                "bytes": 20,
                "digests": {
                    "blocks": {"files": 1, "bytes": 16},
                    "md5": {"files": 1, "bytes": 4},
                },
            },
            "attested": {"files": 0, "bytes": 0},
            "reused": {"files": 0, "bytes": 0},
            "unread": {"files": 1, "bytes": 10},
        },
        "findings": [
            {
                "path": "data/é\n",
                "out": "data",
                "status": "corrupt",
                "expected": f"md5:{expected_digest.hex}",
                "found": f"md5:{found.hex}",
                "size": 7,
                "transient": False,
                "adopted": False,
                "detail": "why",
                "ranges": [[0, 1048576]],
            },
            {
                "path": "data/b",
                "out": "data",
                "status": "missing",
                "expected": None,
                "found": None,
                "size": None,
                "transient": False,
                "adopted": False,
                "detail": "",
                "ranges": [],
            },
        ],
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 1.235,
        "versions": {"dvc": "3.67.1"},
        "left_out": ["not-cached"],
    } == document
    assert document == json.loads(json.dumps(document))


def test_the_start_is_told_with_its_zone() -> None:
    """A time in any zone reads back as the same instant."""
    started = datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=5)))
    document = replace(report(), started=started).to_json()
    assert started == datetime.fromisoformat(document["started"])


@law
@given(findings)
def test_a_finding_reads_back_from_json(one: Finding) -> None:
    """``from_json`` gives the finding that ``to_json`` told, also after a real JSON text."""
    assert one == Finding.from_json(one.to_json())
    assert one == Finding.from_json(json.loads(json.dumps(one.to_json())))


@law
@given(findings)
def test_a_finding_survives_a_pickle(one: Finding) -> None:
    """A finding that was pickled or copied is equal."""
    assert one == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)


def test_coverage_adds_up() -> None:
    """Counts of one evidence add up and leave the others alone."""
    coverage = covering(rehashed=2)
    coverage.add(Evidence.REHASHED, 1, 5, digest="md5")
    coverage.add(Evidence.REHASHED, 2, 7, digest="md5")
    digests = {"md5": {"files": 3, "bytes": 12}}
    assert {"files": 5, "bytes": 32, "digests": digests} == coverage.to_json()["rehashed"]
    assert 5 == sum(coverage.files.values())
    assert Coverage().files is not Coverage().files


# ----------------------------------------------------------------- the exception


def through_a_worker(error: Exception) -> Exception:
    """Return what the parent gets of an exception raised in a DataLoader worker."""

    def fail() -> None:
        raise error

    try:
        fail()
    except Exception:  # noqa: BLE001 (any kind is carried)
        wrapper = ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 0")
    with pytest.raises(Exception, match="Caught") as caught:
        pickle.loads(pickle.dumps(wrapper)).reraise()
    return caught.value


@law
@given(findings)
@example(Finding(f"{MARK}{{}}", f'{MARK}{{"path": "x"}}', Status.CORRUPT, detail=f"}}\n{MARK}{{}}"))
def test_an_exception_survives_every_way_it_travels(one: Finding) -> None:
    """Pickle, copy, rebuilding from the text and PyTorch's own wrapper keep type and finding."""
    error = CorruptDataError(finding=one)
    for again in (
        pickle.loads(pickle.dumps(error)),
        copy.copy(error),
        CorruptDataError(str(error)),
        through_a_worker(error),
        through_a_worker(through_a_worker(error)),
    ):
        assert CorruptDataError is type(again)
        assert one == again.finding
    assert str(error) == str(pickle.loads(pickle.dumps(error)))


@law
@given(findings, findings)
def test_the_last_of_two_findings_is_the_one_that_was_raised(one: Finding, other: Finding) -> None:
    """An error met while another was handled arrives with its own finding."""
    earlier, later = CorruptDataError(finding=one), CorruptDataError(finding=other)
    later.__cause__ = earlier
    again = through_a_worker(later)
    assert isinstance(again, CorruptDataError)
    assert other == again.finding
    assert str(earlier) in str(again)


@law
@given(findings, st.text() | names)
def test_a_message_of_ones_own_keeps_the_finding(one: Finding, message: str) -> None:
    """Whatever a caller writes as message, the finding still arrives from the text alone."""
    error = CorruptDataError(message, finding=one)
    assert one == error.finding
    assert one == CorruptDataError(str(error)).finding
    assert message in str(error)


@law
@given(st.text() | names)
def test_a_text_without_a_finding_is_only_a_message(message: str) -> None:
    """Any text makes an exception; a text that only looks like a finding gives none."""
    for text in (message, f"{MARK}{{{message}}}", f"{MARK}{{}}", f'{MARK}{{"path": 1}}'):
        assert text == str(CorruptDataError(text))
    assert CorruptDataError("plain").finding is None
    assert CorruptDataError().finding is None


@law
@given(findings)
def test_the_words_of_an_exception_are_safe_and_complete(one: Finding) -> None:
    """The text has two lines: what happened, printable, and the finding in ASCII."""
    first, second = str(CorruptDataError(finding=one)).split("\n")
    assert first.isprintable()
    assert second.isascii()
    assert second.isprintable()
    assert one.status.value in first
    assert "dvc-integrity verify" in first
    assert str(one.expected or "no digest") in first
    assert str(one.found or "no bytes") in first
    assert second.startswith(MARK)


def test_only_one_line_of_the_text_is_the_finding() -> None:
    """The finding is JSON that anything can read from the text."""
    one = finding(Status.CORRUPT)
    (line,) = re.findall(rf"^{MARK}(.*)$", str(CorruptDataError(finding=one)), re.MULTILINE)
    assert one.to_json() == json.loads(line)

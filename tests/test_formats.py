"""Each format says what was found, whatever the names are, and is read by those who read it."""

from __future__ import annotations

import html
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import printable
from dvc_integrity.formats import Outcome, junit, prometheus, sarif, summary, workflow_commands
from dvc_integrity.manifest import Entry, Out, Place
from dvc_integrity.report import Coverage, Evidence, Finding, ManifestSummary, Report, Status
from dvc_integrity.survey import Copy, Item, State

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its models warn of is not ours
    from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Log

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD, BAD = (Digest(Algorithm.MD5, bytes([value]) * 16) for value in (1, 2))
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
PLACES = {"data": Place("data.dvc", 2)}

NASTY = [
    "a\nb", 'q"uote', "pi|pe", "]]>", "<b>&amp;", "\udc80\udcff", "\x00\x07\x1b[31m", "100%,a:b",
    "::error::x", "##[error]x", "`tick`",
    "{0}[x](y)", "\u2028\u202e", "\\", "é漢\U0001f600", "\ufffe",
]  # fmt: skip

names = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.binary(min_size=1, max_size=20).map(os.fsdecode),
)
found = st.builds(
    Finding,
    path=names,
    out=names,
    status=st.sampled_from([each for each in Status if each is not Status.OK]),
    expected=st.sampled_from([None, GOOD]),
    found=st.sampled_from([None, BAD]),
    detail=st.one_of(st.just(""), names),
)


def report_of(findings: Sequence[Finding] = (), *, store: str = "workspace") -> Report:
    """Return a report with these findings, the worst first, as a verification sorts them."""
    coverage = Coverage()
    coverage.add(Evidence.REHASHED, 3, 21, digest="md5")
    return Report(
        rev="0123456789abcdef0123456789abcdef01234567",
        store=store,
        targets=("data",),
        manifest=ManifestSummary("sha256:00", 3, 21),
        coverage=coverage,
        findings=tuple(sorted(findings, key=lambda each: (each.status.severity, each.path))),
        started=STARTED,
        seconds=1.5,
        versions={"dvc-integrity": "0.1.0"},
    )


def outcome_of(*findings: Finding, store: str = "workspace") -> Outcome:
    """Return the outcome of a verification with these findings."""
    return Outcome.of_report(report_of(findings, store=store), PLACES)


def corrupt(path: str = "data/a", out: str = "data") -> Finding:
    """Return a corrupt file."""
    return Finding(path, out, Status.CORRUPT, expected=GOOD, found=BAD, size=7)


def is_junit(text: str) -> ET.Element:
    """Hold text to the structure of the JUnit schema; return its suite."""
    suite = ET.fromstring(text.encode())
    assert "testsuite" == suite.tag
    assert {"name", "timestamp", "hostname", "tests", "failures", "errors", "time"} == {
        *suite.keys()
    }
    datetime.strptime(suite.attrib["timestamp"], "%Y-%m-%dT%H:%M:%S")  # noqa: DTZ007 (it has none)
    cases = suite.findall("testcase")
    order = ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
    assert order == [child.tag for child in suite]
    assert all({"name", "value"} == {*each.keys()} for each in suite[0])
    results = [result for case in cases for result in case]
    assert all({"name", "classname", "time"} == {*case.keys()} for case in cases)
    assert all(len(case) <= 1 for case in cases)
    assert all({"message", "type"} == {*each.keys()} for each in results)
    assert all(each.tag in ("failure", "error") for each in results)
    assert len(cases) == int(suite.attrib["tests"])
    for tag in ("failure", "error"):
        assert sum(each.tag == tag for each in results) == int(suite.attrib[f"{tag}s"])
    return suite


def is_sarif(text: str) -> dict[str, object]:
    """Hold text to the schema of SARIF 2.1.0; return its run."""
    document = json.loads(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its models warn of is not ours
        Log.model_validate(document)
    json.dumps(document, ensure_ascii=False).encode()  # no half of a pair, which others refuse
    (run,) = document["runs"]
    return run


def is_prometheus(text: str) -> dict[tuple[str, ...], float]:
    """Read text as Prometheus does; return values by name and labels."""
    assert text.endswith("\n")
    return {
        (sample.name.removeprefix("dvc_integrity_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.documentation and family.type == "gauge"
    }


def commands_in(text: str) -> list[tuple[str, dict[str, str], str]]:
    """Read workflow commands as GitHub's runner does: kind, properties, message."""
    read = []
    for line in text.splitlines():
        if not line.startswith("::"):
            continue
        head, _, message = line[2:].partition("::")
        kind, _, told = head.partition(" ")
        pairs = dict(each.split("=", 1) for each in told.split(","))
        codes = {"%2C": ",", "%3A": ":", "%0A": "\n", "%0D": "\r", "%25": "%"}
        for code, char in codes.items():
            pairs = {name: value.replace(code, char) for name, value in pairs.items()}
        read.append((kind, pairs, message.replace("%25", "%")))
    return read


# JUnit ---------------------------------------------------------------------------------------


def test_junit_has_a_failure_for_damage_an_error_for_the_unknown_and_a_case_that_passes() -> None:
    """A case an output; damage decides over what could not be told."""
    unknown = Finding("other/x", "other", Status.UNREADABLE, detail="EIO")
    both = [corrupt(), replace(unknown, path="data/b", out="data")]
    suite = is_junit(junit(outcome_of(*both, unknown)))
    assert ("2", "1", "1") == tuple(suite.attrib[name] for name in ("tests", "failures", "errors"))
    failure, error = suite.find(".//failure"), suite.find(".//error")
    assert failure is not None
    assert error is not None
    assert "corrupt" == failure.attrib["type"]
    assert "data/a" in str(failure.text).splitlines()[0]
    assert "data/b" in str(failure.text).splitlines()[1]
    assert "EIO" in str(error.text)


def test_junit_never_passes_what_is_not_clean() -> None:
    """A report that read nothing has no finding, and yet an error."""
    nothing = replace(report_of(), coverage=Coverage())
    suite = is_junit(junit(Outcome.of_report(nothing, {})))
    assert "1" == suite.attrib["errors"]


def test_junit_bounds_the_text_of_a_case() -> None:
    """A hundred findings are named, the number of the others is."""
    suite = is_junit(junit(outcome_of(*(corrupt(f"data/{n:03}") for n in range(120)))))
    text = str(suite.findtext(".//failure"))
    assert 101 == len(text.splitlines())
    assert "… and 20 more not shown" == text.splitlines()[-1]


# SARIF ---------------------------------------------------------------------------------------


def test_sarif_points_at_the_line_of_the_hash() -> None:
    """A result has its rule, its level, and the place of the output."""
    run = is_sarif(sarif(outcome_of(corrupt(), Finding("data/b", "data", Status.UNSTABLE))))
    first, second = run["results"]  # type: ignore[misc]
    assert ("corrupt", "error") == (first["ruleId"], first["level"])  # type: ignore[index]
    assert ("unstable", "warning") == (second["ruleId"], second["level"])  # type: ignore[index]
    location = first["locations"][0]["physicalLocation"]  # type: ignore[index]
    assert {"artifactLocation": {"uri": "data.dvc"}, "region": {"startLine": 2}} == location
    rules = run["tool"]["driver"]["rules"]  # type: ignore[index]
    assert first["ruleId"] == rules[first["ruleIndex"]]["id"]  # type: ignore[index]


def test_sarif_has_help_for_every_status() -> None:
    """A status without a rule would be a result without one."""
    rules = is_sarif(sarif(outcome_of()))["tool"]["driver"]["rules"]  # type: ignore[index]
    wanted = {each.value for each in Status if each is not Status.OK} | {"transient"}
    assert wanted == {rule["id"] for rule in rules}
    assert all(rule["help"]["text"] for rule in rules)


def test_sarif_fingerprints_stay_and_tell_findings_apart() -> None:
    """Another run, time and digest give the same; another file, store or status do not."""

    def fingerprint(outcome: Outcome) -> object:
        (result,) = is_sarif(sarif(outcome))["results"]  # type: ignore[misc]
        return result["partialFingerprints"]  # type: ignore[index]

    same = fingerprint(outcome_of(corrupt()))
    later = replace(report_of([replace(corrupt(), found=GOOD, detail="x")]), rev="f" * 40)
    assert same == fingerprint(Outcome.of_report(later, {}))
    others = [
        outcome_of(corrupt("data/b")),
        outcome_of(corrupt(), store="cache"),
        outcome_of(replace(corrupt(), status=Status.MODIFIED)),
    ]
    assert 4 == len({str(each) for each in [same, *map(fingerprint, others)]})


# GitHub --------------------------------------------------------------------------------------


def test_annotations_are_ten_at_most_the_worst_first() -> None:
    """What has none is counted, and where to find it is told."""
    many = [Finding(f"data/{n:02}", "data", Status.MODIFIED) for n in range(15)]
    text = workflow_commands(outcome_of(*many, corrupt("data/zz")))
    read = commands_in(text)
    assert 10 == len(read)
    assert {"file": "data.dvc", "line": "2", "title": "dvc-integrity: corrupt"} == read[0][1]
    assert "'data/zz' in the workspace is corrupt" in read[0][2]
    assert text.splitlines()[-1].startswith("6 more findings have no annotation")


def test_annotations_escape_what_the_runner_takes_for_syntax() -> None:
    """A file called by colons, commas and percents is told as it is."""
    outcome = Outcome.of_report(report_of([corrupt("100%0A")]), {"data": Place("a:b,c%0A.dvc", 9)})
    ((kind, properties, message),) = commands_in(workflow_commands(outcome))
    assert ("error", "a:b,c%0A.dvc") == (kind, properties["file"])
    assert "'100%0A'" in message


def test_the_summary_holds_names_as_text() -> None:
    """No pipe, backtick or tag of a name is Markdown; the references give the name back."""
    text = summary(outcome_of(*map(corrupt, NASTY)))
    body = [line for line in text.splitlines() if line.startswith("| corrupt")][1:]
    assert len(NASTY) == len(body)
    assert all(4 == line.count("|") and "`" not in line and "<" not in line for line in body)
    shown = {html.unescape(line.split(" | ")[1]) for line in body}
    assert {printable(name) for name in NASTY} == shown


# Prometheus ----------------------------------------------------------------------------------


def test_prometheus_has_what_an_alert_needs() -> None:
    """Time, duration, coverage, findings and verdict, without a path."""
    text = prometheus(outcome_of(corrupt(), Finding("data/t", "data", Status.OK, transient=True)))
    values = is_prometheus(text)
    assert STARTED.timestamp() + 1.5 == values["last_verified_timestamp_seconds", "workspace"]
    assert 1.5 == values["duration_seconds", "workspace"]
    assert 3 == values["files", "workspace", "rehashed"]
    assert 21 == values["bytes", "workspace", "rehashed"]
    counted = [
        values["findings", "workspace", each] for each in ("corrupt", "transient", "missing")
    ]
    assert [1, 1, 0] == counted
    verdicts = [values["verdict", "workspace", each] for each in ("damaged", "clean", "incomplete")]
    assert [1, 0, 0] == verdicts
    assert "data/" not in text


# all -----------------------------------------------------------------------------------------


def test_a_survey_tells_each_bad_copy_and_its_store() -> None:
    """A good file of the work tree whose object is bad is damage of the cache."""
    out = Out("data", directory=True, defined_in="data.dvc")
    entry = Entry("data/a", GOOD, None, executable=False, out="data")
    copies = (
        Copy("workspace", State.GOOD),
        Copy("cache", State.BAD),
        Copy("remote:r", State.ABSENT),
        Copy("remote:s", State.UNREADABLE, "EIO"),
        Copy("remote:t", State.NOT_KEPT),
    )
    outcome = Outcome.of_survey(report_of(), [Item(entry, out, 0, copies)], [], PLACES)
    assert [("corrupt", "cache"), ("missing", "remote:r"), ("unreadable", "remote:s")] == [
        (each.label, each.store) for each in outcome.located
    ]
    assert "damaged" == outcome.verdict.value
    values = is_prometheus(prometheus(outcome))
    assert 1 == values["findings", "cache", "corrupt"]
    assert "1" == is_junit(junit(outcome)).attrib["failures"]
    unknown = Outcome.of_survey(report_of(), [Item(entry, out, 0, copies[3:])], [], PLACES)
    assert "incomplete" == unknown.verdict.value


@law
@given(st.lists(found, max_size=12), names)
def test_every_format_is_read_whatever_the_names_are(findings: list[Finding], store: str) -> None:
    """Nothing that a name holds is taken for syntax, and nothing is lost."""
    report = report_of(findings, store=store)
    outcome = Outcome.of_report(report, {each.out: Place(each.out, 3) for each in findings})
    suite = is_junit(junit(outcome))
    assert report.ok is (suite.attrib["failures"] == suite.attrib["errors"] == "0")
    assert len(findings) == len(is_sarif(sarif(outcome))["results"])  # type: ignore[arg-type]
    read = commands_in(workflow_commands(outcome))
    assert min(10, len(findings)) == len(read)
    assert all("3" == properties["line"] for _, properties, _ in read)
    workflow_commands(outcome).encode()
    summary(outcome).encode()
    values = is_prometheus(prometheus(outcome))
    counts = [value for key, value in values.items() if key[0] == "findings"]
    assert len(findings) == sum(counts)


def test_a_hundred_thousand_findings_are_bounded() -> None:
    """SARIF leaves out what GitHub refuses, and says how much; the others stay small."""
    outcome = outcome_of(*(corrupt(f"data/{n:06}") for n in range(100_000)))
    log = json.loads(sarif(outcome))["runs"][0]
    assert 25_000 == len(log["results"])
    told = log["invocations"][0]["toolExecutionNotifications"][1]["message"]["text"]
    assert told.startswith("75,000 more findings were left out")
    assert len(summary(outcome).encode()) < 1 << 20
    assert all(len(each(outcome)) < 1 << 16 for each in (junit, prometheus, workflow_commands))


@pytest.mark.parametrize("render", [junit, sarif, workflow_commands, summary, prometheus])
def test_what_is_clean_says_so(render: object) -> None:
    """A run without a finding is a document all the same."""
    assert "clean" in render(outcome_of())  # type: ignore[operator]

"""The incident log: each incident once, whoever meets it, and a budget that ends the run."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

import dvc_integrity as di
from dvc_integrity.incidents import Incidents, TooManyIncidents
from dvc_integrity.report import Finding, Status


def finding(path: str, found: bytes = b"x" * 16) -> Finding:
    digest = di.Digest(di.Algorithm.MD5, found)
    return Finding(path, "data", Status.MODIFIED, found=digest, size=1, detail="why")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def note_all(incidents: Incidents) -> None:
    for number in range(20):
        incidents.note(finding(f"data/{number}"), "raised")


def test_an_incident_is_written_once_by_many_processes(tmp_path: Path) -> None:
    """Four processes that meet the same twenty files leave twenty whole lines."""
    log = tmp_path / "deep" / "log.jsonl"
    incidents = Incidents(os.fspath(log))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=note_all, args=(incidents,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert 0 == process.exitcode
    assert sorted(f"data/{number}" for number in range(20)) == sorted(
        str(line["path"]) for line in lines(log)
    )
    assert 20 == incidents.count()


def test_other_bytes_are_another_incident(tmp_path: Path) -> None:
    """The same file with other damage, or another action, is written too, and is one file."""
    log = tmp_path / "log.jsonl"
    incidents = Incidents(os.fspath(log))
    for each, action in [
        (finding("data/a"), "raised"),
        (finding("data/a"), "raised"),
        (finding("data/a", b"y" * 16), "raised"),
        (finding("data/a"), "restored"),
        (finding("data/b"), "transient"),
    ]:
        incidents.note(each, action, source="cache")
    assert ["raised", "raised", "restored", "transient"] == [line["action"] for line in lines(log)]
    assert {"time", "process", "path", "status", "expected", "found", "source"} <= set(
        lines(log)[0]
    )
    assert 1 == incidents.count()


@pytest.mark.parametrize("budget", [0, 2])
def test_a_count_ends_the_run(tmp_path: Path, budget: int) -> None:
    """As many files as the budget says may be bad; the next one ends it, and names the log."""
    log = tmp_path / "log.jsonl"
    incidents = Incidents(os.fspath(log), budget=budget)
    for number in range(budget):
        incidents.note(finding(f"data/{number}"), "restored")
    incidents.note(finding("data/0"), "transient")
    with pytest.raises(TooManyIncidents, match=f"error budget is {budget}") as caught:
        incidents.note(finding("data/last"), "restored")
    assert str(log) in str(caught.value)
    assert caught.value.finding == finding("data/last")
    again = TooManyIncidents(str(caught.value))  # what a DataLoader makes of it
    assert finding("data/last") == again.finding


def test_a_share_counts_what_all_processes_read(tmp_path: Path) -> None:
    """The share is of the samples that were read, but at least of one epoch."""
    incidents = Incidents(os.fspath(tmp_path / "log.jsonl"), budget=0.1, samples=20)
    for number in (0, 1):
        incidents.note(finding(f"data/{number}"), "substituted")
    with pytest.raises(TooManyIncidents):
        incidents.note(finding("data/2"), "substituted")
    for _ in range(4):  # as four workers, each with its own number
        pickle.loads(pickle.dumps(incidents)).add_reads(10)
    incidents.note(finding("data/3"), "substituted")
    with pytest.raises(TooManyIncidents):
        incidents.note(finding("data/4"), "substituted")


def test_a_log_that_cannot_be_written_hides_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The incident is told all the same, and whoever raises after it goes on to raise."""
    (tmp_path / "file").write_bytes(b"")
    Incidents(os.fspath(tmp_path / "file" / "log.jsonl")).note(finding("data/a"), "raised")
    assert "data/a" in caplog.text
    assert "cannot be written" in caplog.text


def test_ranks_of_one_run_share_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torchrun names its run; without a name each dataset has a log of its own."""
    scratch = os.fspath(tmp_path)
    alone = {Incidents.of_run(scratch).path for _ in range(3)}
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b c")
    together = {Incidents.of_run(scratch).path for _ in range(3)}
    assert (3, {os.path.join(scratch, "incidents", "a_b_c.jsonl")}) == (len(alone), together)


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    """It would end each run at its first incident and look like a count."""
    with pytest.raises(ValueError, match="budget"):
        Incidents(os.fspath(tmp_path / "log"), budget=-1)


@pytest.mark.parametrize("budget", [0, 0.0])
def test_without_a_usable_log_a_process_counts_alone(tmp_path: Path, budget: float) -> None:
    """A file in the way of the log hides neither the damage nor the end of the budget."""
    (tmp_path / "file").write_bytes(b"")
    incidents = Incidents(os.fspath(tmp_path / "file" / "log.jsonl"), budget=budget)
    incidents.add_reads(3)
    with pytest.raises(TooManyIncidents, match="data/1"):
        incidents.note(finding("data/1"), "raised")

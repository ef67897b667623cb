"""A receipt depends on manifest, scope and verdict alone, and is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dvc_integrity as di
from dvc_integrity import durable
from dvc_integrity.receipt import SCHEMA, is_replaceable, receipt, write_receipt, write_report
from dvc_integrity.report import Coverage, Evidence, Finding, ManifestSummary, Report, Status

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA = "0123456789abcdef0123456789abcdef01234567"
NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def coverage(files: int = 3, size: int = 30) -> Coverage:
    made = Coverage()
    made.add(Evidence.REHASHED, files, size)
    return made


CLEAN = Report(
    rev=SHA,
    store="workspace",
    targets=("data", "more"),
    manifest=ManifestSummary("f" * 64, 3, 30),
    coverage=coverage(),
    findings=(),
    started=NOON,
    seconds=1.5,
    versions={"dvc": "3.67.1"},
)
BAD = replace(CLEAN, findings=(Finding("data/\udc80\n", "data", Status.CORRUPT, detail="why"),))


def written(report: Report, folder: Path, name: str = "receipt.json") -> bytes:
    write_receipt(report, os.fspath(folder / name))
    return (folder / name).read_bytes()


# ----------------------------------------------------------------- what it says


def test_a_receipt_is_as_documented(tmp_path: Path) -> None:
    """The file is sorted, indented JSON with schema, manifest, scope and verdict; no more."""
    expected = {
        "schema": "dvc-integrity/receipt/1",
        "manifest": {"digest": "f" * 64, "files": 3, "bytes": 30},
        "scope": {"store": "workspace", "targets": ["data", "more"], "left_out": []},
        "verdict": "clean",
    }
    assert expected == receipt(CLEAN)
    assert json.dumps(expected, indent=2, sort_keys=True).encode() + b"\n" == written(
        CLEAN, tmp_path
    )


@law
@given(
    rev=st.sampled_from([SHA, "workspace", "f" * 40]),
    started=st.timedeltas(timedelta(-9999), timedelta(9999)),
    seconds=st.floats(0, 1e6),
    files=st.integers(1, 100),
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    transient=st.booleans(),
)
def test_what_varies_leaves_the_receipt_alone(
    rev: str,
    started: timedelta,
    seconds: float,
    files: int,
    versions: dict[str, str],
    transient: bool,
) -> None:
    """Commit, time, duration, coverage, versions and transient errors do not take part."""
    finding = Finding("data/a", "data", Status.OK, transient=True, detail="once")
    other = replace(
        CLEAN,
        rev=rev,
        started=NOON + started,
        seconds=seconds,
        coverage=coverage(files, files),
        versions=versions,
        findings=(finding,) if transient else (),
    )
    assert receipt(CLEAN) == receipt(other)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    """A clean re-run gives the same file, so that nothing that depends on it runs again."""
    later = replace(CLEAN, started=NOON + timedelta(days=1), seconds=9.0, versions={"dvc": "4"})
    assert written(CLEAN, tmp_path) == written(later, tmp_path, "later.json")


CHANGES: dict[str, Callable[[Report], Report]] = {
    "manifest": lambda report: replace(report, manifest=ManifestSummary("e" * 64, 3, 30)),
    "store": lambda report: replace(report, store="cache"),
    "targets": lambda report: replace(report, targets=("data",)),
    "left out": lambda report: replace(report, left_out=("more",)),
    "verdict": lambda report: replace(report, findings=BAD.findings),
    "could not tell": lambda report: replace(report, coverage=Coverage()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_matters_changes_the_receipt(change: str, tmp_path: Path) -> None:
    """Another manifest, scope or verdict is another receipt."""
    other = CHANGES[change](CLEAN)
    assert written(CLEAN, tmp_path) != written(other, tmp_path, "other.json")


def test_the_report_beside_it_says_everything(tmp_path: Path) -> None:
    """The full report is the JSON document of the report, hostile names escaped as JSON."""
    path = tmp_path / "report.json"
    write_report(BAD, os.fspath(path))
    assert BAD.to_json() == json.loads(path.read_bytes())
    assert path.read_bytes().isascii()


# ----------------------------------------------------------------- it is whole or not there


@pytest.mark.parametrize("write", [write_receipt, write_report])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_receipt_that_cannot_be_written_is_a_store_error(
    write: Callable[[Report, str], None],
    call: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk names file and reason, and leaves the old receipt as it was, alone."""
    path = tmp_path / "receipt.json"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, call, full)
    with pytest.raises(di.StoreError) as caught:
        write(CLEAN, os.fspath(path))
    monkeypatch.undo()
    assert os.fspath(path) in str(caught.value)
    assert os.strerror(errno.ENOSPC) in str(caught.value)
    assert (b"old", ["receipt.json"]) == (path.read_bytes(), os.listdir(tmp_path))


def test_a_folder_in_the_way_is_a_store_error(tmp_path: Path) -> None:
    """A receipt where a folder lies, or below a file, is refused with the name, harmlessly."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    for name in ("folder", "file/below", "x" * 300, "file/\x1b[31m"):
        with pytest.raises(di.StoreError, match="could not be written") as caught:
            write_receipt(CLEAN, os.fspath(tmp_path / name))
        assert str(caught.value).isprintable()
    assert b"old" == (tmp_path / "file").read_bytes()


# ----------------------------------------------------------------- what may be overwritten


def test_nothing_and_an_earlier_receipt_may_be_overwritten(tmp_path: Path) -> None:
    """An absent file, and a receipt of any version, are replaceable."""
    path = tmp_path / "receipt.json"
    assert is_replaceable(os.fspath(path))
    for report in (CLEAN, BAD):
        written(report, tmp_path)
        assert is_replaceable(os.fspath(path))
    path.write_text('{"schema": "dvc-integrity/receipt/99"}')
    assert is_replaceable(os.fspath(path))
    assert SCHEMA.startswith("dvc-integrity/receipt/")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"data",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'"dvc-integrity/receipt/1"',
        b'{"schema": null}',
        b'{"schema": "dvc-integrity/report/1"}',
        b'{"schema": "another/receipt/1"}',
        b"[" * 100_000,
    ],
)
def test_any_other_file_may_not_be_overwritten(data: bytes, tmp_path: Path) -> None:
    """A file that is no receipt is somebody's data."""
    path = tmp_path / "file"
    path.write_bytes(data)
    assert not is_replaceable(os.fspath(path))


@pytest.fixture
def _awake() -> Iterator[None]:
    """End a test that blocks, so that the others still run."""

    def wake(*_: object) -> None:
        raise AssertionError("it blocks")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_awake")
def test_what_is_no_file_may_not_be_overwritten(tmp_path: Path) -> None:
    """A folder, a FIFO and a device are not replaceable, and asking never blocks."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        assert not is_replaceable(os.fspath(path))

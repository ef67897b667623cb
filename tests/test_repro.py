"""The gate: `dvc repro` refuses data that differs from the commit, and trains on nothing else.

Real projects, real `dvc` and `dvc-integrity` processes. `train` depends on the receipt of the
`verify` stage and leaves a line in a log that nobody tracks each time it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import faults
import pytest
from projects import Project

BIN = Path(sys.executable).parent

LIMIT_SECONDS = 120
"""A program that runs longer hangs."""

DATA = {f"data/{name}.bin": name.encode() * 1000 for name in "abcde"} | {"data/sub/f.bin": b"f"}

FAR_PAST = 10**9
"""Seconds since the epoch: no build of today writes this modification time."""

VERIFY = {
    "cmd": "dvc-integrity verify data --receipt receipts/data.json",
    "deps": ["data"],
    "always_changed": True,
    "outs": [{"receipts/data.json": {"cache": False}}],
}
TRAIN = {
    "cmd": "cp data/a.bin model && echo trained >> trained.log",
    "deps": ["data", "receipts/data.json"],
    "outs": ["model"],
}
PREPARE = {"cmd": "rm -rf data && cp -r raw data", "deps": ["raw"], "outs": ["data"]}


@dataclass(frozen=True)
class Outcome:
    """What a program left behind: its exit status, and all that it printed."""

    status: int
    said: str


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stages find the programs of this environment."""
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)


def dvc(*arguments: str) -> Outcome:
    """Run the real `dvc` in the current folder."""
    done = subprocess.run(
        [str(BIN / "dvc"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    said = os.fsdecode(done.stdout)
    assert "Traceback" not in said, said
    return Outcome(done.returncode, said)


def build(project: Project, stages: dict[str, object]) -> Project:
    """Write a pipeline, commit it, run it once and commit the result."""
    project.write({".gitignore": b"/data\n/model\n/trained.log\n"})
    project.write_yaml("dvc.yaml", {"stages": stages})
    project.commit("pipeline")
    project.dvc("repro", "--quiet")
    project.commit("first run")
    return project


@pytest.fixture
def added(project: Project) -> Project:
    """Return a gated project whose `data` is tracked by `dvc add`."""
    project.add("data", DATA)
    return build(project, {"verify": VERIFY, "train": TRAIN})


def make(project: Project) -> None:
    """Let a stage `prepare` make `data`, whose hash stands in `dvc.lock`, and commit that."""
    project.write({path.replace("data", "raw", 1): data for path, data in DATA.items()})
    project.write({".gitignore": b"/data\n"})
    project.write_yaml("dvc.yaml", {"stages": {"prepare": PREPARE}})
    project.dvc("repro", "--quiet")
    project.commit("prepared")
    build(project, {"prepare": PREPARE, "verify": VERIFY, "train": TRAIN})


@pytest.fixture(params=["added", "made"])
def gated(project: Project, request: pytest.FixtureRequest) -> Project:
    """Return a gated project: `data` by `dvc add`, or made by a stage before."""
    if request.param == "added":
        project.add("data", DATA)
        build(project, {"verify": VERIFY, "train": TRAIN})
    else:
        make(project)
    return project


def trainings() -> int:
    """Return how often `train` ran."""
    return len(Path("trained.log").read_text().splitlines())


def assert_stopped(path: str, status: str) -> Outcome:
    """Assert that `dvc repro` fails at `verify`, names the file, and does not train."""
    outcome = dvc("repro")
    assert 0 != outcome.status
    assert "failed to reproduce 'verify'" in outcome.said
    lines = [line.split() for line in outcome.said.splitlines()]
    assert [status, path] in [line[:2] for line in lines], outcome.said
    assert "Running stage 'train'" not in outcome.said
    assert 1 == trainings()
    return outcome


def assert_passes() -> None:
    """Assert that `dvc repro` passes, without a training that nothing calls for."""
    outcome = dvc("repro")
    assert 0 == outcome.status, outcome.said
    assert "Running stage 'verify'" in outcome.said
    assert 1 == trainings()


def assert_unseen_by_dvc() -> None:
    """Assert that `dvc status` sees nothing but the stage that always runs."""
    assert "verify:\n\talways changed\n" == dvc("status").said


@contextlib.contextmanager
def put_back(*paths: str) -> Iterator[None]:
    """Let the block damage files, then write their bytes, modes and times as they were."""
    before = {path: (Path(path).stat(), Path(path).read_bytes()) for path in paths}
    yield
    for path, (state, data) in before.items():
        file = Path(path)
        if not file.exists():
            file.write_bytes(data)
        file.chmod(state.st_mode | stat.S_IWUSR)
        with file.open("r+b") as opened:
            opened.write(data)
            opened.truncate()
        file.chmod(state.st_mode)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


# ------------------------------------------------------------------------------ clean data


def test_a_second_run_verifies_and_does_nothing_else(gated: Project) -> None:
    """`verify` runs, `train` does not, and `git status` stays clean."""
    outcome = dvc("repro")
    assert 0 == outcome.status
    assert "Running stage 'verify'" in outcome.said
    assert "Stage 'train' didn't change, skipping" in outcome.said
    assert "6 of 6 files re-hashed" in outcome.said
    assert 1 == trainings()
    assert "" == gated.git("status", "--short")


def test_committed_new_data_trains_again(added: Project) -> None:
    """The gate opens for a new version once it is committed, and `train` runs on it."""
    added.add("data", {"data/a.bin": b"new version"})
    assert 0 != dvc("repro").status
    assert 1 == trainings()
    added.commit("new version")
    assert 0 == dvc("repro").status
    assert 2 == trainings()
    assert b"new version" == (added.root / "model").read_bytes()


# ------------------------------------------------------------------ damage that DVC cannot see


def test_a_flipped_byte(gated: Project) -> None:
    """Size, time and mode kept: DVC is silent, the gate names the file; put back, it opens."""
    with put_back("data/b.bin"):
        faults.flip_bit(gated.root / "data/b.bin")
        assert_unseen_by_dvc()
        assert_stopped("data/b.bin", "corrupt")
    assert_passes()


def test_two_swapped_files(gated: Project) -> None:
    """The bytes of two files exchanged in place: both are named."""
    with put_back("data/c.bin", "data/d.bin"):
        faults.swap(gated.root / "data/c.bin", gated.root / "data/d.bin")
        assert_unseen_by_dvc()
        said = assert_stopped("data/c.bin", "corrupt").said
        assert "data/d.bin" in said
    assert_passes()


@pytest.mark.parametrize(
    "fault",
    [faults.zero_page, lambda path: faults.tear(path, b"new" * 300)],
    ids=["zero page", "torn write"],
)
def test_what_a_crash_leaves_behind(added: Project, fault: Callable[[Path], None]) -> None:
    """A page of zeros, or half of a write: of the right size, so that DVC is silent."""
    with put_back("data/a.bin"):
        fault(added.root / "data/a.bin")
        assert_unseen_by_dvc()
        assert_stopped("data/a.bin", "corrupt")
    assert_passes()


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_flipped_byte_in_data_that_is_linked_to_the_cache(project: Project, link: str) -> None:
    """With linked caches a flip in the workspace is a flip in the cache: no copy is left."""
    project.dvc("config", "cache.type", link)
    project.add("data", DATA)
    build(project, {"verify": VERIFY, "train": TRAIN})
    path = project.root / "data/b.bin"
    assert path.is_symlink() or 2 == path.stat().st_nlink
    with put_back("data/b.bin"):
        faults.flip_bit(path.resolve())
        assert_unseen_by_dvc()
        said = assert_stopped("data/b.bin", "corrupt").said
        assert "cache object" in said or "nothing wrote it" in said
    assert_passes()


# ------------------------------------------------------------------- drift that DVC adopts


def modify(path: Path) -> None:
    """Flip a byte and give the file a new time, as a program that writes does."""
    faults.flip_bit(path)
    os.utime(path)


DRIFT = {
    "written": ("data/b.bin", "modified", modify),
    "backdated": ("data/b.bin", "modified", lambda path: (modify(path), backdate(path))),
    "truncated": ("data/b.bin", "modified", faults.truncate),
    "deleted": ("data/b.bin", "missing", faults.delete),
    "added": ("data/new.bin", "extra", lambda path: path.write_bytes(b"new")),
}


def backdate(path: Path) -> None:
    """Give a file a time in the far past."""
    os.utime(path, (FAR_PAST, FAR_PAST))


@pytest.mark.parametrize("drift", DRIFT)
def test_drift_is_adopted_by_dvc_and_refused_by_the_gate(added: Project, drift: str) -> None:
    """DVC rewrites the `.dvc` file first; the finding says so, and the way back works."""
    path, status, fault = DRIFT[drift]
    fault(added.root / path)
    said = assert_stopped(path, status).said
    assert "data.dvc" in added.git("status", "--short")
    assert "'data.dvc' in the work tree already records this change" in said
    for way_out in ("git commit", "git checkout", "dvc checkout data"):
        assert f"'{way_out}" in said
    added.git("checkout", "--", "data.dvc")
    assert 0 == dvc("checkout", "data").status
    assert_passes()
    assert "" == added.git("status", "--short")


def test_drift_put_back_by_hand_opens_the_gate(added: Project) -> None:
    """The committed bytes again, with whatever times: DVC adopts them back, nothing is left."""
    faults.flip_bit(added.root / "data/b.bin")
    os.utime(added.root / "data/b.bin")
    assert_stopped("data/b.bin", "modified")
    faults.flip_bit(added.root / "data/b.bin")
    os.utime(added.root / "data/b.bin")
    assert_passes()
    assert "" == added.git("status", "--short")


def test_the_way_forward_from_drift_opens_the_gate(added: Project) -> None:
    """Committing what DVC adopted makes it the expectation; then `train` runs on it."""
    modify(added.root / "data/a.bin")
    assert 0 != dvc("repro").status
    added.git("commit", "--quiet", "--message", "meant", "data.dvc")
    assert 0 == dvc("repro").status
    assert 2 == trainings()


@pytest.mark.parametrize("drift", ["written", "deleted"])
def test_drift_in_what_a_stage_made_is_made_again(project: Project, drift: str) -> None:
    """DVC sees it and runs `prepare` anew before `verify`: the committed bytes are back."""
    make(project)
    path, _, fault = DRIFT[drift]
    fault(project.root / path)
    outcome = dvc("repro")
    assert 0 == outcome.status, outcome.said
    assert DATA["data/b.bin"] == (project.root / "data/b.bin").read_bytes()
    assert 1 == trainings()


def test_drift_in_what_a_stage_made_and_somebody_committed_to_the_lock(project: Project) -> None:
    """`dvc commit` adopts it into `dvc.lock`; the finding names that file."""
    make(project)
    modify(project.root / "data/b.bin")
    assert 0 == dvc("commit", "--force", "prepare").status
    said = assert_stopped("data/b.bin", "modified").said
    assert "'dvc.lock' in the work tree already records this change" in said


def test_a_source_that_a_stage_turns_into_other_bytes_is_refused(project: Project) -> None:
    """A stage whose result is not the committed one stops at the gate too."""
    make(project)
    modify(project.root / "raw/b.bin")
    assert_stopped("data/b.bin", "modified")


def test_a_lost_executable_bit(project: Project) -> None:
    """DVC records it for a single file: gone, the gate refuses; back, it passes."""
    project.write({"tool": b"#!/bin/sh\n", ".gitignore": b"/tool\n"})
    (project.root / "tool").chmod(0o755)
    project.dvc("add", "--quiet", "tool")
    assert b"isexec: true" in (project.root / "tool.dvc").read_bytes()
    project.add("data", DATA)
    verify = VERIFY | {"cmd": VERIFY["cmd"].replace("verify data", "verify tool data")}
    build(project, {"verify": verify | {"deps": ["data", "tool"]}, "train": TRAIN})
    (project.root / "tool").chmod(0o644)
    said = assert_stopped("tool", "modified").said
    assert "executable bit" in said
    (project.root / "tool").chmod(0o755)
    project.git("checkout", "--", "tool.dvc")
    assert_passes()


# ------------------------------------------------------------------------- the gate itself


def test_inside_a_stage_no_lock_is_in_the_way(project: Project) -> None:
    """`verify` runs while DVC holds the read lock on the data and the write lock on the receipt."""
    project.add("data", DATA)
    command = f"cp .dvc/tmp/rwlock trained.log && {VERIFY['cmd']}"
    build(project, {"verify": VERIFY | {"cmd": command}})
    held = json.loads((project.root / "trained.log").read_bytes())
    assert held["read"][str(project.root / "data")]
    assert held["write"][str(project.root / "receipts/data.json")]


def test_a_receipt_of_damage_never_starts_the_training(added: Project) -> None:
    """A second `dvc repro` on the same damage fails like the first."""
    faults.flip_bit(added.root / "data/b.bin")
    assert_stopped("data/b.bin", "corrupt")
    assert_stopped("data/b.bin", "corrupt")
    outcome = dvc("repro", "train")
    assert 0 != outcome.status
    assert 1 == trainings()


def test_a_damaged_cache_is_no_reason_to_stop(added: Project) -> None:
    """The gate judges what is used: a bad cache object beside a good workspace passes."""
    objects = [path for path in (added.cache / "files").rglob("*") if path.is_file()]
    (bad,) = [path for path in objects if path.read_bytes() == DATA["data/b.bin"]]
    faults.flip_bit(bad)
    assert_passes()


def test_corrupt_bytes_that_dvc_checks_out_are_refused(added: Project) -> None:
    """`dvc checkout` from a damaged cache looks clean to DVC; the gate names the file."""
    objects = [path for path in (added.cache / "files").rglob("*") if path.is_file()]
    (bad,) = [path for path in objects if path.read_bytes() == DATA["data/b.bin"]]
    faults.flip_bit(bad)
    faults.delete(added.root / "data/b.bin")
    assert 0 == dvc("checkout", "data").status
    assert_unseen_by_dvc()
    assert_stopped("data/b.bin", "corrupt")

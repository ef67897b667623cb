"""The gate holds in DVC experiments: in the workspace, in a temporary copy, and in the queue.

An experiment in a copy takes its data from the cache, by the `.dvc` file that the workspace
has when it is made. So drift that DVC adopts travels with it and is refused; a flip in the
workspace that DVC cannot see does not, and a flip in the cache does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import psutil
import pytest
from projects import Project
from test_repro import BIN, DATA, TRAIN, VERIFY, Outcome, build, dvc, modify

LIMIT_SECONDS = 120
"""A queue that takes longer hangs."""


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stages find the programs of this environment."""
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)


@pytest.fixture
def gated(project: Project) -> Iterator[Project]:
    """Return a gated project whose training has a parameter; end its workers afterwards."""
    yield make(project)
    end_processes_in(project.root)


def make(project: Project) -> Project:
    """Build the pipeline of these tests."""
    project.write({"params.yaml": b"rate: 1\n"})
    project.add("data", DATA)
    return build(project, {"verify": VERIFY, "train": TRAIN | {"params": ["rate"]}})


def end_processes_in(folder: Path) -> None:
    """End the queue's workers: they outlive the command that started them."""
    if not (folder / ".dvc/tmp/exps/celery").exists():
        return
    dvc("queue", "stop", "--kill")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile, or is somebody else's
            if Path(process.cwd()).is_relative_to(folder) and process.pid != os.getpid():
                process.kill()


def in_workspace() -> Outcome:
    """Run an experiment with another parameter where the work tree is."""
    return dvc("exp", "run", "--set-param", "rate=2")


def in_copy() -> Outcome:
    """Run it in a temporary copy of the repository."""
    return dvc("exp", "run", "--temp", "--set-param", "rate=2")


def in_queue() -> Outcome:
    """Put it into the queue, start a worker, and wait for the end; give the task's log."""
    queued = dvc("exp", "run", "--queue", "--name", "queued", "--set-param", "rate=2")
    assert 0 == queued.status, queued.said
    start_worker()
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        status = dvc("queue", "status").said
        if "Success" in status or "Failed" in status:
            log = dvc("queue", "logs", "queued").said
            return Outcome(0 if "Success" in status else 1, log)
    pytest.fail("the queue hangs")


def start_worker() -> None:
    """Start a worker for the queue; it keeps the output that it is given open until it ends."""
    command = [str(BIN / "dvc"), "queue", "start", "--quiet"]
    null = subprocess.DEVNULL
    done = subprocess.run(
        command, stdin=null, stdout=null, stderr=null, check=False, timeout=LIMIT_SECONDS
    )
    assert 0 == done.returncode


PLACES = {"workspace": in_workspace, "temp": in_copy, "queue": in_queue}
COPIES = {name: PLACES[name] for name in ("temp", "queue")}

Place = Callable[[], Outcome]


def places(chosen: dict[str, Place]) -> pytest.MarkDecorator:
    """Run a test for each way to run an experiment."""
    return pytest.mark.parametrize("experiment", chosen.values(), ids=chosen)


def assert_trained(outcome: Outcome, baseline: str) -> None:
    """Assert that the experiment was held to its baseline, found clean, and trained."""
    assert 0 == outcome.status, outcome.said
    assert f"clean: workspace at {baseline[:12]}, 6 of 6 files re-hashed" in outcome.said
    assert "Running stage 'train'" in outcome.said


def assert_stopped(outcome: Outcome, finding: str) -> None:
    """Assert that the experiment failed at `verify`, named the file, and did not train."""
    assert 0 != outcome.status, outcome.said
    assert "failed to reproduce 'verify'" in outcome.said
    assert finding in [" ".join(line.split()[:2]) for line in outcome.said.splitlines()]
    assert "Running stage 'train'" not in outcome.said


def cached(project: Project, data: bytes) -> Path:
    """Return the object of the cache with these bytes."""
    files = [path for path in (project.cache / "files").rglob("*") if path.is_file()]
    (found,) = [path for path in files if path.read_bytes() == data]
    return found


@places(PLACES)
def test_clean_data_passes(gated: Project, experiment: Place) -> None:
    """`verify` holds the data to the baseline of the experiment, and `train` runs."""
    assert_trained(experiment(), gated.git("rev-parse", "HEAD"))


@places(PLACES)
def test_adopted_drift_fails(gated: Project, experiment: Place) -> None:
    """DVC puts the rewritten `.dvc` file into the experiment; the baseline is what counts."""
    modify(gated.root / "data/b.bin")
    outcome = experiment()
    assert_stopped(outcome, "modified data/b.bin")
    assert "'data.dvc' in the work tree already records this change" in outcome.said


@pytest.mark.parametrize("drift", ["deleted", "added"])
def test_other_drift_fails_in_a_copy_too(gated: Project, drift: str) -> None:
    """A listing with a file more or less is adopted and refused alike."""
    if drift == "deleted":
        faults.delete(gated.root / "data/b.bin")
        assert_stopped(in_copy(), "missing data/b.bin")
    else:
        gated.write({"data/new.bin": b"new"})
        assert_stopped(in_copy(), "extra data/new.bin")


def test_a_flip_that_dvc_cannot_see_fails_in_the_workspace(gated: Project) -> None:
    """Size, time and mode kept: the experiment would train on these bytes, so it fails."""
    faults.flip_bit(gated.root / "data/b.bin")
    assert_stopped(in_workspace(), "corrupt data/b.bin")
    faults.flip_bit(gated.root / "data/b.bin")
    assert_trained(in_workspace(), gated.git("rev-parse", "HEAD"))


def test_a_copy_takes_good_bytes_from_the_cache(gated: Project) -> None:
    """The same flip does not reach a copy: it has other bytes, which are good, and passes."""
    faults.flip_bit(gated.root / "data/b.bin")
    assert_trained(in_copy(), gated.git("rev-parse", "HEAD"))


@places(COPIES)
def test_a_copy_with_bad_bytes_from_the_cache_fails(gated: Project, experiment: Place) -> None:
    """A flip in the cache reaches every copy; the workspace's own bytes are good."""
    faults.flip_bit(cached(gated, DATA["data/b.bin"]))
    assert_stopped(experiment(), "corrupt data/b.bin")
    assert_trained(in_workspace(), gated.git("rev-parse", "HEAD"))


@places({name: PLACES[name] for name in ("workspace", "temp")})
def test_a_flip_in_linked_data_fails_everywhere(project: Project, experiment: Place) -> None:
    """With hard links to the cache the one flip is in the workspace and in every copy."""
    project.dvc("config", "cache.type", "hardlink")
    make(project)
    faults.flip_bit(project.root / "data/b.bin")
    assert_stopped(experiment(), "corrupt data/b.bin")

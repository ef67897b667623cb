"""A command runs on verified data only, and what it ran on is on record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import pytest
from projects import md5, object_path

if TYPE_CHECKING:
    from projects import Project

FILES = {"data/a.bin": b"alpha" * 2000, "data/b.bin": b"beta" * 2000}
GATE = [sys.executable, "-m", "dvc_integrity", "gate"]

MARK = "open('ran', 'w').close()"


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a tracked folder, pushed to a local remote."""
    project.dvc("remote", "add", "-d", "disk", os.fspath(project.top.parent / "remote"))
    project.write({".gitignore": b"/ran\n/out\n"})
    project.add("data", FILES)
    project.commit("data")
    project.dvc("push")
    return project


def run(
    project: Project, *arguments: str, code: str = MARK, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python code behind the gate."""
    done = subprocess.run(
        [*GATE, *arguments, "--", sys.executable, "-c", code],
        cwd=project.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def records(project: Project) -> list[dict[str, Any]]:
    """Return the records of all runs."""
    folder = project.root / ".dvc/tmp/integrity/runs"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def ran(project: Project) -> bool:
    return (project.root / "ran").exists()


def edit(project: Project) -> None:
    (project.root / "data/a.bin").unlink()
    project.write({"data/a.bin": b"drift"})


def rot(project: Project) -> None:
    faults.flip_bit(project.root / "data/a.bin")


def lose(project: Project) -> None:
    faults.delete(project.root / "data/a.bin")


def test_on_clean_data_the_command_runs_and_is_on_record(tracked: Project) -> None:
    """Its output is its own, its status comes back, and the record tells what it ran on."""
    done = run(tracked, code=f"{MARK}; print('mine'); raise SystemExit(7)")
    assert (7, "mine\n") == (done.returncode, done.stdout)
    assert ran(tracked)
    (record,) = records(tracked)
    assert "dvc-integrity/run/1" == record["schema"]
    assert 7 == record["status"]
    assert tracked.git("rev-parse", "HEAD") == record["report"]["rev"]
    assert "clean" == record["receipt"]["verdict"]
    assert record["committed"] is True
    assert 2 == record["report"]["coverage"]["rehashed"]["files"]
    assert {"evidence": "stat", "changed": [], "extra": []} == record["afterwards"]
    assert ["data"] == [out["path"] for out in record["outs"]]


@pytest.mark.parametrize("damage", [edit, rot, lose], ids=lambda each: each.__name__)
def test_on_other_data_the_command_does_not_run(tracked: Project, damage: Any) -> None:
    """Drift, rot and loss stop it with 1; the message names the file and the way on."""
    damage(tracked)
    done = run(tracked)
    assert (1, "") == (done.returncode, done.stdout)
    assert "data/a.bin" in done.stderr
    assert "was not run" in done.stderr
    assert not ran(tracked)
    assert [] == records(tracked)


@pytest.mark.parametrize("damage", [rot, lose], ids=lambda each: each.__name__)
def test_damage_is_restored_first_when_that_is_asked_for(tracked: Project, damage: Any) -> None:
    """The command meets the committed bytes."""
    damage(tracked)
    code = f"{MARK}; assert open('data/a.bin', 'rb').read() == b'alpha' * 2000"
    done = run(tracked, "--on-damage", "restore", code=code)
    assert 0 == done.returncode, done.stderr
    assert ran(tracked)
    assert "clean" == records(tracked)[0]["receipt"]["verdict"]


def test_an_edit_is_not_restored(tracked: Project) -> None:
    """It may be meant: the command does not run, and the edit stays."""
    edit(tracked)
    assert 1 == run(tracked, "--on-damage", "restore").returncode
    assert not ran(tracked)
    assert b"drift" == (tracked.root / "data/a.bin").read_bytes()


def test_damage_without_a_good_copy_stops_the_command(tracked: Project) -> None:
    """There is nothing to restore from."""
    rot(tracked)
    digest = md5(FILES["data/a.bin"])
    for store in (tracked.cache, tracked.top.parent / "remote"):
        faults.delete(object_path(store, digest)) if object_path(store, digest).exists() else None
    assert 1 == run(tracked, "--on-damage", "restore").returncode
    assert not ran(tracked)


def test_an_intended_update_may_run_before_it_is_committed(tracked: Project) -> None:
    """Held to the work tree's metadata on purpose; the record says that it was no commit."""
    edit(tracked)
    tracked.dvc("add", "data")
    assert 1 == run(tracked).returncode
    assert 0 == run(tracked, "--rev", "workspace").returncode
    (record,) = records(tracked)
    assert "workspace" == record["report"]["rev"]


def test_a_record_tells_metadata_that_are_not_committed(tracked: Project) -> None:
    """The data are the committed ones, the metadata in the work tree are not."""
    tracked.add("more", {"more": b"more"})
    assert 0 == run(tracked).returncode
    assert records(tracked)[0]["committed"] is False


CHANGE = """
import os
os.chmod('data/a.bin', 0o644)
with open('data/a.bin', 'r+b') as file:
    file.write(b'X')
"""


def test_data_that_the_command_changes_are_told(tracked: Project) -> None:
    """It succeeded on data that are others now: that is 1, and the record names the file."""
    done = run(tracked, code=CHANGE)
    assert 1 == done.returncode
    assert "data/a.bin" in done.stderr
    assert ["data/a.bin"] == [each["path"] for each in records(tracked)[0]["afterwards"]["changed"]]


def test_the_status_of_a_command_that_failed_comes_first(tracked: Project) -> None:
    """Its failure is the cause."""
    assert 9 == run(tracked, code=f"{CHANGE}\nraise SystemExit(9)").returncode


SILENT = """
import os
path = 'data/a.bin'
state = os.stat(path)
os.chmod(path, 0o644)
with open(path, 'r+b') as file:
    file.write(b'X')
os.chmod(path, state.st_mode)
os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
"""


def test_a_change_that_hides_is_seen(tracked: Project) -> None:
    """Size and modification time are the old ones; the time of the inode is not."""
    assert 1 == run(tracked, code=SILENT).returncode


def test_a_file_that_the_command_adds_to_the_data_is_told(tracked: Project) -> None:
    """Whoever trains on the folder again trains on it too; `verify` would call it extra."""
    done = run(tracked, code="open('data/new', 'w').close()")
    assert 1 == done.returncode
    assert "data/new" in done.stderr
    assert ["data/new"] == records(tracked)[0]["afterwards"]["extra"]


def test_a_file_that_is_only_touched_is_hashed_again(tracked: Project) -> None:
    """It looks different and is the same: all is well."""
    assert 0 == run(tracked, code="import os; os.utime('data/a.bin')").returncode


def test_every_file_is_hashed_again_when_that_is_asked_for(tracked: Project) -> None:
    """The record says what the second look rests on."""
    assert 0 == run(tracked, "--recheck").returncode
    assert "rehashed" == records(tracked)[0]["afterwards"]["evidence"]


def test_a_command_that_is_not_there(tracked: Project) -> None:
    """A clear message, and a shell's status."""
    done = subprocess.run(
        [*GATE, "--", "no-such-command"], cwd=tracked.root, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert 127 == done.returncode
    assert "no-such-command" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_the_command_are_its_own(tracked: Project) -> None:
    """What comes after the dashes is not read."""
    done = subprocess.run(
        [*GATE, "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", "--rev", "-q"],
        cwd=tracked.root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "['--rev', '-q']\n" == done.stdout


WAIT = """
import signal, sys, time
def stop(number, frame):
    print('got', number, flush=True)
    sys.exit(40 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
open('ran', 'w').close()
while True:
    time.sleep(0.01)
"""


def until(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_signals_reach_the_command_once(tracked: Project, number: signal.Signals) -> None:
    """It ends as it likes, its status comes back, and nothing of it is left."""
    process = subprocess.Popen(
        [*GATE, "--", sys.executable, "-c", WAIT], cwd=tracked.root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: ran(tracked))
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert (40 + number, f"got {number.value}\n") == (process.returncode, out), errors
    assert 40 + number == records(tracked)[0]["status"]


def test_a_gate_that_is_killed_takes_the_command_with_it(tracked: Project) -> None:
    """No child is left behind."""
    process = subprocess.Popen(
        [*GATE, "--", sys.executable, "-c", WAIT], cwd=tracked.root, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: ran(tracked))
    process.kill()
    out, _ = process.communicate(timeout=30)  # it ends when the command's end of the pipe is closed
    assert f"got {signal.SIGTERM.value}\n" == out


def test_a_command_that_a_signal_ends(tracked: Project) -> None:
    """As a shell says it: 128 and the number."""
    done = run(tracked, code="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert 137 == done.returncode
    assert 137 == records(tracked)[0]["status"]


def test_two_gates_at_once_keep_a_record_each(tracked: Project) -> None:
    """Neither waits for the other."""
    commands = [
        subprocess.Popen(
            [*GATE, "--", sys.executable, "-c", f"print({number})"], cwd=tracked.root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]  # fmt: skip
    for number, process in enumerate(commands):
        out, errors = process.communicate(timeout=60)
        assert (0, f"{number}\n") == (process.returncode, out), errors
    assert 3 == len(records(tracked))


def stage(tracked: Project) -> None:
    tracked.write_yaml(
        "dvc.yaml",
        {"stages": {"train": {"cmd": "cp data/a.bin model", "deps": ["data"], "outs": ["model"]}}},
    )
    tracked.commit("stage")


def dvc_behind(project: Project, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GATE, "--quiet", "--", sys.executable, "-m", "dvc", *command], cwd=project.root,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_dvc_repro_adopts_no_drift(tracked: Project) -> None:
    """DVC would rewrite the metadata and train on what it found; behind the gate it does not."""
    stage(tracked)
    committed = (tracked.root / "data.dvc").read_bytes()
    edit(tracked)
    assert 1 == dvc_behind(tracked, "repro").returncode
    assert committed == (tracked.root / "data.dvc").read_bytes()
    assert not (tracked.root / "model").exists()


def test_a_run_of_dvc_repro_records_what_it_made(tracked: Project) -> None:
    """The digest of the output stands in the record as DVC recorded it."""
    stage(tracked)
    done = dvc_behind(tracked, "repro")
    assert 0 == done.returncode, done.stderr
    (record,) = records(tracked)
    made = {out["path"]: out["digest"] for out in record["outs"]}
    assert f"md5:{md5(FILES['data/a.bin'])}" == made["model"]


def test_an_experiment_is_named_in_the_record(tracked: Project) -> None:
    """With its baseline, its commit, and what it made."""
    stage(tracked)
    done = dvc_behind(tracked, "exp", "run", "--name", "try-me")
    assert 0 == done.returncode, done.stderr
    (record,) = records(tracked)
    (experiment,) = record["experiments"]
    assert "try-me" == experiment["name"]
    assert tracked.git("rev-parse", "HEAD") == experiment["baseline"]
    assert {"data", "model"} == {out["path"] for out in experiment["outs"]}


def test_an_experiment_in_a_copy_is_named_too(tracked: Project) -> None:
    """DVC runs it elsewhere; it appears as a reference of the same project."""
    stage(tracked)
    done = dvc_behind(tracked, "exp", "run", "--temp", "--name", "elsewhere")
    assert 0 == done.returncode, done.stderr
    (record,) = records(tracked)
    assert ["elsewhere"] == [each["name"] for each in record["experiments"]]


def test_a_gate_in_a_stage_leaves_its_record_in_the_project(
    tracked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy that the experiment ran in is gone; the record has its name and its baseline."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    command = "dvc-integrity gate --target data -- cp data/a.bin model"
    stages = {"train": {"cmd": command, "deps": ["data"], "outs": ["model"]}}
    tracked.write_yaml("dvc.yaml", {"stages": stages})
    baseline = tracked.commit("stage")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", "inside"],
        cwd=tracked.root, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    (record,) = records(tracked)
    assert "inside" == record["variables"]["DVC_EXP_NAME"]
    assert baseline == record["variables"]["DVC_EXP_BASELINE_REV"]
    assert baseline == record["report"]["rev"]


def test_a_full_disk_loses_the_record_and_says_so(tracked: Project) -> None:
    """The command has run; that it is not on record is an error."""
    folder = tracked.root / ".dvc/tmp/integrity"
    folder.mkdir(parents=True)
    (folder / "runs").write_bytes(b"no folder")
    done = run(tracked)
    assert 3 == done.returncode
    assert "could not be written" in done.stderr
    assert ran(tracked)


def test_without_a_project_there_is_no_gate(tmp_path: Path) -> None:
    """Wrong usage is 2, and the command does not run."""
    done = subprocess.run(
        [*GATE, "--", sys.executable, "-c", MARK], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert 2 == done.returncode
    assert not (tmp_path / "ran").exists()

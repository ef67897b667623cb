"""A restore that is killed, or whose disk fails, at any call that changes a file system.

Whatever the moment, each file is the old one or the proven one, nothing that was there is lost,
and the next restore ends what was begun and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import faults
import pytest
from projects import Project, listing, md5, new_project, object_path

HERE = Path(__file__).parent
FILES = {
    "data/a.bin": b"alpha" * 3000,
    "data/b.bin": b"bravo" * 900,
    "data/sub/c.bin": b"c" * 5000,
    "data/sub/d.bin": b"delta" * 10,
}
LISTING = listing({path.removeprefix("data/"): data for path, data in FILES.items()})
BAD = ("data/a.bin", "data/sub/c.bin")
EVERY_KILL = "DVC_INTEGRITY_EVERY_KILL" in os.environ
"""Whether kills come after each call too, and faults in every scenario."""

SHARED_MEMORY = Path("/dev/shm")


class Fault(IntEnum):
    """What ``calls.c`` does to a call."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    FAIL = 3
    FAIL_FROM = 4
    FULL_FROM = 5
    SHORT = 6
    STOP = 7


# ----------------------------------------------------------------- the process that restores


class Restoring:
    """The process of ``restoring.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Let it restore once; return what it tells."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that restores has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled ``calls.c``."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler")
    made = tmp_path_factory.mktemp("shim") / "calls.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-D_LARGEFILE64_SOURCE"]
    subprocess.run([compiler, *options, HERE / "calls.c", "-o", made, "-ldl"], check=True)
    return made


@contextlib.contextmanager
def started(shim: Path, scene: Scene) -> Iterator[Restoring]:
    """Start a process that restores."""
    with subprocess.Popen(
        [sys.executable, "-B", "-W", "ignore", HERE / "restoring.py", scene.project.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_PRELOAD": os.fspath(shim), "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        try:
            yield Restoring(process)
        finally:
            assert process.stdin
            process.stdin.close()


# ----------------------------------------------------------------- what is restored


Places = dict[Path, bytes | None]
"""What lies at a path, links followed; None: nothing."""


@dataclass
class Scene:
    """A damaged project that can be put back as it was.

    ``before`` and ``after`` are what must lie in each place before and after a restore.
    """

    project: Project
    scratch: Path
    push: bool = False
    before: Places = field(default_factory=dict)
    after: Places = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    good: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def top(self) -> Path:
        """The Git work tree."""
        return self.project.top

    @property
    def remote(self) -> Path:
        """Where the remote lies."""
        return self.top / "remote"

    @property
    def stores(self) -> list[Path]:
        """The folders that are restored."""
        return [self.top / "data", self.project.cache, self.remote]

    @property
    def pristine(self) -> Path:
        """The damaged project, kept."""
        return self.top.parent / "pristine"

    def order(
        self, fault: Fault = Fault.COUNT, turn: int = 0, error: int = 0, **more: Any
    ) -> dict[str, Any]:
        """Return what the process that restores is to do."""
        return {
            "root": os.fspath(self.project.root),
            "scratch": os.fspath(self.scratch),
            "push": self.push,
            "below": [os.fspath(self.top), os.fspath(self.scratch)],
            "fault": fault,
            "turn": turn,
            "error": error,
            **more,
        }

    def keep(self) -> None:
        """Remember the damaged project, and what is there."""
        subprocess.run(["cp", "-a", self.top, self.pristine], check=True)
        self.before = {place: self.bytes_at(place) for place in self.after}
        assert self.before != self.after
        self.names = self.found_names() | {
            os.path.relpath(each, self.top)
            for place in self.after
            for each in [place, *place.parents]
            if any(each.is_relative_to(store) for store in self.stores)
        }

    def reset(self) -> None:
        """Put the damaged project back."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for store in self.stores:
            shutil.rmtree(store)
        names = [store.relative_to(self.top) for store in self.stores]
        command = ["cp", "-a", "--parents", *names, self.top]  # at once: hard links stay
        subprocess.run(command, cwd=self.pristine, check=True)
        self.good = self.good_states()

    def good_states(self) -> dict[Path, tuple[int, int, int]]:
        """Return inode, mode and time of what was good before: nobody has to touch it."""
        good = [place for place, old in self.before.items() if old == self.after[place]]
        states = {place: place.lstat() for place in good}
        return {
            place: (state.st_ino, state.st_mode, state.st_mtime_ns)
            for place, state in states.items()
        }

    def bytes_at(self, place: Path) -> bytes | None:
        """Return what lies at a place."""
        try:
            return place.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def found_names(self) -> set[str]:
        """Return every name in workspace, cache and remote."""
        return {
            os.path.relpath(path, self.top)
            for store in self.stores
            for path in [store, *store.rglob("*")]
        }

    def damaged(self) -> list[bytes]:
        """Return the bytes that must not be lost."""
        bad = {
            old
            for place, old in self.before.items()
            if old is not None and old != self.after[place]
        }
        return sorted(bad)

    def set_aside(self, folder: str = "") -> list[bytes]:
        """Return the bytes of all files in the scratch folder, or in a folder there."""
        return [
            path.read_bytes()
            for path in (self.scratch / folder).rglob("*")
            if path.is_file() and not path.is_symlink()
        ]

    def assert_nothing_is_lost(self) -> None:
        """Assert what must hold at any instant."""
        here = {place: self.bytes_at(place) for place in self.after}
        for place, found in here.items():
            allowed = (self.before[place], self.after[place])
            assert found in allowed, f"{place}: neither the old bytes nor the proven ones"
        assert self.good == self.good_states()
        hidden = [each.read_bytes() for each in self.top.rglob(".*.dvc-integrity.tmp")]
        aside = [*here.values(), *self.set_aside(), *hidden]
        for old in self.damaged():
            assert old in aside, f"bad bytes are lost: {old[:20]!r}, {len(old)} bytes"

    def assert_all_is_good(self) -> None:
        """Assert what must hold after a restore that ended."""
        for place, good in self.after.items():
            assert good == self.bytes_at(place), place
        assert self.names == self.found_names()
        assert self.good == self.good_states()
        aside = self.set_aside("quarantine")
        for old in self.damaged():
            assert old in aside, f"not in the quarantine: {old[:20]!r}, {len(old)} bytes"
        staging = self.scratch / "staging"
        assert not staging.exists() or [] == os.listdir(staging)


def object_of(store: Path, path: str) -> Path:
    return object_path(store, md5(FILES[path]))


def damage_copies(scene: Scene) -> None:
    for path in BAD:
        faults.flip_bit(scene.top / path)


def damage_objects(scene: Scene) -> None:
    for path in BAD:
        faults.flip_bit(object_of(scene.project.cache, path))


def damage_both(scene: Scene) -> None:
    """Different damage in workspace and cache."""
    damage_objects(scene)
    for path in BAD:
        faults.flip_bit(scene.top / path, offset=1)


def remove_folder(scene: Scene) -> None:
    shutil.rmtree(scene.top / "data" / "sub")


def damage_remote(scene: Scene) -> None:
    scene.push = True
    for path in BAD:
        faults.flip_bit(object_of(scene.remote, path))


Damage = Callable[[Scene], None]

SCENES: dict[str, tuple[str, Damage, bool]] = {
    "copy": ("copy", damage_copies, False),
    "hardlink": ("hardlink", damage_objects, False),
    "symlink": ("symlink", damage_objects, False),
    "cache and workspace": ("copy", damage_both, False),
    "missing folder": ("copy", remove_folder, False),
    "push": ("copy", damage_remote, False),
    "scratch elsewhere": ("copy", damage_both, True),
    "push, scratch elsewhere": ("copy", damage_remote, True),
}
"""The type of link to the cache, what is damaged, and whether scratch is on another disk."""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory, where a sync costs nothing; one on the disk if there is none."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="dvc-integrity-", dir=SHARED_MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path, memory: Path) -> Iterator[Scene]:
    """Return a damaged project."""
    link, damage, elsewhere = SCENES[request.param]
    project = new_project(memory / "project")
    scratch = project.root / ".dvc" / "tmp" / "integrity"
    if elsewhere:
        scratch = tmp_path / "scratch"
        if memory.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system")
    project.dvc("remote", "add", "-d", "disk", os.fspath(project.top / "remote"))
    project.dvc("config", "cache.type", link)
    project.add("data", FILES)
    project.git("add", "data.dvc", ".gitignore", ".dvc/config")
    project.git("commit", "--quiet", "--message", "data")
    project.dvc("push")
    made = Scene(project, scratch)
    for path, data in FILES.items():
        made.after[project.root / path] = data
        for store in (project.cache, made.remote):
            made.after[object_of(store, path)] = data
    for store in (project.cache, made.remote):
        made.after[object_path(store, f"{md5(LISTING)}.dir")] = LISTING
    damage(made)
    made.keep()
    yield made
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def restoring(shim: Path, scene: Scene) -> Iterator[Restoring]:
    """Return a process that restores."""
    with started(shim, scene) as process:
        yield process


def scenes(*names: str) -> pytest.MarkDecorator:
    """Run a test in some scenes."""
    return pytest.mark.parametrize("scene", names, ids=names, indirect=True)


# ----------------------------------------------------------------- it is killed


def assert_converges(scene: Scene, restoring: Restoring, about: object) -> None:
    answer = restoring.ask(scene.order(everywhere=True))
    assert answer["ok"], (about, answer)
    scene.assert_all_is_good()


@scenes(*SCENES)
@pytest.mark.parametrize(
    "fault", [Fault.KILL_BEFORE, *([Fault.KILL_AFTER] if EVERY_KILL else [])], ids=lambda f: f.name
)
def test_a_kill_at_any_call_loses_nothing(scene: Scene, restoring: Restoring, fault: Fault) -> None:
    """SIGKILL at every call that writes, syncs or names; the next restore converges."""
    turn = 0
    while True:
        turn += 1
        scene.reset()
        answer = restoring.ask(scene.order(fault, turn))
        try:
            if answer["status"] != -signal.SIGKILL:
                assert answer["calls"] < turn, answer
                break
            scene.assert_nothing_is_lost()
            assert_converges(scene, restoring, turn)
        except AssertionError as error:
            raise AssertionError(f"{fault.name} {turn}: {error}") from error
    assert turn > 10, "a restore makes more calls than that"
    assert answer["ok"], answer
    scene.assert_all_is_good()


# ----------------------------------------------------------------- its disk fails


def swept(scene: Scene, restoring: Restoring, fault: Fault, error: int) -> None:
    """Let one call after the other fail, until a restore makes fewer calls than that."""
    turn = 0
    while True:
        turn += 1
        scene.reset()
        answer = restoring.ask(scene.order(fault, turn, error))
        try:
            assert answer["status"] == 0, answer
            assert "defect" not in answer, answer["defect"]
            scene.assert_nothing_is_lost()
            if answer["calls"] < turn:
                break
            assert answer["ok"] or tells(answer, error), answer
            assert_converges(scene, restoring, turn)
        except AssertionError as failed:
            raise AssertionError(f"{fault.name} {turn}: {failed}") from failed
    assert turn > 10, "a restore makes more calls than that"
    assert answer["ok"], answer


def tells(answer: Mapping[str, Any], error: int) -> bool:
    """Return whether a restore that failed says why, for each file that it names."""
    if "message" in answer:
        return "RestoreError" in answer["message"] and os.strerror(error) in answer["message"]
    failed = [each for each in answer["outcomes"] if each["result"] in ("failed", "hopeless")]
    return bool(failed) and all(each["path"] and each["detail"] for each in failed)


@scenes(*(SCENES if EVERY_KILL else ["cache and workspace", "push"]))
@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault.FAIL, errno.EIO), (Fault.FULL_FROM, errno.ENOSPC)],
    ids=["EIO once", "ENOSPC from then on"],
)
def test_an_error_of_any_call_is_told(
    scene: Scene, restoring: Restoring, fault: Fault, error: int
) -> None:
    """No traceback: a message or outcomes that name the file; the next restore converges."""
    swept(scene, restoring, fault, error)


@scenes("cache and workspace", "push", "scratch elsewhere")
@pytest.mark.parametrize("most", [1000, 4096])
def test_a_call_may_write_less_than_it_was_given(
    scene: Scene, restoring: Restoring, most: int
) -> None:
    """A write that ends early is gone on with: the bytes are whole."""
    scene.reset()
    answer = restoring.ask(scene.order(Fault.SHORT, most))
    assert answer["ok"], answer
    scene.assert_all_is_good()


@scenes("cache and workspace", "missing folder")
@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_nothing_is_told(
    scene: Scene, restoring: Restoring, error: int
) -> None:
    """The files in it fail, each by name; what was there stays."""
    scene.reset()
    below = [os.fspath(scene.top / "data")]
    answer = restoring.ask({**scene.order(Fault.FAIL_FROM, 1, error), "below": below})
    assert "defect" not in answer, answer["defect"]
    assert not answer["ok"]
    told = {
        each["path"]: each["detail"] for each in answer["outcomes"] if each["result"] == "failed"
    }
    bad = {
        os.fspath(place.relative_to(scene.top))
        for place in scene.after
        if place.is_relative_to(scene.top / "data") and scene.before[place] != scene.after[place]
    }
    assert bad == set(told)
    assert all(os.strerror(error) in detail for detail in told.values()), told
    scene.assert_nothing_is_lost()
    assert_converges(scene, restoring, error)


# ----------------------------------------------------------------- what is down on the disk


@dataclass(frozen=True)
class Call:
    """A call that succeeded: its name, the file that it acted on, and paths."""

    name: str
    file: str
    path: Path
    other: Path | None

    @property
    def device(self) -> str:
        """The file system."""
        return self.file.partition(":")[0]

    @property
    def writes(self) -> bool:
        """Whether it changes bytes."""
        return self.name.startswith(("write", "pwrite", "sendfile", "copy_file", "ftruncate"))

    @property
    def gives(self) -> bool:
        """Whether it gives a name to a file."""
        return self.name.startswith(("rename", "link"))

    @property
    def changed_folders(self) -> set[Path]:
        """The folders in which it gave or took a name."""
        if self.gives or self.name.startswith(("unlink", "mkdir", "rmdir", "symlink", "open")):
            paths = [self.other if self.name.startswith("link") else self.path, self.other]
            return {path.parent for path in paths if path}
        return set()

    def syncs(self, file: str) -> bool:
        """Return whether it brings a file or folder down."""
        if self.name == "syncfs":
            return self.device == file.partition(":")[0]
        return self.name in ("fsync", "fdatasync") and self.file == file


def calls_of(log: Path) -> list[Call]:
    found = []
    for line in log.read_text().splitlines():
        name, file, _, result, path, other = line.split("\t")
        if int(result) >= 0:
            found.append(Call(name, file, Path(path), Path(other) if other else None))
    return found


def identity(path: Path) -> str:
    state = path.lstat()
    return f"{state.st_dev}:{state.st_ino}"


@scenes(*SCENES)
@pytest.mark.parametrize("worth", [1, 1000], ids=["by one call", "each"])
def test_bytes_are_down_before_a_name_and_names_before_the_end(
    scene: Scene, restoring: Restoring, tmp_path: Path, worth: int
) -> None:
    """A file is synced between its last write and its name; a folder after its last change."""
    scene.reset()
    log = tmp_path / "calls"
    answer = restoring.ask(scene.order(log=os.fspath(log), files_worth_one_sync=worth))
    assert answer["ok"], answer
    calls = calls_of(log)
    assert answer["calls"] >= len(calls) > 10
    assert (worth == 1) == any(call.name == "syncfs" for call in calls)
    restored = [p for p, old in scene.before.items() if old != scene.after[p]]
    given = {os.path.realpath(call.other) for call in calls if call.gives and call.other}
    assert {os.path.realpath(path) for path in restored} <= given, "a name without a rename"
    lasting = [*scene.stores, scene.scratch / "quarantine"]
    folders: dict[Path, int] = {}
    for position, call in enumerate(calls):
        for folder in call.changed_folders:
            if any(folder.is_relative_to(store) for store in lasting) and folder.is_dir():
                folders[folder] = position
        if not call.gives or not any(call.other.is_relative_to(each) for each in lasting):
            continue
        earlier = calls[:position]
        writes = [
            turn for turn, each in enumerate(earlier) if each.writes and each.file == call.file
        ]
        if writes:
            down = any(each.syncs(call.file) for each in earlier[writes[-1] :])
            assert down, f"{call.other} was not down when it got its name"
    assert folders
    for folder, position in folders.items():
        down = any(each.syncs(identity(folder)) for each in calls[position:])
        assert down, f"{folder} was not synced after {calls[position]}"


# ----------------------------------------------------------------- there are two


@scenes("cache and workspace", "push", "scratch elsewhere")
def test_two_restores_at_once_restore_each_file_once(scene: Scene, shim: Path) -> None:
    """Both end well; each place is restored by one of them and each bad file is kept once."""
    scene.reset()
    with (
        ThreadPoolExecutor(2) as executor,
        started(shim, scene) as one,
        started(shim, scene) as two,
    ):
        answers = list(executor.map(lambda each: each.ask(scene.order()), (one, two)))
    for answer in answers:
        assert answer["ok"], answer
    scene.assert_all_is_good()
    done = [
        (each["place"], each["path"])
        for answer in answers
        for each in answer["outcomes"]
        if each["result"] == "restored"
    ]
    assert len(done) == len(set(done)), done
    aside = scene.set_aside("quarantine")
    assert [1] * len(scene.damaged()) == [aside.count(old) for old in scene.damaged()]


@scenes("cache and workspace")
def test_a_restore_waits_for_one_that_lives_and_not_for_a_dead_one(
    scene: Scene, shim: Path, tmp_path: Path
) -> None:
    """A stopped owner is waited for; when it is killed, the other one does the work."""
    scene.reset()
    log = tmp_path / "calls"
    with (
        ThreadPoolExecutor(2) as executor,
        started(shim, scene) as one,
        started(shim, scene) as two,
    ):
        first = executor.submit(one.ask, scene.order(Fault.STOP, 12, log=os.fspath(log)))
        owner = wait_for_stopped_child(one)
        second = executor.submit(two.ask, scene.order())
        with pytest.raises(FuturesTimeoutError):
            second.result(timeout=1)
        scene.assert_nothing_is_lost()
        os.kill(owner, signal.SIGKILL)
        assert -signal.SIGKILL == first.result(timeout=60)["status"]
        assert second.result(timeout=60)["ok"]
    scene.assert_all_is_good()


def wait_for_stopped_child(restoring: Restoring) -> int:
    """Return the process that is stopped in the middle of a restore."""
    children = Path(f"/proc/{restoring.pid}/task/{restoring.pid}/children")
    for _ in range(1000):
        for child in children.read_text().split():
            if " T " in Path(f"/proc/{child}/stat").read_text():
                return int(child)
        time.sleep(0.02)
    raise AssertionError("no restore was stopped")

"""A file that is written appears whole or not at all, and survives a power cut."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvc_integrity import durable
from dvc_integrity.durable import write_file

law = settings(
    deadline=None,
    max_examples=30,  # each one waits for the disk
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

OLD, NEW = b"old", b"new bytes"

WRITE = """\
import os, sys
from dvc_integrity.durable import write_file
write_file(sys.argv[1], b"new bytes")
"""

WRITE_LIMITED = """\
import resource, sys
from dvc_integrity.durable import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_file(sys.argv[1], bytes(200_000))
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a file with old bytes, alone in its folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file.json"
    path.write_bytes(OLD)
    return path


def alone(path: Path) -> bytes:
    """Return a file's bytes, and assert that nothing lies beside it."""
    assert [path.name] == os.listdir(path.parent)
    return path.read_bytes()


def run(program: str, path: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program on a file, under a command prefix."""
    command = [*prefix, sys.executable, "-B", "-c", program, os.fspath(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def strace(folder: Path, *options: str) -> list[str]:
    """Return a command prefix that traces or injects, or skip where that cannot be done."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    prefix = [program, "-f", "-qq", "-o", os.fspath(folder / "trace")]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    return [*prefix, *options]


# ----------------------------------------------------------------- it is written


@law
@given(data=st.binary(max_size=5000))
def test_what_was_given_is_what_lies_there(data: bytes, target: Path) -> None:
    """Any bytes come out as they went in, over whatever was there, and nothing else is left."""
    write_file(os.fspath(target), data)
    assert data == alone(target)


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    """A file in folders that do not exist yet is written."""
    path = tmp_path / "a" / "b" / "file"
    write_file(os.fspath(path), NEW)
    assert NEW == alone(path)


def test_a_link_stays_and_its_target_is_written(target: Path) -> None:
    """A file that is reached through a link is replaced where it lies."""
    link = target.parent.parent / "link"
    link.symlink_to("folder/file.json")
    write_file(os.fspath(link), NEW)
    assert link.is_symlink()
    assert NEW == alone(target)


def test_a_name_without_a_folder_means_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name is written into the current folder."""
    monkeypatch.chdir(tmp_path)
    write_file("file", NEW)
    assert NEW == alone(tmp_path / "file")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_decides_the_mode(umask: int, mode: int, tmp_path: Path) -> None:
    """A new file has the mode that ``open`` would give it."""
    before = os.umask(umask)
    try:
        write_file(os.fspath(tmp_path / "file"), NEW)
    finally:
        os.umask(before)
    assert mode == (tmp_path / "file").stat().st_mode & 0o777


def test_a_reader_of_the_old_file_keeps_it(target: Path) -> None:
    """Whoever has the old file open sees the old bytes to the end: nothing is written in place."""
    with target.open("rb") as reader:
        write_file(os.fspath(target), NEW)
        assert OLD == reader.read()
    assert NEW == alone(target)


# ----------------------------------------------------------------- it is not written


def failing(number: int) -> Callable[..., object]:
    """Return a system call that fails."""

    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


class FullDisk:
    """A file on which writing, or the flush of what was written, fails."""

    def __init__(self, file: object, name: str) -> None:
        self._file, self._name = file, name

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> object:
        return failing(errno.ENOSPC) if name == self._name else getattr(self._file, name)


@pytest.mark.parametrize("name", ["write", "flush"])
def test_a_full_disk_leaves_the_old_file(
    name: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC while the bytes are written comes through; the old file stays, alone."""

    def opened(*arguments: object, **options: object) -> FullDisk:
        return FullDisk(open(*arguments, **options), name)

    monkeypatch.setattr(durable, "open", opened, raising=False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_file(os.fspath(target), NEW)
    assert OLD == alone(target)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_step_that_fails_leaves_the_old_file(
    call: str, number: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of fsync or rename comes through; the old file stays, alone."""
    monkeypatch.setattr(durable.os, call, failing(number))
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is compared below)
        write_file(os.fspath(target), NEW)
    monkeypatch.undo()
    assert number == caught.value.errno
    assert OLD == alone(target)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file(
    call: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before the rename leaves the old file, alone."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable.os, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(os.fspath(target), NEW)
    monkeypatch.undo()
    assert OLD == alone(target)


def test_no_folder_takes_the_place_of_a_file(tmp_path: Path) -> None:
    """A target that is a folder is an error, and nothing is left beside it."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_file(os.fspath(tmp_path / "folder"), NEW)
    assert ["folder"] == os.listdir(tmp_path)


def test_a_file_on_the_way_is_an_error(target: Path) -> None:
    """A target below a file is an error, and the file stays."""
    with pytest.raises((NotADirectoryError, FileExistsError)):
        write_file(os.fspath(target / "below"), NEW)
    assert OLD == alone(target)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_descriptor_is_left_open(
    call: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails closes what it opened."""
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(durable.os, call, failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_file(os.fspath(target), NEW)
    monkeypatch.undo()
    assert before == os.listdir("/proc/self/fd")


def test_a_file_beyond_a_limit_leaves_the_old_one(target: Path) -> None:
    """A kernel that takes no more bytes half way (RLIMIT_FSIZE) leaves the old file, alone."""
    done = run(WRITE_LIMITED, target)
    assert ("", f"{errno.EFBIG}\n") == (done.stderr, done.stdout)
    assert OLD == alone(target)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", os.fspath(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"there is no mount command: {error}")
    if done.returncode != 0:
        pytest.skip(f"mounting is refused: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", os.fspath(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_the_old_file(small_disk: Path) -> None:
    """A real ENOSPC half way through the bytes leaves the old file, alone, and it can go on."""
    path = small_disk / "file"
    path.write_bytes(OLD)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_file(os.fspath(path), bytes(100_000))
    assert OLD == alone(path)
    write_file(os.fspath(path), NEW)
    assert NEW == alone(path)


# ----------------------------------------------------------------- a kill at any instant


@pytest.mark.parametrize(
    ("expected", "step"),
    [
        (OLD, "write"),
        (OLD, "fsync:when=1"),
        (OLD, "/^rename"),
        (NEW, "fsync:when=2"),
    ],
)
def test_a_kill_leaves_the_old_bytes_or_the_new(expected: bytes, step: str, target: Path) -> None:
    """SIGKILL at any step leaves one file whole under its name, and a second run converges."""
    call, _, when = step.partition(":")
    inject = ":".join(filter(None, [f"inject={call}", "signal=KILL", when]))
    done = run(WRITE, target, *strace(target.parent.parent, "-e", inject))
    assert "" == done.stderr
    assert 0 != done.returncode
    assert expected == target.read_bytes()
    assert "" == run(WRITE, target).stderr
    assert NEW == target.read_bytes()


def test_bytes_are_down_before_the_name_is(target: Path) -> None:
    """The kernel sees: write, fsync of the file, rename, fsync of the folder, in this order."""
    prefix = strace(target.parent.parent, "-y", "-e", "trace=write,fsync,/^rename")
    assert "" == run(WRITE, target, *prefix).stderr
    folder = os.fspath(target.parent)
    trace = (target.parent.parent / "trace").read_text()
    lines = [line.partition(" ")[2].strip() for line in trace.splitlines() if folder in line]
    assert ["write", "fsync", "rename", "fsync"] == [
        line.partition("(")[0].removesuffix("at2").removesuffix("at") for line in lines
    ]
    assert f"<{folder}/." in lines[1]
    assert f"<{folder}>" in lines[3]
    assert all(line.endswith(("= 0", f"= {len(NEW)}")) for line in lines)


def test_folders_that_are_made_survive_too(tmp_path: Path) -> None:
    """Each folder on the way is made, then its parent synced, before the bytes are written."""
    path = tmp_path / "disk" / "a" / "b" / "file"
    path.parent.parent.parent.mkdir()
    prefix = strace(tmp_path, "-y", "-e", "trace=/^mkdir,fsync,/^rename")
    assert "" == run(WRITE, path, *prefix).stderr
    top = os.fspath(tmp_path / "disk")
    trace = (tmp_path / "trace").read_text()
    calls = [line.partition(" ")[2].strip() for line in trace.splitlines() if top in line]
    assert ["mkdir", "fsync", "mkdir", "fsync", "fsync", "rename", "fsync"] == [
        call.partition("(")[0].removesuffix("at2").removesuffix("at") for call in calls
    ]
    assert f"<{top}>" in calls[1]
    assert f"<{top}/a>" in calls[3]
    assert NEW == alone(path)


def test_errors_of_one_sync_for_all_are_told_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call for the whole file system does not say which file was not written."""
    paths = [os.fspath(tmp_path / str(number)) for number in range(70)]
    for path in paths:
        Path(path).write_bytes(NEW)
    monkeypatch.setattr(durable, "_call", raising(errno.EIO))
    assert {} == durable.sync_files(paths, -1)
    monkeypatch.setattr(os, "fsync", raising(errno.ENOSPC))
    assert set(paths) == set(durable.sync_files(paths, -1))


def raising(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail

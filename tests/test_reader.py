"""A reader hands on committed bytes or none."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from projects import Tree, listing, md5

import dvc_integrity as di
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.observation import Observation
from dvc_integrity.report import Finding, Hint, Status
from dvc_integrity.stores import Workspace, workspace

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {"a": b"alpha", "b": b"bravo", "empty": b"", "sub/c é": b"charlie" * 1000}


def manifest_of(files: Tree) -> Manifest:
    """Return the manifest of a tracked folder ``data``, and of an import without a hash."""
    builder = ManifestBuilder(SHA, ["data"])
    builder.add_out(Out("data", directory=True, defined_in="data.dvc"))
    builder.add_listing(deque([listing(files)]), di.Algorithm.MD5)
    builder.add_out(Out("import", unverifiable="imported without being downloaded"))
    builder.add_entry("import", None)
    return builder.build()


def write(folder: Path, files: Tree) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with clean data in it."""
    write(tmp_path / "data", FILES)
    return tmp_path


def reader_of(root: Path, files: Tree = FILES) -> di.Reader:
    return di.Reader(manifest_of(files), Workspace(os.fspath(root)))


# ----------------------------------------------------------------- good bytes


def test_good_bytes_come_out(root: Path) -> None:
    """``read``, ``read_many`` and ``open`` give the bytes of the files, in order."""
    reader = reader_of(root)
    names = [f"data/{path}" for path in FILES]
    assert list(FILES.values()) == [reader.read(name) for name in names]
    assert list(FILES.values()) == reader.read_many(names)
    assert [] == reader.read_many([])
    for name, data in zip(names, FILES.values(), strict=True):
        with reader.open(name) as file:
            assert (data[:3], data[3:]) == (file.read(3), file.read())
            assert 0 == file.seek(0)


def test_a_path_may_be_absolute_or_an_object(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are relative to the DVC root wherever one is, or absolute; ``Path`` objects do too."""
    monkeypatch.chdir("/")
    reader = reader_of(root)
    for path in ("data/a", "./data//a", "data/sub/../a", Path("data/a"), root / "data/a"):
        assert b"alpha" == reader.read(path)
    assert b"alpha" == reader.read(root / "data" / ".." / "data" / "a")


def test_what_is_not_in_the_manifest_is_refused(root: Path) -> None:
    """A path that nothing was committed for is a ManifestError that names it, harmlessly."""
    write(root, {"data/unlisted": b"x", "outside": b"x", "data/\x1b[31m": b"x"})
    reader = reader_of(root)
    names = [
        "data/unlisted",
        "outside",
        "data",
        "",
        ".",
        "../x",
        "data/../../data/a",
        "data/\x1b[31m",
    ]
    for path in [*names, root, root / "outside", "/etc/passwd", "data/a\0"]:
        with pytest.raises(di.ManifestError, match="is not in the manifest") as caught:
            reader.read(path)
        assert str(caught.value).isprintable()
        assert SHA in str(caught.value)


def test_the_buffer_that_was_hashed_is_handed_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read, one hash, that buffer: the very object that was judged comes out."""
    handed = []
    read_files = workspace.read_files

    def note(*arguments: object, **options: object) -> list[tuple[bytes, Observation]]:
        read = read_files(*arguments, **options)
        handed.extend(read)
        return read

    monkeypatch.setattr(workspace, "read_files", note)
    data = reader_of(root).read("data/a")
    ((buffer, seen),) = handed
    assert buffer is data
    assert hashlib.md5(data).digest() == seen.digest


def test_text_normalized_hashes_hold_the_bytes_as_they_are(tmp_path: Path) -> None:
    """A file of DVC 2's metadata is held to its algorithm and size, and comes out unchanged."""
    builder = ManifestBuilder(SHA)
    builder.add_out(Out("old.txt"))
    digest = di.Digest.from_hex(di.Algorithm.MD5_DOS2UNIX, md5(b"a\nb\n"))
    builder.add_entry("old.txt", digest, 6)
    (tmp_path / "old.txt").write_bytes(b"a\r\nb\r\n")
    reader = di.Reader(builder.build(), Workspace(os.fspath(tmp_path)))
    assert b"a\r\nb\r\n" == reader.read("old.txt")
    (tmp_path / "old.txt").write_bytes(b"a\nb\n")
    with pytest.raises(di.CorruptDataError, match="modified"):
        reader.read("old.txt")


# ----------------------------------------------------------------- bad bytes

Fault = Callable[[Path], None]


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_elsewhere(path: Path) -> None:
    other = path.parent.parent / "elsewhere"
    other.write_bytes(b"alphA")
    faults.replace_by_link(path, other)


FAULTS: dict[str, tuple[Status, Fault]] = {
    "bit flip": (Status.MODIFIED, faults.flip_bit),
    "zero page": (Status.MODIFIED, faults.zero_page),
    "torn write": (Status.MODIFIED, lambda path: faults.tear(path, b"ALPHA")),
    "truncated": (Status.MODIFIED, faults.truncate),
    "emptied": (Status.MODIFIED, lambda path: faults.truncate(path, 0)),
    "extended": (Status.MODIFIED, faults.extend),
    "swapped": (Status.MODIFIED, lambda path: faults.swap(path, path.parent / "b")),
    "a link to other bytes": (Status.MODIFIED, link_elsewhere),
    "a folder": (Status.MODIFIED, become_folder),
    "a FIFO": (Status.MODIFIED, become_fifo),
    "deleted": (Status.MISSING, faults.delete),
    "a dangling link": (Status.MISSING, lambda path: faults.replace_by_link(path, "nowhere")),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", ["read", "read_many", "open"])
def test_no_fault_gets_through(fault: str, way: str, root: Path) -> None:
    """Damage raises before any byte is handed out; the finding says what was found."""
    status, damage = FAULTS[fault]
    reader = reader_of(root)
    damage(root / "data/a")
    place = root / "data/a"
    found = place.read_bytes() if place.is_file() else None
    ways = {
        "read": lambda: reader.read("data/a"),
        "read_many": lambda: reader.read_many(["data/sub/c é", "data/a"]),
        "open": lambda: reader.open("data/a"),
    }
    with pytest.raises(di.CorruptDataError, match="'data/a' is") as caught:
        ways[way]()
    finding = caught.value.finding
    assert finding is not None
    assert (
        Finding(
            path="data/a",
            out="data",
            status=status,
            expected=di.Digest.from_hex(di.Algorithm.MD5, md5(b"alpha")),
            found=None if found is None else di.Digest.from_hex(di.Algorithm.MD5, md5(found)),
            size=None if found is None else len(found),
            detail=finding.detail,
        )
        == finding
    )


@law
@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_changed_byte_raises(content: bytes, data: st.DataObject) -> None:
    """Whatever byte is changed to whatever value, no byte of that file comes out."""
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255))
    assume(value != content[place])
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "data", {"a": content})
        reader = reader_of(Path(name), {"a": content})
        assert content == reader.read("data/a")
        changed = content[:place] + bytes([value]) + content[place + 1 :]
        (Path(name) / "data/a").write_bytes(changed)
        with pytest.raises(di.CorruptDataError):
            reader.read("data/a")


def test_put_back_the_bytes_come_out_again(root: Path) -> None:
    """A reader remembers no verdict: after the repair it reads."""
    reader = reader_of(root)
    faults.flip_bit(root / "data/a")
    with pytest.raises(di.CorruptDataError):
        reader.read("data/a")
    faults.flip_bit(root / "data/a")
    assert b"alpha" == reader.read("data/a")


def test_a_file_without_a_committed_hash_is_not_handed_out(root: Path) -> None:
    """Where there is nothing to hold bytes to, none come out, and the finding says why."""
    (root / "import").write_bytes(b"x")
    with pytest.raises(di.CorruptDataError, match="unverifiable") as caught:
        reader_of(root).read("import")
    assert caught.value.finding is not None
    assert ("import", Status.UNVERIFIABLE) == (
        caught.value.finding.path,
        caught.value.finding.status,
    )


def script(
    monkeypatch: pytest.MonkeyPatch,
    *steps: Callable[[bytes, Observation], tuple[bytes, Observation]],
) -> list[bool]:
    """Doctor the n-th read of a file; return the list of how cold each read was."""
    read_files, cold = workspace.read_files, []
    left = iter(steps)

    def doctored(*arguments: object, **options: bool) -> list[tuple[bytes, Observation]]:
        cold.append(options.get("cold", False))
        step = next(left, lambda *seen: seen)
        (read,) = read_files(*arguments, **options)
        return [step(*read)]

    monkeypatch.setattr(workspace, "read_files", doctored)
    return cold


def other_bytes(_: bytes, seen: Observation) -> tuple[bytes, Observation]:
    return b"alphA", seen._replace(digest=hashlib.md5(b"alphA").digest())


def changing(_: bytes, seen: Observation) -> tuple[bytes, Observation]:
    assert seen.after
    return b"alphA", seen._replace(
        digest=hashlib.md5(b"alphA").digest(), after=seen.after._replace(mtime_ns=1)
    )


def unreadable(*_: object) -> tuple[bytes, Observation]:
    return b"", Observation(None, 0, None, None, OSError(errno.EIO, os.strerror(errno.EIO)))


@pytest.mark.parametrize("step", [other_bytes, unreadable, changing])
def test_a_good_second_read_is_used_and_told(
    step: Callable[..., tuple[bytes, Observation]],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A first read that went wrong is repeated past the cache; its good bytes come, with a word."""
    cold = script(monkeypatch, step)
    with caplog.at_level(logging.WARNING, "dvc_integrity.reader"):
        assert b"alpha" == reader_of(root).read("data/a")
    assert [False, True] == cold
    (record,) = caplog.records
    assert "'data/a'" in record.getMessage()


def test_a_good_first_read_is_not_repeated(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clean data are read once, and nothing is told."""
    cold = script(monkeypatch)
    assert b"alpha" == reader_of(root).read("data/a")
    assert ([False], []) == (cold, caplog.records)


@pytest.mark.parametrize(
    ("status", "step"), [(Status.UNREADABLE, unreadable), (Status.UNSTABLE, changing)]
)
def test_what_cannot_be_told_is_not_handed_out(
    status: Status,
    step: Callable[..., tuple[bytes, Observation]],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that cannot be read, or keeps changing, raises with that word: not ``corrupt``."""
    script(monkeypatch, step, step)
    with pytest.raises(di.CorruptDataError) as caught:
        reader_of(root).read("data/a")
    assert caught.value.finding is not None
    assert status is caught.value.finding.status


# ----------------------------------------------------------------- between processes


def test_a_reader_survives_a_pickle(root: Path) -> None:
    """A reader that was pickled reads the same, and left what knows DVC behind."""
    store = Workspace(
        os.fspath(root), hints=lambda *_: Hint(), ignored=lambda *_: True
    )  # lambdas cannot be pickled
    reader = pickle.loads(pickle.dumps(di.Reader(manifest_of(FILES), store)))
    assert b"alpha" == reader.read("data/a")
    faults.flip_bit(root / "data/a")
    with pytest.raises(di.CorruptDataError):
        reader.read("data/a")


def test_a_pickled_reader_is_its_manifest_and_a_folder(root: Path) -> None:
    """What a worker is sent hardly exceeds the manifest's columns, also after reading."""
    files = {f"{row:05}": b"" for row in range(20_000)}
    write(root / "data", {"00000": b""})
    reader = reader_of(root, files)
    reader.read("data/00000")
    assert len(pickle.dumps(reader.manifest)) + 500 >= len(pickle.dumps(reader))


def test_unpickling_and_reading_import_neither_dvc_nor_torch(root: Path) -> None:
    """A process that is sent a reader imports NumPy, and nothing that knows DVC or PyTorch."""
    (root / "reader").write_bytes(pickle.dumps(reader_of(root)))
    program = (
        "import pickle, sys\n"
        "import dvc_integrity.reader\n"
        "reader = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(reader.read('data/a'))\n"
        "foreign = {'dvc', 'dvc_data', 'dvc_objects', 'scmrepo', 'torch', 'git', 'fsspec'}\n"
        "print(sorted(foreign & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.fspath(root / "reader")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("", ["b'alpha'", "[]"]) == (done.stderr, done.stdout.splitlines())

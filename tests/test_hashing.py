"""Paths and buffers to observations: in order, all of them, and failures are values."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path

import faults
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observing import observe
from projects import inside

from dvc_integrity import hashing
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.hashing import (
    BATCH_FILES,
    BATCHES_AHEAD,
    PIECE_BYTES,
    Chains,
    Meter,
    hash_buffers,
    hash_chunks,
    hash_files,
    read_chunks,
    read_file,
)
from dvc_integrity.kernel import KERNEL_VARIABLE
from dvc_integrity.observation import FileState, Observation

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOBODY = 65534

BIG = b"0123456789abcdef" * (PIECE_BYTES // 16 * 2) + b"the rest"
"""More than two pieces."""

Read = Callable[[str | bytes], Observation]


def hash_one(path: str | bytes) -> Observation:
    """Return what ``hash_files`` sees of one file."""
    (seen,) = observe([path], jobs=1)
    return seen


def read_one(path: str | bytes) -> Observation:
    """Return what ``read_file`` sees."""
    return read_file(path)[1]


both = pytest.mark.parametrize("read", [hash_one, read_one], ids=["hash_files", "read_file"])
"""The two ways to read a file, which see the same things."""


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


def fill(folder: Path, count: int) -> list[str]:
    """Write files with different bytes; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05}" for number in range(count)]
    for path in paths:
        path.write_bytes(path.name.encode() * 3)
    return [os.fspath(path) for path in paths]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash over hashlib, one file after the other: what the test watches is done in Python."""
    monkeypatch.setattr(hashing, "_lanes", None)


def threads() -> list[str]:
    """Return the names of the hashing threads that are alive."""
    return [each.name for each in threading.enumerate() if "dvc-integrity" in each.name]


@contextlib.contextmanager
def unprivileged() -> Iterator[Path]:
    """Give a folder, and make the block run as a user whom file modes bind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.geteuid() != 0:
            yield folder
            return
        try:
            os.seteuid(NOBODY)
        except OSError as error:  # a user namespace without that user
            pytest.skip(f"root cannot become another user here: {error}")
        os.seteuid(0)
        yield folder


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's power to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ----------------------------------------------------------------- good files


@both
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, len(BIG)])
def test_a_file_gives_its_digest_and_size(read: Read, size: int, tmp_path: Path) -> None:
    """A file of any size gives the MD5 and the count of its bytes, and no error."""
    path = tmp_path / "file"
    path.write_bytes(BIG[:size])
    seen = read(os.fspath(path))
    assert Observation(md5(BIG[:size]), size, seen.before, seen.after, None) == seen
    assert seen.stable
    assert FileState.of(path.stat()) == seen.before


@both
def test_bytes_paths_name_any_file(read: Read, tmp_path: Path) -> None:
    """A name that is not UTF-8, and one with a line end, are read like any other."""
    for name in (b"\xff\x80.png", b"a\nb\x1b", "é".encode(), b" ", b"-"):
        path = os.path.join(os.fsencode(tmp_path), name)
        Path(os.fsdecode(path)).write_bytes(name)
        assert md5(name) == read(path).digest == read(os.fsdecode(path)).digest


@both
def test_links_are_followed(read: Read, tmp_path: Path) -> None:
    """A symbolic link gives the bytes and the state of its target."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"target")
    link.symlink_to("target")
    seen = read(os.fspath(link))
    assert md5(b"target") == seen.digest
    assert FileState.of(target.stat()) == seen.after


def test_observations_come_in_the_order_of_the_paths(tmp_path: Path) -> None:
    """Many files on several threads give one observation each, in order, and count as read."""
    paths = fill(tmp_path / "many", 1200)
    paths = [*reversed(paths), paths[7], paths[7]]
    meter = Meter()
    expected = [md5(os.path.basename(path).encode() * 3) for path in paths]
    assert expected == [seen.digest for seen in observe(paths, jobs=4, meter=meter)]
    assert (1202, 1202 * 15) == (meter.files, meter.bytes)


def test_nothing_asked_is_nothing_seen() -> None:
    """No path, no observation, no thread."""
    assert [] == list(hash_files([]))
    assert [] == threads()


@law
@given(st.lists(st.binary(max_size=200), max_size=80), st.integers(1, 5))
def test_files_hash_like_buffers(contents: list[bytes], jobs: int) -> None:
    """Files and buffers of the same bytes give the same digests, whatever number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, str(number)) for number in range(len(contents))]
        for path, data in zip(paths, contents, strict=True):
            Path(path).write_bytes(data)
        for algorithm in Algorithm:
            seen = [each.digest for each in observe(paths, algorithm, jobs=jobs)]
            assert [each.value for each in hash_buffers(contents, algorithm)] == seen


def test_buffers_of_every_kind_are_hashed() -> None:
    """``hash_buffers`` takes bytes, bytearrays and memoryviews, and keeps their order."""
    expected = [Digest(Algorithm.MD5, md5(data)) for data in (b"one", b"two", b"three")]
    assert expected == hash_buffers([b"one", bytearray(b"two"), memoryview(b"three")])
    assert [] == hash_buffers([])


@law
@given(st.lists(st.binary(max_size=50), max_size=20), st.sampled_from(Algorithm))
def test_a_stream_hashes_like_its_bytes(chunks: list[bytes], algorithm: Algorithm) -> None:
    """``hash_chunks`` gives digest and length of the chunks joined, and counts them."""
    data, meter = b"".join(chunks), Meter()
    assert (*hash_buffers([data], algorithm), len(data)) == hash_chunks(chunks, algorithm, meter)
    assert (0, len(data)) == (meter.files, meter.bytes)


@pytest.mark.parametrize("cold", [False, True])
def test_the_bytes_handed_on_are_the_bytes_hashed(cold: bool, tmp_path: Path) -> None:
    """``read_file`` returns the buffer that its digest is of, read once."""
    path = tmp_path / "file"
    path.write_bytes(BIG)
    data, seen = read_file(os.fspath(path), cold=cold)
    assert BIG == data
    assert md5(data) == seen.digest


def test_read_file_does_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes as soon as it was read still gives a digest of the returned bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    fstat, asked = os.fstat, []

    def change(descriptor: int) -> os.stat_result:
        asked.append(descriptor)
        if len(asked) == 2:
            path.write_bytes(b"after, and longer")
        return fstat(descriptor)

    monkeypatch.setattr(hashing.os, "fstat", change)
    data, seen = read_file(os.fspath(path))
    monkeypatch.undo()
    assert b"before" == data
    assert md5(b"before") == seen.digest
    assert not seen.stable


def test_text_normalized_digests_come_from_files_too(tmp_path: Path) -> None:
    """The algorithm that is asked for is the one that is computed, by either way to read."""
    path = os.fspath(tmp_path / "file")
    Path(path).write_bytes(b"a\r\nb\r\n")
    expected = md5(b"a\nb\n")
    assert [expected] == [each.digest for each in observe([path], Algorithm.MD5_DOS2UNIX)]
    assert expected == read_file(path, Algorithm.MD5_DOS2UNIX)[1].digest


@pytest.mark.usefixtures("one_by_one")
def test_a_cold_read_drops_the_cached_pages_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``cold`` tells the kernel to drop the whole file's pages before the first read."""
    path = os.fspath(tmp_path / "file")
    Path(path).write_bytes(BIG)
    advice = []
    fadvise = os.posix_fadvise

    def note(descriptor: int, offset: int, length: int, what: int) -> None:
        advice.append((os.lseek(descriptor, 0, os.SEEK_CUR), offset, length, what))
        fadvise(descriptor, offset, length, what)

    monkeypatch.setattr(hashing.os, "posix_fadvise", note)
    assert [md5(BIG)] == [each.digest for each in observe([path], cold=True)]
    assert md5(BIG) == read_file(path, cold=True)[1].digest
    assert [(0, 0, 0, os.POSIX_FADV_DONTNEED)] * 2 == advice
    assert md5(BIG) == hash_one(path).digest == read_one(path).digest
    assert 2 == len(advice)


# ----------------------------------------------------------------- what cannot be read


@both
def test_every_failure_is_a_value(read: Read, tmp_path: Path) -> None:
    """A missing file, a folder, a dangling link, a loop: each is an error number, not a raise."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    expected = {
        "missing": errno.ENOENT,
        "dangling": errno.ENOENT,
        "file/below": errno.ENOTDIR,
        ".": errno.EISDIR,
        "loop": errno.ELOOP,
        "x" * 300: errno.ENAMETOOLONG,
    }
    for name, number in expected.items():
        seen = read(os.fspath(tmp_path / name))
        assert seen.error is not None
        assert (None, 0, number) == (seen.digest, seen.size, seen.error.errno)


@both
def test_a_special_file_never_blocks(read: Read, tmp_path: Path) -> None:
    """A FIFO without a writer, a socket and a device are errors at once."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, inside(tmp_path):  # its path may be long
        listener.bind("socket")
    for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/null"), Path("/dev/zero")):
        seen = read(os.fspath(path))
        assert seen.error is not None
        assert (None, 0) == (seen.digest, seen.size)


@both
def test_a_fifo_with_a_waiting_writer_is_an_error(read: Read, tmp_path: Path) -> None:
    """A FIFO that holds bytes is no file either: its bytes are left alone."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    keeper = os.open(path, os.O_RDWR)
    try:
        os.write(keeper, b"bytes")
        assert isinstance(read(os.fspath(path)).error, OSError)
        assert b"bytes" == os.read(keeper, 10)
    finally:
        os.close(keeper)


@both
def test_a_file_of_mode_zero_is_a_value(read: Read) -> None:
    """A file, or a file in a folder, that the user may not read gives EACCES."""
    with unprivileged() as folder:
        (folder / "closed").mkdir()
        for path in (folder / "secret", folder / "closed" / "file", folder / "open"):
            path.write_bytes(b"x")
        (folder / "secret").chmod(0)
        (folder / "closed").chmod(0)
        with as_nobody():
            secret, inside, open_ = [
                read(os.fspath(folder / name)) for name in ("secret", "closed/file", "open")
            ]
        (folder / "closed").chmod(0o755)
    assert [errno.EACCES] * 2 == [secret.error and secret.error.errno, inside.error.errno]
    assert md5(b"x") == open_.digest


def test_a_failure_does_not_touch_its_neighbours(tmp_path: Path) -> None:
    """Errors among good files take their own places and no other."""
    paths = fill(tmp_path / "many", 100)
    for number in (0, 31, 32, 50, 99):
        os.unlink(paths[number])
    seen = observe(paths, jobs=2)
    assert [0, 31, 32, 50, 99] == [row for row, each in enumerate(seen) if each.error]
    assert 95 == sum(each.digest is not None for each in seen)


def fail_at(number: int) -> Callable[[int, list[memoryview]], int]:
    """Return a ``readv`` whose ``number``-th call fails as a bad sector does."""
    calls = iter(range(1, 1000))
    readv = os.readv

    def failing(descriptor: int, buffers: list[memoryview]) -> int:
        if next(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readv(descriptor, buffers)

    return failing


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(("piece", "size"), [(1, 0), (2, PIECE_BYTES), (3, 2 * PIECE_BYTES)])
def test_a_read_that_fails_half_way_is_an_error(
    piece: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest comes from a file that could be read in part; the bytes that were read count."""
    path = tmp_path / "big"
    path.write_bytes(BIG)
    meter = Meter()
    monkeypatch.setattr(hashing.os, "readv", fail_at(piece))
    (seen,) = observe([os.fspath(path)], jobs=1, meter=meter)
    assert seen.error is not None
    assert (None, size, errno.EIO) == (seen.digest, seen.size, seen.error.errno)
    assert FileState.of(path.stat()) == seen.before
    assert (1, size) == (meter.files, meter.bytes)


@both
@pytest.mark.usefixtures("one_by_one")
def test_a_file_that_cannot_be_looked_at_is_an_error(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also fstat can fail, as on a network file system that went away: a value."""
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def failing(_: int) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(hashing.os, "fstat", failing)
    seen = read(os.fspath(path))
    monkeypatch.undo()
    assert seen.error is not None
    assert (None, errno.ESTALE) == (seen.digest, seen.error.errno)


@both
def test_no_descriptor_is_left_open(read: Read, tmp_path: Path) -> None:
    """Good reads and failed ones close what they opened."""
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for name in ("file", "fifo", ".", "missing"):
        read(os.fspath(tmp_path / name))
    assert before == os.listdir("/proc/self/fd")


def strace(folder: Path, *options: str) -> list[str]:
    """Return a command prefix that injects a fault, or skip where that cannot be done."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed; the same fault is simulated by another test")
    prefix = [program, "-f", "-qq", "-o", os.fspath(folder / "trace")]
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    return [*prefix, *options]


READS = """\
import sys
from itertools import chain
from dvc_integrity.hashing import hash_files, read_file
path = sys.argv[1]
for seen in (*chain(*hash_files([path], jobs=1)), read_file(path)[1]):
    print(seen.digest, seen.size, seen.error.errno)
"""


def test_a_device_that_fails_is_an_error(tmp_path: Path) -> None:
    """A real EIO from the kernel in the middle of a file is a value, by either way to read."""
    path = tmp_path / "big"
    path.write_bytes(BIG)
    inject = ("-P", os.fspath(path), "-e", "inject=readv:error=EIO:when=2")
    command = [*strace(tmp_path, *inject, "-e", "inject=read:error=EIO:when=1")]
    done = subprocess.run(
        [*command, sys.executable, "-c", READS, os.fspath(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, KERNEL_VARIABLE: "hashlib"},
    )
    assert "" == done.stderr
    assert [f"None {PIECE_BYTES} {errno.EIO}", f"None 0 {errno.EIO}"] == done.stdout.splitlines()


# ----------------------------------------------------------------- files that change meanwhile


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    """Write in place and put the times back: only the change time tells."""
    faults.flip_bit(path)


@both
@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("change", [append, overwrite, faults.truncate, os.utime])
def test_a_change_during_the_read_is_seen(
    read: Read, change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written between the two looks at it is not stable."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fstat, asked = os.fstat, []

    def look(descriptor: int) -> os.stat_result:
        asked.append(descriptor)
        if len(asked) == 2:
            monkeypatch.undo()
            change(path)
        return fstat(descriptor)

    monkeypatch.setattr(hashing.os, "fstat", look)
    seen = read(os.fspath(path))
    assert seen.error is None
    assert not seen.stable
    assert read(os.fspath(path)).stable


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.usefixtures("one_by_one")
def test_a_file_that_grows_with_every_read_ends(
    algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read to the size that it had, and it is not stable."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    read, reads = os.readv, []

    def read_and_grow(descriptor: int, buffers: list[memoryview]) -> int:
        reads.append(descriptor)
        assert len(reads) < 3, "it is read on and on"
        count = read(descriptor, buffers)
        append(path)
        return count

    monkeypatch.setattr(hashing.os, "readv", read_and_grow)
    (seen,) = chain(*hash_files([os.fspath(path)], algorithm))
    assert (None, False) == (seen.error, seen.stable)
    assert 1 == len(reads)


@both
@pytest.mark.usefixtures("one_by_one")
def test_a_file_replaced_during_the_read_is_the_old_one(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looks are at the open file, so a rename over it does not mix two files."""
    path, new = tmp_path / "file", tmp_path / "new"
    path.write_bytes(b"old")
    new.write_bytes(b"new bytes")
    keeper = tmp_path / "keeper"
    regular = hashing._regular

    def rename(state: FileState, name: str | bytes) -> FileState:
        state = regular(state, name)
        if new.exists():
            os.link(path, keeper)
            os.replace(new, path)
        return state

    monkeypatch.setattr(hashing, "_regular", rename)
    assert md5(b"old") == read(os.fspath(path)).digest
    assert md5(b"new bytes") == read(os.fspath(path)).digest


# ----------------------------------------------------------------- the work ends when asked


def endless(paths: list[str], taken: list[str]) -> Iterator[str]:
    """Yield paths without end; note each one in ``taken``."""
    while True:
        for path in paths:
            taken.append(path)
            yield path


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("jobs", [1, 3])
def test_the_source_is_taken_a_bounded_way_ahead(jobs: int, tmp_path: Path) -> None:
    """However slow the consumer, only so many paths wait: memory does not grow."""
    paths, taken = fill(tmp_path / "many", 10), []
    observations = hash_files(endless(paths, taken), jobs=jobs)
    count = 0
    while count < 500:
        count += len(next(observations))
        assert count + BATCH_FILES * (BATCHES_AHEAD * jobs + 1) >= len(taken)
    observations.close()
    assert [] == threads()


def test_nothing_starts_before_the_first_observation_is_asked_for(tmp_path: Path) -> None:
    """An iterator that nobody uses reads nothing and starts no thread."""
    taken: list[str] = []
    observations = hash_files(endless(fill(tmp_path / "few", 2), taken))
    assert ([], []) == (taken, threads())
    del observations
    gc.collect()


@pytest.mark.parametrize("end", ["close", "drop"])
def test_an_iterator_left_early_ends_its_threads(end: str, tmp_path: Path) -> None:
    """Closing the iterator, or letting go of it, leaves no thread."""
    observations = hash_files(endless(fill(tmp_path / "few", 5), []), jobs=3)
    next(observations)
    assert threads()
    if end == "close":
        observations.close()
    del observations
    assert [] == threads()


def test_an_interrupt_leaves_no_thread(tmp_path: Path) -> None:
    """Ctrl-C in whoever takes the observations ends the threads."""
    paths = fill(tmp_path / "few", 5)

    def consume() -> None:
        for number, _ in enumerate(hash_files(endless(paths, []), jobs=3)):
            if number == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert [] == threads()


def test_a_source_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    """An error of the iterable of paths comes through, and the threads end."""
    paths = fill(tmp_path / "few", 3)

    def failing() -> Iterator[str]:
        yield from paths * 100
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(hash_files(failing(), jobs=2))
    assert [] == threads()


@pytest.mark.usefixtures("one_by_one")
def test_an_interrupt_stops_a_read_at_its_next_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file that is being read when Ctrl-C comes is not read to its end."""
    small, big = fill(tmp_path / "few", BATCH_FILES)[0], tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 40)  # a hole: nobody could read a terabyte in a test
    readv, pieces = os.readv, count(1)

    def interrupted(descriptor: int, buffers: list[memoryview]) -> int:
        size = readv(descriptor, buffers)
        if size == PIECE_BYTES and next(pieces) == 100:  # the threads are all up by then
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return size

    monkeypatch.setattr(hashing.os, "readv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        observe([*[small] * BATCH_FILES, os.fspath(big)], jobs=2)
    assert [] == threads()


# ----------------------------------------------------------------- chains


@law
@given(
    st.lists(
        st.lists(st.integers(0, 40).map(lambda blocks: 64 * blocks), max_size=5),
        min_size=1,
        max_size=Chains.MOST + 1,
    ),
    st.integers(0, 300),
)
def test_chains_hash_like_hashlib(cuts: list[list[int]], rest: int) -> None:
    """Streams of any lengths, cut in any way: each has its own MD5, also one that began anew."""
    chains = Chains(len(cuts))
    for turn in range(2):
        hashed = [b""] * len(cuts)
        for step in range(5):
            pieces = [
                BIG[turn + stream : turn + stream + (cut[step] if step < len(cut) else 0)]
                for stream, cut in enumerate(cuts)
            ]
            hashed = [before + piece for before, piece in zip(hashed, pieces, strict=True)]
            chains.update([memoryview(piece) for piece in pieces])
        for stream in reversed(range(len(cuts))):
            end = BIG[stream : stream + rest]
            assert md5(hashed[stream] + end) == chains.finish(stream, memoryview(end))


@pytest.mark.parametrize("blocks", [0, 1, 1000])
def test_chains_end_with_any_rest(blocks: int) -> None:
    """Every length of what comes last, from none on: each position of the padding."""
    chains = Chains(3)
    for rest in range(301):
        chains.update([b"", BIG[: 64 * blocks], BIG[64:128]])
        data = BIG[7 : 7 + rest]
        assert md5(BIG[: 64 * blocks] + data) == chains.finish(1, data)
        assert md5(BIG[64:128]) == chains.finish(2, b"")
    assert md5(b"") == chains.finish(0, b"")


def test_a_chain_that_began_anew_leaves_the_others_alone() -> None:
    """One stream ends and begins again in the midst of another, which goes on."""
    chains, data = Chains(2), b""
    for turn in range(20):
        piece = BIG[turn : turn + 64 * (turn + 1)]
        chains.update([piece, piece])
        data += piece
        assert md5(piece + b"end") == chains.finish(0, b"end")
    assert md5(data) == chains.finish(1, b"")


# ----------------------------------------------------------------- chunks of one file


def test_chunks_are_the_bytes_of_a_regular_file(tmp_path: Path) -> None:
    """``read_chunks`` yields the bytes in pieces; it follows links."""
    (tmp_path / "big").write_bytes(BIG)
    (tmp_path / "link").symlink_to("big")
    chunks = list(read_chunks(os.fspath(tmp_path / "link")))
    assert BIG == b"".join(chunks)
    assert PIECE_BYTES >= max(map(len, chunks))


def test_chunks_of_anything_else_are_an_oserror(tmp_path: Path) -> None:
    """``read_chunks`` raises on what is missing, a folder or a FIFO, and never blocks."""
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    for name, kind in (("missing", FileNotFoundError), (".", IsADirectoryError), ("fifo", OSError)):
        with pytest.raises(kind):
            next(read_chunks(os.fspath(tmp_path / name)))
    assert before == os.listdir("/proc/self/fd")

"""The native MD5 kernel: equal to hashlib on every input, and as careful with files."""

from __future__ import annotations

import ctypes
import errno
import gc
import hashlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observing import observe

from dvc_integrity import hashing
from dvc_integrity.hashing import Meter, hash_buffers, hash_files
from dvc_integrity.kernel import KERNEL_VARIABLE
from dvc_integrity.observation import RECORD, Observation

if os.environ.get(KERNEL_VARIABLE):
    pytest.skip("the native kernel is kept out of use", allow_module_level=True)

lanes = pytest.importorskip(
    "dvc_integrity._lanes", reason="built without a compiler: hashlib serves the same interface"
)

KERNELS = [index for index, name in enumerate(lanes.kernels()) if name is not None]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=[lanes.kernels()[k] for k in KERNELS])

RFC_1321 = {
    b"": "d41d8cd98f00b204e9800998ecf8427e",
    b"a": "0cc175b9c0f1b6a831c399e269772661",
    b"abc": "900150983cd24fb0d6963f7d28e17f72",
    b"message digest": "f96b697d7cb7938d525a2f31aaf161d0",
    b"abcdefghijklmnopqrstuvwxyz": "c3fcd3d76192e4007dfb496cca67e13b",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789": (
        "d174ab98d277d9f5a5611c2c9f419d9f"
    ),
    b"1234567890" * 8: "57edf4a22be3c955ac49da2e2107b67a",
}
"""Appendix A.5 of RFC 1321."""


def md5(data: bytes | memoryview) -> bytes:
    return hashlib.md5(data).digest()


def joined(buffers: list[bytes]) -> bytes:
    return b"".join(map(md5, buffers))


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def observed(paths: list[Path], **options: Any) -> list[Observation]:
    """Return what ``hash_files`` sees of each path."""
    return observe(map(os.fspath, paths), **options)


class Native:
    """Calls of the extension itself, past the package: the one place that knows its arguments."""

    @staticmethod
    def buffers(buffers: Any, kernel: Any = -1) -> None:
        """Call ``hash_buffers``."""
        lanes.hash_buffers(buffers, kernel)

    @staticmethod
    def advance(states: Any, buffers: Any, kernel: Any = -1) -> None:
        """Call ``advance``."""
        lanes.advance(states, buffers, kernel)

    @staticmethod
    def files(
        names: Any, offsets: Any, records: Any, control: Any, limit: Any = 0, kernel: Any = -1
    ) -> None:
        """Call ``hash_files``, for paths that need no folder."""
        lanes.hash_files(names, offsets, records, control, -1, False, limit, 0, kernel)


# --------------------------------------------------------------------------------- buffers


@every_kernel
def test_the_vectors_of_the_standard(kernel: int) -> None:
    """RFC 1321 gives seven messages and their digests."""
    assert bytes.fromhex("".join(RFC_1321.values())) == lanes.hash_buffers(list(RFC_1321), kernel)


@every_kernel
def test_every_length_up_to_1100(kernel: int) -> None:
    """Every position of the padding, and one to eighteen blocks."""
    buffers = [some_bytes(size) for size in range(1101)]
    assert joined(buffers) == lanes.hash_buffers(buffers, kernel)


@every_kernel
def test_lengths_around_each_power_of_two(kernel: int) -> None:
    """One byte less, none and one more, up to 16 MiB."""
    sizes = [(1 << power) + delta for power in range(11, 25) for delta in (-1, 0, 1)]
    whole = some_bytes(max(sizes))
    buffers = [whole[:size] for size in sizes]
    assert joined(buffers) == lanes.hash_buffers(buffers, kernel)


@every_kernel
def test_buffers_need_no_alignment(kernel: int) -> None:
    """A buffer may begin at any address."""
    whole = memoryview(some_bytes(5000))
    buffers = [whole[start : start + 4000] for start in range(64)]
    assert joined([bytes(each) for each in buffers]) == lanes.hash_buffers(buffers, kernel)


@every_kernel
@pytest.mark.parametrize("count", range(41))
def test_every_number_of_inputs(kernel: int, count: int) -> None:
    """Lanes full, half full and alone, with inputs of unlike sizes."""
    sizes = random.Random(count)
    buffers = [some_bytes(sizes.randrange(40_000), seed) for seed in range(count)]
    assert joined(buffers) == lanes.hash_buffers(buffers, kernel)


@settings(deadline=None)
@given(buffers=st.lists(st.binary(max_size=700), max_size=80))
def test_any_inputs_equal_hashlib(buffers: list[bytes]) -> None:
    """Whatever the bytes and their number, on every kernel."""
    for kernel in KERNELS:
        assert joined(buffers) == lanes.hash_buffers(buffers, kernel)


@every_kernel
@pytest.mark.parametrize("count", [1, 2, 3, 8, 15, 16, 17, 33, 40])
def test_chains_advance_by_any_pieces(kernel: int, count: int) -> None:
    """Chaining values go on where they were left, whatever each chain takes in at a time."""
    start = bytes.fromhex("0123456789abcdeffedcba9876543210")  # RFC 1321, section 3.3
    sizes = random.Random(count)
    states, taken = bytearray(start * count), [b""] * count
    for turn in range(5):
        pieces = [some_bytes(64 * sizes.randrange(9), turn) for _ in range(count)]
        lanes.advance(states, pieces, kernel)
        taken = [before + piece for before, piece in zip(taken, pieces, strict=True)]
    lengths = [(8 * len(data)).to_bytes(8, "little") for data in taken]
    lanes.advance(states, [b"\x80" + bytes(55) + length for length in lengths], kernel)
    assert joined(taken) == states


def test_files_that_are_not_below_the_limit_are_put_aside(tmp_path: Path) -> None:
    """Their state is told and nothing else; they count neither as files nor as bytes."""
    sizes = [999, 1000, 1001, 0]
    names = [tmp_path / str(size) for size in sizes]
    for name, size in zip(names, sizes, strict=True):
        name.write_bytes(bytes(size))
    blob = b"".join(os.fsencode(name) + b"\0" for name in names)
    starts = [0, *[at + 1 for at, byte in enumerate(blob) if byte == 0][:-1]]
    records, control = bytearray(128 * 4), array("q", [0] * 4)
    Native.files(blob, array("q", starts), records, control, limit=1000)
    rows = np.frombuffer(records, RECORD)
    assert [0, -2, -2, 0] == rows["error"].tolist()
    assert sizes == rows["before"][:, 2].tolist()
    assert [999, 0, 0, 0] == rows["size"].tolist()
    assert [4, 2, 999, 0] == [min(control[0], 4), *control[1:]]


@pytest.mark.parametrize("kernel", [len(lanes.kernels()), 99])
def test_an_unknown_kernel_is_refused(kernel: int) -> None:
    """Instructions that the processor lacks are never run."""
    with pytest.raises(ValueError, match="kernel"):
        lanes.hash_buffers([b"a"], kernel)


def test_no_reference_is_kept() -> None:
    """Neither the buffers nor the list are held after the call, also when it fails."""
    buffer, text = bytearray(b"x" * 100), "no buffer"
    before = sys.getrefcount(buffer), sys.getrefcount(text)
    for _ in range(100):
        lanes.hash_buffers([buffer] * 20, -1)
        with pytest.raises(TypeError):
            lanes.hash_buffers([buffer, text], -1)
    assert before == (sys.getrefcount(buffer), sys.getrefcount(text))
    buffer.append(1)  # an export that was left would forbid this


def test_threads_do_not_disturb_each_other() -> None:
    """Four threads hash at once."""
    buffers = [some_bytes(size, size) for size in range(0, 60_000, 1777)]
    expected = joined(buffers)
    wrong: list[bytes] = []

    def work() -> None:
        wrong.extend(
            found
            for found in (lanes.hash_buffers(buffers, -1) for _ in range(20))
            if found != expected
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_the_interface_uses_it() -> None:
    """``hash_buffers`` of the package gives the same digests with and without the kernel."""
    buffers = [some_bytes(size) for size in (0, 1, 100_000)]
    assert [md5(each) for each in buffers] == [each.value for each in hash_buffers(buffers)]


# --------------------------------------------------------------------------- nothing is kept

SANITIZED = hasattr(ctypes.CDLL(None), "__asan_init")
"""AddressSanitizer holds freed memory back; a leak check of its own ends such a run."""

CALLS = 300


class Arguments:
    """Arguments that fit, and some that do not; each is an object of its own."""

    def __init__(self, folder: Path) -> None:
        names = [folder / "good", folder / "absent", folder, folder / "fifo", folder / "big"]
        (folder / "good").write_bytes(some_bytes(1000))
        (folder / "big").write_bytes(some_bytes(300_000))
        os.mkfifo(folder / "fifo")
        self.names = bytearray(b"".join(os.fsencode(name) + b"\0" for name in names))
        ends = [end + 1 for end, byte in enumerate(self.names) if byte == 0]
        self.offsets = array("q", [0, *ends[:-1]])
        self.outside = array("q", [*self.offsets[:-1], len(self.names)])
        self.records = bytearray(128 * len(names))
        self.control = array("q", [0, 0, 0, 0])
        self.stopped = array("q", [0, 0, 0, 1])
        self.short = bytearray(24)
        self.states = bytearray(16 * 5)
        self.askew = memoryview(bytearray(8 * len(names) + 8))[1:-7]
        self.read_only = bytes(640)
        self.text = "".join(["no ", "buffer"])
        self.full = [bytearray(some_bytes(size)) for size in (0, 64, 200_000, 7, 1000)]
        self.whole = [bytearray(64 * count) for count in (0, 1, 40, 3, 2)]
        self.mixed = [*self.full, self.text]
        self.strided = [*self.full, memoryview(bytes(100))[::2]]
        self.tuple = (*self.full,)

    def references(self) -> dict[str, int]:
        """Return the count of references of each argument, and of the buffers in the list."""
        counts = {name: sys.getrefcount(value) for name, value in vars(self).items()}
        return counts | {f"full[{i}]": sys.getrefcount(each) for i, each in enumerate(self.full)}

    def files(self, **other: Any) -> None:
        """Call ``hash_files``; what is not given fits."""
        names = ("names", "offsets", "records", "control")
        self.control[0] = 0
        Native.files(**{name: getattr(self, name) for name in names} | other)


ENTRIES: dict[str, tuple[Callable[[Arguments], object], type[Exception] | None]] = {
    "kernels": (lambda _: lanes.kernels(), None),
    "no arguments": (lambda _: Native.files(*[()] * 4), TypeError),
    "buffers": (lambda a: Native.buffers(a.full), None),
    "no buffers": (lambda _: Native.buffers([]), None),
    "buffers: no list": (lambda a: Native.buffers(a.tuple), TypeError),
    "buffers: no kernel": (lambda a: Native.buffers(a.full, kernel=99), ValueError),
    "buffers: kernel no number": (lambda a: Native.buffers(a.full, kernel=a.text), TypeError),
    "buffers: one is none": (lambda a: Native.buffers(a.mixed), TypeError),
    "buffers: one has gaps": (lambda a: Native.buffers(a.strided), BufferError),
    "advance": (lambda a: Native.advance(a.states, a.whole), None),
    "advance: no list": (lambda a: Native.advance(a.states, a.tuple), TypeError),
    "advance: states read-only": (lambda a: Native.advance(a.read_only, a.whole), TypeError),
    "advance: states too short": (lambda a: Native.advance(a.short, a.whole), ValueError),
    "advance: no whole blocks": (lambda a: Native.advance(a.states, a.full), ValueError),
    "advance: one is none": (lambda a: Native.advance(a.states, a.mixed), TypeError),
    "advance: no kernel": (lambda a: Native.advance(a.states, a.whole, 99), ValueError),
    "files": (lambda a: a.files(), None),
    "files, large ones put aside": (lambda a: a.files(limit=2000), None),
    "files: limit no number": (lambda a: a.files(limit=a.text), TypeError),
    "files, stopped": (lambda a: a.files(control=a.stopped), None),
    "files: no kernel": (lambda a: a.files(kernel=99), ValueError),
    "files: kernel no number": (lambda a: a.files(kernel=a.text), TypeError),
    "files: names no buffer": (lambda a: a.files(names=a.text), TypeError),
    "files: offsets no buffer": (lambda a: a.files(offsets=a.full), TypeError),
    "files: an offset outside": (lambda a: a.files(offsets=a.outside), ValueError),
    "files: names do not end": (lambda a: a.files(names=a.full[2]), ValueError),
    "files: records too short": (lambda a: a.files(records=a.short), ValueError),
    "files: offsets not aligned": (lambda a: a.files(offsets=a.askew), ValueError),
    "files: records read-only": (lambda a: a.files(records=a.read_only), TypeError),
    "files: control too short": (lambda a: a.files(control=a.short), ValueError),
    "files: control read-only": (lambda a: a.files(control=a.read_only), TypeError),
}
"""Every entry point, as it is meant and in every way that it refuses, with what it raises."""


def raised(call: Callable[[], object]) -> type[Exception] | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is compared)
        return type(error)
    return None


def mapped_bytes() -> int:
    """Return how much memory the process has asked for, touched or not."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def traced_bytes(work: Callable[[], object]) -> int:
    """Return how much more memory Python has given out after the second time than after one."""
    tracemalloc.start()
    try:
        work()
        once = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[0] - once
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_call_leaves_anything_behind(entry: str, tmp_path: Path) -> None:
    """Memory, references and descriptors stay as they were, however often a call is made."""
    call, error = ENTRIES[entry]
    arguments = Arguments(tmp_path)

    def many() -> set[type[Exception] | None]:
        outcomes = {raised(lambda: call(arguments)) for _ in range(CALLS)}
        gc.collect()
        return outcomes

    assert {error} == many()  # whatever is kept once is kept now
    references, descriptors = arguments.references(), os.listdir("/proc/self/fd")
    mapped = mapped_bytes()
    many()
    assert references == arguments.references()
    assert descriptors == os.listdir("/proc/self/fd")
    if not SANITIZED:
        assert mapped_bytes() - mapped < CALLS * 1024
        assert traced_bytes(many) < CALLS * 8
    for buffer in (arguments.names, arguments.records, arguments.short, *arguments.full):
        buffer.append(0)  # an export that was left would forbid this


def test_a_stop_half_way_closes_what_is_open(tmp_path: Path) -> None:
    """A call that is told to stop ends within a file, counts no file, and leaves none open."""
    path, descriptors = tmp_path / "file", os.listdir("/proc/self/fd")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: nobody could read a terabyte in a test
    names, control = os.fsencode(path) + b"\0", array("q", [0, 0, 0, 0])
    arguments = (names, array("q", [0]), bytearray(128), control)
    reading = threading.Thread(target=Native.files, args=arguments)
    reading.start()
    while not control[2]:  # bytes that were read
        time.sleep(0.001)
    control[3] = 1
    reading.join()
    assert 0 == control[1]
    assert descriptors == os.listdir("/proc/self/fd")


# ----------------------------------------------------------------------------------- files


def without_kernel(paths: list[Path], **options: object) -> list[Observation]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_lanes", None)
        return observed(paths, **options)


def alike(one: Observation, other: Observation) -> bool:
    """Compare observations; exceptions by what they say."""
    said = [(type(each), each.errno, each.strerror) for each in (one.error, other.error) if each]
    return one[:4] == other[:4] and (not said or said[0] == said[-1])


@pytest.fixture
def odd_files(tmp_path: Path) -> list[Path]:
    """Return files of many sizes, and everything that is none."""
    sizes = [0, 1, 63, 64, 4096, 131_071, 131_072, 131_073, 262_144, 262_200, 700_000]
    paths = []
    for number in range(120):
        path = tmp_path / f"{number}"
        path.write_bytes(some_bytes(sizes[number % len(sizes)], number))
        paths.append(path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("1")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(tmp_path / "socket"))
    names = ("fifo", "folder", "link", "dangling", "circle", "socket", "absent", "1/below")
    paths += [tmp_path / name for name in names]
    random.Random(7).shuffle(paths)
    return paths


@pytest.mark.parametrize("jobs", [1, 2, 5])
@pytest.mark.parametrize("cold", [False, True])
def test_observations_equal_those_of_the_fallback(
    odd_files: list[Path], jobs: int, cold: bool
) -> None:
    """Digest, size, both states and the error of each path, in the order of the paths."""
    expected = without_kernel(odd_files, jobs=jobs, cold=cold)
    found = observed(odd_files, jobs=jobs, cold=cold)
    assert len(odd_files) == len(found)
    assert [] == [
        path for path, *both in zip(odd_files, expected, found, strict=True) if not alike(*both)
    ]


@every_kernel
def test_every_kernel_reads_files_alike(kernel: int, odd_files: list[Path]) -> None:
    """The scheduler feeds eight lanes as it feeds thirty-two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "BEST_KERNEL", kernel)
        found = observed(odd_files, jobs=1)
    expected = without_kernel(odd_files)
    assert [each.digest for each in expected] == [each.digest for each in found]


def test_more_files_than_a_window(tmp_path: Path) -> None:
    """Windows follow each other without a gap and without a change of order."""
    paths = []
    for number in range(hashing.FIRST_WINDOW_FILES + hashing.WINDOW_FILES + 5):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(b"%d" % number)
    found = observed(paths)
    assert [md5(b"%d" % number) for number in range(len(paths))] == [each.digest for each in found]


def test_few_descriptors_are_enough(odd_files: list[Path]) -> None:
    """Lanes that find no descriptor free wait for one; nothing is reported as an error."""
    expected = without_kernel(odd_files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 24, hard))
    try:
        found = observed(odd_files, jobs=4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [each.digest for each in expected] == [each.digest for each in found]


def test_no_descriptor_stays_open(odd_files: list[Path]) -> None:
    """Neither after a whole run nor after one that is given up."""
    before = os.listdir("/proc/self/fd")
    list(hash_files(map(os.fspath, odd_files)))
    given_up = hash_files(map(os.fspath, odd_files))
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]  # it is a generator
    assert before == os.listdir("/proc/self/fd")
    assert [] == [each.name for each in threading.enumerate() if "dvc-integrity" in each.name]


def test_the_meter_counts_every_byte(odd_files: list[Path]) -> None:
    """Totals at the end are the files that were asked for and the bytes that were read."""
    meter = Meter()
    found = observed(odd_files, meter=meter)
    assert (len(odd_files), sum(each.size for each in found)) == (meter.files, meter.bytes)


def test_one_changed_bit_changes_the_digest(tmp_path: Path) -> None:
    """A flip that leaves size, mode and time as they are is seen in the digest alone."""
    path = tmp_path / "file"
    path.write_bytes(some_bytes(300_000))
    (before,) = observed([path])
    faults.flip_bit(path)
    (after,) = observed([path])
    assert before.digest != after.digest
    assert md5(path.read_bytes()) == after.digest


def test_a_file_that_grows_meanwhile_is_unstable(tmp_path: Path) -> None:
    """What fstat says before and after differs, on the same descriptor."""
    path = tmp_path / "file"
    size = 256 << 20
    with open(path, "wb") as file:
        file.truncate(size)
    grown = threading.Event()

    def grow() -> None:
        while not grown.is_set():
            with open(path, "ab") as file:
                file.write(b"x")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        (seen,) = observed([path])
    finally:
        grown.set()
        writer.join()
    assert not seen.stable


def test_a_read_error_is_a_value() -> None:
    """A file whose reading fails half way gives its errno, and the others their digests."""
    (bad, good) = observe(["/proc/self/mem", "/proc/self/cmdline"])
    assert bad.digest is None
    assert bad.error is not None
    assert errno.EIO == bad.error.errno
    assert md5(Path("/proc/self/cmdline").read_bytes()) == good.digest


READ_ONE = """\
import os, sys
from dvc_integrity.hashing import hash_files
print(os.getpid(), flush=True)
(seen,) = next(hash_files([sys.argv[1]]))
print(seen.digest and seen.digest.hex(), seen.size, seen.stable, seen.error and seen.error.errno)
"""

FIRST, REST = some_bytes(128 * 1024), some_bytes(100_000)
"""What the first read of a lane brings, and what is still to be read then."""


class Reading:
    """A process that hashes one file, while strace injects something into its calls on it."""

    def __init__(self, path: Path, inject: str) -> None:
        strace = ["strace", "-f", "-P", os.fspath(path)]
        try:
            subprocess.run([*strace, "true"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this machine has no strace, or forbids it")
        self._process = subprocess.Popen(
            [*strace, "-e", f"inject={inject}", sys.executable, "-c", READ_ONE, path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._out, self._trace = self._process.stdout, self._process.stderr
        self._reader = int(self._out.readline())
        self.injected = 0

    def wait_for_stop(self) -> None:
        """Wait until the reader is stopped by what was injected."""
        assert any("--- stopped by SIGSTOP ---" in line for line in self._trace)

    def go_on(self) -> None:
        """Let the reader go on."""
        os.kill(self._reader, signal.SIGCONT)

    def seen(self) -> list[str]:
        """Return what it saw: digest, size, whether the file was stable, errno."""
        seen = self._out.read().split()
        self.injected = self._trace.read().count("(INJECTED)")
        self._process.wait()
        return seen

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:  # the test failed, and the reader may be stopped
            os.kill(self._reader, signal.SIGKILL)
            self._process.wait()
        self._out.close()
        self._trace.close()


@pytest.mark.parametrize(
    ("calls", "size"),
    [
        ("openat:error=EIO", 0),
        ("?fstat,?newfstatat:error=EIO:when=1", 0),
        ("read:error=EIO:when=1", 0),
        ("read:error=EIO:when=2", len(FIRST)),
        ("?fstat,?newfstatat:error=EIO:when=2", len(FIRST + REST)),
    ],
    ids=["open", "first look", "first read", "second read", "last look"],
)
def test_a_device_that_fails_is_a_value(calls: str, size: int, tmp_path: Path) -> None:
    """A real EIO at any call gives the bytes that were read before it, errno, and no digest."""
    path = tmp_path / "file"
    path.write_bytes(FIRST + REST)
    with Reading(path, calls) as reading:
        digest, read, _, error = reading.seen()
    assert reading.injected
    assert ("None", str(size), str(errno.EIO)) == (digest, read, error)


@pytest.mark.parametrize(
    "call",
    ["openat:error=EMFILE", "openat:error=ENFILE", "openat:error=EPERM", "read:error=EINTR"],
)
def test_a_call_that_may_be_repeated_is_repeated(call: str, tmp_path: Path) -> None:
    """A descriptor that comes back, a signal, and O_NOATIME, for owners alone, are no errors."""
    path = tmp_path / "file"
    path.write_bytes(FIRST + REST)
    with Reading(path, f"{call}:when=1") as reading:
        assert [md5(FIRST + REST).hex(), str(len(FIRST + REST)), "True", "None"] == reading.seen()
    assert 1 == reading.injected


def replace(path: Path) -> None:
    """Put another file under the name, as a careful program does."""
    new = path.with_name("new")
    with faults.changed(path):
        new.write_bytes(b"other")
        new.rename(path)


CHANGES: dict[str, tuple[Callable[[Path], None], bytes]] = {
    "cut behind": (lambda path: faults.truncate(path, len(FIRST) + 1000), FIRST + REST[:1000]),
    "cut": (lambda path: faults.truncate(path, len(FIRST)), FIRST),
    "cut before": (lambda path: faults.truncate(path, 1000), FIRST),
    "emptied": (lambda path: faults.truncate(path, 0), FIRST),
    "extended": (faults.extend, FIRST + REST + b"\0"),
    "extended by much": (
        lambda path: faults.extend(path, bytes(1 << 20)),  # else it grows as fast as it is read
        FIRST + (REST + bytes(1 << 20))[: len(FIRST)],
    ),
    "flipped before": (lambda path: faults.flip_bit(path, 0), FIRST + REST),
    "flipped behind": (
        lambda path: faults.flip_bit(path, len(FIRST)),
        FIRST + bytes([REST[0] ^ 1]) + REST[1:],
    ),
    "replaced": (replace, FIRST + REST),
    "deleted": (faults.delete, FIRST + REST),
}
"""What happens to a file of which FIRST was read, and the bytes that are read in all."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_between_two_reads_is_unstable(change: str, tmp_path: Path) -> None:
    """The digest is of the bytes that were read; that they may be no file's is told.

    The reading process is stopped behind its first read, so that the change falls between
    the first and the second. A file that lost its name counts as changed too.
    """
    path = tmp_path / "file"
    path.write_bytes(FIRST + REST)
    make, expected = CHANGES[change]
    with Reading(path, "read:signal=STOP:when=1") as reading:
        reading.wait_for_stop()
        make(path)
        reading.go_on()
        assert [md5(expected).hex(), str(len(expected)), "False", "None"] == reading.seen()


def test_pieces_of_any_length_are_joined() -> None:
    """The kernel gives its own files in small pieces, which are no whole blocks."""
    path = Path("/proc/kallsyms")
    if not path.exists():
        pytest.skip("this kernel keeps its symbols to itself")
    assert [md5(path.read_bytes())] * 3 == [each.digest for each in observed([path] * 3)]


def test_a_name_with_nul_is_refused() -> None:
    """It would be cut short, and another file be read."""
    with pytest.raises(ValueError, match="null"):
        observe([b"/etc/passwd\0.txt"])


def test_arguments_that_do_not_fit_are_refused() -> None:
    """Offsets and records are checked before anything is read."""
    records, control = bytearray(128), array("q", [0] * 4)
    for names, offsets in ((b"a\0", [2]), (b"a\0", [-1]), (b"a", [0]), (b"a\0", [0, 1])):
        with pytest.raises(ValueError, match=r"fit|outside|end"):
            lanes.hash_files(names, array("q", offsets), records, control, -1, False, 0, 0, -1)


def test_hashlib_serves_where_it_is_not_built() -> None:
    """Without the extension the package imports, and hashes all the same."""
    code = (
        "import sys; sys.modules['dvc_integrity._lanes'] = None\n"
        "from dvc_integrity import hashing\n"
        "assert hashing._lanes is None\n"
        "print(hashing.hash_buffers([b'abc'])[0].hex)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert RFC_1321[b"abc"] == done.stdout.strip()

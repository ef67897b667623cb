"""The native MD5 kernel: equal to hashlib on every input, and as careful with files."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import socket
import subprocess
import sys
import threading
from array import array
from pathlib import Path

import faults
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observing import observe

from dvc_integrity import hashing
from dvc_integrity.hashing import Meter, hash_buffers, hash_files
from dvc_integrity.observation import Observation

if os.environ.get(hashing.KERNEL_VARIABLE):
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


# ----------------------------------------------------------------------------------- files


def without_kernel(paths: list[Path], **options: object) -> list[Observation]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_lanes", None)
        return observe(map(os.fspath, paths), **options)


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
    found = observe(map(os.fspath, odd_files), jobs=jobs, cold=cold)
    assert len(odd_files) == len(found)
    assert [] == [
        path for path, *both in zip(odd_files, expected, found, strict=True) if not alike(*both)
    ]


@every_kernel
def test_every_kernel_reads_files_alike(kernel: int, odd_files: list[Path]) -> None:
    """The scheduler feeds eight lanes as it feeds thirty-two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "BEST_KERNEL", kernel)
        found = observe(map(os.fspath, odd_files), jobs=1)
    expected = without_kernel(odd_files)
    assert [each.digest for each in expected] == [each.digest for each in found]


def test_more_files_than_a_window(tmp_path: Path) -> None:
    """Windows follow each other without a gap and without a change of order."""
    paths = []
    for number in range(hashing.FIRST_WINDOW_FILES + hashing.WINDOW_FILES + 5):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(b"%d" % number)
    found = observe(map(os.fspath, paths))
    assert [md5(b"%d" % number) for number in range(len(paths))] == [each.digest for each in found]


def test_few_descriptors_are_enough(odd_files: list[Path]) -> None:
    """Lanes that find no descriptor free wait for one; nothing is reported as an error."""
    expected = without_kernel(odd_files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 24, hard))
    try:
        found = observe(map(os.fspath, odd_files), jobs=4)
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
    found = observe(map(os.fspath, odd_files), meter=meter)
    assert (len(odd_files), sum(each.size for each in found)) == (meter.files, meter.bytes)


def test_one_changed_bit_changes_the_digest(tmp_path: Path) -> None:
    """A flip that leaves size, mode and time as they are is seen in the digest alone."""
    path = tmp_path / "file"
    path.write_bytes(some_bytes(300_000))
    (before,) = observe([os.fspath(path)])
    faults.flip_bit(path)
    (after,) = observe([os.fspath(path)])
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
        (seen,) = observe([os.fspath(path)])
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


def test_a_device_that_fails_half_way_is_a_value(tmp_path: Path) -> None:
    """A real EIO at the second read gives the bytes that were read before it, and errno."""
    path = tmp_path / "big"
    path.write_bytes(some_bytes(400_000))
    strace = ["strace", "-f", "-o", os.devnull, "-P", os.fspath(path)]
    if subprocess.run([*strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids strace")
    code = (
        "import sys; from dvc_integrity.hashing import hash_files\n"
        "(seen,) = next(hash_files([sys.argv[1]]))\n"
        "print(seen.digest, seen.size, seen.error.errno)"
    )
    done = subprocess.run(
        [*strace, "-e", "inject=read:error=EIO:when=2", sys.executable, "-c", code, path],
        capture_output=True,
        check=False,
        text=True,
    )
    assert f"None {128 * 1024} {errno.EIO}" == done.stdout.strip()


def test_a_name_with_nul_is_refused() -> None:
    """It would be cut short, and another file be read."""
    with pytest.raises(ValueError, match="null"):
        observe([b"/etc/passwd\0.txt"])


def test_arguments_that_do_not_fit_are_refused() -> None:
    """Offsets and records are checked before anything is read."""
    records, control = bytearray(128), array("q", [0] * 4)
    for names, offsets in ((b"a\0", [2]), (b"a\0", [-1]), (b"a", [0]), (b"a\0", [0, 1])):
        with pytest.raises(ValueError, match=r"fit|outside|end"):
            lanes.hash_files(names, array("q", offsets), records, control, -100, False, 0, 0, -1)


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

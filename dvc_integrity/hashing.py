"""Bytes and files to digests, many at a time.

The interface is batch-shaped: an iterable of paths gives observations in the same order, so
that whatever does the work underneath can keep every core and every lane busy. An
observation says what was read and what the file system said before and after, on the same
descriptor; it never says whether that is good.

Promises: a special file never blocks, a failure on one file is a value and the rest goes on,
memory does not grow with the number or the size of the files, and closing the iterator (or
Ctrl-C) ends the work after at most one piece of each running read.
"""

from __future__ import annotations

import errno
import importlib
import os
import stat
import struct
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from dvc_integrity.digest import DIGEST_BYTES, Algorithm, Digest

__all__ = [
    "FileState",
    "Meter",
    "Observation",
    "SpecialFileError",
    "hash_buffers",
    "hash_chunks",
    "hash_files",
    "read_chunks",
    "read_file",
    "usable_cpus",
]

PIECE_BYTES = 1 << 20
"""Bytes asked of the operating system at a time."""

BATCH_FILES = 32
"""Files handed to a thread at a time: enough to make the hand-over cheap."""

BATCHES_AHEAD = 4
"""Batches per thread that may wait for the consumer: bounds memory."""

WINDOW_FILES = 1 << 13
"""Files that the threads of the native kernel share: the lanes run dry once a window."""

FIRST_WINDOW_FILES = 1 << 10
"""The first window is smaller, so that the first observations come early."""

WINDOWS_AHEAD = 2
"""Windows in work: one is read while the observations of the other are taken."""

SECONDS_BETWEEN_TOTALS = 0.1
"""How often the native kernel's totals are passed to a meter."""

KERNEL_VARIABLE = "DVC_INTEGRITY_KERNEL"
"""Set to ``hashlib`` in the environment, it keeps the native kernel out of use."""

BEST_KERNEL = -1
"""The widest kernel that the processor runs."""

AT_CURRENT_FOLDER = -100
"""``AT_FDCWD``: relative names start from the current folder."""

_RECORD = struct.Struct("16s14q")
"""digest, size, state before (six numbers), state after, errno: ``record`` in ``_lanes.c``."""

_SPECIAL = -1
"""What ``_lanes.c`` gives for a FIFO or a device, where errno would say too little."""

_A_FOLDER = "is a folder, not a file"
_A_SPECIAL_FILE = "is a special file (FIFO, socket or device)"
_A_SOCKET = "is a socket or a device"

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not block


def _load_kernel() -> Any:
    if os.environ.get(KERNEL_VARIABLE) == "hashlib":
        return None
    try:
        return importlib.import_module("dvc_integrity._lanes")
    except ImportError:  # built without a compiler: hashlib serves the same interface
        return None


_lanes = _load_kernel()


class FileState(NamedTuple):
    """What ``fstat`` said of an open file. Times are in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int

    @classmethod
    def of(cls, result: os.stat_result) -> FileState:
        """Keep the fields that tell whether a file was touched."""
        return cls(
            result.st_dev,
            result.st_ino,
            result.st_size,
            result.st_mtime_ns,
            result.st_ctime_ns,
            result.st_mode,
        )


class Observation(NamedTuple):
    """What one read of one file showed.

    ``digest`` is None exactly when ``error`` is set. ``size`` counts the bytes that were read,
    also when the read failed half way.
    """

    digest: bytes | None
    size: int
    before: FileState | None
    after: FileState | None
    error: OSError | None

    @property
    def stable(self) -> bool:
        """Whether the file looked the same before and after it was read."""
        return self.before == self.after


class Meter:
    """Running totals that several threads add to and a display reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.files = 0
        self.bytes = 0

    def add(self, files: int, size: int) -> None:
        """Count finished files and bytes that were read."""
        with self._lock:
            self.files += files
            self.bytes += size


class SpecialFileError(OSError):
    """A FIFO, a socket or a device lies where a file should be."""


class _Stopped(Exception):  # noqa: N818 (a signal between threads, not an error)
    """The consumer went away; the work in flight is to end."""


def usable_cpus() -> int:
    """Return how many processors this process may run on (its affinity, not the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hash_files(
    paths: Iterable[str | bytes],
    algorithm: Algorithm = Algorithm.MD5,
    *,
    jobs: int | None = None,
    cold: bool = False,
    meter: Meter | None = None,
) -> Iterator[Observation]:
    """Read and hash files on several threads.

    Parameters
    ----------
    paths
        Files to read; symbolic links are followed. Taken lazily.
    algorithm
        The content hash.
    jobs
        Threads; by default one per usable processor.
    cold
        Ask the kernel to drop each file's cached pages first, so that the bytes come from
        the device (``posix_fadvise``, where the system has it).
    meter
        Totals to add to while the work goes on.

    Yields
    ------
    Observation
        One per path, in the order of ``paths``.
    """
    threads = max(1, jobs or usable_cpus())
    if _lanes is not None and algorithm is Algorithm.MD5:
        return _hash_in_lanes(paths, threads, cold, meter)
    return _hash_one_by_one(paths, algorithm, threads, cold, meter)


def hash_buffers(
    buffers: Sequence[bytes | bytearray | memoryview], algorithm: Algorithm = Algorithm.MD5
) -> list[Digest]:
    """Hash a batch of buffers in memory; one digest per buffer, in order."""
    if _lanes is None or algorithm is not Algorithm.MD5:
        return [_hash_buffer(buffer, algorithm) for buffer in buffers]
    values = _lanes.hash_buffers(list(buffers), None, BEST_KERNEL)
    return [
        Digest(algorithm, values[at : at + DIGEST_BYTES])
        for at in range(0, len(values), DIGEST_BYTES)
    ]


def hash_chunks(
    chunks: Iterable[bytes], algorithm: Algorithm = Algorithm.MD5, meter: Meter | None = None
) -> tuple[Digest, int]:
    """Hash a stream; return its digest and its length in bytes."""
    hasher = algorithm.hasher()
    size = 0
    for chunk in chunks:
        hasher.update(chunk)
        size += len(chunk)
        if meter:
            meter.add(0, len(chunk))
    return Digest(algorithm, hasher.digest()), size


def read_file(
    path: str | bytes, algorithm: Algorithm = Algorithm.MD5, *, cold: bool = False
) -> tuple[bytes, Observation]:
    """Read a whole file once and hash that very buffer.

    Parameters
    ----------
    path
        File to read; symbolic links are followed.
    algorithm
        The content hash.
    cold
        Drop the file's cached pages first.

    Returns
    -------
    tuple[bytes, Observation]
        The bytes (empty if ``error`` is set) and what was seen. The digest is of the bytes
        that are returned: nothing is read twice.
    """
    try:
        descriptor = _open(path)
        try:
            before = _regular(descriptor, path)
            if cold:
                _drop_cached_pages(descriptor)
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                data = file.readall()
            after = FileState.of(os.fstat(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        return b"", Observation(None, 0, None, None, error)
    return data, Observation(_hash_buffer(data, algorithm).value, len(data), before, after, None)


def read_chunks(path: str | bytes) -> Iterator[bytes]:
    """Yield the bytes of a regular file, in pieces.

    Raises
    ------
    OSError
        If it cannot be read, or is a folder or a special file.
    """
    descriptor = _open(path)
    try:
        _regular(descriptor, path)
        while piece := os.read(descriptor, PIECE_BYTES):
            yield piece
    finally:
        os.close(descriptor)


def _hash_one_by_one(
    paths: Iterable[str | bytes],
    algorithm: Algorithm,
    threads: int,
    cold: bool,
    meter: Meter | None,
) -> Iterator[Observation]:
    """Hash files over hashlib, each thread one file after the other."""
    stop = threading.Event()
    source = iter(paths)

    def work(batch: list[str | bytes]) -> list[Observation]:
        buffer = memoryview(bytearray(PIECE_BYTES))
        return [_hash_file(path, algorithm, buffer, cold, meter, stop) for path in batch]

    executor = ThreadPoolExecutor(threads, thread_name_prefix="dvc-integrity-hash")
    waiting: deque[Future[list[Observation]]] = deque()
    try:
        while True:
            while len(waiting) < threads * BATCHES_AHEAD:
                batch = list(islice(source, BATCH_FILES))
                if not batch:
                    break
                waiting.append(executor.submit(work, batch))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _hash_in_lanes(
    paths: Iterable[str | bytes], threads: int, cold: bool, meter: Meter | None
) -> Iterator[Observation]:
    """Hash files with the native kernel: windows of files that all threads take from."""
    source = map(os.fsencode, paths)
    executor = ThreadPoolExecutor(threads, thread_name_prefix="dvc-integrity-hash")
    windows: deque[_Window] = deque()
    size = FIRST_WINDOW_FILES
    try:
        while True:
            while len(windows) < WINDOWS_AHEAD and (names := list(islice(source, size))):
                windows.append(_Window(names, executor, threads, cold))
                size = WINDOW_FILES
            if not windows:
                return
            windows[0].wait(meter)
            yield from windows.popleft().observations()
    finally:
        for window in windows:
            window.stop()
        executor.shutdown(wait=True, cancel_futures=True)


class _Window:
    """Files that several threads hash together; each takes the next one as a lane falls free."""

    def __init__(
        self, names: list[bytes], executor: ThreadPoolExecutor, threads: int, cold: bool
    ) -> None:
        blob = b"\0".join(names) + b"\0"
        if blob.count(b"\0") != len(names):
            raise ValueError("embedded null byte in a path")
        self._names = names
        self._records = bytearray(len(names) * _RECORD.size)
        self._control = array("q", [0, 0, 0, 0])  # next file, files done, bytes read, stop
        lengths = np.fromiter(map(len, names), np.int64, len(names)) + 1
        arguments: tuple[Any, ...] = (
            blob,
            (np.cumsum(lengths) - lengths).tobytes(),
            None,
            self._records,
            self._control,
            AT_CURRENT_FOLDER,
            cold,
            -(-len(names) // threads),  # few files: a share of them for each thread
            BEST_KERNEL,
        )
        self._running = [executor.submit(_lanes.hash_files, *arguments) for _ in range(threads)]
        self._told = (0, 0)

    def wait(self, meter: Meter | None) -> None:
        """Wait until every file is done, telling the meter on the way."""
        running = set(self._running)
        while running:
            done, running = wait(running, timeout=SECONDS_BETWEEN_TOTALS)
            for future in done:
                future.result()
            if meter:
                files, size = self._control[1], self._control[2]
                meter.add(files - self._told[0], size - self._told[1])
                self._told = (files, size)

    def stop(self) -> None:
        """Let the threads end after at most one step of the lanes."""
        self._control[3] = 1

    def observations(self) -> Iterator[Observation]:
        """Yield what was seen of each file, in order."""
        for name, record in zip(self._names, _RECORD.iter_unpack(self._records), strict=True):
            digest, size, error = record[0], record[1], record[14]
            if error:
                before = FileState(*record[2:8]) if record[3] else None
                yield Observation(None, size, before, None, _system_error(error, name))
            else:
                before = FileState(*record[2:8])
                after = before if record[2:8] == record[8:14] else FileState(*record[8:14])
                yield Observation(digest, size, before, after, None)


def _system_error(number: int, name: bytes) -> OSError:
    if number == errno.EISDIR:
        return IsADirectoryError(number, _A_FOLDER, name)
    if number == _SPECIAL:
        return SpecialFileError(errno.EINVAL, _A_SPECIAL_FILE, name)
    if number == errno.ENXIO:
        return SpecialFileError(number, _A_SOCKET, name)
    return OSError(number, os.strerror(number), name)


def _hash_buffer(buffer: bytes | bytearray | memoryview, algorithm: Algorithm) -> Digest:
    hasher = algorithm.hasher()
    hasher.update(buffer)
    return Digest(algorithm, hasher.digest())


def _hash_file(
    path: str | bytes,
    algorithm: Algorithm,
    buffer: memoryview,
    cold: bool,
    meter: Meter | None,
    stop: threading.Event,
) -> Observation:
    size = 0
    before: FileState | None = None
    try:
        descriptor = _open(path)
        try:
            before = _regular(descriptor, path)
            if cold:
                _drop_cached_pages(descriptor)
            hasher = algorithm.hasher()
            while count := os.readv(descriptor, [buffer]):
                if stop.is_set():
                    raise _Stopped
                hasher.update(buffer[:count])
                size += count
                if meter:
                    meter.add(0, count)
            after = FileState.of(os.fstat(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        return Observation(None, size, before, None, error)
    finally:
        if meter:
            meter.add(1, 0)
    return Observation(hasher.digest(), size, before, after, None)


def _open(path: str | bytes) -> int:
    try:
        return os.open(path, _OPEN_FLAGS)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what a socket, or a device without a driver, answers
            raise SpecialFileError(errno.ENXIO, _A_SOCKET, path) from error
        raise


def _regular(descriptor: int, path: str | bytes) -> FileState:
    """Return the state of an open regular file; refuse everything else.

    Raises
    ------
    IsADirectoryError
        If it is a folder.
    SpecialFileError
        If it is a FIFO or a device: such a thing has no content to hash.
    """
    result = os.fstat(descriptor)
    if stat.S_ISREG(result.st_mode):
        return FileState.of(result)
    if stat.S_ISDIR(result.st_mode):
        raise IsADirectoryError(errno.EISDIR, _A_FOLDER, path)
    raise SpecialFileError(errno.EINVAL, _A_SPECIAL_FILE, path)


def _drop_cached_pages(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

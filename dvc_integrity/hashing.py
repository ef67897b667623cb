"""Bytes and files to digests, many at a time.

The interface is batch-shaped: an iterable of paths gives batches of observations, so that
whatever does the work underneath can keep every core and every lane busy. An observation says
what was read; it never says whether that is good.

Promises: a special file never blocks, a failure on one file is a value and the rest goes on,
memory does not grow with the number or the size of the files, and closing the iterator (or
Ctrl-C) ends the work after at most one piece of each running read.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
import sys
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.digest import DIGEST_BYTES, Algorithm, Digest
from dvc_integrity.kernel import native
from dvc_integrity.observation import (
    RECORD,
    FileState,
    Observation,
    Observations,
    SpecialFileError,
)

__all__ = [
    "LARGE_BYTES",
    "Chains",
    "LargeFile",
    "LargeFiles",
    "Meter",
    "Paths",
    "add_digests",
    "drop_cached_pages",
    "file_state",
    "hash_buffers",
    "hash_chunks",
    "hash_files",
    "open_file",
    "read_chunks",
    "read_file",
    "read_files",
    "read_whole",
    "usable_cpus",
    "usable_descriptors",
]

LARGE_BYTES = 1 << 24
"""Files of so many bytes or more come last, together: alone they would keep one lane busy."""

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

BEST_KERNEL = -1
"""The widest kernel that the processor runs."""

AT_CURRENT_FOLDER = -1
"""Relative names start from the current folder."""

_SPECIAL, _PUT_ASIDE = -1, -2
"""What ``_lanes.c`` gives for a FIFO or a device, and for a file that is not below the limit."""

_CHAIN_START = bytes.fromhex("0123456789abcdeffedcba9876543210")  # RFC 1321
_CHAIN_BLOCK = 64

_A_FOLDER = "is a folder, not a file"
_A_SPECIAL_FILE = "is a special file (FIFO, socket or device)"
_A_SOCKET = "is a socket or a device"

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a FIFO must not block
_NO_ATIME = getattr(os, "O_NOATIME", 0)


_lanes = native


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


class Paths:
    """Many paths as one blob, as cheap as columns.

    Parameters
    ----------
    names
        Paths, each followed by NUL.
    starts
        Where each begins in ``names``; int64[n].
    folder
        What relative paths start from; by default the current folder.
    """

    def __init__(self, names: bytes, starts: NDArray[np.int64], folder: bytes = b"") -> None:
        self.names = names
        self.starts = starts
        self.folder = folder

    @classmethod
    def of(cls, paths: Sequence[bytes]) -> Paths:
        """Join paths that came one by one.

        Raises
        ------
        ValueError
            If one holds a NUL: it would be cut short, and another file be read.
        """
        names = b"\0".join(paths) + b"\0"
        if names.count(b"\0") != len(paths):
            raise ValueError("embedded null byte in a path")
        lengths = np.fromiter(map(len, paths), np.int64, len(paths)) + 1
        return cls(names, np.cumsum(lengths) - lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> bytes:
        start = int(self.starts[row])
        name = self.names[start : self.names.index(b"\0", start)]
        return os.path.join(self.folder, name) if self.folder else name

    def part(self, start: int, stop: int) -> Paths:
        """Return the paths at ``start`` to ``stop``; nothing is copied."""
        return Paths(self.names, self.starts[start:stop], self.folder)


class LargeFile(NamedTuple):
    """A file that comes last: its position among the inputs, its path, and its size in bytes."""

    position: int
    path: bytes
    size: int


class LargeFiles(Protocol):
    """Another way to read large files than from end to end."""

    def observe(
        self, files: Sequence[LargeFile], *, threads: int, cold: bool, meter: Meter | None
    ) -> Iterator[Observations]:
        """Read all of ``files``; each comes in some batch."""


class _Stopped(Exception):  # noqa: N818 (a signal between threads, not an error)
    """The consumer went away; the work in flight is to end."""


def usable_cpus() -> int:
    """Return how many processors this process may run on (its affinity, not the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_descriptors() -> int:
    """Return how many files to have open at a time: half of what is allowed, others need some."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most // 2


def hash_files(
    paths: Iterable[str | bytes] | Paths,
    algorithm: Algorithm = Algorithm.MD5,
    *,
    jobs: int | None = None,
    cold: bool = False,
    meter: Meter | None = None,
    large: LargeFiles | None = None,
) -> Iterator[Observations]:
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
    large
        Reads the files of ``LARGE_BYTES`` or more.

    Yields
    ------
    Observations
        Batches; together they have one row for each path, and ``positions`` say which. Large
        files come last.
    """
    threads = max(1, jobs or usable_cpus())
    if _lanes is not None and algorithm is Algorithm.MD5:
        read: Any = partial(_hash_in_lanes, threads=threads, cold=cold, meter=meter)
    else:
        read = partial(_hash_one_by_one, algorithm, threads=threads, cold=cold, meter=meter)
    aside: list[LargeFile] = []
    source = paths if isinstance(paths, Paths) else map(os.fsencode, paths)
    with closing(read(source, aside=aside)) as batches:
        yield from batches
    if not aside:
        return
    aside.sort(key=lambda file: file.size, reverse=True)
    if large is not None:
        yield from large.observe(aside, threads=threads, cold=cold, meter=meter)
        return
    positions = np.array([file.position for file in aside], np.int64)
    for seen in read([file.path for file in aside], aside=None):
        seen.positions = positions[seen.positions]
        yield seen


def hash_buffers(
    buffers: Sequence[bytes | bytearray | memoryview], algorithm: Algorithm = Algorithm.MD5
) -> list[Digest]:
    """Hash a batch of buffers in memory; one digest per buffer, in order."""
    return [Digest(algorithm, value) for value in _digests_of(buffers, algorithm)]


def _digests_of(
    buffers: Sequence[bytes | bytearray | memoryview], algorithm: Algorithm
) -> list[bytes]:
    if _lanes is None or algorithm is not Algorithm.MD5:
        return [_hash_buffer(buffer, algorithm) for buffer in buffers]
    values: bytes = _lanes.hash_buffers(list(buffers), BEST_KERNEL)
    return [values[at : at + DIGEST_BYTES] for at in range(0, len(values), DIGEST_BYTES)]


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


def read_files(
    paths: Iterable[str | bytes],
    algorithm: Algorithm = Algorithm.MD5,
    *,
    cold: bool = False,
) -> list[tuple[bytes, Observation]]:
    """Read whole files once each, and hash those very buffers side by side.

    Parameters
    ----------
    paths
        Files to read; symbolic links are followed.
    algorithm
        The content hash.
    cold
        Drop the files' cached pages first.

    Returns
    -------
    list[tuple[bytes, Observation]]
        For each path its bytes (empty if ``error`` is set) and what was seen. The digest is of
        the bytes that are returned: nothing is read twice.
    """
    return add_digests([read_whole(path, cold) for path in paths], algorithm)


def add_digests(
    read: Sequence[tuple[bytes, Observation]], algorithm: Algorithm
) -> list[tuple[bytes, Observation]]:
    """Hash bytes that were read, side by side, and put the digests into what was seen."""
    buffers = [data for data, seen in read if not seen.error]
    digests = iter(_digests_of(buffers, algorithm))
    return [
        (data, seen if seen.error else Observation(next(digests), *seen[1:])) for data, seen in read
    ]


def read_file(
    path: str | bytes, algorithm: Algorithm = Algorithm.MD5, *, cold: bool = False
) -> tuple[bytes, Observation]:
    """Read a whole file once and hash that very buffer; as ``read_files``, for one."""
    (read,) = read_files([path], algorithm, cold=cold)
    return read


def read_whole(path: str | bytes, cold: bool = False) -> tuple[bytes, Observation]:
    """Read a whole file, and hash nothing: the observation has no digest."""
    before: FileState | None = None
    data = b""
    try:
        descriptor, before = open_file(path)
        try:
            if cold:
                drop_cached_pages(descriptor)
            data = _read_to_size(descriptor, before.size)
            after = file_state(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return b"", Observation(None, len(data), before, None, error)
    return data, Observation(None, len(data), before, after, None)


def _read_to_size(descriptor: int, size: int) -> bytes:
    """Read the bytes that a file was said to have, or fewer if it ends before.

    One of size 0 is read to its end: it may be one whose size is not known (procfs).
    """
    data = os.read(descriptor, size or PIECE_BYTES)
    if len(data) == size or not data:
        return data
    pieces = [data]
    while piece := os.read(descriptor, size - sum(map(len, pieces)) if size else PIECE_BYTES):
        pieces.append(piece)
    return b"".join(pieces)


def read_chunks(path: str | bytes) -> Iterator[bytes]:
    """Yield the bytes of a regular file, in pieces.

    Raises
    ------
    OSError
        If it cannot be read, or is a folder or a special file.
    """
    descriptor, _ = open_file(path)
    try:
        while piece := os.read(descriptor, PIECE_BYTES):
            yield piece
    finally:
        os.close(descriptor)


class Chains:
    """MD5 of several streams that advance side by side, one chain a lane.

    Parameters
    ----------
    count
        How many streams; ``Chains.MOST`` are worth while at a time.
    """

    MOST = 32

    def __init__(self, count: int) -> None:
        self._hashers = None if _lanes else [Algorithm.MD5.hasher() for _ in range(count)]
        self._states = bytearray(_CHAIN_START * count)
        self._sizes = [0] * count

    def update(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Take in a piece for each stream; its length is a multiple of 64 bytes, or 0."""
        if self._hashers is None:
            _lanes.advance(self._states, list(pieces), BEST_KERNEL)
            for stream, piece in enumerate(pieces):
                self._sizes[stream] += len(piece)
            return
        for hasher, piece in zip(self._hashers, pieces, strict=True):
            hasher.update(piece)

    def finish(self, stream: int, rest: bytes | memoryview) -> bytes:
        """Return the digest of a stream that ends with ``rest``, and begin it anew."""
        if self._hashers is not None:
            hasher, self._hashers[stream] = self._hashers[stream], Algorithm.MD5.hasher()
            hasher.update(rest)
            return hasher.digest()
        size = self._sizes[stream] + len(rest)
        padding = b"\x80" + bytes((-size - 9) % _CHAIN_BLOCK) + (8 * size).to_bytes(8, "little")
        at = slice(stream * DIGEST_BYTES, (stream + 1) * DIGEST_BYTES)
        state = self._states[at]
        _lanes.advance(state, [bytes(rest) + padding], BEST_KERNEL)
        self._states[at], self._sizes[stream] = _CHAIN_START, 0
        return bytes(state)


def _hash_one_by_one(
    algorithm: Algorithm,
    paths: Iterable[bytes] | Paths,
    *,
    threads: int,
    cold: bool,
    meter: Meter | None,
    aside: list[LargeFile] | None,
) -> Iterator[Observations]:
    """Hash files over hashlib, each thread one file after the other."""
    stop = threading.Event()
    source = enumerate(_one_by_one(paths))
    limit = None if aside is None else LARGE_BYTES

    def work(batch: list[tuple[int, bytes]]) -> list[Observation | LargeFile]:
        buffer = memoryview(bytearray(PIECE_BYTES))
        return [
            _hash_file(position, path, algorithm, buffer, limit, cold, meter, stop)
            for position, path in batch
        ]

    executor = ThreadPoolExecutor(threads, thread_name_prefix="dvc-integrity-hash")
    waiting: deque[tuple[list[int], Future[list[Observation | LargeFile]]]] = deque()
    try:
        while True:
            while len(waiting) < threads * BATCHES_AHEAD:
                batch = list(islice(source, BATCH_FILES))
                if not batch:
                    break
                positions = [position for position, _ in batch]
                waiting.append((positions, executor.submit(work, batch)))
            if not waiting:
                return
            positions, future = waiting.popleft()
            done = list(zip(positions, future.result(), strict=True))
            if aside is not None:
                aside += [each for _, each in done if isinstance(each, LargeFile)]
            read = [pair for pair in done if isinstance(pair[1], Observation)]
            yield Observations.of([at for at, _ in read], [seen for _, seen in read])  # type: ignore[misc]
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _hash_in_lanes(
    paths: Iterable[bytes] | Paths,
    *,
    threads: int,
    cold: bool,
    meter: Meter | None,
    aside: list[LargeFile] | None,
) -> Iterator[Observations]:
    """Hash files with the native kernel: windows of files that all threads take from."""
    folder = AT_CURRENT_FOLDER
    if isinstance(paths, Paths) and paths.folder:
        try:
            folder = os.open(paths.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            paths = _one_by_one(paths)  # each path says for itself what is wrong
    source = _in_windows(paths)
    executor = ThreadPoolExecutor(threads, thread_name_prefix="dvc-integrity-hash")
    windows: deque[_Window] = deque()
    start = 0
    limit = 0 if aside is None else LARGE_BYTES
    try:
        while True:
            for part in islice(source, WINDOWS_AHEAD - len(windows)):
                windows.append(_Window(start, part, folder, threads, cold, limit))
                windows[-1].start(executor)
                start += len(part)
            if not windows:
                return
            windows[0].wait(meter)
            window = windows.popleft()
            if aside is not None:
                aside += window.put_aside()
            yield window.observations()
    finally:
        for window in windows:
            window.stop()
        executor.shutdown(wait=True, cancel_futures=True)
        if folder != AT_CURRENT_FOLDER:
            os.close(folder)


def _in_windows(paths: Iterable[bytes] | Paths) -> Iterator[Paths]:
    """Cut paths into windows of files."""
    sizes = chain([FIRST_WINDOW_FILES], repeat(WINDOW_FILES))
    if isinstance(paths, Paths):
        start = 0
        while start < len(paths):
            size = next(sizes)
            yield paths.part(start, start + size)
            start += size
        return
    source = iter(paths)
    while names := list(islice(source, next(sizes))):
        yield Paths.of(names)


def _one_by_one(paths: Iterable[bytes] | Paths) -> Iterable[bytes]:
    return map(paths.__getitem__, range(len(paths))) if isinstance(paths, Paths) else paths


class _Window:
    """Files that several threads hash together; each takes the next one as a lane falls free."""

    def __init__(
        self,
        start: int,
        paths: Paths,
        folder: int,
        threads: int,
        cold: bool,
        limit: int,
    ) -> None:
        self._start = start
        self._paths = paths
        self._records = np.zeros(len(paths), RECORD)
        self._control = array("q", [0, 0, 0, 0])  # next file, files done, bytes read, stop
        self._threads = threads
        self._running: list[Future[None]] = []
        share = -(-len(paths) // threads)  # few files: a share of them for each thread
        first_and_second_reads = 2
        files_open = usable_descriptors() // (first_and_second_reads * threads)
        self._arguments: tuple[Any, ...] = (
            paths.names,
            np.ascontiguousarray(paths.starts),
            self._records.view(np.uint8),
            self._control,
            folder,
            cold,
            limit,
            max(1, min(share, files_open)),
            BEST_KERNEL,
        )
        self._told = (0, 0)

    def start(self, executor: ThreadPoolExecutor) -> None:
        """Let the threads begin; what started before an error here is stopped by ``stop``."""
        for _ in range(self._threads):
            self._running.append(executor.submit(_lanes.hash_files, *self._arguments))

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

    def put_aside(self) -> Iterator[LargeFile]:
        """Yield the files that were not below the limit."""
        for row in np.flatnonzero(self._records["error"] == _PUT_ASIDE).tolist():
            size = FileState(*self._records["before"][row].tolist()).size
            yield LargeFile(self._start + row, self._paths[row], size)

    def observations(self) -> Observations:
        """Return what was seen of the other files, in order."""
        read = np.flatnonzero(self._records["error"] != _PUT_ASIDE)
        records = self._records if len(read) == len(self._records) else self._records[read]
        errors = {
            row: _system_error(int(records["error"][row]), self._paths[read[row]])
            for row in np.flatnonzero(records["error"]).tolist()
        }
        return Observations(self._start + read, records, errors)


def _system_error(number: int, name: bytes) -> OSError:
    if number == errno.EISDIR:
        return IsADirectoryError(number, _A_FOLDER, name)
    if number == _SPECIAL:
        return SpecialFileError(errno.EINVAL, _A_SPECIAL_FILE, name)
    if number == errno.ENXIO:
        return SpecialFileError(number, _A_SOCKET, name)
    return OSError(number, os.strerror(number), name)


def _hash_buffer(buffer: bytes | bytearray | memoryview, algorithm: Algorithm) -> bytes:
    hasher = algorithm.hasher()
    hasher.update(buffer)
    return hasher.digest()


def _hash_file(
    position: int,
    path: bytes,
    algorithm: Algorithm,
    buffer: memoryview,
    limit: int | None,
    cold: bool,
    meter: Meter | None,
    stop: threading.Event,
) -> Observation | LargeFile:
    size = 0
    before: FileState | None = None
    try:
        descriptor, before = open_file(path)
        try:
            if limit is not None and before.size >= limit:
                return LargeFile(position, path, before.size)
            if cold:
                drop_cached_pages(descriptor)
            hasher = algorithm.hasher()
            while count := os.readv(descriptor, [buffer]):
                if stop.is_set():
                    raise _Stopped
                hasher.update(buffer[:count])
                size += count
                if meter:
                    meter.add(0, count)
                if 0 < before.size <= size:  # else a file that grows for ever is read for ever
                    break
            after = file_state(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        seen = Observation(None, size, before, None, error)
    else:
        seen = Observation(hasher.digest(), size, before, after, None)
    if meter:
        meter.add(1, 0)
    return seen


def open_file(path: str | bytes) -> tuple[int, FileState]:
    """Open a regular file for reading; return its descriptor and state. It never blocks.

    Raises
    ------
    IsADirectoryError
        If it is a folder.
    SpecialFileError
        If it is a FIFO, a socket or a device: such a thing has no content to hash.
    OSError
        If it cannot be opened.
    """
    try:
        descriptor = _open_without_trace(path)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what a socket, or a device without a driver, answers
            raise SpecialFileError(errno.ENXIO, _A_SOCKET, path) from error
        raise
    try:
        return descriptor, _regular(file_state(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise


def _regular(state: FileState, path: str | bytes) -> FileState:
    if stat.S_ISDIR(state.mode):
        raise IsADirectoryError(errno.EISDIR, _A_FOLDER, path)
    if not stat.S_ISREG(state.mode):
        raise SpecialFileError(errno.EINVAL, _A_SPECIAL_FILE, path)
    return state


def file_state(descriptor: int) -> FileState:
    """Return what tells whether an open file was touched.

    Raises
    ------
    OSError
        If the file system does not say.
    """
    return FileState.of(os.fstat(descriptor))


def drop_cached_pages(descriptor: int) -> None:
    """Ask the system to forget a file's pages, so that the next read goes to the device."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _open_without_trace(path: str | bytes) -> int:
    """Open a file without a new access time, where its owner asks; else as it comes."""
    try:
        return os.open(path, _OPEN_FLAGS | _NO_ATIME)
    except PermissionError as error:
        if error.errno != errno.EPERM or not _NO_ATIME:
            raise
        return os.open(path, _OPEN_FLAGS)

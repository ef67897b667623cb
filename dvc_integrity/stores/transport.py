"""How the bytes of remote objects come: one request each, many at a time, in bounded time.

S3, web servers and SSH are asked on fsspec's event loop, so that one thread has many objects on
their way; any other remote is read on threads of its own. A remote that sends nothing for a
while has stalled: what is read from it is tried once more, and once several objects in a row
have stalled, the others are not asked for any more. A read that is cut off goes on where it
stopped, a few times.
"""

from __future__ import annotations

import asyncio
import errno
import queue
import random
import stat
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from dvc_integrity.digest import Algorithm
from dvc_integrity.hashing import Meter, hash_chunks
from dvc_integrity.stores.failures import (
    StalledError,
    as_os_error,
    is_lost,
    is_stall,
    may_pass,
)

__all__ = ["CHUNK_BYTES", "MOST_STREAMS", "STALL_SECONDS", "Read", "Transport", "within"]

STALL_SECONDS = 60.0
"""How long a remote may send nothing, where DVC's configuration does not say."""

STREAMS = 32
"""Objects on their way at a time, where nothing else is asked for."""

MOST_STREAMS = 128
"""Objects on their way at a time at most; each holds up to ``CHUNK_BYTES`` twice."""

THREADS = 8
"""Threads that read a remote which cannot be asked on an event loop."""

CHUNK_BYTES = 1 << 20
"""Bytes read from an object at a time."""

HASHED_IN_PLACE_BYTES = 1 << 16
"""Fewer bytes are hashed faster than they are handed to a thread."""

ATTEMPTS = 5
"""Tries without any progress before a failure that may pass is one."""

STALLED_TRIES = 2
"""Tries of one object that may stall."""

STALLED_OBJECTS = 3
"""So many objects that stall in a row, and nothing comes in between: the remote is given up."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""How long to wait before the next try; doubled each time, and a random part of it is taken."""

LOOK_SECONDS = 0.2
"""How often a thread that waits looks whether it is still wanted."""

Result = TypeVar("Result")
Read = tuple[bytes, int] | OSError
"""The digest and the length of an object, or why it could not be read."""


@dataclass(frozen=True, slots=True)
class _Body:
    """The bytes of an object from ``start`` on, as they come; ``end`` is where they must end."""

    read: Callable[[int], Awaitable[bytes]]
    start: int
    end: int | None


Opener = Callable[[Any, str, int], AbstractAsyncContextManager[_Body]]


class Transport:
    """Reads a remote.

    Parameters
    ----------
    filesystem
        What opens its files: a filesystem of fsspec.
    seconds
        How long it may send nothing.
    """

    def __init__(self, filesystem: Any, seconds: float) -> None:
        self.filesystem = filesystem
        self.seconds = seconds
        self._health = _Health(seconds)
        self._renewing = threading.Lock()
        self._opener = _opener(filesystem)

    def __reduce__(self) -> tuple[type[Transport], tuple[Any, float]]:
        return Transport, (self.filesystem, self.seconds)

    @property
    def streams(self) -> int:
        """How many objects are best on their way at a time."""
        return STREAMS if self._opener else THREADS

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the bytes at a path, in pieces.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        OSError
            If it cannot be read, stalls, or ends too early whenever it is tried.
        """
        if self._opener is None:
            return self._stream_on_thread(path, threading.Event())
        return self._stream_on_loop(path, self._opener)

    def digests(
        self, paths: Iterator[str], algorithm: Algorithm, jobs: int | None, meter: Meter | None
    ) -> Generator[list[tuple[int, Read]], None, None]:
        """Read and hash objects, many at a time; yield batches of position and result.

        Closing the iterator, or Ctrl-C, ends what is on its way.
        """
        if self._opener is None:
            yield from self._digests_on_threads(enumerate(paths), algorithm, jobs, meter)
            return
        work = _Work(self, self._opener, enumerate(paths), algorithm, meter)
        running = asyncio.run_coroutine_threadsafe(
            work.run(min(jobs or STREAMS, MOST_STREAMS)), self.filesystem.loop
        )
        try:
            yield from work.results()
            running.result()
        finally:
            running.cancel()

    def tried(self, action: Callable[[Any], Result], path: str, seconds: float = 0) -> Result:
        """Do something with the filesystem that may fail for a while, in bounded time.

        Raises
        ------
        OSError
            If it fails for good.
        """
        tries = _Tries(path, self._health)
        while True:
            used = self.filesystem
            try:
                self._health.ask(path)
                result = within(seconds or self.seconds, lambda: action(used), path)  # noqa: B023 (it ends before the next)
            except Exception as error:  # noqa: BLE001 (each kind of remote fails in a way of its own)
                time.sleep(tries.pause(error))
                self.renew(used, error)
            else:
                self._health.progressed()
                return result

    def renew(self, used: Any, error: BaseException) -> None:
        """Open a session of SSH anew after it was lost; others open one for each request.

        Another thread may have done so for the same reason.
        """
        if self._opener is not _from_ssh or not (is_lost(error) or is_stall(error)):
            return
        with self._renewing:
            if self.filesystem is used:
                self.filesystem = type(used)(
                    *used.storage_args, **{**used.storage_options, "skip_instance_cache": True}
                )

    def _stream_on_loop(self, path: str, opener: Opener) -> Iterator[bytes]:
        download = _Download(self, opener, path)
        loop = self.filesystem.loop
        try:
            while not download.ended:
                running = asyncio.run_coroutine_threadsafe(download.read(), loop)
                try:
                    piece = running.result()
                finally:
                    running.cancel()
                if piece:
                    yield piece
        finally:
            asyncio.run_coroutine_threadsafe(download.close(), loop)

    def _stream_on_thread(self, path: str, unwanted: threading.Event) -> Iterator[bytes]:
        offset, tries = 0, _Tries(path, self._health)
        while True:
            try:
                self._health.ask(path)
                with _Pump(self.filesystem, path, offset) as pump:
                    for chunk in pump.chunks(self.seconds, unwanted):
                        offset += len(chunk)
                        tries.progressed()
                        yield chunk
            except Exception as error:  # noqa: BLE001 (each kind of remote fails in a way of its own)
                time.sleep(tries.pause(error))
            else:
                self._health.progressed()
                return

    def _digests_on_threads(
        self,
        paths: Iterator[tuple[int, str]],
        algorithm: Algorithm,
        jobs: int | None,
        meter: Meter | None,
    ) -> Iterator[list[tuple[int, Read]]]:
        unwanted = threading.Event()

        def read(place: tuple[int, str]) -> tuple[int, Read]:
            position, path = place
            try:
                found, size = hash_chunks(self._stream_on_thread(path, unwanted), algorithm, meter)
            except OSError as error:
                return position, error
            finally:
                if meter:
                    meter.add(1, 0)
            return position, (found.value, size)

        threads = jobs or THREADS
        with ThreadPoolExecutor(threads, thread_name_prefix="dvc-integrity-read") as executor:
            try:
                while batch := list(islice(paths, threads * 4)):
                    yield list(executor.map(read, batch))
            finally:
                unwanted.set()


class _Health:
    """Whether a remote still sends anything; shared by all that is read from it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._stalled = 0
        self._given_up_until = 0.0

    def ask(self, path: str) -> None:
        """Refuse to ask a remote that was given up, for as long as it was waited for.

        Raises
        ------
        StalledError
            If it was.
        """
        if time.monotonic() < self._given_up_until:
            raise StalledError.given_up(path, self.seconds)

    def progressed(self) -> None:
        """Note that something came."""
        if self._stalled:
            with self._lock:
                self._stalled, self._given_up_until = 0, 0.0

    def stalled(self) -> None:
        """Note that an object stalled whenever it was tried."""
        with self._lock:
            self._stalled += 1
            if self._stalled >= STALLED_OBJECTS:
                self._given_up_until = time.monotonic() + self.seconds


class _Tries:
    """How often one object may be tried yet."""

    def __init__(self, path: str, health: _Health) -> None:
        self._path = path
        self._health = health
        self._failures = 0
        self._stalls = 0

    def progressed(self) -> None:
        """Note that something came: a failure that passes is waited for anew, a stall is not."""
        self._failures = 0
        self._health.progressed()

    def pause(self, error: Exception) -> float:
        """Return how many seconds to wait before the next try.

        Raises
        ------
        OSError
            If there is none.
        """
        if not may_pass(error) or _was_given_up(error):
            raise as_os_error(error, self._path) from error
        self._failures += 1
        self._stalls += is_stall(error)
        if self._stalls == STALLED_TRIES:
            self._health.stalled()
        if self._failures == ATTEMPTS or self._stalls == STALLED_TRIES:
            raise as_os_error(error, self._path) from error
        longest = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
        return random.uniform(longest / 2, longest)  # noqa: S311 (so that clients do not march in step)


def _was_given_up(error: Exception) -> bool:
    return isinstance(error, StalledError) and error.given_up_before


def within(seconds: float, action: Callable[[], Result], path: str) -> Result:
    """Return what an action returns, if it does so in time; else it is left to itself.

    Raises
    ------
    StalledError
        If it does not.
    """
    outcome: Future[Result] = Future()

    def act() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001 (it is raised where it was waited for)
            outcome.set_exception(error)

    threading.Thread(target=act, daemon=True).start()
    done, _ = wait([outcome], timeout=seconds)
    if not done:
        raise StalledError.on(path, seconds)
    return outcome.result()


class _Download:
    """One object on its way over the event loop."""

    def __init__(self, transport: Transport, opener: Opener, path: str) -> None:
        self.ended = False
        self._transport = transport
        self._opener = opener
        self._path = path
        self._tries = _Tries(path, transport._health)  # noqa: SLF001 (a part of it)
        self._used = transport.filesystem
        self._stack = AsyncExitStack()
        self._body: _Body | None = None
        self._offset = 0
        self._pieces: list[bytes] = []

    async def read(self) -> bytes:
        """Return the next ``CHUNK_BYTES``, or fewer and set ``ended``.

        Raises
        ------
        OSError
            If it cannot be read, stalls, or ends too early whenever it is tried.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._advance()
            except Exception as error:  # noqa: BLE001 (each kind of remote fails in a way of its own)
                await self.close()
                await asyncio.sleep(self._tries.pause(error))
                await loop.run_in_executor(None, self._transport.renew, self._used, error)
            else:
                read = b"".join(self._pieces)
                self._pieces = []
                return read

    async def close(self) -> None:
        """Let go of the connection."""
        self._body = None
        stack, self._stack = self._stack, AsyncExitStack()
        with suppress(Exception):  # what was read is told; this only tidies up
            await asyncio.wait_for(stack.aclose(), LONGEST_PAUSE_SECONDS)

    async def _advance(self) -> None:
        watch = _Watch(self._transport.seconds)
        try:
            self._transport._health.ask(self._path)  # noqa: SLF001 (a part of it)
            body = self._body or await self._open(watch)
            missing = CHUNK_BYTES - sum(map(len, self._pieces))
            while missing > 0:
                piece = await body.read(missing)
                if not piece:
                    self._end(body)
                    return
                watch.progressed()
                self._tries.progressed()
                self._pieces.append(piece)
                self._offset += len(piece)
                missing -= len(piece)
        except asyncio.CancelledError:
            if not watch.stalled:
                raise
            raise StalledError.on(self._path, self._transport.seconds) from None
        finally:
            watch.stop()

    async def _open(self, watch: _Watch) -> _Body:
        self._used = self._transport.filesystem
        opening = self._opener(self._used, self._path, self._offset)
        body = await self._stack.enter_async_context(opening)
        skipped = self._offset - body.start  # a web server may send it from the start again
        while skipped > 0:
            piece = await body.read(min(skipped, CHUNK_BYTES))
            if not piece:
                raise ConnectionError(f"it ended before byte {self._offset}")
            watch.progressed()
            skipped -= len(piece)
        self._body = body
        return body

    def _end(self, body: _Body) -> None:
        if body.end is not None and self._offset < body.end:
            raise ConnectionError(f"it ended after {self._offset} of {body.end} bytes")
        self._tries.progressed()
        self.ended = True


class _Watch:
    """Cancels the running task when nothing has come for a while."""

    def __init__(self, seconds: float) -> None:
        self.stalled = False
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)

    def progressed(self) -> None:
        """Note that something came."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._last + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._task:
            self.stalled = True
            self._task.cancel()


class _Work:
    """Many objects that are read and hashed on the event loop."""

    def __init__(
        self,
        transport: Transport,
        opener: Opener,
        paths: Iterator[tuple[int, str]],
        algorithm: Algorithm,
        meter: Meter | None,
    ) -> None:
        self._transport = transport
        self._opener = opener
        self._paths = paths
        self._algorithm = algorithm
        self._meter = meter
        self._results: queue.SimpleQueue[tuple[int, Read] | None] = queue.SimpleQueue()

    async def run(self, streams: int) -> None:
        """Read all objects, so many at a time; ``results`` has them as they come."""
        tasks = [asyncio.ensure_future(self._take()) for _ in range(streams)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            self._results.put(None)

    def results(self) -> Iterator[list[tuple[int, Read]]]:
        """Yield what there is, whenever there is something, until all is done."""
        while (first := self._results.get()) is not None:
            batch = [first]
            while not self._results.empty():
                another = self._results.get()
                if another is None:
                    yield batch
                    return
                batch.append(another)
            yield batch

    async def _take(self) -> None:
        for position, path in self._paths:
            self._results.put((position, await self._read(path)))
            if self._meter:
                self._meter.add(1, 0)

    async def _read(self, path: str) -> Read:
        loop = asyncio.get_running_loop()
        download = _Download(self._transport, self._opener, path)
        hasher, size = self._algorithm.hasher(), 0
        try:
            while not download.ended:
                piece = await download.read()
                if len(piece) < HASHED_IN_PLACE_BYTES:
                    hasher.update(piece)
                else:
                    await loop.run_in_executor(None, hasher.update, piece)
                size += len(piece)
                if self._meter:
                    self._meter.add(0, len(piece))
        except OSError as error:
            return error
        finally:
            await download.close()
        return hasher.digest(), size


class _Pump:
    """Reads an object on a thread of its own, which may be left to itself."""

    def __init__(self, filesystem: Any, path: str, offset: int) -> None:
        self._filesystem = filesystem
        self._path = path
        self._offset = offset
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(maxsize=2)
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> _Pump:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()

    def chunks(self, seconds: float, unwanted: threading.Event) -> Iterator[bytes]:
        """Yield what was read, until it ends or nothing comes for so many seconds."""
        last = time.monotonic()
        while time.monotonic() - last < seconds:
            try:
                piece = self._pieces.get(timeout=min(LOOK_SECONDS, seconds))
            except queue.Empty:
                if unwanted.is_set():
                    raise InterruptedError("nobody waits for it any more") from None
                continue
            if isinstance(piece, BaseException):
                raise piece
            if not piece:
                return
            yield piece
            last = time.monotonic()
        raise StalledError.on(self._path, seconds)

    def _read(self) -> None:
        try:
            for chunk in _opened(self._filesystem, self._path, self._offset):
                if not self._put(chunk):
                    return
            self._put(b"")
        except BaseException as error:  # noqa: BLE001 (it is raised where it was waited for)
            self._put(error)

    def _put(self, piece: bytes | BaseException) -> bool:
        while not self._abandoned.is_set():
            try:
                self._pieces.put(piece, timeout=LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def _opened(filesystem: Any, path: str, offset: int) -> Iterator[bytes]:
    with filesystem.open(path, "rb") as file:
        if offset:
            file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            offset += len(chunk)
            yield chunk
        size = getattr(file, "size", None)
    if size is not None and offset < size:
        raise ConnectionError(f"it ended after {offset} of {size} bytes")


def _opener(filesystem: Any) -> Opener | None:
    """Return what opens objects on the event loop, where a filesystem is of a known kind."""
    protocol = getattr(filesystem, "protocol", ())
    names = {protocol} if isinstance(protocol, str) else set(protocol)
    if names & {"s3", "s3a"} and hasattr(filesystem, "_call_s3"):
        return _from_s3
    if names & {"http", "https"} and hasattr(filesystem, "set_session"):
        return _from_web
    return _from_ssh if hasattr(filesystem, "_pool") and hasattr(filesystem, "client") else None


@asynccontextmanager
async def _from_s3(filesystem: Any, path: str, offset: int) -> AsyncIterator[_Body]:
    bucket, key, version = filesystem.split_path(path)
    asked = {"Bucket": bucket, "Key": key, **filesystem.req_kw}
    if offset:
        asked["Range"] = f"bytes={offset}-"
    if version:
        asked["VersionId"] = version
    answer = await filesystem._call_s3("get_object", **asked)  # noqa: SLF001 (there is no public name)
    start = offset if answer.get("ContentRange") else 0
    body = answer["Body"]
    try:
        yield _Body(body.read, start, start + answer["ContentLength"])
    finally:
        body.close()


@asynccontextmanager
async def _from_web(filesystem: Any, path: str, offset: int) -> AsyncIterator[_Body]:
    settings = dict(filesystem.kwargs)
    headers = {**settings.pop("headers", {}), "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    session = await filesystem.set_session()
    address = filesystem.encode_url(path)
    async with session.get(address, headers=headers, **settings) as answer:
        filesystem._raise_not_found_for_status(answer, path)  # noqa: SLF001 (there is no public name)
        start = offset if answer.headers.get("Content-Range") else 0
        length = None if answer.headers.get("Content-Encoding") else answer.content_length
        yield _Body(answer.content.read, start, None if length is None else start + length)


@asynccontextmanager
async def _from_ssh(filesystem: Any, path: str, offset: int) -> AsyncIterator[_Body]:
    async with filesystem._pool.get() as channel:  # noqa: SLF001 (there is no public name)
        about = await channel.stat(path)
        if about.permissions is not None and stat.S_ISDIR(about.permissions):
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", path)
        size, at = about.size, offset
        async with channel.open(path, "rb") as file:

            async def read(most: int) -> bytes:
                nonlocal at
                wanted = most if size is None else min(most, size - at)
                piece: bytes = await file.read(wanted, at) if wanted > 0 else b""
                at += len(piece)
                return piece

            yield _Body(read, offset, size)

"""BLAKE3 digests of a large file's 1 MiB blocks, bound to its DVC hash.

MD5 is one serial chain, so a single large file cannot be hashed faster than one core does it.
In the very read in which the whole MD5 matched, the digests of the blocks are taken too and
kept. Later reads compare blocks, on all cores at once, and a slice can be verified alone.

A record speaks only for the digest and size in it, and only if its own digest holds; what is
damaged or foreign is as good as absent, and is written anew. Blocks that differ never decide:
the whole MD5 does. They tell where the damage is.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from functools import partial

import numpy as np
from blake3 import blake3

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.durable import replacement
from dvc_integrity.errors import printable
from dvc_integrity.hashing import (
    Chains,
    LargeFile,
    Meter,
    drop_cached_pages,
    file_state,
    open_file,
    read_file,
    usable_descriptors,
)
from dvc_integrity.observation import FileState, Observation, Observations

__all__ = [
    "BLOCK_BYTES",
    "BlockDiffers",
    "BlockRecords",
    "BlockUse",
    "Blocks",
    "BlockwiseFiles",
    "ProvenFile",
]

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
BLOCK_DIGEST_BYTES = 32

PIECE_BYTES = 1 << 17
"""Bytes of one file read at a time while many advance side by side; divides a block."""

STRETCH_BLOCKS = 8
"""Blocks that a thread checks at a time."""

RECORD_WRITERS = 4
"""Records that are written at a time; their fsyncs become one commit of the file system."""

BLOCKS_KEPT = 4
"""Proven blocks of an open file that stay in memory, for reads of a part at a time."""

LARGEST_RECORD_BYTES = (1 << 26) + 128
"""A larger file is no record: this is one of 2 TiB."""

MOST_WAITS = 10_000
WAIT_SECONDS = 0.001
"""How often, and how long each time, a thread without a file waits for a descriptor."""

_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
_CHAIN_BLOCK = 64
_HEADER = struct.Struct("<24s16s16sQQ")  # what it is, algorithm, digest, size, bytes of a block
_MAGIC = b"dvc-integrity/blocks/1"


class BlockUse(Enum):
    """What the digests of blocks are for."""

    CHECK = "check"
    """A file whose blocks all equal the recorded ones is good; without a record, ``RECORD``."""
    RECORD = "record"
    """The whole digest decides; the digests of blocks are taken in the same read, and kept."""
    NONE = "none"
    """The whole digest decides, and no block is looked at."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of the content that has a digest: its size, and 32 bytes for each block."""

    digest: Digest
    size: int
    digests: bytes

    def to_bytes(self) -> bytes:
        """Return the record: a header, the digests of the blocks, and BLAKE3 of all that."""
        algorithm = self.digest.algorithm.value.encode()
        header = _HEADER.pack(_MAGIC, algorithm, self.digest.value, self.size, BLOCK_BYTES)
        body = header + self.digests
        return body + blake3(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Blocks:
        """Read what ``to_bytes`` gave.

        Raises
        ------
        ValueError
            If a bit of it differs, or it is something else.
        """
        body, own_digest = data[:-BLOCK_DIGEST_BYTES], data[-BLOCK_DIGEST_BYTES:]
        if len(body) < _HEADER.size or blake3(body).digest() != own_digest:
            raise ValueError("its own digest does not hold")
        magic, algorithm, value, size, block_bytes = _HEADER.unpack_from(body)
        digests = body[_HEADER.size :]
        if (magic.rstrip(b"\0"), block_bytes) != (_MAGIC, BLOCK_BYTES):
            raise ValueError("it is a record of another kind")
        if len(digests) != _block_count(size) * BLOCK_DIGEST_BYTES:
            raise ValueError(f"it has not a digest for each block of {size} bytes")
        return cls(Digest(Algorithm(algorithm.rstrip(b"\0").decode()), value), size, digests)

    def differing(self, found: bytes, size: int) -> tuple[tuple[int, int], ...]:
        """Return where other content differs, as half-open ranges of bytes.

        Parameters
        ----------
        found
            Digests of the blocks of the other content, 32 bytes each.
        size
            Its length in bytes.

        Returns
        -------
        tuple[tuple[int, int], ...]
            Ascending, apart from each other, as fine as the blocks.
        """
        expected = np.frombuffer(self.digests, np.uint8).reshape(-1, BLOCK_DIGEST_BYTES)
        other = np.frombuffer(found, np.uint8).reshape(-1, BLOCK_DIGEST_BYTES)
        both = min(len(expected), len(other))
        differs = np.ones(max(len(expected), len(other)), np.int8)
        differs[:both] = (expected[:both] != other[:both]).any(axis=1)
        edges = np.flatnonzero(np.diff(differs, prepend=0, append=0)).reshape(-1, 2)
        end = max(self.size, size)
        return tuple(
            (start * BLOCK_BYTES, min(stop * BLOCK_BYTES, end)) for start, stop in edges.tolist()
        )


class BlockRecords:
    """The records of a project, one file each; picklable, and opened by nobody until asked.

    Parameters
    ----------
    folder
        Where they lie; made when the first one is kept. It may be deleted at any time.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._refused = False

    def path(self, digest: Digest) -> str:
        """Return where the record of a digest lies."""
        name = f"{digest.hex[2:]}.blocks"  # no object of a cache has such a name
        return os.path.join(self.folder, digest.algorithm.value, digest.hex[:2], name)

    def find(self, digest: Digest, size: int | None = None) -> Blocks | None:
        """Return the record of a digest, and of a size where one is given.

        None if there is none, and if what lies there is damaged or about anything else.
        """
        path = self.path(digest)
        try:
            if os.stat(path).st_size > LARGEST_RECORD_BYTES:
                return None
        except OSError:
            return None
        data, seen = read_file(path)
        if seen.error is not None:
            return None
        try:
            blocks = Blocks.from_bytes(data)
        except ValueError as error:
            logger.debug("'%s' is ignored: %s", printable(path), error)
            return None
        if blocks.digest != digest or size not in (None, blocks.size):
            return None
        return blocks

    def keep(self, blocks: Blocks) -> None:
        """Write a record durably; one that cannot be written is missed, and costs time only."""
        path = self.path(blocks.digest)
        try:
            with replacement(path) as file:  # a link is replaced: what it points to may be data
                file.write(blocks.to_bytes())
        except OSError as error:
            if not self._refused:
                self._refused = True
                logger.warning(
                    "Digests of blocks cannot be kept in '%s': %s. Large files are read in full "
                    "each time.",
                    printable(self.folder),
                    error.strerror or error,
                )


class BlockwiseFiles:
    """Reads large files by their blocks where a record speaks for them, else records them.

    Parameters
    ----------
    records
        What is known of blocks, and where more is kept.
    expected
        Gives the digest that the file at a position must have.
    use
        ``CHECK`` or ``RECORD``.
    """

    def __init__(
        self, records: BlockRecords, expected: Callable[[int], Digest], use: BlockUse
    ) -> None:
        self._records = records
        self._expected = expected
        self._use = use

    def observe(
        self, files: Sequence[LargeFile], *, threads: int, cold: bool, meter: Meter | None
    ) -> Iterator[Observations]:
        """Read ``files``, first those that a record speaks for; batches in no certain order."""
        unknown: list[LargeFile] = []
        if self._use is BlockUse.CHECK:
            with closing(_Checking(self._known(files, unknown), unknown, cold, meter)) as checking:
                yield from _in_threads(threads, checking.work)
        else:
            unknown += files
        if unknown:
            width = min(
                Chains.MOST, -(-len(unknown) // threads), usable_descriptors() // threads or 1
            )
            with _Keeping(self._records) as keeping:
                settle = partial(self._settle, keep=keeping.keep)
                recording = _Recording(unknown, width, cold, meter, settle)
                yield from _in_threads(threads, recording.work)

    def _known(
        self, files: Sequence[LargeFile], unknown: list[LargeFile]
    ) -> Iterator[tuple[LargeFile, Blocks]]:
        for file in files:
            blocks = self._records.find(self._expected(file.position), file.size)
            if blocks is None:
                unknown.append(file)
            else:
                yield file, blocks

    def _settle(
        self, position: int, seen: Observation, *, keep: Callable[[Blocks], None]
    ) -> Observation:
        """Keep the blocks of a file that is what it must be."""
        expected = self._expected(position)
        if seen.digest != expected.value or not seen.stable or seen.blocks is None:
            return seen
        keep(Blocks(expected, seen.size, seen.blocks))
        return seen if self._use is BlockUse.RECORD else seen._replace(blocks=None)


class _Keeping:
    """Writes records beside the reading: the disk takes long to say that they are down.

    All of them are there when the block of ``with`` ends.
    """

    def __init__(self, records: BlockRecords) -> None:
        self._records = records
        self._executor = ThreadPoolExecutor(RECORD_WRITERS, "dvc-integrity-records")
        self._writing: list[Future[None]] = []

    def __enter__(self) -> _Keeping:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True)
        for future in self._writing:
            future.result()

    def keep(self, blocks: Blocks) -> None:
        """Let a record be written."""
        self._writing.append(self._executor.submit(self._records.keep, blocks))


class _Checking:
    """Several threads take stretches of blocks, of one file after the other."""

    def __init__(
        self,
        known: Iterator[tuple[LargeFile, Blocks]],
        unknown: list[LargeFile],
        cold: bool,
        meter: Meter | None,
    ) -> None:
        self._lock = threading.Lock()
        self._cold = cold
        self._meter = meter
        self._unknown = unknown
        self._open: set[_Checked] = set()
        self._stretches = self._cut(known)

    def work(self, stop: threading.Event) -> list[tuple[int, Observation]]:
        """Check stretches until none is left; return the files that were finished here."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        finished = []
        while not stop.is_set():
            with self._lock:
                stretch = next(self._stretches, None)
            if stretch is None:
                break
            checked, blocks = stretch
            read = checked.check(blocks, buffer, self._meter, stop)
            with self._lock:
                if not checked.is_done(len(blocks), read):
                    continue
                self._open.remove(checked)
            finished.append((checked.position, checked.observation()))
            if self._meter:
                self._meter.add(1, 0)
        return finished

    def close(self) -> None:
        """Close what an interruption left open."""
        while self._open:
            os.close(self._open.pop().descriptor)

    def _cut(self, known: Iterator[tuple[LargeFile, Blocks]]) -> Iterator[tuple[_Checked, range]]:
        for file, expected in known:
            try:
                checked = _Checked(file, expected, self._cold)
            except OSError:
                self._unknown.append(file)  # the whole read waits for a descriptor, or says why
                continue
            if checked.before.size != expected.size or not expected.size:  # written meanwhile
                os.close(checked.descriptor)
                self._unknown.append(file)
                continue
            self._open.add(checked)
            count = _block_count(expected.size)
            for first in range(0, count, STRETCH_BLOCKS):
                yield checked, range(first, min(first + STRETCH_BLOCKS, count))


class _Checked:
    """A file whose blocks are compared with a record, by several threads."""

    def __init__(self, file: LargeFile, expected: Blocks, cold: bool) -> None:
        self.position = file.position
        self.descriptor, self.before = _open(file.path, cold)
        self._expected = expected
        self._digests = bytearray(len(expected.digests))
        self._left = _block_count(expected.size)
        self._size = 0
        self._error: OSError | None = None

    def check(
        self, blocks: range, buffer: memoryview, meter: Meter | None, stop: threading.Event
    ) -> int:
        """Digest a stretch of blocks; return how many bytes were read."""
        size = 0
        for block in blocks:
            if stop.is_set() or self._error:
                break
            try:
                piece = _fill(self.descriptor, buffer, block * BLOCK_BYTES)
            except OSError as error:
                self._error = error
                break
            at = block * BLOCK_DIGEST_BYTES
            self._digests[at : at + BLOCK_DIGEST_BYTES] = blake3(piece).digest()
            size += len(piece)
            if meter:
                meter.add(0, len(piece))
        return size

    def is_done(self, blocks: int, size: int) -> bool:
        """Take note of a stretch that was read, under a lock; return whether it was the last."""
        self._left -= blocks
        self._size += size
        return self._left == 0

    def observation(self) -> Observation:
        """Return what was seen, and close the file."""
        after: FileState | None = None
        try:
            after = file_state(self.descriptor)
        except OSError as error:
            self._error = error
        finally:
            os.close(self.descriptor)
        if self._error is not None:
            return Observation(None, self._size, self.before, None, self._error)
        found = bytes(self._digests)
        if (found, self._size) == (self._expected.digests, self._expected.size):
            digest = self._expected.digest.value
            return Observation(digest, self._size, self.before, after, None, by_blocks=True)
        return Observation(None, self._size, self.before, after, None, found, by_blocks=True)


class _Recording:
    """Several threads hash files whole, many side by side, and digest their blocks on the way."""

    def __init__(
        self,
        files: Sequence[LargeFile],
        width: int,
        cold: bool,
        meter: Meter | None,
        settle: Callable[[int, Observation], Observation],
    ) -> None:
        self._lock = threading.Lock()
        self._files = deque(files)
        self._width = width
        self._cold = cold
        self._meter = meter
        self._settle = settle

    def work(self, stop: threading.Event) -> list[tuple[int, Observation]]:
        """Hash files until none is left; return what was seen of those that were hashed here."""
        chains = Chains(self._width)
        buffers = [memoryview(bytearray(PIECE_BYTES)) for _ in range(self._width)]
        streams: list[_Stream | None] = [None] * self._width
        finished: list[tuple[int, Observation]] = []
        waits = 0
        try:
            while not stop.is_set():
                patient = waits < MOST_WAITS
                streams = [stream or self._next(finished, patient) for stream in streams]
                if any(streams):
                    self._advance(streams, buffers, chains, finished)
                elif self._files and patient:
                    waits += 1
                    time.sleep(WAIT_SECONDS)  # every descriptor is in use elsewhere
                else:
                    break
        finally:
            for stream in filter(None, streams):
                stream.close()
        return finished

    def _next(self, finished: list[tuple[int, Observation]], patient: bool) -> _Stream | None:
        """Open the next file that can be opened; one that finds no descriptor may come later."""
        while True:
            with self._lock:
                if not self._files:
                    return None
                file = self._files.popleft()
            try:
                return _Stream(file, self._cold)
            except OSError as error:
                if patient and error.errno in _NO_DESCRIPTOR:
                    with self._lock:
                        self._files.appendleft(file)
                    return None
                finished.append((file.position, Observation(None, 0, None, None, error)))
                if self._meter:
                    self._meter.add(1, 0)

    def _advance(
        self,
        streams: list[_Stream | None],
        buffers: list[memoryview],
        chains: Chains,
        finished: list[tuple[int, Observation]],
    ) -> None:
        """Take one piece of each file, and put those that ended into ``finished``."""
        pieces = [
            stream.read(buffer) if stream else buffer[:0]
            for stream, buffer in zip(streams, buffers, strict=True)
        ]
        whole = [len(piece) - len(piece) % _CHAIN_BLOCK for piece in pieces]
        chains.update([piece[:size] for piece, size in zip(pieces, whole, strict=True)])
        if self._meter:
            self._meter.add(0, sum(map(len, pieces)))
        for slot, stream in enumerate(streams):
            if stream is None or not stream.ended:
                continue
            streams[slot] = None
            digest = chains.finish(slot, pieces[slot][whole[slot] :])
            finished.append((stream.position, self._settle(stream.position, stream.finish(digest))))
            if self._meter:
                self._meter.add(1, 0)


class _Stream:
    """A file that is read from end to end, block by block."""

    def __init__(self, file: LargeFile, cold: bool) -> None:
        self.position = file.position
        self.ended = False
        self._descriptor, self._before = _open(file.path, cold)
        self._size = 0
        self._block = blake3()
        self._digests = bytearray()
        self._error: OSError | None = None

    def read(self, buffer: memoryview) -> memoryview:
        """Return the next bytes; fewer than the buffer holds at the end, and after an error."""
        try:
            piece = _fill(self._descriptor, buffer, self._size)
        except OSError as error:
            self._error = error
            piece = buffer[:0]
        self._block.update(piece)
        self._size += len(piece)
        self.ended = len(piece) < len(buffer) or self._size >= self._before.size
        at_edge = self._size % BLOCK_BYTES == 0
        if (piece and at_edge) or (self.ended and not at_edge):
            self._digests += self._block.digest()
            self._block.reset()
        return piece

    def finish(self, digest: bytes) -> Observation:
        """Return what was seen of a file that ended, and close it."""
        after: FileState | None = None
        try:
            after = file_state(self._descriptor)
        except OSError as error:
            self._error = error
        finally:
            self.close()
        if self._error is not None:
            return Observation(None, self._size, self._before, None, self._error)
        return Observation(digest, self._size, self._before, after, None, bytes(self._digests))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class BlockDiffers(Exception):  # noqa: N818 (what happened; it never reaches a user)
    """A block of an open file is not what its record says, twice.

    Attributes
    ----------
    start, stop
        Which bytes.
    state
        What the file system said of the file then.
    """

    def __init__(self, start: int, stop: int, state: FileState) -> None:
        super().__init__(start, stop, state)
        self.start, self.stop, self.state = start, stop, state


class ProvenFile:
    """A large file of which only the blocks that are touched are read, and proven.

    The bytes of a block come from the buffer that was hashed when it was touched first, and while
    it is among the last few. Each block is proven once, for as long as the file is open and nobody
    writes it; what is read of it later is not hashed again.

    Parameters
    ----------
    path
        The file.
    blocks
        What its content must be.

    Raises
    ------
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: bytes, blocks: Blocks) -> None:
        self.blocks = blocks
        self._path = path
        self._proven = bytearray(_block_count(blocks.size))
        self._recent: dict[int, memoryview] = {}
        self._descriptor, self._state = open_file(path)
        weakref.finalize(self, os.close, self._descriptor)

    def read_at(self, offset: int, view: memoryview) -> int:
        """Fill ``view`` with the proven bytes at ``offset``; return how many there are.

        Raises
        ------
        BlockDiffers
            If a block differs from its record, also when it is read past the page cache.
        OSError
            If it cannot be read.
        """
        self._forget_if_written()
        end = min(offset + len(view), self.blocks.size)
        at = offset
        while at < end:
            block = at // BLOCK_BYTES
            stop = min(end, (block + 1) * BLOCK_BYTES)
            part = view[at - offset : stop - offset]
            if block in self._recent or not self._proven[block]:
                start = at - block * BLOCK_BYTES
                part[:] = self._buffer(block)[start : start + len(part)]
            elif len(_fill(self._descriptor, part, at)) != len(part):
                raise self._differs(at, stop)  # it was cut meanwhile
            at = stop
        return max(0, end - offset)

    def _forget_if_written(self) -> None:
        """Prove every block anew if somebody wrote the file; what rots is not seen by this."""
        state = file_state(self._descriptor)
        if state != self._state:
            self._state = state
            self._proven = bytearray(len(self._proven))
            self._recent.clear()

    def _buffer(self, block: int) -> memoryview:
        """Return the bytes of a block that were hashed; those of the last few blocks are kept."""
        buffer = self._recent.get(block)
        if buffer is None:
            buffer = self._recent[block] = self._prove(block)
            if len(self._recent) > BLOCKS_KEPT:
                del self._recent[next(iter(self._recent))]
        return buffer

    def _prove(self, block: int) -> memoryview:
        """Return the bytes of a block, read again past the page cache if they are not good."""
        start = block * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, self.blocks.size)
        expected = self.blocks.digests[block * BLOCK_DIGEST_BYTES :][:BLOCK_DIGEST_BYTES]
        buffer = memoryview(bytearray(stop - start))
        for again in (False, True):
            if again:
                drop_cached_pages(self._descriptor)
            piece = _fill(self._descriptor, buffer, start)
            if len(piece) == len(buffer) and blake3(piece).digest() == expected:
                if again:
                    logger.warning(
                        "Bytes %d-%d of '%s' were good only when read again",
                        start,
                        stop - 1,
                        printable(os.fsdecode(self._path)),
                    )
                self._proven[block] = 1
                return piece
        raise self._differs(start, stop)

    def _differs(self, start: int, stop: int) -> BlockDiffers:
        return BlockDiffers(start, stop, file_state(self._descriptor))


def _in_threads(
    threads: int, work: Callable[[threading.Event], list[tuple[int, Observation]]]
) -> Iterator[Observations]:
    """Let several threads work; closing the iterator stops them after a piece each."""
    stop = threading.Event()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="dvc-integrity-blocks")
    try:
        for future in as_completed([executor.submit(work, stop) for _ in range(threads)]):
            if finished := future.result():
                positions, seen = zip(*finished, strict=True)
                yield Observations.of(positions, seen)
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _open(path: bytes, cold: bool) -> tuple[int, FileState]:
    descriptor, before = open_file(path)
    try:
        if cold:
            drop_cached_pages(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, before


def _fill(descriptor: int, buffer: memoryview, offset: int) -> memoryview:
    """Read at an offset until the buffer is full or the file ends; return what was read."""
    size = 0
    while size < len(buffer):
        count = os.preadv(descriptor, [buffer[size:]], offset + size)
        if count == 0:
            break
        size += count
    return buffer[:size]


def _block_count(size: int) -> int:
    return -(-size // BLOCK_BYTES)

"""Places where bytes lie, behind one small protocol.

A store turns entries of a manifest into observations and knows nothing of good and bad. The
workspace is a folder of files under their own names; an object store (the cache, a remote)
keeps immutable objects under their digests. All reading is read-only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockRecords, BlockUse, BlockwiseFiles
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import StoreError, printable
from dvc_integrity.hashing import (
    Meter,
    Paths,
    add_digests,
    hash_chunks,
    hash_files,
    read_chunks,
    read_files,
)
from dvc_integrity.manifest import Manifest, Out
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import Hint

__all__ = ["DEFAULT_LINKS", "Connection", "ObjectStore", "Store", "Workspace"]

ROWS_AT_A_TIME = 1 << 14
"""Entries whose paths are made at a time: bounds memory."""

CHUNK_BYTES = 1 << 20
"""Bytes read from an object at a time."""

REMOTE_STREAMS = 8
"""Objects read from a remote at a time, where nothing else is asked for."""


DEFAULT_LINKS = ("reflink", "copy")
"""How DVC makes files from objects where ``cache.type`` is not set."""


class Hints(Protocol):
    """Looks up the cause of a difference."""

    def __call__(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Explain why ``path`` is not what was committed (None: nothing there, or not listed)."""


class Store(Protocol):
    """What verification needs of a place that holds bytes."""

    @property
    def name(self) -> str:
        """``workspace``, ``cache`` or ``remote:NAME``."""

    @property
    def immutable(self) -> bool:
        """Whether a difference can only be corruption, because nobody writes there."""

    @property
    def blocks(self) -> BlockRecords | None:
        """What is known of the blocks of large files, if anything can be."""

    def holds(self, out: Out) -> bool:
        """Return whether this store is to have the files of an output."""

    def observe(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        algorithm: Algorithm,
        *,
        jobs: int | None = None,
        cold: bool = False,
        meter: Meter | None = None,
        blocks: BlockUse = BlockUse.NONE,
    ) -> Iterator[Observations]:
        """Read and hash the entries at ``rows``, all of one algorithm.

        Each of ``rows`` comes once, in any batch; ``positions`` are indices into ``rows``.
        """

    def read(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        *,
        cold: bool = False,
        hashed: Sequence[bool] | None = None,
    ) -> list[tuple[bytes, Observation]]:
        """Return the bytes of the entries at ``rows``, and what was seen of them.

        The digest is of the very bytes that are returned, which are empty after an error; there
        is none where ``hashed`` is false.
        """

    def place(self, manifest: Manifest, row: int) -> bytes | None:
        """Return the path of an entry's file, if it is a plain path of this machine."""

    def extras(self, manifest: Manifest) -> Iterator[tuple[str, OSError | None]]:
        """Yield paths that the manifest does not list in folders that it describes in full.

        A folder that cannot be listed comes with the error that says so.
        """

    def listings(self, manifest: Manifest) -> Iterator[tuple[Out, Callable[..., Observation]]]:
        """Yield the folders whose listings are objects here, each with what reads and hashes it."""

    def explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Say what is known about the cause of a difference."""


class Workspace:
    """The files of the work tree, under their own names.

    Parameters
    ----------
    root
        Absolute path of the DVC root.
    hints
        Explains differences; left behind when the store is pickled.
    ignored
        Tells whether ``.dvcignore`` at a revision leaves a path (relative to the root) out;
        left behind when the store is pickled.
    blocks
        What is known of the blocks of large files.
    links
        How files are made from objects of the cache, in order of preference (``cache.type``).
    """

    name = "workspace"
    immutable = False

    def __init__(
        self,
        root: str,
        *,
        hints: Hints | None = None,
        ignored: Callable[[str, str], bool] | None = None,
        blocks: BlockRecords | None = None,
        links: tuple[str, ...] = DEFAULT_LINKS,
    ) -> None:
        self.root = os.path.abspath(root)
        self.blocks = blocks
        self.links = links
        self._hints = hints
        self._ignored = ignored

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hints": None, "_ignored": None}

    def holds(self, out: Out) -> bool:  # noqa: ARG002 (every output has its files here)
        """Return True: every output has its files in the workspace."""
        return True

    def locate(self, path: str | bytes) -> bytes:
        """Return the absolute path of a file, in the file system's bytes."""
        return os.path.join(os.fsencode(self.root), os.fsencode(path))

    def observe(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        algorithm: Algorithm,
        *,
        jobs: int | None = None,
        cold: bool = False,
        meter: Meter | None = None,
        blocks: BlockUse = BlockUse.NONE,
    ) -> Iterator[Observations]:
        """Read and hash files of the work tree; links are followed, as DVC follows them."""
        paths = Paths(manifest.blob, manifest.offsets[rows], os.fsencode(self.root))
        large = _blockwise(self.blocks, blocks, manifest, rows, algorithm)
        return hash_files(paths, algorithm, jobs=jobs, cold=cold, meter=meter, large=large)

    def read(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        *,
        cold: bool = False,
        hashed: Sequence[bool] | None = None,
    ) -> list[tuple[bytes, Observation]]:
        """Return the bytes of files of the work tree; links are followed."""

        def read(some: Sequence[int], algorithm: Algorithm) -> list[tuple[bytes, Observation]]:
            paths = [self.place(manifest, rows[at]) for at in some]
            return read_files(paths, algorithm, cold=cold, hashed=_chosen(hashed, some))

        return _by_algorithm(manifest, rows, read)

    def place(self, manifest: Manifest, row: int) -> bytes:
        """Return the path of an entry's file."""
        return self.locate(manifest.path(row))

    def detached(self) -> Workspace:
        """Return the same without what explains differences: that knows DVC."""
        return Workspace(self.root, blocks=self.blocks, links=self.links)

    def listings(self, manifest: Manifest) -> Iterator[tuple[Out, Callable[..., Observation]]]:  # noqa: ARG002 (the protocol)
        """Yield nothing: a listing is an object of the cache, not a file of the work tree."""
        return iter(())

    def extras(self, manifest: Manifest) -> Iterator[tuple[str, OSError | None]]:
        """Walk the folders that the manifest describes in full, as DVC walks them.

        What ``.dvcignore`` leaves out is no extra.
        """
        listed = _Listed(manifest)
        for tree in manifest.trees:
            for path, error in self._unlisted(listed, os.fsencode(tree)):
                if error or not (self._ignored and self._ignored(manifest.rev, path)):
                    yield path, error

    def explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Say what the links of the work tree and DVC's records tell about a difference."""
        hint = self._hints(path, expected, found) if self._hints else Hint()
        link = None if found else self._describe_link(path)
        return replace(hint, detail=link) if link else hint

    def _describe_link(self, path: str) -> str | None:
        place = self.locate(path)
        try:
            target = printable(os.readlink(place))
        except OSError:
            return None  # it is no link, or not any more
        if os.path.isdir(place):
            return f"it is a link to the folder '{target}', which DVC does not follow"
        return f"it is a link to '{target}', which cannot be read"

    def _unlisted(self, listed: _Listed, tree: bytes) -> Iterator[tuple[str, OSError | None]]:
        folders = [tree]
        while folders:
            folder = folders.pop()
            try:
                files, inner = _list_folder(self.locate(folder), folder)
            except FileNotFoundError:
                continue  # its files are reported as missing, one by one
            except NotADirectoryError:
                yield os.fsdecode(folder), None  # a file lies where a folder was committed
                continue
            except OSError as error:
                yield os.fsdecode(folder), error
                continue
            folders += inner
            for path in listed.absent(folder, files):
                yield os.fsdecode(path), None


def _list_folder(place: bytes, folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the paths of the files and of the folders in a folder.

    A link to a folder counts among the files, and so is extra: DVC does not follow it, and
    takes what was committed below its name for deleted.
    """
    files: list[bytes] = []
    folders: list[bytes] = []
    with os.scandir(place) as entries:
        for entry in entries:
            kind = folders if entry.is_dir(follow_symlinks=False) else files
            kind.append(folder + b"/" + entry.name)
    return files, folders


class _Listed:
    """Answers in bulk which files of a folder a manifest does not list."""

    CROWDED = 4
    """A folder whose own files are fewer than one in so many is not compared as a whole."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def absent(self, folder: bytes, paths: list[bytes]) -> Iterable[bytes]:
        """Return those of ``paths``, which lie right in ``folder``, that are not listed."""
        if not paths:
            return ()
        below = self._manifest.below(folder)
        if len(below) <= self.CROWDED * len(paths):
            return set(paths).difference(self._manifest.paths(below.start, below.stop))
        return self._absent_by_hash(paths)

    def _absent_by_hash(self, paths: list[bytes]) -> Iterator[bytes]:
        """Find the one row that each path can be at by its hash; the path itself decides."""
        wanted = np.fromiter(map(hash, paths), np.int64, len(paths))
        hashes, rows = self._by_hash
        positions = np.searchsorted(hashes, wanted)
        for path, position in zip(paths, positions.tolist(), strict=True):
            row = int(rows[position]) if position < len(rows) else None
            known = row is not None and self._manifest.path(row) == path
            if not known and self._manifest.find(path) is None:
                yield path

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sorted hashes of all paths, and their rows; 16 bytes an entry."""
        paths = _paths_at(self._manifest, np.arange(len(self._manifest)))
        hashes = np.fromiter(map(hash, paths), np.int64, len(self._manifest))
        rows = np.argsort(hashes, kind="stable")
        return hashes[rows], rows


@dataclass(frozen=True, slots=True)
class Connection:
    """An opened cache or remote.

    Attributes
    ----------
    filesystem
        What opens its files: a filesystem of fsspec. Not needed where paths are local.
    base
        The folder in it that the objects lie in.
    local
        Whether the paths are plain paths of this machine.
    """

    filesystem: Any
    base: str
    local: bool

    def locate(self, digest: Digest, listing: bool = False) -> str:
        """Return the path of an object (``dvc_data.hashfile.db.HashFileDB.oid_to_path``)."""
        modern = digest.algorithm is not Algorithm.MD5_DOS2UNIX  # DVC 2 has no ``files/md5``
        folder = f"{self.base}/files/md5" if modern else self.base
        return f"{folder}/{digest.hex[:2]}/{digest.hex[2:]}{'.dir' if listing else ''}"

    def reopened(self) -> Connection:
        """Return the same for another process: what was opened before a fork is not shared."""
        if self.local or not hasattr(self.filesystem, "storage_options"):
            return self
        opened = type(self.filesystem)(
            *self.filesystem.storage_args, **self.filesystem.storage_options
        )
        return replace(self, filesystem=opened)


class ObjectStore:
    """Immutable objects under their digests: a DVC cache or remote.

    Parameters
    ----------
    name
        ``cache`` or ``remote:NAME``.
    connect
        Opens the store; called when it is first needed.
    has
        Tells whether the store is to have the files of an output.
    blocks
        What is known of the blocks of large files; looked at where the store is local.
    folder_mode
        Of folders that are made in it; a set-group-ID bit is set in spite of the umask.
    """

    immutable = True

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection],
        has: Callable[[Out], bool],
        *,
        blocks: BlockRecords | None = None,
        folder_mode: int = 0o777,
    ) -> None:
        self.name = name
        self.blocks = blocks
        self.folder_mode = folder_mode
        self._connect = connect
        self._has = has
        self._connection: Connection | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what knows the project; the other process opens the store for itself."""
        connection = self._connected()
        if connection.local:
            connection = replace(connection, filesystem=None)
        return {
            "name": self.name,
            "blocks": self.blocks,
            "folder_mode": self.folder_mode,
            "_connect": None,
            "_has": _has_everything,
            "_connection": connection,
            "_process": os.getpid(),
        }

    def holds(self, out: Out) -> bool:
        """Return whether this store is to have the objects of an output."""
        return self._has(out)

    def stream(self, digest: Digest, *, listing: bool = False) -> Iterator[bytes]:
        """Yield the bytes of one object, in chunks.

        Raises
        ------
        FileNotFoundError
            If the store has no such object.
        OSError
            If it cannot be read.
        StoreError
            If the store itself cannot be opened; the message names it.
        """
        connection = self._connected()
        try:
            if connection.local:
                yield from read_chunks(connection.locate(digest, listing))
                return
            with connection.filesystem.open(connection.locate(digest, listing), "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except (OSError, StoreError):
            raise
        except Exception as error:  # each kind of remote fails in a way of its own
            raise OSError(
                errno.EIO, printable(str(error)), connection.locate(digest, listing)
            ) from error

    def observe(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        algorithm: Algorithm,
        *,
        jobs: int | None = None,
        cold: bool = False,
        meter: Meter | None = None,
        blocks: BlockUse = BlockUse.NONE,
    ) -> Iterator[Observations]:
        """Read and hash the objects of the entries at ``rows``."""
        digests = (Digest(algorithm, manifest.digests[row].tobytes()) for row in rows)
        connection = self._connected()
        if connection.local:
            paths = (connection.locate(digest) for digest in digests)
            large = _blockwise(self.blocks, blocks, manifest, rows, algorithm)
            return hash_files(paths, algorithm, jobs=jobs, cold=cold, meter=meter, large=large)
        return self._observe_remote(digests, jobs or REMOTE_STREAMS, meter)

    def read(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        *,
        cold: bool = False,
        hashed: Sequence[bool] | None = None,
    ) -> list[tuple[bytes, Observation]]:
        """Return the bytes of the objects of the entries at ``rows``."""

        def read(some: Sequence[int], algorithm: Algorithm) -> list[tuple[bytes, Observation]]:
            digests = [Digest(algorithm, manifest.digests[rows[at]].tobytes()) for at in some]
            connection, wanted = self._connected(), _chosen(hashed, some)
            if connection.local:
                paths = map(connection.locate, digests)
                return read_files(paths, algorithm, cold=cold, hashed=wanted)
            with ThreadPoolExecutor(REMOTE_STREAMS, "dvc-integrity-read") as executor:
                return add_digests(
                    list(executor.map(self._read_remote, digests)), algorithm, wanted
                )

        return _by_algorithm(manifest, rows, read)

    def place(self, manifest: Manifest, row: int) -> bytes | None:
        """Return the path of an entry's object, where the store is local."""
        connection = self._connected()
        if not connection.local:
            return None
        (algorithm,) = manifest.algorithms([row])
        return os.fsencode(connection.locate(Digest(algorithm, manifest.digests[row].tobytes())))

    def locate(self, digest: Digest, *, listing: bool = False) -> str | None:
        """Return the path of an object, where the store is local; it need not exist.

        Raises
        ------
        StoreError
            If the store cannot be opened.
        """
        connection = self._connected()
        return connection.locate(digest, listing) if connection.local else None

    def detached(self) -> ObjectStore:
        """Return the same without what knows the project; it is opened for that.

        Raises
        ------
        StoreError
            If it cannot be opened.
        """
        detached = ObjectStore(self.name, self._connect, _has_everything, blocks=self.blocks)
        detached.__dict__.update(self.__getstate__())
        return detached

    def extras(self, manifest: Manifest) -> Iterator[tuple[str, OSError | None]]:  # noqa: ARG002 (the protocol)
        """Yield nothing: a store holds the objects of many revisions."""
        return iter(())

    def listings(self, manifest: Manifest) -> Iterator[tuple[Out, Callable[..., Observation]]]:
        """Yield the folders that this store is to have, each with what reads its listing."""
        for out in manifest.outs:
            if out.directory and out.digest and self.holds(out):
                yield out, partial(self._observe_object, out.digest, listing=True)

    def explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:  # noqa: ARG002 (the protocol)
        """Say nothing: nobody writes to an object once it has its name."""
        return Hint(written=False)

    def _read_remote(self, digest: Digest) -> tuple[bytes, Observation]:
        """Return the bytes of an object; what was seen has no digest yet."""
        try:
            data = b"".join(self.stream(digest))
        except OSError as error:
            return b"", Observation(None, 0, None, None, error)
        return data, Observation(None, len(data), None, None, None)

    def _observe_remote(
        self, digests: Iterator[Digest], jobs: int, meter: Meter | None
    ) -> Iterator[Observations]:
        observe = partial(self._observe_object, meter=meter)
        source = enumerate(digests)
        with ThreadPoolExecutor(jobs, thread_name_prefix="dvc-integrity-read") as executor:
            while batch := list(islice(source, jobs * 4)):
                positions, wanted = zip(*batch, strict=True)
                yield Observations.of(positions, list(executor.map(observe, wanted)))

    def _observe_object(
        self,
        digest: Digest,
        *,
        listing: bool = False,
        cold: bool = False,
        meter: Meter | None = None,
    ) -> Observation:
        connection = self._connected()
        if connection.local:
            place = connection.locate(digest, listing)
            (seen,) = chain(*hash_files([place], digest.algorithm, jobs=1, cold=cold, meter=meter))
            return seen
        try:
            found, size = hash_chunks(self.stream(digest, listing=listing), digest.algorithm, meter)
        except OSError as error:
            return Observation(None, 0, None, None, error)
        finally:
            if meter:
                meter.add(1, 0)
        return Observation(found.value, size, None, None, None)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
        elif self._process != os.getpid():
            self._connection = self._connection.reopened()
        self._process = os.getpid()
        return self._connection


def _chosen(hashed: Sequence[bool] | None, some: Sequence[int]) -> list[bool]:
    return [True] * len(some) if hashed is None else [hashed[at] for at in some]


def _has_everything(_: Out) -> bool:
    return True


def _by_algorithm(
    manifest: Manifest,
    rows: Sequence[int],
    read: Callable[[Sequence[int], Algorithm], list[tuple[bytes, Observation]]],
) -> list[tuple[bytes, Observation]]:
    """Read entries of one algorithm after those of the other; the result is in order."""
    algorithms = manifest.algorithms(rows)
    if len(set(algorithms)) <= 1:
        return read(range(len(rows)), algorithms[0]) if rows else []
    found: dict[int, tuple[bytes, Observation]] = {}
    for algorithm in set(algorithms):
        some = [at for at, each in enumerate(algorithms) if each is algorithm]
        found |= zip(some, read(some, algorithm), strict=True)
    return [found[at] for at in range(len(rows))]


def _blockwise(
    records: BlockRecords | None,
    use: BlockUse,
    manifest: Manifest,
    rows: NDArray[np.int64],
    algorithm: Algorithm,
) -> BlockwiseFiles | None:
    """Return what reads large files by blocks, where that is asked for and possible."""
    if records is None or use is BlockUse.NONE or algorithm is not Algorithm.MD5:
        return None
    return BlockwiseFiles(
        records, lambda at: Digest(algorithm, manifest.digests[rows[at]].tobytes()), use
    )


def _paths_at(manifest: Manifest, rows: NDArray[np.int64] | Sequence[int]) -> Iterator[bytes]:
    """Yield the paths at ascending ``rows``, making whole stretches of them at once."""
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) != len(manifest):
        yield from map(manifest.path, rows.tolist())
        return
    for start in range(0, len(manifest), ROWS_AT_A_TIME):
        yield from manifest.paths(start, min(start + ROWS_AT_A_TIME, len(manifest)))

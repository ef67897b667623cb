"""Immutable objects under their digests: a DVC cache or remote."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockRecords, BlockUse
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import StoreError
from dvc_integrity.hashing import (
    Meter,
    add_digests,
    hash_chunks,
    hash_files,
    read_files,
    read_whole,
)
from dvc_integrity.manifest import Manifest, Out
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import Hint
from dvc_integrity.stores.connection import Connection
from dvc_integrity.stores.protocol import Presence
from dvc_integrity.stores.reading import blockwise, by_algorithm
from dvc_integrity.stores.transport import Read

__all__ = ["ObjectStore", "StoredObject"]

_OBJECT = re.compile(r"(files/md5/)?([0-9a-f]{2})/([0-9a-f]{30})(\.dir)?")
"""The path of an object, as DVC 3 and DVC 2 lay it out."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that a store says it holds.

    Attributes
    ----------
    digest
        What its name says.
    listing
        Whether it is the listing of a folder.
    size
        Its length in bytes, as the store says; None where it is no plain file.
    attested
        The digest that the service states for it.
    """

    digest: Digest
    listing: bool
    size: int | None
    attested: Digest | None = None


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
    is_home
        Tells whether DVC puts an output there unless it is told otherwise; by default it does.
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
        is_home: Callable[[Out], bool] | None = None,
    ) -> None:
        self.name = name
        self.is_home = is_home or _has_everything
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
            "is_home": _has_everything,
            "_connect": None,
            "_has": _has_everything,
            "_connection": connection,
            "_process": os.getpid(),
        }

    @property
    def writable(self) -> bool:
        """Whether objects can be put there."""
        return self._connected().writable

    @property
    def is_local(self) -> bool:
        """Whether its objects are files of this machine."""
        return self._connected().local

    @property
    def cost(self) -> int:
        """How dear reading is: 0 the cache, 1 another folder, 2 over a network."""
        if self.name == "cache":
            return 0
        return 1 if self._connected().local else 2

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
        yield from connection.stream(connection.locate(digest, listing))

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
        connection = self._connected()
        paths = (self._address(manifest, row) for row in rows.tolist())
        if connection.local:
            large = blockwise(self.blocks, blocks, manifest, rows, algorithm)
            return hash_files(paths, algorithm, jobs=jobs, cold=cold, meter=meter, large=large)
        return _observed(connection.digests(paths, algorithm, jobs, meter))

    def read(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        *,
        cold: bool = False,
    ) -> list[tuple[bytes, Observation]]:
        """Return the bytes of the objects of the entries at ``rows``."""

        def read(some: Sequence[int], algorithm: Algorithm) -> list[tuple[bytes, Observation]]:
            asked = [rows[at] for at in some]
            connection = self._connected()
            if connection.local:
                paths = [self._address(manifest, row) for row in asked]
                return read_files(paths, algorithm, cold=cold)
            with ThreadPoolExecutor(connection.streams, "dvc-integrity-read") as executor:
                found = list(executor.map(partial(self.read_unhashed, manifest), asked))
            return add_digests(found, algorithm)

        return by_algorithm(manifest, rows, read)

    def read_unhashed(self, manifest: Manifest, row: int) -> tuple[bytes, Observation]:
        """Return the bytes of the object of an entry, whatever they are."""
        place = self.place(manifest, row)
        if place is not None:
            return read_whole(place)
        try:
            data = b"".join(self.chunks(manifest, row))
        except OSError as error:
            return b"", Observation(None, 0, None, None, error)
        return data, Observation(None, len(data), None, None, None)

    def place(self, manifest: Manifest, row: int) -> bytes | None:
        """Return the path of an entry's object, where the store is local."""
        if not self._connected().local:
            return None
        return os.fsencode(self._address(manifest, row))

    def stat(self, manifest: Manifest, rows: Sequence[int]) -> list[Presence]:
        """Tell the sizes of the objects of the entries at ``rows``."""
        connection = self._connected()

        def stat(row: int) -> Presence:
            try:
                return connection.stat(self._address(manifest, row))
            except OSError as error:
                return Presence(None, error)

        if connection.local:
            return list(map(stat, rows))
        with ThreadPoolExecutor(connection.streams, "dvc-integrity-stat") as executor:
            return list(executor.map(stat, rows))

    def chunks(self, manifest: Manifest, row: int) -> Iterator[bytes]:
        """Yield the bytes of the object of an entry, in pieces."""
        yield from self._connected().stream(self._address(manifest, row))

    def _address(self, manifest: Manifest, row: int) -> str:
        """Return where the object of an entry lies, on the filesystem of this store.

        Raises
        ------
        FileNotFoundError
            If it is known that there is none.
        """
        (algorithm,) = manifest.algorithms([row])
        return self._connected().locate(Digest(algorithm, manifest.digests[row].tobytes()))

    def objects(self) -> Iterator[StoredObject]:
        """Yield everything that the store holds under a digest; other files are passed over.

        Raises
        ------
        OSError
            If it cannot be listed.
        """
        connection = self._connected()
        for path, size, stated in connection.listed(connection.base):
            named = _OBJECT.fullmatch(path)
            if named:
                algorithm = Algorithm.MD5 if named[1] else Algorithm.MD5_DOS2UNIX
                digest = Digest.from_hex(algorithm, named[2] + named[3])
                yield StoredObject(digest, named[4] is not None, size, stated)

    @property
    def attests(self) -> bool:
        """Whether its service states checksums of what it holds."""
        return self._connected().attests

    def contradicts(self, digest: Digest, *, listing: bool = False) -> bool:
        """Return whether what the service states for an object, if it differs, is its MD5.

        Raises
        ------
        OSError
            If the service does not answer.
        """
        connection = self._connected()
        return connection.has_plain_etag(connection.locate(digest, listing))

    def put(
        self,
        digest: Digest,
        source: Callable[[], Iterable[bytes]],
        *,
        listing: bool = False,
        quarantine: str,
    ) -> bool:
        """Store an object, proven before it gets its name; a good one that is there stays.

        Parameters
        ----------
        digest
            What it must be.
        source
            Gives its bytes.
        listing
            Whether it is the listing of a folder.
        quarantine
            The folder on this machine where a bad object of that name is kept.

        Returns
        -------
        bool
            Whether it was stored: False if a good one was there.

        Raises
        ------
        SourceError
            If ``source`` gives other bytes.
        OSError
            If it cannot be stored. The store is then as it was, but for a temporary object.
        StoreError
            If the store cannot be used, or takes nothing in.
        """
        connection = self._connected()
        if not connection.writable:
            raise StoreError(f"The {self.name} can be read only, so nothing can be put there.")
        seen = self._observe_object(digest, listing=listing, cold=True)
        if seen.error is None and seen.digest == digest.value:
            return False
        note = {
            "store": self.name,
            "expected": str(digest),
            "found": seen.digest.hex() if seen.digest else None,
            "size": seen.size,
        }
        path = connection.locate(digest, listing)
        connection.put(path, digest, source, kept=quarantine, note=note)
        return True

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


def _observed(batches: Generator[list[tuple[int, Read]], None, None]) -> Iterator[Observations]:
    with closing(batches) as open_batches:
        for batch in open_batches:
            positions = [position for position, _ in batch]
            yield Observations.of(positions, [_observation(read) for _, read in batch])


def _observation(read: Read) -> Observation:
    if isinstance(read, OSError):
        return Observation(None, 0, None, None, read)
    return Observation(*read, None, None, None)


def _has_everything(_: Out) -> bool:
    return True

"""An opened cache or remote: where objects lie in it, and how they are read and written.

A read that a network cuts off goes on where it stopped, a few times; what a service refuses
for good is an error at once. Every failure on an object is an ``OSError`` that names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.durable import folder_below, make_folder
from dvc_integrity.errors import printable
from dvc_integrity.hashing import Meter, drop_cached_pages, hash_chunks, read_chunks
from dvc_integrity.quarantine import Name, Quarantine
from dvc_integrity.stores.attested import attested, is_plain_etag
from dvc_integrity.stores.failures import as_os_error
from dvc_integrity.stores.protocol import Presence, SourceError
from dvc_integrity.stores.reading import stat_file
from dvc_integrity.stores.transport import (
    CHUNK_BYTES,
    STALL_SECONDS,
    Read,
    Transport,
    within,
)

__all__ = ["Connection"]

LISTED_AT_A_TIME = 1000
"""Objects that S3 lists in one answer at most."""

LISTING_SECONDS, WRITING_SECONDS = 3600.0, 600.0
"""How long a whole listing, or sending up to 50 MiB, may take where no progress is seen."""

PROTECTED = 0o444
"""Mode of an object of a local cache, as DVC leaves it."""

_WITH_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oss"}
_ATTESTING = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
_WITHOUT_FOLDERS = {"http", "https"}


Result = TypeVar("Result")


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
    writable
        Whether objects can be put there.
    mode
        Mode of the objects, where they are local.
    stall_seconds
        How long a remote may send nothing.
    """

    filesystem: Any
    base: str
    local: bool
    writable: bool = True
    mode: int = PROTECTED
    stall_seconds: float = STALL_SECONDS
    _transport: Transport = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_transport", Transport(self.filesystem, self.stall_seconds))

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

    @property
    def attests(self) -> bool:
        """Whether the service states checksums of what it holds."""
        return not self.local and bool(self._protocols() & _ATTESTING)

    def _protocols(self) -> set[str]:
        names = self.filesystem.protocol
        return {names} if isinstance(names, str) else set(names)

    def reach(self) -> None:
        """Ask a service once for the folder of the objects, or for their bucket.

        Each of many objects would fail for itself, and slowly, at a service that is not there.

        Raises
        ------
        OSError
            What the service, or the lack of one, is told by.
        """
        names = self._protocols()
        place = self.base.split("/")[0] if names & _WITH_BUCKETS else self.base
        try:
            self._transport.tried(lambda used: used.info(place), place)
        except FileNotFoundError:
            if not names & _WITHOUT_FOLDERS:
                raise
        except PermissionError as error:
            if "denied" not in str(error).lower():
                raise  # who may not list may still read; unknown keys may do neither

    def stat(self, path: str) -> Presence:
        """Tell what lies at a path, without reading it."""
        if self.local:
            return stat_file(path)
        try:
            found = self._transport.tried(lambda used: used.info(path), path)
        except OSError as error:
            return Presence(None, error)
        if found.get("type") != "directory":
            return Presence(found.get("size"))
        if self._protocols() & _WITH_BUCKETS:  # there is no such object, only longer keys
            said = os.strerror(errno.ENOENT)
            return Presence(None, FileNotFoundError(errno.ENOENT, said, path))
        return Presence(None, IsADirectoryError(errno.EISDIR, "is a folder, not a file", path))

    def has_plain_etag(self, path: str) -> bool:
        """Return whether S3 says of one object that its ETag is an MD5, as no listing does.

        Raises
        ------
        OSError
            If it does not answer.
        """
        if not hasattr(self.filesystem, "call_s3"):
            return False
        bucket, key, _ = self.filesystem.split_path(path)
        asked = {"Bucket": bucket, "Key": key}
        about = self._transport.tried(lambda used: used.call_s3("head_object", **asked), path)
        return is_plain_etag(about)

    def listed(self, folder: str) -> Iterator[tuple[str, int | None, Digest | None]]:
        """Yield the paths below a folder, each relative to it, their sizes and stated digests.

        Raises
        ------
        OSError
            If it cannot be listed; a folder that is not there is empty.
        """
        if self.local:
            yield from _walk(folder)
            return
        if hasattr(self.filesystem, "call_s3"):
            yield from self._listed_by_s3(folder)
            return
        self.filesystem.invalidate_cache()  # what was listed before may be old
        try:
            found = self._transport.tried(
                lambda used: used.find(folder, detail=True), folder, LISTING_SECONDS
            )
        except FileNotFoundError:
            return
        prefix = self.filesystem._strip_protocol(folder).rstrip("/") + "/"  # noqa: SLF001 (there is no public name)
        for path, about in found.items():
            yield path.removeprefix(prefix), about.get("size"), attested(about)

    def _listed_by_s3(self, folder: str) -> Iterator[tuple[str, int | None, Digest | None]]:
        """List page by page: each is waited for alone, and memory holds one."""
        bucket, key, _ = self.filesystem.split_path(folder)
        prefix = f"{key.rstrip('/')}/".lstrip("/")
        asked = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": LISTED_AT_A_TIME}
        while True:
            page = self._transport.tried(
                lambda used: used.call_s3("list_objects_v2", **asked),
                folder,
            )
            for about in page.get("Contents", ()):
                yield about["Key"].removeprefix(prefix), about.get("Size"), attested(about)
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def stream(self, path: str) -> Iterator[bytes]:
        """Yield the bytes at a path, in pieces.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        OSError
            If it cannot be read, or ends too early whenever it is tried.
        """
        if self.local:
            yield from read_chunks(path)
            return
        yield from self._transport.stream(path)

    @property
    def streams(self) -> int:
        """How many objects of a remote are best on their way at a time."""
        return self._transport.streams

    def digests(
        self, paths: Iterator[str], algorithm: Algorithm, jobs: int | None, meter: Meter | None
    ) -> Generator[list[tuple[int, Read]], None, None]:
        """Read and hash objects of a remote, many at a time, as ``Transport.digests``."""
        return self._transport.digests(paths, algorithm, jobs, meter)

    def put(
        self,
        path: str,
        digest: Digest,
        source: Callable[[], Iterable[bytes]],
        *,
        kept: str,
        note: dict[str, Any],
    ) -> None:
        """Store bytes under a path, proven before they get that name.

        Parameters
        ----------
        path
            Where they are to lie.
        digest
            What they must be.
        source
            Gives the bytes.
        kept
            The quarantine for what lies there now.
        note
            What is known about that.

        Raises
        ------
        SourceError
            If ``source`` gives other bytes. What lies there is then what it was, as it is after
            any other error.
        OSError
            If they cannot be stored, or read back as other bytes.
        """
        if self.local:
            self._put_here(path, digest, source, kept, note)
        else:
            self._put_there(path, digest, source, kept, note)

    def _put_here(
        self,
        path: str,
        digest: Digest,
        source: Callable[[], Iterable[bytes]],
        kept: str,
        note: dict[str, Any],
    ) -> None:
        folder, name = os.path.split(path)
        make_folder(folder)
        temporary = os.path.join(folder, f".{secrets.token_hex(8)}.dvc-integrity.tmp")
        with open(temporary, "x+b", buffering=0) as file:
            try:
                found, _ = hash_chunks(_written(source(), file), digest.algorithm)
                _refuse_other(found, digest, path)
                os.fchmod(file.fileno(), self.mode)
                os.fsync(file.fileno())
                drop_cached_pages(file.fileno())
                file.seek(0)
                stored, _ = hash_chunks(iter(lambda: file.read(CHUNK_BYTES), b""), digest.algorithm)
                _refuse_stored(stored, digest, path)
                with folder_below(folder, "") as opened:
                    Quarantine(kept).replace(temporary, Name(opened, name, path), digest, note)
                    os.fsync(opened)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def _put_there(
        self,
        path: str,
        digest: Digest,
        source: Callable[[], Iterable[bytes]],
        kept: str,
        note: dict[str, Any],
    ) -> None:
        temporary = f"{self.base}/.dvc-integrity-{secrets.token_hex(8)}"
        try:
            self._written(lambda used: used.makedirs(os.path.dirname(path), exist_ok=True), path)
            self._send(temporary, source, digest, path)
            stored, _ = hash_chunks(self.stream(temporary), digest.algorithm)
            _refuse_stored(stored, digest, path)
            self._keep(path, kept, note)
            self._written(lambda used: used.mv(temporary, path), path)
        except (OSError, SourceError):
            self._forget(temporary)
            raise

    def _send(
        self, temporary: str, source: Callable[[], Iterable[bytes]], digest: Digest, path: str
    ) -> None:
        """Write to a temporary object; one that is not whole is not finished."""
        file = self._written(lambda used: used.open(temporary, "wb"), path)
        hasher = digest.algorithm.hasher()
        try:
            for chunk in source():
                hasher.update(chunk)
                self._written(lambda _: file.write(chunk), path)  # noqa: B023 (it ends before the next)
            _refuse_other(Digest(digest.algorithm, hasher.digest()), digest, path)
        finally:
            self._written(lambda _: file.close(), path)

    def _written(self, action: Callable[[Any], Result], path: str) -> Result:
        """Do a step of writing once, in bounded time.

        Raises
        ------
        OSError
            If it fails.
        """
        try:
            return within(WRITING_SECONDS, lambda: action(self._transport.filesystem), path)
        except Exception as error:  # each kind of remote fails in a way of its own
            raise as_os_error(error, path) from error

    def _keep(self, path: str, kept: str, note: dict[str, Any]) -> None:
        """Bring what lies at a path into the quarantine on this machine."""
        lying = self.stat(path).error
        if isinstance(lying, FileNotFoundError):
            return
        make_folder(kept)
        temporary = os.path.join(kept, f".{secrets.token_hex(8)}.dvc-integrity.tmp")
        try:
            if isinstance(lying, IsADirectoryError):
                self._fetch_folder(path, temporary)
            else:
                self._fetch(path, temporary)
            Quarantine(kept).keep(temporary, {**note, "object": path})
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(lying, IsADirectoryError):  # no object can take its place
            self._written(lambda used: used.rm(path, recursive=True), path)

    def _fetch(self, path: str, target: str) -> None:
        with open(target, "xb") as file:
            file.writelines(self.stream(path))

    def _fetch_folder(self, path: str, target: str) -> None:
        """Copy the files below a path into a new folder, and into no other."""
        make_folder(target)
        for each in self._written(lambda used: used.find(path), path):
            inside = os.path.relpath(each, path)
            if ".." in inside.split("/"):
                raise OSError(errno.EINVAL, "the remote names a file outside of it", each)
            make_folder(os.path.dirname(os.path.join(target, inside)))
            self._fetch(each, os.path.join(target, inside))

    def _forget(self, temporary: str) -> None:
        with contextlib.suppress(Exception):  # what failed is told; this only tidies up
            self._written(lambda used: used.rm_file(temporary), temporary)


def _written(chunks: Iterable[bytes], file: Any) -> Iterator[bytes]:
    """Write what is hashed."""
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _refuse_other(found: Digest, digest: Digest, path: str) -> None:
    if found != digest:
        raise SourceError(
            f"What was to be stored as '{printable(path)}' is {found}, not {digest}. Nothing was "
            f"stored."
        )


def _refuse_stored(stored: Digest, digest: Digest, path: str) -> None:
    if stored != digest:
        raise OSError(errno.EIO, f"what was stored reads back as {stored}, not {digest}", path)


def _walk(folder: str) -> Iterator[tuple[str, int | None, Digest | None]]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = os.path.join(place, name)
            found = os.lstat(path)
            size = found.st_size if stat.S_ISREG(found.st_mode) else None
            yield os.path.relpath(path, folder), size, None

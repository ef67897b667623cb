"""An opened cache or remote: where objects lie in it, and how they are read and written.

A read that a network cuts off goes on where it stopped, a few times; what a service refuses
for good is an error at once. Every failure on an object is an ``OSError`` that names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.durable import quarantine, replacement
from dvc_integrity.errors import printable
from dvc_integrity.hashing import drop_cached_pages, hash_chunks, read_chunks
from dvc_integrity.stores.attested import attested, is_plain_etag
from dvc_integrity.stores.protocol import Presence, SourceError
from dvc_integrity.stores.reading import stat_file

__all__ = ["Connection"]

CHUNK_BYTES = 1 << 20
"""Bytes read from an object at a time."""

ATTEMPTS = 5
"""Tries without any progress before a failure that may pass is one."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""How long to wait before the next try; doubled each time, and a random part of it is taken."""

PROTECTED = 0o444
"""Mode of an object of a local cache, as DVC leaves it."""

_PASSING_ERRNOS = {
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}
_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # RFC 9110, RFC 6585, RFC 8470
_ABSENT = {404, 410}
_PASSING_NAMES = {
    "ClientPayloadError",  # aiohttp: the body ended too early
    "ServerDisconnectedError",  # aiohttp
    "HTTPClientError",  # botocore: the base of connection errors
    "ConnectionLost",  # asyncssh
}

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
    """

    filesystem: Any
    base: str
    local: bool
    writable: bool = True
    mode: int = PROTECTED

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
        Exception
            What the service, or the lack of one, is told by.
        """
        names = self._protocols()
        try:
            self.filesystem.info(self.base.split("/")[0] if names & _WITH_BUCKETS else self.base)
        except FileNotFoundError as error:
            if not names & _WITHOUT_FOLDERS or _real(error) is not error:
                raise
        except PermissionError as error:
            if "denied" not in str(error).lower():
                raise  # who may not list may still read; unknown keys may do neither

    def stat(self, path: str) -> Presence:
        """Tell what lies at a path, without reading it."""
        if self.local:
            return stat_file(path)
        try:
            found = self._tried(lambda: self.filesystem.info(path), path)
        except OSError as error:
            return Presence(None, error)
        return Presence(found.get("size"))

    def has_plain_etag(self, path: str) -> bool:
        """Return whether S3 says of one object that its ETag is an MD5, as no listing does.

        Raises
        ------
        OSError
            If it does not answer.
        """
        ask = getattr(self.filesystem, "call_s3", None)
        if ask is None:
            return False
        bucket, key, _ = self.filesystem.split_path(path)
        return is_plain_etag(self._tried(lambda: ask("head_object", Bucket=bucket, Key=key), path))

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
        self.filesystem.invalidate_cache()  # what was listed before may be old
        try:
            found = self._tried(lambda: self.filesystem.find(folder, detail=True), folder)
        except FileNotFoundError:
            return
        prefix = self.filesystem._strip_protocol(folder).rstrip("/") + "/"  # noqa: SLF001 (there is no public name)
        for path, about in found.items():
            yield path.removeprefix(prefix), about.get("size"), attested(about)

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
        offset, failures = 0, 0
        while True:
            try:
                for chunk in self._stream_from(path, offset):
                    offset, failures = offset + len(chunk), 0
                    yield chunk
            except Exception as error:  # each kind of remote fails in a way of its own
                failures += 1
                if failures == ATTEMPTS or not _may_pass(error):
                    raise _as_os_error(error, path) from error
                _pause(failures)
            else:
                return

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
        with replacement(path) as file:
            found, _ = hash_chunks(_written(source(), file), digest.algorithm)
            _refuse_other(found, digest, path)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), self.mode)
            drop_cached_pages(file.fileno())
            file.seek(0)
            stored, _ = hash_chunks(iter(lambda: file.read(CHUNK_BYTES), b""), digest.algorithm)
            _refuse_stored(stored, digest, path)
            if os.path.lexists(path):
                quarantine(path, kept, note)

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
            self.filesystem.makedirs(os.path.dirname(path), exist_ok=True)
            with self.filesystem.open(temporary, "wb") as file:
                found, _ = hash_chunks(_written(source(), file), digest.algorithm)
                _refuse_other(found, digest, path)
            stored, _ = hash_chunks(self.stream(temporary), digest.algorithm)
            _refuse_stored(stored, digest, path)
            self._keep(path, kept, note)
            self.filesystem.mv(temporary, path)
        except (OSError, SourceError):
            self._forget(temporary)
            raise
        except Exception as error:  # each kind of remote fails in a way of its own
            self._forget(temporary)
            raise _as_os_error(error, path) from error

    def _keep(self, path: str, kept: str, note: dict[str, Any]) -> None:
        """Bring what lies at a path into the quarantine on this machine."""
        if isinstance(self.stat(path).error, FileNotFoundError):
            return
        os.makedirs(kept, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept) as file:
            file.writelines(self.stream(path))
            file.flush()
            os.fsync(file.fileno())  # it is the only copy soon
            quarantine(file.name, kept, {**note, "object": path})

    def _forget(self, temporary: str) -> None:
        with contextlib.suppress(Exception):  # what failed is told; this only tidies up
            self.filesystem.rm_file(temporary)

    def _stream_from(self, path: str, offset: int) -> Iterator[bytes]:
        with self.filesystem.open(path, "rb") as file:
            if offset:
                file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                offset += len(chunk)
                yield chunk
            size = getattr(file, "size", None)
        if size is not None and offset < size:
            raise ConnectionError(f"it ended after {offset} of {size} bytes")

    def _tried(self, action: Callable[[], Result], path: str) -> Result:
        """Do something that may fail for a while.

        Raises
        ------
        OSError
            If it fails for good.
        """
        for failures in range(1, ATTEMPTS):
            try:
                return action()
            except Exception as error:  # each kind of remote fails in a way of its own
                if not _may_pass(error):
                    raise _as_os_error(error, path) from error
                _pause(failures)
        try:
            return action()
        except Exception as error:
            raise _as_os_error(error, path) from error


def _real(error: BaseException) -> BaseException:
    """Return what is behind an error: fsspec calls any failure of HTTP a file that is absent."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    refused = getattr(cause, "status", 404) not in _ABSENT
    failed = isinstance(cause, (OSError, TimeoutError)) and not isinstance(cause, FileNotFoundError)
    return cause if refused or failed or _names(cause) & _PASSING_NAMES else error


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _may_pass(error: BaseException) -> bool:
    """Return whether a failure on the network is of the kind that passes."""
    error = _real(error)
    if isinstance(error, (ConnectionError, TimeoutError)):
        return not isinstance(error, ConnectionRefusedError)
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    if getattr(error, "status", None) in _PASSING_STATUSES:
        return True
    return bool(_names(error) & _PASSING_NAMES)


def _pause(failures: int) -> None:
    longest = min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
    time.sleep(random.uniform(longest / 2, longest))  # noqa: S311 (so that clients do not march in step)


def _as_os_error(error: BaseException, path: str) -> OSError:
    error = _real(error)
    if isinstance(error, OSError):
        return error
    said = printable(str(error)) or type(error).__name__
    return OSError(errno.EIO, said, path)


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

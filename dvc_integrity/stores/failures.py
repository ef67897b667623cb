"""What a failure on a network means: whether it may pass, and how it is told.

Each kind of remote fails in a way of its own. Pure: from any exception to an ``OSError`` that
names the object. Kinds of optional libraries are known by their names, so that none is imported.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from dvc_integrity.errors import printable

__all__ = ["StalledError", "as_os_error", "is_lost", "is_stall", "may_pass"]

_PASSING_ERRNOS = {
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs: the service had an internal error
}
_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # RFC 9110, RFC 6585, RFC 8470
_ABSENT = {404, 410}
_DENIED = {401, 403}
_LOST_NAMES = {"ConnectionLost", "SFTPConnectionLost", "SFTPNoConnection"}  # asyncssh
_PASSING_NAMES = _LOST_NAMES | {
    "ClientPayloadError",  # aiohttp: the body ended too early
    "ServerDisconnectedError",  # aiohttp
    "HTTPClientError",  # botocore: the base of connection errors
    "IncompleteReadError",  # botocore: the body ended too early
}
_STALL_NAMES = {
    "ServerTimeoutError",  # aiohttp
    "ReadTimeoutError",  # botocore
    "ConnectTimeoutError",  # botocore
    "FSTimeoutError",  # fsspec
}
_DENIED_NAMES = {"SFTPPermissionDenied", "PermissionDenied"}  # asyncssh
_ABSENT_NAMES = {"SFTPNoSuchFile", "SFTPNoSuchPath"}  # asyncssh


class StalledError(TimeoutError):
    """A remote sent nothing for as long as it may."""

    given_up_before = False
    """Whether it had stalled so often before that it was not asked."""

    @classmethod
    def on(cls, path: str, seconds: float) -> StalledError:
        """Return the error about one object."""
        said = f"the remote sent nothing for {seconds:g} s (it stalled)"
        return cls(errno.ETIMEDOUT, said, path)

    @classmethod
    def given_up(cls, path: str, seconds: float) -> StalledError:
        """Return the error about an object that is not asked for any more."""
        said = f"not asked for: the remote sent nothing for {seconds:g} s (it stalled) before"
        error = cls(errno.ETIMEDOUT, said, path)
        error.given_up_before = True
        return error


def is_stall(error: BaseException) -> bool:
    """Return whether a failure is that nothing came for a while."""
    error = _real(error)
    return isinstance(error, StalledError) or bool(_names(error) & _STALL_NAMES)


def is_lost(error: BaseException) -> bool:
    """Return whether a session of SSH ended with it: a new one is needed."""
    return bool(_names(error) & _LOST_NAMES)


def may_pass(error: BaseException) -> bool:
    """Return whether a failure on the network is of the kind that passes."""
    error = _real(error)
    if is_stall(error):
        return True
    if isinstance(error, (ConnectionError, TimeoutError)):
        return not isinstance(error, ConnectionRefusedError)
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    if _status(error) in _PASSING_STATUSES:
        return True
    return bool(_names(error) & _PASSING_NAMES)


def as_os_error(error: BaseException, path: str) -> OSError:
    """Return a failure as an error that names the object."""
    error = _real(error)
    if isinstance(error, OSError) and error.filename is not None:
        return error
    said = printable(str(getattr(error, "strerror", None) or error)) or type(error).__name__
    if is_stall(error) and not isinstance(error, StalledError):
        said = f"the remote sent nothing for too long (it stalled): {said}"
    return OSError(_number(error), said, path)  # of the class that the number stands for


def _number(error: BaseException) -> int:
    names, status = _names(error), _status(error)
    if isinstance(error, FileNotFoundError) or names & _ABSENT_NAMES or status in _ABSENT:
        return errno.ENOENT
    if isinstance(error, PermissionError) or names & _DENIED_NAMES or status in _DENIED:
        return errno.EACCES
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, TimeoutError) or names & _STALL_NAMES:
        return errno.ETIMEDOUT
    if isinstance(error, ConnectionRefusedError):
        return errno.ECONNREFUSED
    return errno.ECONNRESET if isinstance(error, ConnectionError) else errno.EIO


def _status(error: BaseException) -> int | None:
    """Return what HTTP calls a failure: as aiohttp tells it, or botocore beneath s3fs's error."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status
    answer = getattr(error.__cause__, "response", None)
    about = answer.get("ResponseMetadata", {}) if isinstance(answer, Mapping) else {}
    status = about.get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _real(error: BaseException) -> BaseException:
    """Return what is behind an error: fsspec calls any failure of HTTP a file that is absent."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    refused = getattr(cause, "status", 404) not in _ABSENT
    failed = isinstance(cause, (OSError, TimeoutError)) and not isinstance(cause, FileNotFoundError)
    passing = _names(cause) & (_PASSING_NAMES | _STALL_NAMES)
    return cause if refused or failed or passing else error


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}

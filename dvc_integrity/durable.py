"""Files that appear whole or not at all, and survive a power cut.

Temporary file beside the target, write, fsync, rename, fsync the folder. A kill at any
instant leaves the old file or the new one. Also the system calls for that which Python lacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import BinaryIO

__all__ = [
    "NO_SUCH_CALL",
    "InTheWayError",
    "begin_writing",
    "clone",
    "exchange",
    "exclusive",
    "folder_below",
    "make_folder",
    "rename_new",
    "replacement",
    "sync_files",
    "sync_folder",
    "write_file",
]

NEW_FILE_MODE = 0o666
"""Mode of a new file before the process's umask, as ``open`` would give it."""

NEW_FOLDER_MODE = 0o777
"""The same of a new folder."""

FILES_WORTH_ONE_SYNC = 64
"""So many files are brought down by one call for their whole file system."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_FICLONE = 0x40049409
"""Lets a file share the blocks of another (``ioctl_ficlone(2)``)."""

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
"""Flags of ``renameat2(2)``."""

_HERE = -100
"""``AT_FDCWD``: paths are relative to the current folder."""

_SYNC_FILE_RANGE_WRITE = 2
"""Begins to write, and does not wait (``sync_file_range(2)``)."""

NO_SUCH_CALL = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""Where the operating system, or this file system, cannot do what was asked."""


class InTheWayError(NotADirectoryError):
    """Something else lies where a folder is to be.

    Attributes
    ----------
    place
        Its path, relative to the root that the way began at.
    link
        What it points to, if it is a link.
    """

    def __init__(self, place: str, link: str | None) -> None:
        what = "a file" if link is None else f"a link to '{link}'"
        super().__init__(errno.ENOTDIR, f"{what} lies where a folder was committed", place)
        self.place = place
        self.link = link


def write_file(path: str, data: bytes) -> None:
    """Put ``data`` at ``path`` durably; folders on the way are made.

    Raises
    ------
    OSError
        If the disk is full, the folder read-only, …: the old file is then still there,
        untouched, and no temporary file is left. (If the last sync fails the new one is there,
        and may not survive a power cut.)
    """
    with replacement(os.path.realpath(path)) as file:  # a link stays; what it points to changes
        file.write(data)


@contextlib.contextmanager
def replacement(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when the block ends well.

    Its bytes are down on the disk before its name is. Folders on the way are made; a link at
    ``path`` is replaced itself.

    Raises
    ------
    OSError
        As ``write_file``.
    """
    folder = os.path.dirname(os.path.abspath(path))
    make_folder(folder)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, NEW_FILE_MODE)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(descriptor)  # the bytes must be down before the name is
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


@contextlib.contextmanager
def folder_below(root: str, folder: str, *, make: int | None = None) -> Iterator[int]:
    """Open a folder below a root, one name at a time, and never through a link.

    Whoever creates, renames and removes relative to the descriptor cannot be led out of the
    root by a folder that was replaced by a link.

    Parameters
    ----------
    root
        Where the way begins; links on the way to it are followed.
    folder
        Relative to the root; empty for the root itself.
    make
        The mode, before the umask, of folders that are missing; None: they are an error.

    Raises
    ------
    InTheWayError
        If a file or a link lies where a folder is to be.
    OSError
        If a folder is missing, or cannot be opened or made.
    """
    descriptor = os.open(root, _FOLDER)
    try:
        way = ""
        for name in filter(None, folder.split("/")):
            way = f"{way}/{name}".lstrip("/")
            inner = _enter(descriptor, name, way, make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int, name: str, way: str, make: int | None) -> int:
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
    except FileNotFoundError:
        if make is None:
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        link = os.readlink(name, dir_fd=descriptor) if stat.S_ISLNK(found.st_mode) else None
        raise InTheWayError(way, link) from error
    try:
        os.mkdir(name, make, dir_fd=descriptor)
        made = True
    except FileExistsError:  # another process was as fast
        made = False
    inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
    try:
        if made and make & ~NEW_FOLDER_MODE:  # mkdir takes no inheritance of the group
            os.fchmod(inner, make)
        os.fsync(descriptor)
    except OSError:
        os.close(inner)
        raise
    return inner


def clone(source: int, target: int) -> None:
    """Let an empty file share the blocks of another until one of them is written.

    Raises
    ------
    OSError
        If the file system cannot do that.
    """
    fcntl.ioctl(target, _FICLONE, source)


def exchange(source: str, folder: int, name: str, *, source_folder: int | None = None) -> None:
    """Exchange two names in one step: at every instant each of them names something.

    Parameters
    ----------
    source
        A path; relative to ``source_folder`` where that is given.
    folder, name
        The other one: a descriptor, and a name in it.

    Raises
    ------
    OSError
        If it cannot be done: EINVAL, ENOSYS or ENOTSUP where the file system or the operating
        system has no such call, EXDEV between two file systems.
    """
    _rename(source, folder, name, source_folder, _RENAME_EXCHANGE)


def rename_new(source: str, folder: int, name: str, *, source_folder: int | None = None) -> None:
    """Rename to a name that nothing has; parameters as ``exchange``.

    Raises
    ------
    FileExistsError
        If something has it.
    OSError
        If it cannot be done.
    """
    try:
        _rename(source, folder, name, source_folder, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
        os.link(  # it never replaces anything either
            source, name, src_dir_fd=source_folder, dst_dir_fd=folder, follow_symlinks=False
        )
        os.unlink(source, dir_fd=source_folder)


def _rename(source: str, folder: int, name: str, source_folder: int | None, flag: int) -> None:
    old = _HERE if source_folder is None else source_folder
    _call("renameat2", old, os.fsencode(source), folder, os.fsencode(name), flag)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library that Python does not offer.

    Raises
    ------
    OSError
        If it fails; ENOSYS where there is none.
    """
    function = getattr(_library(), name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def begin_writing(descriptor: int) -> None:
    """Let the disk begin with what was written to a file, so that a later sync waits less."""
    whole = ctypes.c_int64(0)
    with contextlib.suppress(OSError):  # it only hints: the sync tells errors
        _call("sync_file_range", descriptor, whole, whole, _SYNC_FILE_RANGE_WRITE)


def sync_files(paths: Sequence[str], file_system: int) -> dict[str, OSError]:
    """Bring files down to the disk; return the errors by path.

    Parameters
    ----------
    paths
        Files that were written.
    file_system
        A descriptor on their file system, opened before they were written: many files are
        brought down by one call for all of it.
    """
    if len(paths) >= FILES_WORTH_ONE_SYNC and _syncfs_tells_errors():
        with contextlib.suppress(OSError):  # then each file tells for itself
            _call("syncfs", file_system)
            return {}
    errors = {}
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            errors[path] = error
    return errors


@cache
def _syncfs_tells_errors() -> bool:
    """Return whether the kernel says that something was not written (since Linux 5.8)."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    number = (int(release[1]), int(release[2])) if release else (0, 0)
    return sys.platform == "linux" and number >= (5, 8)


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Keep other processes out while the block runs; a lock dies with its owner.

    Raises
    ------
    OSError
        If the file of the lock cannot be made.
    """
    make_folder(os.path.dirname(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, NEW_FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_folder(folder: str) -> None:
    """Make a folder and those on the way to it, each durably; one that is there is left as it is.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    folder = os.path.abspath(folder)
    if os.path.isdir(folder):
        return
    make_folder(os.path.dirname(folder))
    os.makedirs(folder, exist_ok=True)  # another process may be as fast
    sync_folder(os.path.dirname(folder))


def sync_folder(folder: str) -> None:
    """Make what was named or renamed in a folder survive a power cut.

    Raises
    ------
    OSError
        If it cannot be opened, or the disk fails.
    """
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that appear whole or not at all, and survive a power cut.

Temporary file beside the target, write, fsync, rename, fsync the folder. A kill at any
instant leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import os
import secrets

__all__ = ["write_file"]

NEW_FILE_MODE = 0o666
"""Mode of a new file before the process's umask, as ``open`` would give it."""


def write_file(path: str, data: bytes) -> None:
    """Put ``data`` at ``path`` durably; folders on the way are made.

    Raises
    ------
    OSError
        If the disk is full, the folder read-only, …: the old file is then still there,
        untouched, and no temporary file is left.
    """
    path = os.path.realpath(path)  # a link stays, and what it points to is replaced
    folder = os.path.dirname(path)
    _make_folder(folder)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, NEW_FILE_MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)  # the bytes must be down before the name is
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _make_folder(folder: str) -> None:
    """Make a folder and those on the way to it, each durably."""
    if os.path.isdir(folder):
        return
    _make_folder(os.path.dirname(folder))
    os.makedirs(folder, exist_ok=True)  # another process may be as fast
    _sync_folder(os.path.dirname(folder))


def _sync_folder(folder: str) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

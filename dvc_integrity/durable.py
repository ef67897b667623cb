"""Files that appear whole or not at all, survive a power cut, and are never lost.

Temporary file beside the target, write, fsync, rename, fsync the folder. A kill at any
instant leaves the old file or the new one. What is set aside goes to a quarantine, which
nothing here ever empties.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, BinaryIO

__all__ = ["exclusive", "quarantine", "replacement", "write_file"]

NEW_FILE_MODE = 0o666
"""Mode of a new file before the process's umask, as ``open`` would give it."""

QUARANTINED, NOTE = "bytes", "note.json"
"""Names in a quarantined file's own folder."""


def write_file(path: str, data: bytes) -> None:
    """Put ``data`` at ``path`` durably; folders on the way are made.

    Raises
    ------
    OSError
        If the disk is full, the folder read-only, …: the old file is then still there,
        untouched, and no temporary file is left.
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
    folder = os.path.dirname(path)
    _make_folder(folder)
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
    _sync_folder(folder)


def quarantine(path: str, folder: str, note: Mapping[str, Any]) -> str:
    """Keep what lies at ``path`` in a folder of its own, with a note; return that folder.

    A file stays where it is too, until it is replaced; anything else is moved. What others
    hold by a hard link is copied, so that nobody changes the evidence.

    Parameters
    ----------
    path
        What is to be kept.
    folder
        The quarantine, on any file system.
    note
        What is known about it; where and when are added.

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    OSError
        If it cannot be kept: nothing may take its place then.
    """
    now = datetime.now(timezone.utc)
    place = os.path.join(folder, f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}")
    found = os.lstat(path)
    _make_folder(place)
    kept = os.path.join(place, QUARANTINED)
    if stat.S_ISLNK(found.st_mode):
        note = {**note, "link": os.readlink(path)}
    if os.path.isfile(path):
        _keep_file(path, kept, found)
    elif not stat.S_ISLNK(found.st_mode):
        shutil.move(path, kept)
    document = {**note, "path": path, "time": now.isoformat()}
    write_file(os.path.join(place, NOTE), (json.dumps(document, indent=2) + "\n").encode())
    return place


def _keep_file(path: str, kept: str, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        try:
            os.link(path, kept)
        except OSError:  # another file system, or one without links
            pass
        else:
            return
    with open(path, "rb") as source, replacement(kept) as target:
        shutil.copyfileobj(source, target)


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Keep other processes out while the block runs; a lock dies with its owner.

    Raises
    ------
    OSError
        If the file of the lock cannot be made.
    """
    _make_folder(os.path.dirname(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, NEW_FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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

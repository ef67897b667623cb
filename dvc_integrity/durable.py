"""Files that appear whole or not at all, survive a power cut, and are never lost.

Temporary file beside the target, write, fsync, rename, fsync the folder. A kill at any
instant leaves the old file or the new one. What is set aside goes to a quarantine, which
nothing but ``purge`` ever empties.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, BinaryIO

__all__ = [
    "InTheWayError",
    "Quarantined",
    "clone",
    "exclusive",
    "folder_below",
    "purge",
    "quarantine",
    "quarantined",
    "replacement",
    "write_file",
]

NEW_FILE_MODE = 0o666
"""Mode of a new file before the process's umask, as ``open`` would give it."""

NEW_FOLDER_MODE = 0o777
"""The same of a new folder."""

QUARANTINED, NOTE = "bytes", "note.json"
"""Names in a quarantined file's own folder."""

_PLACE = re.compile(r"(\d{8}T\d{6})-[0-9a-f]{8}")
_PLACE_TIME = "%Y%m%dT%H%M%S"
"""The name of that folder: when it was made, in UTC, and what keeps two apart."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_FICLONE = 0x40049409
"""Lets a file share the blocks of another (``ioctl_ficlone(2)``)."""


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
    with contextlib.suppress(FileExistsError):  # another process may be as fast
        os.mkdir(name, make, dir_fd=descriptor)
    inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
    if make & ~NEW_FOLDER_MODE:  # mkdir takes neither the group's inheritance nor more than umask
        os.fchmod(inner, make)
    os.fsync(descriptor)
    return inner


def clone(source: int, target: int) -> None:
    """Let an empty file share the blocks of another until one of them is written.

    Raises
    ------
    OSError
        If the file system cannot do that.
    """
    fcntl.ioctl(target, _FICLONE, source)


def quarantine(
    path: str, folder: str, note: Mapping[str, Any], *, within: int | None = None
) -> str:
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
    within
        A descriptor of the folder that it lies in: ``path`` is then only told, and no link on
        the way to it is followed.

    Raises
    ------
    FileNotFoundError
        If nothing lies there.
    OSError
        If it cannot be kept: nothing may take its place then.
    """
    now = datetime.now(timezone.utc)
    name = path if within is None else os.path.basename(path)
    found = os.stat(name, dir_fd=within, follow_symlinks=False)
    place = os.path.join(folder, f"{now:{_PLACE_TIME}}-{secrets.token_hex(4)}")
    _make_folder(place)
    kept = os.path.join(place, QUARANTINED)
    if stat.S_ISLNK(found.st_mode):
        note = {
            **note,
            "link": os.readlink(name, dir_fd=within),
            **_keep_target(name, kept, within),
        }
    elif stat.S_ISREG(found.st_mode):
        _keep_file(name, kept, found, within)
    else:
        _move(name, kept, within)
    document = {**note, "path": path, "time": now.isoformat()}
    write_file(os.path.join(place, NOTE), (json.dumps(document, indent=2) + "\n").encode())
    return place


def _keep_target(name: str, kept: str, within: int | None) -> dict[str, str]:
    """Copy what a link points to, where it is a file: that stays where it is in any case."""
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=within).st_mode):
            _copy(name, kept, within)
    except OSError as error:
        return {"not_copied": error.strerror or str(error)}
    return {}


def _keep_file(name: str, kept: str, found: os.stat_result, within: int | None) -> None:
    if found.st_nlink > 1:
        try:
            _copy(name, kept, within)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        else:
            return
    try:  # what the device does not give can still be kept under another name
        os.link(name, kept, src_dir_fd=within, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        _copy(name, kept, within)


def _copy(name: str, kept: str, within: int | None) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=within)
    with open(descriptor, "rb") as source, replacement(kept) as target:
        shutil.copyfileobj(source, target)


def _move(name: str, kept: str, within: int | None) -> None:
    """Move a folder, or what is neither file nor link; to another file system a folder only."""
    try:
        os.rename(name, kept, src_dir_fd=within)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        source = name if within is None else f"/proc/self/fd/{within}/{name}"
        if not os.path.isdir(source):
            raise
        shutil.copytree(source, kept, symlinks=True)
        _sync_tree(kept)
        shutil.rmtree(source)


def _sync_tree(top: str) -> None:
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(folder)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What was set aside once.

    Attributes
    ----------
    place
        The folder that it is kept in.
    time
        When, in UTC.
    size
        Bytes that are kept.
    note
        What was known about it; empty if a kill came before it was written.
    """

    place: str
    time: datetime
    size: int
    note: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "place": self.place,
            "time": self.time.isoformat(),
            "bytes": self.size,
            "note": dict(self.note),
        }


def quarantined(folder: str) -> list[Quarantined]:
    """Return what is in a quarantine, the oldest first; anything else there is passed over.

    Raises
    ------
    OSError
        If it cannot be listed; a quarantine that was never needed is an empty one.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    matches = filter(None, map(_PLACE.fullmatch, names))
    return [_read_place(folder, match) for match in matches]


def _read_place(folder: str, match: re.Match[str]) -> Quarantined:
    place = os.path.join(folder, match[0])
    time = datetime.strptime(match[1], _PLACE_TIME).replace(tzinfo=timezone.utc)
    try:
        with open(os.path.join(place, NOTE), "rb") as file:
            note = json.load(file)
    except (FileNotFoundError, ValueError):
        note = {}
    size = sum(
        os.lstat(os.path.join(inner, name)).st_size
        for inner, _, names in os.walk(place)
        for name in names
        if (inner, name) != (place, NOTE)
    )
    return Quarantined(place, time, size, note if isinstance(note, dict) else {})


def purge(kept: Quarantined) -> None:
    """Delete what was set aside once, with its note; links in it are removed, never followed.

    Raises
    ------
    OSError
        If something of it cannot be deleted; what is left can be purged again.
    """
    shutil.rmtree(kept.place)


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
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

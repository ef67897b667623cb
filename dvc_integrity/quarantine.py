"""A place for bad bytes: what is replaced goes there in the same instant, and stays.

What lay under a name and what takes its place are exchanged in one step, so that at every
instant the name has the old bytes or the new ones, and whoever puts another file there
meanwhile gets it back. (Where the file system cannot do that, it is done in two steps, and what
is put there just between them is lost.) Each thing that was kept has a folder of its own with a
note. While a replacement is under way that folder holds what is coming in or going out, and
``settle`` ends what a kill cut short. Nothing but ``purge`` ever empties the quarantine.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dvc_integrity.digest import Digest
from dvc_integrity.durable import (
    NO_SUCH_CALL,
    exchange,
    make_folder,
    rename_new,
    sync_folder,
    write_file,
)
from dvc_integrity.errors import printable
from dvc_integrity.hashing import drop_cached_pages, hash_chunks, read_chunks

__all__ = ["Identity", "Kept", "Name", "Quarantine", "identity", "purge"]

BYTES, NOTE = "bytes", "note.json"
"""Names in the folder of what was kept."""

MOVING, BESIDE = "moving", "beside"
"""Names there while a replacement is under way: what is exchanged, or a link to it."""

_PLACE = re.compile(r"(\d{8}T\d{6})-[0-9a-f]{8}")
_PLACE_TIME = "%Y%m%dT%H%M%S"
"""The name of that folder: when it was made, in UTC, and what keeps two apart."""

_HIDDEN = re.compile(r"\.[0-9a-f]{16}\.dvc-integrity\.tmp")
"""A file beside its name, where the quarantine lies on another file system."""

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

PART = ".part"
"""Ends the name of a copy that is not whole yet."""

PIECE_BYTES = 1 << 20
"""Bytes copied at a time."""

Identity = tuple[int, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
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


@dataclass(frozen=True, slots=True)
class Name:
    """A name in an open folder.

    Attributes
    ----------
    folder
        A descriptor; no link on the way to it is followed any more.
    name
        The last part of the path.
    path
        All of it, to be told.
    """

    folder: int
    name: str
    path: str

    def stat(self) -> os.stat_result | None:
        """Return what lies there, a link itself; None if nothing does."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None


class Quarantine:
    """The folder that bad bytes are kept in; one process at a time replaces or settles.

    Parameters
    ----------
    folder
        Where; it need not exist. On the file system of what is replaced, all is done by renames.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._seen: dict[Identity, str] = {}
        self._lock = threading.Lock()

    # ------------------------------------------------------------- what is kept

    def entries(self) -> list[Kept]:
        """Return what is kept, the oldest first; anything else there is passed over.

        Raises
        ------
        OSError
            If it cannot be listed; a quarantine that was never needed is an empty one.
        """
        return [_read(place, time) for place, time in self._places()]

    def _places(self) -> list[tuple[str, datetime]]:
        try:
            with os.scandir(self.folder) as entries:
                names = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        times = [(name, _time_of(name)) for name in names]
        return [(os.path.join(self.folder, name), time) for name, time in times if time]

    def keep(self, file: str, note: Mapping[str, Any]) -> str:
        """Move a file, or a folder, of this program's own in; return its folder there.

        It is brought down to the disk: it may be the only copy soon.

        Raises
        ------
        OSError
            If it cannot be kept: it is where it was, or in the quarantine, but for a power cut.
        """
        place = self._make_place()
        try:
            _sync_tree(file)
            _write_note(place, note)
            os.rename(file, os.path.join(place, BYTES))
        except OSError:
            _forget(place)
            raise
        sync_folder(place)
        return place

    # ------------------------------------------------------------- replacing

    def replace(
        self,
        proven: str,
        name: Name,
        digest: Digest,
        note: Mapping[str, Any],
        *,
        as_judged: Identity | None = None,
    ) -> str | None:
        """Give a proven file its name; what lay there is kept.

        Parameters
        ----------
        proven
            The file, or a link to an object that was proven; gone afterwards.
        name
            What it is to be called. The folder is to be synced by whoever opened it.
        digest
            What the proven bytes are.
        note
            What is known of what lies there now; where and when are added.
        as_judged
            The ``identity`` of the file that was judged, empty if there was none: a file that
            is another one by now stays. None: whatever lies there is replaced.

        Returns
        -------
        str | None
            The folder that the old bytes are kept in; None if nothing lay there.

        Raises
        ------
        FileExistsError
            If somebody put something else there meanwhile; it lies there then.
        OSError
            If it cannot be done. What lay there lies there then, or is in the quarantine.
        """
        found = name.stat()
        link = found is not None and stat.S_ISLNK(found.st_mode)  # what it leads to was judged
        if found is not None and not link and as_judged not in (None, identity(found)):
            raise _busy(name)
        if found is None:
            try:
                rename_new(proven, name.folder, name.name)
            except FileExistsError as error:
                raise _busy(name) from error
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                return None
        return self._exchange(proven, name, digest, note, found)

    def _exchange(
        self,
        proven: str,
        name: Name,
        digest: Digest,
        note: Mapping[str, Any],
        found: os.stat_result | None,
    ) -> str | None:
        place = self._make_place()
        moving = os.path.join(place, MOVING)
        try:
            os.rename(proven, moving)
            if found is not None and stat.S_ISLNK(found.st_mode):
                note = {**note, **_about_link(name, place)}
            _write_note(place, {**note, "expected": str(digest), "path": name.path})
            if found is None:
                self._name_beside(place, name, digest)
                return None
            try:
                exchange(moving, name.folder, name.name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, *NO_SUCH_CALL):
                    raise
                if error.errno == errno.EXDEV or os.lstat(moving).st_dev != found.st_dev:
                    return self._exchange_beside(place, name, digest, found)
                return self._replace_in_two_steps(place, name, found)
        except BaseException:
            self._settle(place)
            raise
        if identity(os.lstat(moving)) != identity(found):
            self._give_back(place, name)
            raise _busy(name)
        return self._kept(place, moving, found)

    def _give_back(self, place: str, name: Name) -> None:
        """Put back what somebody wrote while it was being replaced."""
        exchange(os.path.join(place, MOVING), name.folder, name.name)
        self._settle(place)

    def _kept(self, place: str, moving: str, found: os.stat_result) -> str:
        """Name what came out; what several names share is kept once."""
        regular = stat.S_ISREG(found.st_mode)
        with self._lock:
            before = self._seen.get(identity(found)) if regular else None
            if before is None:
                self._seen[identity(found)] = place
        if before is not None:
            os.unlink(moving)
            _forget(place)
            return before
        _end(place, moving)
        return place

    def _name_beside(self, place: str, name: Name, digest: Digest) -> None:
        """Give a name that nothing has, where the quarantine lies on another file system."""
        hidden = self._carried(place, name, digest)
        rename_new(hidden.name, name.folder, name.name, source_folder=name.folder)
        _forget(place)

    def _exchange_beside(
        self, place: str, name: Name, digest: Digest, found: os.stat_result
    ) -> str:
        """Replace where the quarantine lies on another file system: by a file beside the name."""
        hidden = self._carried(place, name, digest)
        try:
            exchange(hidden.name, name.folder, name.name, source_folder=name.folder)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:
                raise
            return self._replace_in_two_steps(place, name, found, hidden)
        try:
            _refuse_another(hidden.stat(), found, name)
            _fetch(hidden, os.path.join(place, BYTES))
        except BaseException:  # what cannot be kept stays where it was
            exchange(hidden.name, name.folder, name.name, source_folder=name.folder)
            raise
        _remove(hidden)
        os.unlink(os.path.join(place, BESIDE))
        sync_folder(place)
        return place

    def _carried(self, place: str, name: Name, digest: Digest) -> Name:
        """Carry the proven file to a hidden one beside the name; the quarantine tells of it."""
        folder = os.path.dirname(os.path.abspath(name.path))
        secret = f".{secrets.token_hex(8)}.dvc-integrity.tmp"
        hidden = Name(name.folder, secret, os.path.join(folder, secret))
        part = f"{secret}{PART}"
        os.symlink(hidden.path, os.path.join(place, BESIDE))
        sync_folder(place)  # before there is anything to find
        _carry(os.path.join(place, MOVING), Name(name.folder, part, hidden.path), digest)
        os.rename(part, secret, src_dir_fd=name.folder, dst_dir_fd=name.folder)
        os.unlink(os.path.join(place, MOVING))
        return hidden

    def _replace_in_two_steps(
        self, place: str, name: Name, found: os.stat_result, hidden: Name | None = None
    ) -> str:
        """Keep, then replace, where the file system cannot exchange two names."""
        kept = os.path.join(place, BYTES)
        if stat.S_ISREG(found.st_mode):
            _keep_file(name, kept, found)
        elif hidden is not None and not stat.S_ISLNK(found.st_mode):
            raise _not_kept(name)
        elif not stat.S_ISLNK(found.st_mode):
            os.rename(name.name, kept, src_dir_fd=name.folder)
        sync_folder(place)
        now = name.stat()
        if now is not None and identity(now) != identity(found):
            if stat.S_ISREG(found.st_mode):  # it lies there still; a folder lies here only
                _discard(kept)
            raise _busy(name)
        if hidden is not None:
            os.replace(hidden.name, name.name, src_dir_fd=name.folder, dst_dir_fd=name.folder)
            os.unlink(os.path.join(place, BESIDE))
        else:
            os.replace(os.path.join(place, MOVING), name.name, dst_dir_fd=name.folder)
        return place

    # ------------------------------------------------------------- after a kill

    def unsettled(self) -> bool:
        """Return whether a replacement is under way, or was when its process was killed."""
        return any(
            os.path.lexists(os.path.join(place, name))
            for place, _ in self._places()
            for name in (MOVING, BESIDE)
        )

    def settle(self) -> None:
        """End what a killed process began; nobody else may be replacing anything.

        What cannot be ended yet stays as it is, with a warning: nothing of it is lost.

        Raises
        ------
        OSError
            If the quarantine cannot be listed.
        """
        for place, _ in self._places():
            try:
                self._settle(place)
            except OSError as error:
                logger.warning(
                    "What a restore that was cut short left in '%s' is still there: %s.",
                    printable(place),
                    error,
                )

    def _settle(self, place: str) -> None:
        """Keep what was going out; remove what was coming in, which is a proven copy."""
        beside = os.path.join(place, BESIDE)
        hidden = _target(beside)
        noted = os.path.lexists(os.path.join(place, NOTE))
        cut = not noted or os.path.lexists(beside)
        if hidden and os.path.lexists(f"{hidden}{PART}"):
            os.unlink(f"{hidden}{PART}")
        for moving in (os.path.join(place, MOVING), hidden):
            if not moving or not os.path.lexists(moving):
                continue
            cut = True
            if not noted or _is_copy(moving, _read_note(place).get("expected")):
                _discard(moving)
            else:
                _end(place, moving)
        if os.path.lexists(beside):
            os.unlink(beside)
        empty = not os.path.lexists(os.path.join(place, BYTES))
        if cut and empty and "link" not in _read_note(place):
            _forget(place)

    def _make_place(self) -> str:
        now = datetime.now(timezone.utc)
        place = os.path.join(self.folder, f"{now:{_PLACE_TIME}}-{secrets.token_hex(4)}")
        make_folder(place)
        return place


def identity(found: os.stat_result) -> Identity:
    """Return what tells a file, as it is now, from any other one under its name."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def purge(kept: Kept) -> None:
    """Delete what was set aside once, with its note; links in it are removed, never followed.

    Raises
    ------
    OSError
        If something of it cannot be deleted; what is left can be purged again.
    """
    bytes_kept = os.path.join(kept.place, BYTES)
    if os.path.lexists(bytes_kept):
        _discard(bytes_kept)  # before the note that tells what it is
    shutil.rmtree(kept.place)


def _time_of(name: str) -> datetime | None:
    """Return when a folder of the quarantine was made; None if it is none."""
    match = _PLACE.fullmatch(name)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], _PLACE_TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        return None  # there is no such day


def _busy(name: Name) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "somebody wrote it meanwhile", name.path)


def _refuse_another(came: os.stat_result | None, found: os.stat_result, name: Name) -> None:
    if came is None or identity(came) != identity(found):
        raise _busy(name)


def _not_kept(name: Name) -> OSError:
    why = "what lies there cannot be kept on another file system; move it aside"
    return OSError(errno.ENOTSUP, why, name.path)


def _end(place: str, moving: str) -> None:
    """Give what came out its name in the quarantine, as bytes that nobody else holds."""
    found = os.lstat(moving)
    kept = os.path.join(place, BYTES)
    if stat.S_ISLNK(found.st_mode):  # the note tells where it led
        os.unlink(moving)
    elif os.path.dirname(moving) != place:
        folder = os.open(os.path.dirname(moving), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            hidden = Name(folder, os.path.basename(moving), moving)
            _fetch(hidden, kept)
            _remove(hidden)
        finally:
            os.close(folder)
    elif stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and _copied(moving, kept):
        os.unlink(moving)
    else:
        os.rename(moving, kept)
    sync_folder(place)


def _copied(source: str, target: str, within: int | None = None) -> bool:
    """Copy a file that others hold by a hard link; False if its device does not give it."""
    try:
        _copy(source, target, within)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


def _keep_file(name: Name, kept: str, found: os.stat_result) -> None:
    """Keep a file that lies under its name still: by a link, or a copy of what others hold."""
    if found.st_nlink > 1 and _copied(name.name, kept, name.folder):
        return
    try:
        os.link(name.name, kept, src_dir_fd=name.folder, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        _copy(name.name, kept, name.folder)


def _about_link(name: Name, place: str) -> dict[str, str]:
    """Tell where a link leads, and copy what lies there, if it is a file."""
    about = {"link": os.readlink(name.name, dir_fd=name.folder)}
    try:
        if stat.S_ISREG(os.stat(name.name, dir_fd=name.folder).st_mode):
            _copy(name.name, os.path.join(place, BYTES), name.folder)
    except OSError as error:
        about["not_copied"] = error.strerror or str(error)
    return about


def _copy(name: str, kept: str, within: int | None = None) -> None:
    """Copy a file into the quarantine; half a copy of an earlier try is replaced."""
    temporary = f"{kept}{PART}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    source = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=within)
    with open(source, "rb") as file, open(os.open(temporary, _NEW_FILE, 0o600), "wb") as target:
        shutil.copyfileobj(file, target, PIECE_BYTES)
        target.flush()
        os.fsync(target.fileno())
    os.rename(temporary, kept)


def _carry(proven: str, hidden: Name, digest: Digest) -> None:
    """Copy a proven file to another file system, and prove it there again."""
    if os.path.islink(proven):
        os.symlink(os.readlink(proven), hidden.name, dir_fd=hidden.folder)
        return
    descriptor = os.open(hidden.name, _NEW_FILE, 0o600, dir_fd=hidden.folder)
    with open(descriptor, "w+b", buffering=0) as file:
        for chunk in read_chunks(proven):
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        os.fchmod(descriptor, stat.S_IMODE(os.stat(proven).st_mode))
        os.fsync(descriptor)
        drop_cached_pages(descriptor)
        file.seek(0)
        found, _ = hash_chunks(iter(lambda: file.read(PIECE_BYTES), b""), digest.algorithm)
    if found != digest:
        os.unlink(hidden.name, dir_fd=hidden.folder)
        raise OSError(errno.EIO, f"what was written reads back as {found}")


def _fetch(hidden: Name, kept: str) -> None:
    """Copy what came out beside its name into the quarantine on another file system.

    Raises
    ------
    OSError
        If it cannot be copied: nothing of it was removed.
    """
    found = hidden.stat()
    if found is None or stat.S_ISLNK(found.st_mode):  # the note tells where a link led
        return
    if stat.S_ISDIR(found.st_mode):
        part = f"{kept}{PART}"
        shutil.rmtree(part, ignore_errors=True)
        try:
            shutil.copytree(f"/proc/self/fd/{hidden.folder}/{hidden.name}", part, symlinks=True)
        except shutil.Error as error:
            raise _not_kept(hidden) from error
        _sync_tree(part)
        os.rename(part, kept)
    elif stat.S_ISREG(found.st_mode):
        _copy(hidden.name, kept, hidden.folder)
    else:
        raise _not_kept(hidden)
    sync_folder(os.path.dirname(kept))


def _remove(hidden: Name) -> None:
    """Remove what came out beside its name; it was kept."""
    found = hidden.stat()
    if found is not None and stat.S_ISDIR(found.st_mode):
        shutil.rmtree(f"/proc/self/fd/{hidden.folder}/{hidden.name}")
    elif found is not None:
        os.unlink(hidden.name, dir_fd=hidden.folder)


def _sync_tree(top: str) -> None:
    """Bring a file down to the disk, or a folder with all that is in it."""
    if not os.path.isdir(top):
        _sync(top)
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                _sync(path)
        sync_folder(folder)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_copy(path: str, expected: object) -> bool:
    """Return whether something is the proven file that was coming in, or a link to one."""
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode):
        return True  # one that was going out is told in the note
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        digest = Digest.parse(str(expected))
    except ValueError:
        return False  # nobody can tell: it is kept
    try:
        return hash_chunks(read_chunks(path), digest.algorithm)[0] == digest
    except OSError:
        return False  # what cannot be read is kept


def _discard(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _forget(place: str) -> None:
    shutil.rmtree(place)
    sync_folder(os.path.dirname(place))


def _target(beside: str) -> str | None:
    """Return the file beside a name that a link in the quarantine tells of."""
    try:
        target = os.readlink(beside)
    except FileNotFoundError:
        return None
    return target if _HIDDEN.fullmatch(os.path.basename(target)) else None


def _write_note(place: str, note: Mapping[str, Any]) -> None:
    document = {**note, "time": datetime.now(timezone.utc).isoformat()}
    data = (json.dumps(document, indent=2) + "\n").encode()
    write_file(os.path.join(place, NOTE), data)


def _read_note(place: str) -> dict[str, Any]:
    try:
        with open(os.path.join(place, NOTE), "rb") as file:
            note = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _read(place: str, time: datetime) -> Kept:
    kept = os.path.join(place, BYTES)
    size = os.lstat(kept).st_size if os.path.lexists(kept) and not os.path.isdir(kept) else 0
    for folder, _, names in os.walk(kept):
        size += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return Kept(place, time, size, _read_note(place))

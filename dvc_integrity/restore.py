"""Proven bytes in the place of a file that is not what was committed.

Each candidate is hashed before it is trusted, what is written is read back and hashed again,
and the bad file is in the quarantine before its name goes to the good one. A kill at any
instant leaves the old bytes or the proven new ones.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from dvc_integrity.durable import exclusive, quarantine, replacement
from dvc_integrity.errors import RestoreError, StoreError, printable
from dvc_integrity.hashing import drop_cached_pages, hash_buffers
from dvc_integrity.judgement import is_expected
from dvc_integrity.manifest import Entry, Manifest
from dvc_integrity.observation import Observation
from dvc_integrity.stores import ObjectStore, Store, Workspace

__all__ = ["Restorer", "find_good"]

Copy = TypeVar("Copy")
Source = TypeVar("Source", bound=Store)

NEW_FILE_MODE = 0o644


@dataclass(frozen=True)
class Restorer:
    """Brings files of the work tree back from stores that hold a good copy; picklable.

    Attributes
    ----------
    workspace
        Where the files lie.
    sources
        Where good copies may lie, the cheapest first.
    scratch
        The folder for the quarantine and the lock, ``Repository.scratch``.
    """

    workspace: Workspace
    sources: Sequence[ObjectStore]
    scratch: str

    def bring_back(self, manifest: Manifest, row: int) -> tuple[bytes, str]:
        """Put a proven copy in the place of one file.

        Several processes that meet the same file restore it once.

        Parameters
        ----------
        manifest
            What the file must be.
        row
            Which of its entries.

        Returns
        -------
        tuple[bytes, str]
            The bytes that lie there now, and the name of the store that they came from;
            ``workspace`` if somebody else had brought them back meanwhile.

        Raises
        ------
        RestoreError
            If no store holds a good copy, or the file cannot be replaced; the message tells
            what was tried. The file is then what it was.
        """
        entry = manifest[row]
        try:
            with exclusive(os.path.join(self.scratch, "restore.lock")):
                ((data, seen),) = self.workspace.read(manifest, [row], cold=True)
                if is_expected(entry, seen):
                    return data, self.workspace.name
                data, source = self._find(manifest, row)
                self._replace(entry, data, seen)
        except OSError as error:
            raise RestoreError(
                f"'{printable(entry.path)}' could not be restored: {error.strerror or error}. The "
                f"file is what it was. Mend that ('{printable(self.scratch)}' and the file's "
                f"folder must be writable, with space left), and run again."
            ) from error
        return data, source

    def _find(self, manifest: Manifest, row: int) -> tuple[bytes, str]:
        """Return the bytes of the first store whose copy is good."""
        return find_good(
            manifest, row, self.sources, lambda source: source.read(manifest, [row])[0]
        )

    def _replace(self, entry: Entry, data: bytes, seen: Observation) -> None:
        place = os.fsdecode(self.workspace.locate(entry.path))
        with replacement(place) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), _mode(place, entry))
            _prove(file, entry)
            if os.path.lexists(place):
                note = {
                    "expected": str(entry.digest),
                    "found": seen.digest.hex() if seen.digest else None,
                    "size": seen.size,
                }
                quarantine(place, os.path.join(self.scratch, "quarantine"), note)


def find_good(
    manifest: Manifest,
    row: int,
    sources: Iterable[Source],
    read: Callable[[Source], tuple[Copy, Observation]],
) -> tuple[Copy, str]:
    """Return the first good copy of a file among some stores, and the store's name.

    Parameters
    ----------
    manifest
        What the file must be.
    row
        Which of its entries.
    sources
        Where good copies may lie, the cheapest first.
    read
        Reads the copy of one store, in any form, and says what was seen of it.

    Raises
    ------
    RestoreError
        If no store holds a good copy; the message tells what was tried.
    """
    entry = manifest[row]
    tried = []
    for source in sources:
        try:
            copy, seen = read(source)
        except StoreError as error:
            tried.append(f"{source.name}: {error}")
            continue
        if is_expected(entry, seen):
            return copy, source.name
        tried.append(f"{source.name}: {_why_not(seen)}")
    places = "; ".join(tried) or "no cache and no remote was given"
    raise RestoreError(
        f"'{printable(entry.path)}' has no good copy anywhere ({places}). Bring one back "
        f"from a machine that has it ('dvc push' there), or from a backup."
    )


def _prove(file: BinaryIO, entry: Entry) -> None:
    """Read what was written back, past the page cache.

    Raises
    ------
    OSError
        If it is not what it must be.
    """
    drop_cached_pages(file.fileno())
    file.seek(0)
    stored = file.read()
    digest = entry.digest and hash_buffers([stored], entry.digest.algorithm)[0]
    if digest != entry.digest:
        raise OSError(errno.EIO, f"what was written reads back as {digest}")


def _why_not(seen: Observation) -> str:
    if isinstance(seen.error, FileNotFoundError):
        return "absent"
    return f"unreadable ({seen.error.strerror})" if seen.error else "damaged too"


def _mode(place: str, entry: Entry) -> int:
    """Return the mode of the file that lies there, with the execute bit that DVC records."""
    try:
        found = os.stat(place)
    except OSError:
        mode = NEW_FILE_MODE
    else:
        mode = stat.S_IMODE(found.st_mode) if stat.S_ISREG(found.st_mode) else NEW_FILE_MODE
    return mode | (stat.S_IXUSR if entry.executable else 0)

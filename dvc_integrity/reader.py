"""Bytes that were proven as they were read.

A ``Reader`` opens a file once, hashes the buffer it read, compares it with the manifest, and
hands on that very buffer. It knows neither DVC nor PyTorch, pickles to a manifest and a
folder name, and opens nothing until it is asked for bytes.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from typing import BinaryIO

from dvc_integrity.errors import ManifestError, printable
from dvc_integrity.hashing import read_file
from dvc_integrity.judgement import is_expected, judge
from dvc_integrity.manifest import Entry, Manifest
from dvc_integrity.report import CorruptDataError, Finding, Hint, Status
from dvc_integrity.stores import Workspace

__all__ = ["Reader"]

logger = logging.getLogger(__name__)


class Reader:
    """Reads files of a manifest; what it returns is what was committed.

    Parameters
    ----------
    manifest
        What the files must be.
    store
        Where they lie: ``Repository(…).workspace``.
    """

    def __init__(self, manifest: Manifest, store: Workspace) -> None:
        self.manifest = manifest
        self._store = Workspace(store.root)  # without what explains differences: that knows DVC

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """Return the bytes of a file, proven.

        Parameters
        ----------
        path
            As the manifest has it (relative to the DVC root), or absolute.

        Raises
        ------
        CorruptDataError
            If the bytes are not the committed ones, twice; or there are none to read.
        ManifestError
            If the manifest does not list the path.
        """
        entry = self._entry(path)
        if entry.digest is None:
            why = "no content hash is committed for it"
            finding = Finding(entry.path, entry.out, Status.UNVERIFIABLE, detail=why)
            raise CorruptDataError(finding=finding)
        place = self._store.locate(entry.path)
        data, first = read_file(place, entry.digest.algorithm)
        if is_expected(entry, first):
            return data
        data, second = read_file(place, entry.digest.algorithm, cold=True)
        if is_expected(entry, second):
            logger.warning(
                "'%s' gave the committed bytes only when read again", printable(entry.path)
            )
            return data
        raise CorruptDataError(finding=judge(entry, first, second, lambda _: Hint()))

    def read_many(self, paths: Iterable[str | os.PathLike[str]]) -> list[bytes]:
        """Return the bytes of several files, each proven, in order.

        Raises
        ------
        CorruptDataError, ManifestError
            As ``read``; the first file that is not good decides.
        """
        return [self.read(path) for path in paths]

    def open(self, path: str | os.PathLike[str]) -> BinaryIO:
        """Return a file object over the proven bytes of a file.

        Raises
        ------
        CorruptDataError, ManifestError
            As ``read``, before the first byte can be taken.
        """
        return io.BytesIO(self.read(path))

    def _entry(self, path: str | os.PathLike[str]) -> Entry:
        name = os.path.normpath(os.fspath(path))
        if os.path.isabs(name):
            name = os.path.relpath(name, self._store.root)
        row = self.manifest.find(name)
        if row is None:
            raise ManifestError(
                f"'{printable(name)}' is not in the manifest of "
                f"{', '.join(map(printable, self.manifest.targets))} at {self.manifest.rev}, so "
                f"there is nothing to hold it to. Track it with DVC and commit, or widen the "
                f"target."
            )
        return self.manifest[row]

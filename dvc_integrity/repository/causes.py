"""Hints on the cause of a difference. They never make a file good."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from typing import Any
from urllib.parse import quote

from dvc.dirs import site_cache_dir
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.version import version_tuple
from fsspec.utils import tokenize

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import printable
from dvc_integrity.manifest import Manifest
from dvc_integrity.report import Hint

__all__ = ["Causes"]


class Causes:
    """Explains differences from DVC's state database and the metadata in the work tree.

    Parameters
    ----------
    root
        Absolute path of the DVC root.
    config
        DVC's configuration.
    recorded
        Gives the manifest of the output that a path is in, as the metadata in the work tree
        has it; None if there is none.
    cached
        Gives the path of the cache object of a digest.
    """

    def __init__(
        self,
        root: str,
        config: Mapping[str, Any],
        recorded: Callable[[str], Manifest | None],
        cached: Callable[[Digest], str],
    ) -> None:
        self._root = root
        self._config = config
        self._recorded = recorded
        self._cached = cached

    def __call__(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Explain why ``path`` is not what was committed."""
        try:
            return self._explain(path, expected, found)
        except (OSError, sqlite3.Error, LookupError, TypeError, ValueError, AttributeError):
            return Hint()  # records that cannot be read explain nothing

    def _explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        written, detail = self._when_written(path, expected, found)
        recorded = self._recorded(path)
        if recorded is None or any(out.unverifiable for out in recorded.outs):
            return Hint(written, adopted=False, detail=detail)
        row = recorded.find(path)
        now = recorded[row].digest if row is not None else None
        is_extra = expected is None
        if now == expected or not (is_extra or now == found):
            return Hint(written, adopted=False, detail=detail)
        where = printable(recorded.outs[0].defined_in)
        return Hint(written, True, f"'{where}' in the work tree already records this change")

    def _when_written(
        self, path: str, expected: Digest | None, found: Digest | None
    ) -> tuple[bool | None, str]:
        if expected is None or found is None:
            return None, ""
        place = os.path.join(self._root, path)
        record = self._state.get(place)
        if record is None and _is_same_file(place, self._cached(expected)):
            return False, "it is a link to the cache object of that hash, so that is damaged too"
        if record is None:
            return None, "DVC has no record of when it was last written"
        digest, token = record
        if token != _state_token(place):
            return True, "it was written since DVC last read it"
        if digest == expected:
            return False, (
                "nothing wrote it since DVC recorded the committed hash: "
                "same inode, size and modification time"
            )
        return True, "it was written since it was committed"

    @cached_property
    def _state(self) -> _StateDatabase:
        return _StateDatabase(self._root, self._config)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user need have no name
        return None


def _state_token(place: str) -> str:
    """Return what DVC knows a file's state by (``dvc_data.hashfile.state._checksum``)."""
    info = localfs.info(place)
    return str(int(tokenize([info["ino"], info["mtime"], info["size"]]), 16))


def _is_same_file(place: str, other: str) -> bool:
    try:
        return os.path.samefile(place, other)
    except OSError:
        return False


class _StateDatabase:
    """DVC's record of which bytes it saw in a file, opened for reading only.

    Where it lies is ``Repo.site_cache_dir``, what stands in it is
    ``dvc_data.hashfile.state.State.save``. It serves as a hint on the cause of a difference
    and nothing else.
    """

    def __init__(self, root: str, config: Mapping[str, Any]) -> None:
        folder = site_cache_dir(config["core"].get("site_cache_dir"))
        stamp = os.path.join(root, Repo.DVC_DIR, "tmp", "btime")
        born = (
            os.path.getmtime(stamp)
            if os.path.exists(stamp)
            else getattr(os.stat(root), "st_birthtime", None)
        )
        text = str((root, None, born, _user(), version_tuple[0], 0))
        token = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        self.path = os.path.join(folder, "repo", token, "hashes", "local", "cache.db")

    @property
    def _address(self) -> str:
        """How to open the database so that reading it leaves no file behind."""
        idle = not os.path.exists(f"{self.path}-wal")  # nobody writes: SQLite need take no part
        return f"file:{quote(self.path)}?mode=ro{'&immutable=1' if idle else ''}"

    def get(self, place: str) -> tuple[Digest, str] | None:
        """Return the digest that DVC recorded for a file, and the token of its state then."""
        if not os.path.exists(self.path):
            return None
        with closing(sqlite3.connect(self._address, uri=True)) as database:
            query = "SELECT value FROM Cache WHERE key = ? AND raw = 1"
            row = database.execute(query, (place,)).fetchone()
        if row is None:
            return None
        entry = json.loads(row[0])
        ((name, value),) = entry["hash_info"].items()
        if name == "md5" and entry.get("version") is None:
            name = "md5-dos2unix"
        return Digest.from_hex(Algorithm(name), value), entry["checksum"]

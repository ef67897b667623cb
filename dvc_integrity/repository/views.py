"""Read-only views of a project's metadata: of a commit, and of the work tree.

DVC reads metadata through a file system. For one of these it opens no lock and no state
database and writes nothing. Both views show the project below ``ROOT`` instead of ``/``, so
that a path which climbs out of the repository is seen to do so, and both take names as they
are: DVC's own view of a commit passes paths through ``urlsplit``, which loses ``#``, ``?`` and
tabs.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import secrets
from functools import cached_property
from typing import Any, BinaryIO

from dvc.fs import GitFileSystem
from dvc.repo import Repo
from fsspec.spec import AbstractFileSystem
from scmrepo.fs import GitFileSystem as GitObjects

from dvc_integrity.hashing import read_chunks

__all__ = ["ROOT", "WORKSPACE", "Commit", "ViewedRepo", "WorkTree"]

ROOT = f"/{secrets.token_hex(16)}"
"""Where the root of the Git repository lies in a view; no committed path can spell it."""

WORKSPACE = "workspace"
"""The revision that stands for the metadata as it lies in the work tree."""


class _Rooted(GitObjects):  # type: ignore[misc]  # scmrepo's types are not followed
    """Shows files below ``ROOT``."""

    def _get_key(self, path: str) -> tuple[str, ...]:
        parts = tuple(part for part in self.abspath(path).split("/") if part)
        if parts[:1] != (ROOT.strip("/"),):
            return ("/outside", *parts)  # no file has a slash in its name: it is never found
        return parts[1:]


class _CommittedFiles(_Rooted):
    """Files of a commit; each is read whole, and held to its Git hash, when it is opened."""

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:  # noqa: ARG002 (fsspec's)
        key = self._get_key(path)
        if not self.trie.isfile(key):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        node = self.trie.trie[key]
        try:
            # Not through pygit2's stream: that waits for ever when the object is damaged.
            return io.BytesIO(node.obj.read_raw())
        except Exception as error:  # libgit2 raises what it likes
            why = f"Git's object {node.obj.id} is missing or damaged ('git fsck' shows the extent)"
            raise OSError(errno.EIO, why, path) from error


class _WorkTreeFiles(_Rooted):
    """Files of the work tree that Git does not ignore."""

    def __init__(self, scm: Any) -> None:
        AbstractFileSystem.__init__(self)
        self.rev = WORKSPACE
        self._cwd = self.root_marker
        self._scm = scm

    def _place(self, path: str) -> str:
        return os.path.join(str(self._scm.root_dir), *self._get_key(path))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:  # noqa: ARG002 (fsspec's)
        return io.BytesIO(b"".join(read_chunks(self._place(path))))  # a FIFO is refused, not read

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        place = self._place(path)
        stat = os.stat(place)
        kind = "directory" if os.path.isdir(place) else "file"
        return {"name": path, "type": kind, "size": stat.st_size, "mode": stat.st_mode}

    def exists(self, path: str, **_: Any) -> bool:
        return os.path.exists(self._place(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        listed = []
        with os.scandir(self._place(path)) as entries:
            for entry in entries:
                folder = entry.is_dir(follow_symlinks=False)
                if (folder or _is_file(entry)) and not self._is_ignored(entry.path, folder):
                    listed.append(f"{path.rstrip('/')}/{entry.name}")
        return [self.info(name) for name in listed] if detail else listed

    def _is_ignored(self, place: str, folder: bool) -> bool:
        ignores = getattr(self._scm, "is_ignored", None)  # a project without Git ignores nothing
        return bool(ignores and ignores(f"{place}{os.sep}" if folder else place))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle is no file, and must not hide the others
        return False


class ViewedRepo(Repo):  # type: ignore[misc]  # DVC's types are not followed
    """DVC's ``Repo`` over a view, with the configuration and the cache of the real project.

    Parameters
    ----------
    root
        The DVC root in the view.
    files
        The view.
    scm
        DVC's handle on the Git repository.
    local
        Absolute path of the project's ``.dvc`` folder.
    """

    def __init__(self, root: str, files: Commit | WorkTree, scm: Any, local: str) -> None:
        self._local = local
        super().__init__(root, fs=files, scm=scm)

    @cached_property
    def local_dvc_dir(self) -> str:
        """Where DVC looks for ``config.local`` and the cache."""
        return self._local


class _View(GitFileSystem):  # type: ignore[misc]  # DVC's types are not followed
    """What DVC takes for the file system of a commit."""

    def normpath(self, path: str) -> str:
        """Return a path without ``.`` and ``..``; DVC's own takes it for a URL."""
        return posixpath.normpath(path)


class Commit(_View):
    """The metadata at a commit."""

    @cached_property
    def fs(self) -> GitObjects:
        """The files, as fsspec has them."""
        return _CommittedFiles(**self.fs_args)


class WorkTree(_View):
    """The metadata as it lies in the work tree."""

    def __init__(self, scm: Any) -> None:
        super().__init__(scm=scm, rev=WORKSPACE)
        self._scm = scm

    @cached_property
    def fs(self) -> GitObjects:
        """The files, as fsspec has them."""
        return _WorkTreeFiles(self._scm)

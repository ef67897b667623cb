"""What a path was to be at other commits, the newest first.

A hint on where bytes come from, never an expectation. Only commits that touch the files that
may define the path are looked at, and of those commits only these files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dvc.repo import Repo
from git.exc import GitCommandError

from dvc_integrity.digest import DIGEST_BYTES, Algorithm, Digest
from dvc_integrity.errors import RepositoryError, printable
from dvc_integrity.listing import parse_listing
from dvc_integrity.manifest import Out
from dvc_integrity.patterns import Version
from dvc_integrity.repository.tracked import Tracked, read_file

__all__ = ["MOST_COMMITS", "History"]

MOST_COMMITS = 1000
"""Commits that are looked at."""

_LOCK, _PIPELINE = "dvc.lock", "dvc.yaml"


class History:
    """Walks the commits that touch what defines a path.

    Parameters
    ----------
    scm
        DVC's handle on the Git repository.
    inside
        The DVC root relative to Git's, ``.`` if they are one.
    open_at
        Opens DVC's view of the project at a commit.
    listing
        Gives the proven listing of a folder from its output, or says why there is none.
    """

    def __init__(
        self,
        scm: Any,
        inside: str,
        open_at: Callable[[str], Repo],
        listing: Callable[[Out, Digest], deque[bytes] | str],
    ) -> None:
        self._scm = scm
        self._inside = inside
        self._open_at = open_at
        self._listing = listing
        self._listed: dict[tuple[Digest, str], Digest | None] = {}

    def versions(self, path: str, defined_in: Sequence[str]) -> Iterator[Version]:
        """Yield what a path was to be, from the newest commit of any branch to the oldest.

        Parameters
        ----------
        path
            Relative to the DVC root.
        defined_in
            Files that are known to define it, beside those whose names tell it.
        """
        files = list(dict.fromkeys([*defined_in, *_may_define(path)]))
        for sha, date, subject in self._commits(files):
            digest = self._digest_at(sha, path, files)
            if digest is not None:
                yield Version(sha, date, subject, digest)

    def _commits(self, files: Sequence[str]) -> list[tuple[str, str, str]]:
        paths = [os.path.normpath(os.path.join(self._inside, file)) for file in files]
        try:
            text = self._scm.gitpython.repo.git.log(
                "--exclude=refs/stash",
                "--all",
                "--date-order",
                "--format=%H%x00%cI%x00%s",
                f"--max-count={MOST_COMMITS}",
                "--",
                *(f":(top,literal){path}" for path in paths),
            )
        except GitCommandError as error:
            raise RepositoryError(
                f"The history cannot be read: {printable(str(error.stderr).strip())}. 'git fsck' "
                f"shows damage."
            ) from error
        lines = (line.split("\0", 2) for line in text.splitlines())
        return [(sha, date, subject) for sha, date, subject in lines]

    def _digest_at(self, sha: str, path: str, files: Sequence[str]) -> Digest | None:
        for tracked in self._tracked_at(sha, files):
            out = tracked.out
            if out.path == path and not out.directory:
                return out.digest
            if out.directory and path.startswith(f"{out.path}/"):
                return self._listed_digest(tracked, path[len(out.path) + 1 :])
        return None

    def _tracked_at(self, sha: str, files: Sequence[str]) -> Iterator[Tracked]:
        try:
            repo = self._open_at(sha)
        except RepositoryError:
            return  # there was no project yet
        for file in files:
            folder, name = os.path.split(file)
            place = os.path.join(repo.root_dir, folder, _PIPELINE if name == _LOCK else name)
            if not repo.fs.isfile(place):
                continue
            try:
                yield from read_file(repo, place)
            except Exception:  # noqa: BLE001, S112 (metadata of long ago that DVC cannot read names no version)
                continue

    def _listed_digest(self, tracked: Tracked, name: str) -> Digest | None:
        """Return the digest of a file in the listing of a folder; of each listing once."""
        out = tracked.out
        if tracked.files is not None:
            found = next((each for each in tracked.files if each["relpath"] == name), {})
            value = found.get("md5")
            return Digest.from_hex(Algorithm.MD5, value) if value else None
        if out.digest is None:
            return None
        key = out.digest, name
        if key not in self._listed:
            self._listed[key] = self._look_up(out, out.digest, os.fsencode(name))
        return self._listed[key]

    def _look_up(self, out: Out, digest: Digest, name: bytes) -> Digest | None:
        chunks = self._listing(out, digest)
        if isinstance(chunks, str):
            return None  # it is not to be had any more
        try:
            for listed in parse_listing(chunks):
                if name in listed.names:
                    at = listed.names.index(name) * DIGEST_BYTES
                    return Digest(digest.algorithm, listed.digests[at : at + DIGEST_BYTES])
        except (ValueError, RecursionError):
            return None  # a listing that is none names no version
        return None


def _may_define(path: str) -> Iterator[str]:
    """Yield the names of the files that define a path, or a folder it is in, where nobody chose."""
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        yield f"{'/'.join(parts[:count])}.dvc"
        yield "/".join([*parts[: count - 1], _LOCK])

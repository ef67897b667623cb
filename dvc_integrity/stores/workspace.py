"""The files of the work tree, under their own names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockRecords, BlockUse
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import printable
from dvc_integrity.hashing import Meter, Paths, hash_files, read_chunks, read_files, read_whole
from dvc_integrity.manifest import Manifest, Out
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import Hint
from dvc_integrity.stores.protocol import Hints, Presence
from dvc_integrity.stores.reading import blockwise, by_algorithm, stat_file

__all__ = ["DEFAULT_LINKS", "Workspace"]

DEFAULT_LINKS = ("reflink", "copy")
"""How DVC makes files from objects where ``cache.type`` is not set."""

ROWS_AT_A_TIME = 1 << 14
"""Entries whose paths are made at a time: bounds memory."""


class Workspace:
    """The files of the work tree, under their own names.

    Parameters
    ----------
    root
        Absolute path of the DVC root.
    hints
        Explains differences; left behind when the store is pickled.
    ignored
        Tells whether ``.dvcignore`` at a revision leaves a path (relative to the root) out;
        left behind when the store is pickled.
    blocks
        What is known of the blocks of large files.
    links
        How files are made from objects of the cache, in order of preference (``cache.type``).
    """

    name = "workspace"
    immutable = False

    def __init__(
        self,
        root: str,
        *,
        hints: Hints | None = None,
        ignored: Callable[[str, str], bool] | None = None,
        blocks: BlockRecords | None = None,
        links: tuple[str, ...] = DEFAULT_LINKS,
    ) -> None:
        self.root = os.path.abspath(root)
        self.blocks = blocks
        self.links = links
        self._hints = hints
        self._ignored = ignored

    def __getstate__(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "blocks": self.blocks,
            "links": self.links,
            "_hints": None,
            "_ignored": None,
        }

    def holds(self, out: Out) -> bool:  # noqa: ARG002 (every output has its files here)
        """Return True: every output has its files in the workspace."""
        return True

    def locate(self, path: str | bytes) -> bytes:
        """Return the absolute path of a file, in the file system's bytes."""
        return self._folder + os.fsencode(path)

    @cached_property
    def _folder(self) -> bytes:
        return os.path.join(os.fsencode(self.root), b"")

    def observe(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        algorithm: Algorithm,
        *,
        jobs: int | None = None,
        cold: bool = False,
        meter: Meter | None = None,
        blocks: BlockUse = BlockUse.NONE,
    ) -> Iterator[Observations]:
        """Read and hash files of the work tree; links are followed, as DVC follows them."""
        paths = Paths(manifest.blob, manifest.offsets[rows], os.fsencode(self.root))
        large = blockwise(self.blocks, blocks, manifest, rows, algorithm)
        return hash_files(paths, algorithm, jobs=jobs, cold=cold, meter=meter, large=large)

    def read(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        *,
        cold: bool = False,
    ) -> list[tuple[bytes, Observation]]:
        """Return the bytes of files of the work tree; links are followed."""

        def read(some: Sequence[int], algorithm: Algorithm) -> list[tuple[bytes, Observation]]:
            return read_files([self.place(manifest, rows[at]) for at in some], algorithm, cold=cold)

        return by_algorithm(manifest, rows, read)

    def read_unhashed(self, manifest: Manifest, row: int) -> tuple[bytes, Observation]:
        """Return the bytes of a file of the work tree, whatever they are."""
        return read_whole(self.place(manifest, row))

    def place(self, manifest: Manifest, row: int) -> bytes:
        """Return the path of an entry's file."""
        return self.locate(manifest.path(row))

    def stat(self, manifest: Manifest, rows: Sequence[int]) -> list[Presence]:
        """Tell the sizes of files of the work tree; links are followed."""
        return [stat_file(self.place(manifest, row)) for row in rows]

    def chunks(self, manifest: Manifest, row: int) -> Iterator[bytes]:
        """Yield the bytes of a file of the work tree; links are followed."""
        return read_chunks(self.place(manifest, row))

    def detached(self) -> Workspace:
        """Return the same without what explains differences: that knows DVC."""
        return Workspace(self.root, blocks=self.blocks, links=self.links)

    def listings(self, manifest: Manifest) -> Iterator[tuple[Out, Callable[..., Observation]]]:  # noqa: ARG002 (the protocol)
        """Yield nothing: a listing is an object of the cache, not a file of the work tree."""
        return iter(())

    def extras(self, manifest: Manifest) -> Iterator[tuple[str, OSError | None]]:
        """Walk the folders that the manifest describes in full, as DVC walks them.

        What ``.dvcignore`` leaves out is no extra.
        """
        listed = _Listed(manifest)
        for tree in manifest.trees:
            for path, error in self._unlisted(listed, os.fsencode(tree)):
                if error or not (self._ignored and self._ignored(manifest.rev, path)):
                    yield path, error

    def explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Say what the links of the work tree and DVC's records tell about a difference."""
        hint = self._hints(path, expected, found) if self._hints else Hint()
        link = None if found else self._describe_link(path)
        return replace(hint, detail=link) if link else hint

    def _describe_link(self, path: str) -> str | None:
        place = self.locate(path)
        try:
            target = printable(os.readlink(place))
        except OSError:
            return None  # it is no link, or not any more
        if os.path.isdir(place):
            return f"it is a link to the folder '{target}', which DVC does not follow"
        return f"it is a link to '{target}', which cannot be read"

    def _unlisted(self, listed: _Listed, tree: bytes) -> Iterator[tuple[str, OSError | None]]:
        folders = [tree]
        while folders:
            folder = folders.pop()
            try:
                files, inner = _list_folder(self.locate(folder), folder)
            except FileNotFoundError:
                continue  # its files are reported as missing, one by one
            except NotADirectoryError:
                yield os.fsdecode(folder), None  # a file lies where a folder was committed
                continue
            except OSError as error:
                yield os.fsdecode(folder), error
                continue
            folders += inner
            for path in listed.absent(folder, files):
                yield os.fsdecode(path), None


def _list_folder(place: bytes, folder: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the paths of the files and of the folders in a folder.

    A link to a folder counts among the files, and so is extra: DVC does not follow it, and
    takes what was committed below its name for deleted.
    """
    files: list[bytes] = []
    folders: list[bytes] = []
    with os.scandir(place) as entries:
        for entry in entries:
            kind = folders if entry.is_dir(follow_symlinks=False) else files
            kind.append(folder + b"/" + entry.name)
    return files, folders


class _Listed:
    """Answers in bulk which files of a folder a manifest does not list."""

    CROWDED = 4
    """A folder whose own files are fewer than one in so many is not compared as a whole."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def absent(self, folder: bytes, paths: list[bytes]) -> Iterable[bytes]:
        """Return those of ``paths``, which lie right in ``folder``, that are not listed."""
        if not paths:
            return ()
        below = self._manifest.below(folder)
        if len(below) <= self.CROWDED * len(paths):
            return set(paths).difference(self._manifest.paths(below.start, below.stop))
        return self._absent_by_hash(paths)

    def _absent_by_hash(self, paths: list[bytes]) -> Iterator[bytes]:
        """Find the one row that each path can be at by its hash; the path itself decides."""
        wanted = np.fromiter(map(hash, paths), np.int64, len(paths))
        hashes, rows = self._by_hash
        positions = np.searchsorted(hashes, wanted)
        for path, position in zip(paths, positions.tolist(), strict=True):
            row = int(rows[position]) if position < len(rows) else None
            known = row is not None and self._manifest.path(row) == path
            if not known and self._manifest.find(path) is None:
                yield path

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sorted hashes of all paths, and their rows; 16 bytes an entry."""
        paths = _paths_at(self._manifest, np.arange(len(self._manifest)))
        hashes = np.fromiter(map(hash, paths), np.int64, len(self._manifest))
        rows = np.argsort(hashes, kind="stable")
        return hashes[rows], rows


def _paths_at(manifest: Manifest, rows: NDArray[np.int64] | Sequence[int]) -> Iterator[bytes]:
    """Yield the paths at ascending ``rows``, making whole stretches of them at once."""
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) != len(manifest):
        yield from map(manifest.path, rows.tolist())
        return
    for start in range(0, len(manifest), ROWS_AT_A_TIME):
        yield from manifest.paths(start, min(start + ROWS_AT_A_TIME, len(manifest)))

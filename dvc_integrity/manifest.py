"""What every file must be: path, digest, size, at one Git revision.

A manifest is columns, not objects: one blob of paths with offsets, an array of digests, one
of sizes. It is sorted by path (as bytes), looked up by bisection, cheap to pickle and to
share between forked processes; a million entries take well under 150 MB. Iterating gives
``Entry`` values.

Laws held here: every path is relative, without ``..``, without NUL, and occurs once; no path
is a file and a folder at a time; no two paths of one listing differ in case alone. A manifest
that would break one of them cannot be built.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from itertools import chain, pairwise, repeat
from operator import lt
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.digest import DIGEST_BYTES, Algorithm, Digest
from dvc_integrity.errors import ManifestError, printable
from dvc_integrity.listing import parse_listing

__all__ = ["Entry", "Manifest", "ManifestBuilder", "Out"]

Scalar = TypeVar("Scalar", bound=np.generic)

LARGEST_SIZE = 1 << 63
"""Sizes are kept as 64-bit integers."""

UNKNOWN_SIZE = -1
"""Stands in the size column where DVC records none (a listing holds no sizes)."""

_ALGORITHMS = {1: Algorithm.MD5, 2: Algorithm.MD5_DOS2UNIX}
_CODES = {algorithm: code for code, algorithm in _ALGORITHMS.items()}
_ALGORITHM_BITS = 0x0F  # 0: no content hash is committed
_EXECUTABLE_BIT = 0x10

_UNSAFE = re.compile(rb"(?:\A|[\0/])\.{0,2}(?=[\0/]|\Z)")
"""An empty, ``.`` or ``..`` component in paths joined by NUL; so also an absolute path."""

_SUSPICIOUS = (b"\0\0", b"\0/", b"/\0", b"//", b"\0.", b"/.")
"""What paths between NULs hold wherever ``_UNSAFE`` finds something; quick to look for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one file must be.

    Attributes
    ----------
    path
        Relative to the DVC root, with forward slashes.
    digest
        The committed content hash; None if none is committed.
    size
        Bytes, or None where DVC records no size.
    executable
        True where DVC records that the file is executable.
    out
        Path of the DVC output that the file belongs to.
    """

    path: str
    digest: Digest | None
    size: int | None
    executable: bool
    out: str


@dataclass(frozen=True, slots=True)
class Out:
    """One DVC output: a tracked file or folder.

    Attributes
    ----------
    path
        Relative to the DVC root; for an external output the path or URL that DVC records.
    directory
        Whether it is a folder.
    digest
        The hash in the metadata: of the file, or of the folder's listing.
    source
        True if no stage produces it: tracked by a ``.dvc`` file, or imported.
    stage
        The stage that produces it, as DVC addresses it.
    size
        Bytes in all, or None where DVC records no size.
    cached
        False for ``cache: false``: then Git holds the bytes.
    remote
        The only remote that is to hold it, if the metadata names one.
    push
        False for ``push: false``.
    defined_in
        The file that holds its hash, relative to the DVC root.
    unverifiable
        Why files of this output have no content hash to be held to; None if all have one.
    external
        Whether it lies outside of the project: then it has no entries.
    """

    path: str
    directory: bool = False
    digest: Digest | None = None
    source: bool = True
    stage: str | None = None
    size: int | None = None
    cached: bool = True
    remote: str | None = None
    push: bool = True
    defined_in: str = ""
    unverifiable: str | None = None
    external: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A line of metadata: ``file`` relative to the root of the Git repository, from line 1."""

    file: str
    line: int


@dataclass(frozen=True, eq=False)  # no slots: they leave no place for what is cached
class Manifest:
    """What the files of some outputs must be at a revision; built by ``ManifestBuilder``.

    Attributes
    ----------
    rev
        The full SHA of the commit, or ``workspace`` for metadata as it lies in the work tree.
    targets
        What was asked for, relative to the DVC root.
    outs
        The outputs that the entries belong to.
    trees
        Folders that the manifest describes in full: a file there that it does not list is extra.
    blob
        All paths, each followed by NUL, in ascending order of their bytes.
    offsets
        ``int64[n + 1]``: path ``i`` is ``blob[offsets[i]:offsets[i + 1] - 1]``.
    digests
        ``uint8[n, 16]``; zeros where no content hash is committed.
    sizes
        ``int64[n]`` in bytes, ``UNKNOWN_SIZE`` where DVC records none.
    kinds
        ``uint8[n]``: the algorithm, and a bit for a recorded executable bit.
    out_index
        ``int32[n]``: the position in ``outs``.
    versions
        By the name of a version-aware remote: the id of the version that it keeps of a path.
    """

    rev: str
    targets: tuple[str, ...]
    outs: tuple[Out, ...]
    trees: tuple[str, ...]
    blob: bytes
    offsets: NDArray[np.int64]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    out_index: NDArray[np.int32]
    versions: Mapping[str, Mapping[bytes, str]] = field(default_factory=dict)

    SCHEMA = "dvc-integrity/manifest/1"

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Entry:
        if not -len(self) <= index < len(self):
            raise IndexError(f"entry {index} of a manifest of {len(self)} files")
        index %= len(self)
        kind = int(self.kinds[index])
        algorithm = _ALGORITHMS.get(kind & _ALGORITHM_BITS)
        size = int(self.sizes[index])
        return Entry(
            path=os.fsdecode(self.path(index)),
            digest=Digest(algorithm, self.digests[index].tobytes()) if algorithm else None,
            size=None if size == UNKNOWN_SIZE else size,
            executable=bool(kind & _EXECUTABLE_BIT),
            out=self.outs[int(self.out_index[index])].path,
        )

    def has_digest(self, index: int) -> bool:
        """Return whether a content hash is committed for entry ``index``."""
        return bool(self.kinds[index] & _ALGORITHM_BITS)

    def algorithms(self, rows: Sequence[int]) -> list[Algorithm]:
        """Return the algorithm of the digest of each of ``rows``.

        Raises
        ------
        ManifestError
            If no content hash is committed for one of them; the message names it.
        """
        codes = (self.kinds[np.asarray(rows, np.int64)] & _ALGORITHM_BITS).tolist()
        for row, code in zip(rows, codes, strict=True):
            if not code:
                raise ManifestError(
                    f"'{printable(os.fsdecode(self.path(row)))}' cannot be verified: no content "
                    f"hash is committed for it."
                )
        return [_ALGORITHMS[code] for code in codes]

    def are_executable(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether DVC records that the entries at ``rows`` are executable; bool[n]."""
        executable: NDArray[np.bool_] = (self.kinds[rows] & _EXECUTABLE_BIT) != 0
        return executable

    def path(self, index: int) -> bytes:
        """Return the path of entry ``index`` in the file system's bytes."""
        return self.blob[int(self.offsets[index]) : int(self.offsets[index + 1]) - 1]

    def paths(self, start: int, stop: int) -> list[bytes]:
        """Return the paths of entries ``start`` to ``stop``, fast."""
        if start >= stop:
            return []
        return self.blob[int(self.offsets[start]) : int(self.offsets[stop]) - 1].split(b"\0")

    def find(self, path: str | bytes) -> int | None:
        """Return the position of a path, or None if the manifest does not list it."""
        wanted = os.fsencode(path)
        index = self._bisect(wanted)
        return index if index < len(self) and self.path(index) == wanted else None

    def below(self, folder: str | bytes) -> range:
        """Return the positions of the entries inside a folder (not the folder itself)."""
        prefix = os.fsencode(folder) + b"/"
        return range(self._bisect(prefix), self._bisect(prefix[:-1] + b"0"))  # "0" follows "/"

    def rows(self, algorithm: Algorithm | None) -> NDArray[np.int64]:
        """Return the positions whose digest is of this algorithm (None: no digest), ascending."""
        code = _CODES[algorithm] if algorithm else 0
        return np.flatnonzero((self.kinds & _ALGORITHM_BITS) == code)

    @property
    def total_bytes(self) -> int | None:
        """Total size in bytes, or None if some size is recorded nowhere."""
        recorded = np.bincount(self.out_index, minlength=len(self.outs))
        known = np.bincount(
            self.out_index, weights=np.maximum(self.sizes, 0), minlength=len(self.outs)
        )
        unknown = np.bincount(self.out_index[self.sizes < 0], minlength=len(self.outs))
        total = 0
        for index, out in enumerate(self.outs):
            if not unknown[index]:
                total += int(known[index])
            elif out.size is not None and out.path in self.trees and recorded[index]:
                total += out.size
            else:
                return None
        return total

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the canonical text (see ``canonical_text``)."""
        hasher = hashlib.sha256()
        for piece in self.canonical_text():
            hasher.update(piece)
        return hasher.hexdigest()

    def of(self, wanted: Callable[[Out], bool]) -> Manifest:
        """Return the manifest of some of the outputs alone."""
        kept = [index for index, out in enumerate(self.outs) if wanted(out)]
        if len(kept) == len(self.outs):
            return self
        rows = np.flatnonzero(np.isin(self.out_index, kept))
        run = _Run.of(self).take(rows.tolist())
        outs = tuple(self.outs[index] for index in kept)
        paths = {out.path for out in outs}
        return replace(
            self,
            outs=outs,
            trees=tuple(tree for tree in self.trees if _ancestor(tree, paths) is not None),
            blob=run.blob,
            offsets=_offsets(run.lengths),
            digests=run.digests.reshape(-1, DIGEST_BYTES),
            sizes=run.sizes,
            kinds=run.kinds,
            out_index=np.searchsorted(kept, self.out_index[rows]).astype(np.int32),
        )

    def canonical_text(self) -> Iterator[bytes]:
        r"""Yield the text that ``digest`` is taken over, in pieces.

        The first line is ``dvc-integrity/manifest/1``. Then comes one line an entry, in
        ascending order of the path's bytes: the algorithm and the digest as ``md5:…`` (``-``
        if no content hash is committed), the size in bytes (``-`` where DVC records none),
        ``x`` where DVC records an executable bit (else ``-``), and the path, in which ``%``
        and every byte below 0x20 and 0x7f is written as ``%`` and two lower-case hexadecimal
        digits. The four are parted by one space, and every line ends in ``\n``. Neither the
        revision nor the outputs take part: the same files make the same text.
        """
        yield self.SCHEMA.encode() + b"\n"
        for start in range(0, len(self), _TEXT_ROWS):
            stop = min(start + _TEXT_ROWS, len(self))
            yield self._canonical_lines(start, stop)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON document (schema ``dvc-integrity/manifest/1``)."""
        return {
            "schema": self.SCHEMA,
            "rev": self.rev,
            "digest": self.digest,
            "files": len(self),
            "bytes": self.total_bytes,
            "targets": list(self.targets),
            "outs": [
                {
                    "path": out.path,
                    "digest": str(out.digest) if out.digest else None,
                    "directory": out.directory,
                    "source": out.source,
                    "stage": out.stage,
                    "size": out.size,
                    "defined_in": out.defined_in,
                    "unverifiable": out.unverifiable,
                }
                for out in self.outs
            ],
            "entries": [
                {
                    "path": entry.path,
                    "digest": str(entry.digest) if entry.digest else None,
                    "size": entry.size,
                    "executable": entry.executable,
                    "out": entry.out,
                }
                for entry in self
            ],
        }

    def _bisect(self, wanted: bytes) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.path(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def _canonical_lines(self, start: int, stop: int) -> bytes:
        """Return the lines of some entries; quick where all are of one kind, as in a listing."""
        names = self.blob[int(self.offsets[start]) : int(self.offsets[stop]) - 1]
        paths = names.split(b"\0")
        if names.translate(None, _UNESCAPED):
            paths = [_ESCAPED.sub(_percent, path) for path in paths]
        digits = self.digests[start:stop].tobytes().hex().encode()
        width = 2 * DIGEST_BYTES
        digests = [digits[at : at + width] for at in range(0, len(digits), width)]
        kinds, sizes = self.kinds[start:stop], self.sizes[start:stop]
        for row in np.flatnonzero(kinds & _ALGORITHM_BITS == 0).tolist():
            digests[row] = b""
        before: Iterable[bytes]
        after: Iterable[bytes]
        if (kinds == kinds[0]).all() and (sizes == sizes[0]).all():
            before, after = map(repeat, _around_digest(int(kinds[0]), int(sizes[0])))
        else:
            before, after = zip(*map(_around_digest, kinds.tolist(), sizes.tolist()), strict=True)
        lines = zip(before, digests, after, paths, repeat(b"\n"), strict=False)
        return b"".join(chain.from_iterable(lines))


_TEXT_ROWS = 1 << 14
"""Rows of canonical text made at a time: bounds memory."""

_ESCAPED = re.compile(rb"[\x00-\x1f%\x7f]")
_UNESCAPED = bytes(byte for byte in range(256) if not _ESCAPED.match(bytes([byte]))) + b"\0"


def _around_digest(kind: int, size: int) -> tuple[bytes, bytes]:
    """Return what stands before and after the digits of a digest in the canonical text."""
    algorithm = _ALGORITHMS.get(kind & _ALGORITHM_BITS)
    executable = "x" if kind & _EXECUTABLE_BIT else "-"
    after = f" {'-' if size == UNKNOWN_SIZE else size} {executable} "
    return f"{algorithm.value}:".encode() if algorithm else b"-", after.encode()


def _percent(match: re.Match[bytes]) -> bytes:
    return b"%%%02x" % match[0][0]


class ManifestBuilder:
    """Collects outputs into a ``Manifest``, in any order.

    Every path passes the laws of this module here, whatever metadata it came from.
    """

    def __init__(self, rev: str, targets: Sequence[str] = ()) -> None:
        self._rev = rev
        self._targets = tuple(targets)
        self._outs: list[Out] = []
        self._trees: list[str] = []
        self._versions: dict[str, dict[bytes, str]] = {}
        self._runs: list[tuple[_Run, int]] = []
        self._folders = array("q")  # hashes of the folders on the way to each path

    def add_out(self, out: Out) -> None:
        """Begin an output."""
        self._outs.append(out)

    def add_tree(self, path: str) -> None:
        """Declare that every file in a folder is listed: any other file there is extra."""
        self._trees.append(path)

    def add_entry(
        self, path: str, digest: Digest | None, size: int | None = None, executable: bool = False
    ) -> None:
        """Add one file of the current output.

        Raises
        ------
        ManifestError
            If the path is unsafe, or the size is none.
        """
        name = os.fsencode(path)
        out = self._outs[-1]
        _refuse_unsafe([name], out)
        _note_folders([name], b"", self._folders)
        if size is not None and not 0 <= size < LARGEST_SIZE:
            raise _bad_listing(out, f"{size} is not the size of '{printable(path)}'")
        kind = (_CODES[digest.algorithm] if digest else 0) | (_EXECUTABLE_BIT if executable else 0)
        self._add_run(
            _Run(
                blob=name + b"\0",
                lengths=np.array([len(name) + 1], dtype=np.int64),
                digests=np.frombuffer(digest.value if digest else bytes(DIGEST_BYTES), np.uint8),
                sizes=np.array([UNKNOWN_SIZE if size is None else size], dtype=np.int64),
                kinds=np.array([kind], dtype=np.uint8),
            )
        )

    def add_version(self, path: str, remote: str, version: str) -> None:
        """Add the id of the version of a path that a version-aware remote keeps."""
        self._versions.setdefault(remote, {})[os.fsencode(path)] = version

    def add_listing(
        self, chunks: deque[bytes], algorithm: Algorithm, *, only: Sequence[str] = ()
    ) -> None:
        """Add the files of the current output from its proven listing.

        Parameters
        ----------
        chunks
            The listing's bytes, already hashed and found good; emptied on the way.
        algorithm
            The algorithm of the digests in it.
        only
            Keep these files, and what lies in these folders (relative to the output); all if
            empty.

        Raises
        ------
        ManifestError
            If it is not a listing, or a path in it is unsafe.
        """
        out = self._outs[-1]
        _refuse_unsafe([os.fsencode(out.path)], out)
        try:
            run = _read_run(chunks, algorithm, out, self._folders)
        except (ValueError, RecursionError) as error:
            raise _bad_listing(out, str(error)) from error
        if only:
            wanted = [os.fsencode(f"{out.path}/{path}") for path in only]
            run, folders = run.select(wanted)
            self._trees += map(os.fsdecode, folders)
        else:
            self.add_tree(out.path)
        self._add_run(run)

    def build(self) -> Manifest:
        """Return the manifest.

        Raises
        ------
        ManifestError
            If a path is listed twice, or both as a file and as a folder.
        """
        ordered = sorted(self._runs, key=lambda each: each[0].first) or [(_Run.empty(), 0)]
        runs = [run for run, _ in ordered]
        _refuse_overlaps(self._outs, runs)
        manifest = Manifest(
            rev=self._rev,
            targets=self._targets,
            outs=tuple(self._outs),
            trees=_outermost(self._trees),
            blob=b"".join([run.blob for run in runs]),
            offsets=_offsets(_joined([run.lengths for run in runs])),
            digests=_joined([run.digests for run in runs]).reshape(-1, DIGEST_BYTES),
            sizes=_joined([run.sizes for run in runs]),
            kinds=_joined([run.kinds for run in runs]),
            out_index=np.repeat(
                np.array([out for _, out in ordered], dtype=np.int32),
                [len(run.lengths) for run in runs],
            ),
            versions=self._versions,
        )
        _refuse_files_that_are_folders(manifest, self._folders)
        return manifest

    def _add_run(self, run: _Run) -> None:
        if len(run.lengths):
            self._runs.append((run, len(self._outs) - 1))


@dataclass(frozen=True, slots=True)
class _Run:
    """The columns of some entries of one output, in ascending order of their paths."""

    blob: bytes
    lengths: NDArray[np.int64]  # of each path with its NUL
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    kinds: NDArray[np.uint8]

    @classmethod
    def of(cls, manifest: Manifest) -> _Run:
        return cls(
            blob=manifest.blob,
            lengths=np.diff(manifest.offsets),
            digests=manifest.digests,
            sizes=manifest.sizes,
            kinds=manifest.kinds,
        )

    @classmethod
    def empty(cls) -> _Run:
        none = np.zeros(0, dtype=np.int64)
        return cls(b"", none, none.astype(np.uint8), none, none.astype(np.uint8))

    @property
    def first(self) -> bytes:
        return self.blob[: int(self.lengths[0]) - 1]

    @property
    def last(self) -> bytes:
        return self.blob[len(self.blob) - int(self.lengths[-1]) : -1]

    def names(self) -> list[bytes]:
        return self.blob[:-1].split(b"\0") if self.blob else []

    def take(self, rows: Sequence[int]) -> _Run:
        """Return the entries at ``rows``, in that order."""
        names = self.names()
        picked = np.array(rows, dtype=np.int64)
        return _Run(
            blob=b"".join([names[row] + b"\0" for row in rows]),
            lengths=self.lengths[picked],
            digests=self.digests.reshape(-1, DIGEST_BYTES)[picked].reshape(-1),
            sizes=self.sizes[picked],
            kinds=self.kinds[picked],
        )

    def select(self, wanted: Sequence[bytes]) -> tuple[_Run, list[bytes]]:
        """Return the entries that are one of ``wanted`` or lie in it, and which are folders."""
        rows: set[int] = set()
        folders = []
        names = self.names()
        for path in wanted:
            inside = [row for row, name in enumerate(names) if name.startswith(path + b"/")]
            rows.update(inside, (row for row, name in enumerate(names) if name == path))
            if inside:
                folders.append(path)
        return self.take(sorted(rows)), folders


def _outermost(folders: list[str]) -> tuple[str, ...]:
    """Return folders without those that lie in another one."""
    kept: list[str] = []
    for folder in sorted(set(folders), key=lambda each: f"{each}/"):
        if not (kept and folder.startswith(f"{kept[-1]}/")):
            kept.append(folder)
    return tuple(kept)


def _joined(columns: list[NDArray[Scalar]]) -> NDArray[Scalar]:
    """Return columns end to end; a single one as it is, because a copy could be large."""
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _read_run(chunks: deque[bytes], algorithm: Algorithm, out: Out, folders: array[int]) -> _Run:
    """Read a proven listing into columns; note in ``folders`` each folder that it implies."""
    prefix = os.fsencode(out.path) + b"/"
    blob, digests = BytesIO(), BytesIO()  # these grow, and give up their bytes, without a copy
    lengths = array("q")
    folded = array("q")
    ascending = True
    last = b""
    for names, values in parse_listing(chunks):
        if not names:
            continue
        _refuse_unsafe(names, out)
        ascending = ascending and all(map(lt, chain([last], names), names))
        last = names[-1]
        folded.extend(_folded_hashes(names))
        _note_folders(names, prefix, folders)
        lengths.extend(map(len, names))
        blob.write(prefix + (b"\0" + prefix).join(names) + b"\0")
        digests.write(values)
    whole_lengths = np.frombuffer(lengths, dtype=np.int64)
    whole_lengths += len(prefix) + 1  # in place: they are as many as the files
    run = _Run(
        blob=blob.getvalue(),
        lengths=whole_lengths,
        digests=np.frombuffer(digests.getvalue(), dtype=np.uint8),
        sizes=np.full(len(lengths), UNKNOWN_SIZE, dtype=np.int64),
        kinds=np.full(len(lengths), _CODES[algorithm], dtype=np.uint8),
    )
    if not ascending:
        names = run.names()
        run = run.take(sorted(range(len(names)), key=names.__getitem__))
        _refuse_duplicates(run.names(), out)
    _refuse_case_collisions(run, folded, out)
    return run


def _refuse_overlaps(outs: list[Out], runs: list[_Run]) -> None:
    """Refuse outputs that share a path or lie inside each other."""
    paths: set[str] = set()
    inside = [out.path for out in outs if not out.external]
    for path in sorted(inside):  # what lies around a path comes before it
        around = _ancestor(path, paths)
        paths.add(path)
        if around is not None:
            raise ManifestError(
                f"The output '{printable(path)}' lies inside the output '{printable(around)}'. Let "
                f"every file belong to one output only."
            )
    for run, following in pairwise(runs):
        if following.first <= run.last:
            raise ManifestError(
                f"'{printable(following.first)}' is tracked twice, or inside another output "
                f"(beside '{printable(run.last)}'). Let every file belong to one output only."
            )


def _ancestor(path: str, paths: set[str]) -> str | None:
    """Return the path itself, or the nearest folder around it, that is one of ``paths``."""
    while path and path not in paths:
        path = posixpath.dirname(path)
    return path or None


def _refuse_files_that_are_folders(manifest: Manifest, folders: array[int]) -> None:
    """Refuse a path that is listed as a file while others lie below it.

    Hashes find candidates in little memory; the paths themselves decide.
    """
    known = np.unique(np.frombuffer(folders, np.int64)) if folders else _Run.empty().sizes
    for row in _rows_with_hash(manifest, known):
        path = manifest.path(row)
        if manifest.below(path):
            raise ManifestError(
                f"The committed metadata lists '{printable(path)}' both as a file and as a folder. "
                f"Such a listing was not written by DVC; track the data again."
            )


def _rows_with_hash(manifest: Manifest, known: NDArray[np.int64]) -> Iterator[int]:
    """Yield the positions of the paths whose hash is one of ``known`` (ascending)."""
    for start in range(0, len(manifest) if len(known) else 0, _TEXT_ROWS):
        names = manifest.paths(start, min(start + _TEXT_ROWS, len(manifest)))
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        nearest = known[np.searchsorted(known[:-1], hashes)]
        yield from (np.flatnonzero(nearest == hashes) + start).tolist()


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each path begins, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _refuse_unsafe(names: list[bytes], out: Out) -> None:
    """Refuse paths that are absolute, leave the output, or hold NUL."""
    joined = b"\0".join(names)
    framed = b"\0%b\0" % joined
    suspicious = any(map(framed.__contains__, _SUSPICIOUS)) and _UNSAFE.search(joined)
    if joined.count(b"\0") == len(names) - 1 and not suspicious:
        return
    bad = next(name for name in names if b"\0" in name or _UNSAFE.search(name))
    raise _bad_listing(
        out,
        f"the path '{printable(bad)}' is not a plain relative path; using it could reach outside "
        f"of the tracked folder",
    )


def _refuse_duplicates(names: list[bytes], out: Out) -> None:
    for name, following in pairwise(names):
        if name == following:
            raise _bad_listing(out, f"the path '{printable(name)}' occurs twice")


def _refuse_case_collisions(run: _Run, folded: array[int], out: Out) -> None:
    """Refuse paths that would be one file where case does not count.

    Hashes of the folded paths find candidates in little memory; the paths themselves decide.
    """
    hashes = np.sort(np.frombuffer(folded, dtype=np.int64)) if folded else _Run.empty().sizes
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    prefix = len(os.fsencode(out.path)) + 1
    seen: dict[str, bytes] = {}
    names = run.names()
    hashed = _folded_hashes([name[prefix:] for name in names])
    for name, folded_hash in zip(names, hashed, strict=True):
        if folded_hash not in repeated:
            continue
        other = seen.setdefault(_folded(name), name)
        if other != name:
            raise _bad_listing(
                out,
                f"the paths '{printable(other)}' and '{printable(name)}' differ in case alone, so "
                f"that one would overwrite the other on many file systems; rename one",
            )


def _folded(name: bytes) -> str:
    return os.fsdecode(name).casefold()


def _folded_hashes(names: list[bytes]) -> Iterator[int]:
    joined = b"\0".join(names)
    if joined.isascii():
        return map(hash, joined.lower().split(b"\0"))
    return (hash(os.fsencode(_folded(name))) for name in names)


def _note_folders(names: list[bytes], prefix: bytes, folders: array[int]) -> None:
    """Add the hash of every folder on the way to ``names``; those in a row once."""
    previous = b""
    for name in names:
        folder = name.rpartition(b"/")[0]
        if folder == previous:
            continue
        previous = folder
        while folder:
            folders.append(hash(prefix + folder))
            folder = folder.rpartition(b"/")[0]


def _bad_listing(out: Out, why: str) -> ManifestError:
    listing = f" (listing {out.digest.hex}.dir)" if out.digest and out.directory else ""
    return ManifestError(
        f"What is committed for '{printable(out.path)}'{listing} in "
        f"'{printable(out.defined_in)}' cannot be used: {why}. The bytes of the metadata match "
        f"the commit, so it was committed like this; track the data again with 'dvc add' or "
        f"'dvc repro'."
    )

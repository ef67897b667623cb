"""A folder of files as a map-style dataset, one sample a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.errors import NothingToVerify, printable
from dvc_integrity.manifest import Manifest
from dvc_integrity.reader import OnCorrupt
from dvc_integrity.report import CorruptDataError
from dvc_integrity.torch.samples import VerifiedSamples, call, open_reader, share_inherited_memory

__all__ = ["VerifiedFiles"]

Sample = TypeVar("Sample")


class VerifiedFiles(VerifiedSamples[Sample], Generic[Sample]):
    """The files of a DVC output as a map-style dataset, in order of their paths.

    One read, one hash, and that buffer goes to ``decode``; a batch is hashed together. A file
    that is not what was committed raises ``CorruptDataError`` in the parent process, from any
    worker, with the finding in ``.finding``, unless ``on_corrupt`` says otherwise.

    Parameters
    ----------
    target
        A tracked file or folder, or a path inside a tracked folder, relative to ``root``.
    rev
        The Git revision that the files are held to; by default the baseline inside a DVC
        experiment, else ``HEAD``. ``workspace`` means the metadata in the work tree.
    source
        Where the bytes come from: ``workspace``, ``cache``, ``remote`` or ``remote:NAME``. The
        latter three need no checkout of ``rev``.
    decode
        Turns the bytes of a file and its path (relative to the DVC root, with forward slashes)
        into a sample. By default the bytes are the sample. To be used by workers that are
        spawned it must be importable: a function of a module, not a lambda. What it or ``label``
        raises keeps its type, with a note that names the file; ``StopIteration`` becomes
        ``RuntimeError``.
    label
        ``folder``: a sample is a pair of what ``decode`` gives and the position of the file's
        folder in ``classes``. A function of the path: of what ``decode`` gives and its result.
    select
        Patterns as of a shell (``*.png``); only files whose path below the target matches one.
    on_corrupt
        ``raise``; ``restore``: a proven copy from the cache or a remote takes the file's place,
        the bad bytes go to the quarantine, and the good ones are used; ``substitute``: another
        sample, chosen by ``seed``, epoch and index alone, takes the place of this one in the
        batch. Samples are then pairs of the sample and whether it is the one that was asked for.
    error_budget
        Files that may be bad, over all workers, before the run ends with ``TooManyIncidents``
        (a ``CorruptDataError``): a count, or a share of the samples as a float.
    check
        ``always``; ``once`` (the first time that a process reads a file); or a share of the
        samples an epoch, which reaches each of them within ``ceil(1 / check)`` epochs. Call
        ``set_epoch`` before each epoch for that; until then every file is hashed.
    seed
        For substitutes, and for which samples are checked in which epoch.
    root
        A folder inside the DVC project.

    Attributes
    ----------
    classes
        Names of the folders that samples lie in, in order, with ``label="folder"``.
    reader
        What reads the files.

    Raises
    ------
    RepositoryError
        If there is no such revision, target or source.
    ManifestError
        If a file of the target has no committed content hash to be held to.
    NothingToVerify
        If the target holds no file, or none that is selected.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        rev: str | None = None,
        source: str = "workspace",
        decode: Callable[[bytes, str], Sample] | None = None,
        label: Literal["folder"] | Callable[[str], Any] | None = None,
        select: str | Sequence[str] | None = None,
        on_corrupt: OnCorrupt = "raise",
        error_budget: float | None = None,
        check: str | float = "always",
        seed: int = 0,
        root: str | os.PathLike[str] = ".",
    ) -> None:
        reader = open_reader(
            target,
            root=root,
            rev=rev,
            source=source,
            on_corrupt=on_corrupt,
            error_budget=error_budget,
            check=check,
            seed=seed,
        )
        super().__init__(reader, on_corrupt, seed)
        self._rows = _selected(self.manifest, select)
        if reader.incidents is not None:
            reader.incidents.samples = len(self._rows)
        self._decode = decode
        self._label = label
        self.classes = self._folders() if label == "folder" else []

    def path(self, index: int) -> str:
        """Return the path of a sample's file, relative to the DVC root."""
        return os.fsdecode(self.manifest.path(self._row(index)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch; the fetcher of a ``DataLoader`` calls this."""
        share_inherited_memory()
        rows = [self._row(index) for index in indices]
        if self._substitutes:
            return self._intact_or_other(indices, rows)
        contents = self.reader.stream_rows(rows, epoch=self._due_epoch())
        return [self._decoded(row, data) for row, data in zip(rows, contents, strict=True)]

    def _intact_or_other(self, indices: Sequence[int], rows: Sequence[int]) -> list[Any]:
        """Return samples, each with whether it is the one that was asked for."""
        found = self.reader.read_each(rows, epoch=self._due_epoch())
        samples = []
        for index, row, data in zip(indices, rows, found, strict=True):
            intact = not isinstance(data, CorruptDataError)
            if isinstance(data, CorruptDataError):
                row, data = self._instead(self._position(index), data, self._read)  # noqa: PLW2901 (the other one)
            samples.append((self._decoded(row, data), intact))
        return samples

    def _read(self, index: int) -> tuple[int, bytes]:
        """Return the row and the bytes of a sample, which are hashed whatever the schedule."""
        row = self._row(index)
        (data,) = self.reader.read_rows([row])
        return row, data

    def _decoded(self, row: int, data: bytes) -> Sample:
        path = os.fsdecode(self.manifest.path(row))

        def where() -> str:
            return f"'{printable(path)}'"

        sample: Any = data
        if self._decode is not None:
            sample = call(self._decode, data, path, what="decode", where=where)
        if self._label is None:
            return sample  # type: ignore[no-any-return]  # without decode a sample is its bytes
        if self._label == "folder":
            label = self._class(path)
        else:
            label = call(self._label, path, what="label", where=where)
        return (sample, label)  # type: ignore[return-value]  # the label makes it a pair

    def _row(self, index: int) -> int:
        return int(self._rows[self._position(index)])

    def _folders(self) -> list[str]:
        paths = (os.fsdecode(self.manifest.path(row)) for row in self._rows)
        return sorted({os.path.basename(os.path.dirname(path)) for path in paths})

    def _class(self, path: str) -> int:
        return self.classes.index(os.path.basename(os.path.dirname(path)))


def _selected(manifest: Manifest, select: str | Sequence[str] | None) -> range | NDArray[np.int64]:
    """Return the rows whose path below the target matches a pattern."""
    if select is None:
        return range(len(manifest))
    patterns = [select] if isinstance(select, str) else list(select)
    (target,) = manifest.targets
    paths = (os.fsdecode(path) for path in manifest.paths(0, len(manifest)))
    below = (path.removeprefix(f"{target}/") for path in paths)
    wanted = [any(fnmatchcase(path, pattern) for pattern in patterns) for path in below]
    if not any(wanted):
        raise NothingToVerify(
            f"No file under '{printable(target)}' matches {' or '.join(map(repr, patterns))}."
        )
    return np.flatnonzero(wanted)

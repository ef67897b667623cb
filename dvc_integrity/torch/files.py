"""A folder of files as a map-style dataset, one sample a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dvc_integrity.errors import ManifestError, NothingToVerify, printable
from dvc_integrity.incidents import Incidents, TooManyIncidents
from dvc_integrity.manifest import Manifest
from dvc_integrity.reader import Reader
from dvc_integrity.report import CorruptDataError
from dvc_integrity.restore import Restorer
from dvc_integrity.schedule import Schedule

__all__ = ["VerifiedFiles", "open_reader"]

logger = logging.getLogger(__name__)

Sample = TypeVar("Sample")
OnCorrupt = Literal["raise", "restore", "substitute"]

MOST_SUBSTITUTES = 100
"""Samples that are tried in the place of a bad one before it is an error all the same."""


class VerifiedFiles(Dataset[Sample], Generic[Sample]):
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
        spawned it must be importable: a function of a module, not a lambda.
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
        Files that may be bad before the run ends with ``CorruptDataError``: a count, or a share
        of the samples as a float.
    check
        ``always``; ``once`` (the first time that a process reads a file); or a share of the
        samples an epoch, which reaches each of them within ``ceil(1 / check)`` epochs.
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
        self.reader = open_reader(
            target,
            rev=rev,
            source=source,
            on_corrupt=on_corrupt,
            error_budget=error_budget,
            check=check,
            seed=seed,
            root=root,
        )
        self._rows = _selected(self.manifest, select)
        self._decode = decode
        self._label = label
        self._substitutes = on_corrupt == "substitute"
        self._seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers see it change
        self.classes = self._folders() if label == "folder" else []

    @property
    def manifest(self) -> Manifest:
        """What the files must be."""
        return self.reader.manifest

    @property
    def epoch(self) -> int:
        """Which epoch this is; ``set_epoch`` changes it, in persistent workers too."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, as for a ``DistributedSampler``."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.set_epoch(state["epoch"])

    def path(self, index: int) -> str:
        """Return the path of a sample's file, relative to the DVC root."""
        return os.fsdecode(self.manifest.path(self._row(index)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        (sample,) = self.__getitems__([index])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch; the fetcher of a ``DataLoader`` calls this."""
        rows = [self._row(index) for index in indices]
        try:
            contents = self.reader.read_rows(rows, epoch=self.epoch)
        except TooManyIncidents:
            raise
        except CorruptDataError:
            if not self._substitutes:
                raise
            return [self._intact_or_other(index) for index in indices]
        samples = [self._decoded(row, data) for row, data in zip(rows, contents, strict=True)]
        return [(sample, True) for sample in samples] if self._substitutes else samples  # type: ignore[misc]  # the mask makes it a pair

    def _intact_or_other(self, index: int) -> Any:
        """Return a sample and True, or a substitute for it and False."""
        draw = np.random.default_rng([self._seed, self.epoch, index])
        row = self._row(index)
        for attempt in range(MOST_SUBSTITUTES):
            try:
                (data,) = self.reader.read_rows([row], epoch=self.epoch)
            except TooManyIncidents:
                raise
            except CorruptDataError:
                if attempt == MOST_SUBSTITUTES - 1:
                    raise
                row = int(self._rows[draw.integers(len(self._rows))])
            else:
                return self._decoded(row, data), attempt == 0
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _decoded(self, row: int, data: bytes) -> Sample:
        path = os.fsdecode(self.manifest.path(row))
        try:
            sample: Any = data if self._decode is None else self._decode(data, path)
            if self._label is None:
                return sample  # type: ignore[no-any-return]  # without decode a sample is its bytes
            label = self._class(path) if self._label == "folder" else self._label(path)
        except StopIteration as error:  # a DataLoader would take it for the end of the data
            raise RuntimeError(f"decode raised StopIteration for '{printable(path)}'") from error
        return (sample, label)  # type: ignore[return-value]  # the label makes it a pair

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)}")
        return int(self._rows[index])

    def _folders(self) -> list[str]:
        paths = (os.fsdecode(self.manifest.path(row)) for row in self._rows)
        return sorted({os.path.basename(os.path.dirname(path)) for path in paths})

    def _class(self, path: str) -> int:
        return self.classes.index(os.path.basename(os.path.dirname(path)))


def open_reader(
    target: str | os.PathLike[str],
    *,
    rev: str | None = None,
    source: str = "workspace",
    on_corrupt: OnCorrupt = "raise",
    error_budget: float | None = None,
    check: str | float = "always",
    seed: int = 0,
    root: str | os.PathLike[str] = ".",
) -> Reader:
    """Return a reader of a target, as the datasets use it; the parameters are theirs.

    Raises
    ------
    RepositoryError, ManifestError, NothingToVerify
        As the datasets.
    ValueError
        If a parameter has a value that it cannot have.
    """
    # Here, not above: a worker imports this module, and must not import DVC with it.
    from dvc_integrity.repository import Repository  # noqa: PLC0415

    if on_corrupt not in ("raise", "restore", "substitute"):
        raise ValueError(f"on_corrupt is 'raise', 'restore' or 'substitute', not {on_corrupt!r}")
    if on_corrupt == "restore" and source != "workspace":
        raise ValueError(f"files of the workspace can be restored, not those of {source!r}")
    schedule = Schedule.of(check, seed)
    repository = Repository(root)
    manifest = repository.manifest(target, rev=rev)
    _refuse_unverifiable(manifest)
    if not len(manifest):
        raise NothingToVerify(f"No file is tracked under '{printable(os.fspath(target))}'.")
    if check != "always":
        logger.info("'%s': %s", printable(os.fspath(target)), schedule.bound)
    workspace = repository.workspace.detached()
    restorer = None
    if on_corrupt == "restore":
        restorer = Restorer(workspace, repository.sources(), repository.scratch)
    return Reader(
        manifest,
        repository.store(source),
        restorer=restorer,
        incidents=Incidents.of_run(repository.scratch, budget=error_budget, samples=len(manifest)),
        schedule=schedule,
        refusal="substituted" if on_corrupt == "substitute" else "raised",
    )


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


def _refuse_unverifiable(manifest: Manifest) -> None:
    rows = manifest.rows(None)
    for out in manifest.outs:
        if out.external:
            raise ManifestError(f"'{printable(out.path)}' cannot be verified: {out.unverifiable}.")
    if len(rows):
        entry = manifest[int(rows[0])]
        out = manifest.outs[int(manifest.out_index[rows[0]])]
        raise ManifestError(
            f"{len(rows)} of the files have no committed content hash to be held to, for example "
            f"'{printable(entry.path)}': {out.unverifiable}."
        )

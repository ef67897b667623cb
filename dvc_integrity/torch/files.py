"""A folder of files as a dataset, one sample a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch.utils.data import Dataset

from dvc_integrity.errors import ManifestError, NothingToVerify, printable
from dvc_integrity.manifest import Manifest
from dvc_integrity.reader import Reader

__all__ = ["VerifiedFiles"]

Sample = TypeVar("Sample")


class VerifiedFiles(Dataset[Sample], Generic[Sample]):
    """The files of a DVC output as a map-style dataset, in order of their paths.

    One read, one hash, and that buffer goes to ``decode``. A file that is not what was
    committed raises ``CorruptDataError`` in the parent process, from any worker, with the
    finding in ``.finding``.

    Parameters
    ----------
    target
        A tracked file or folder, or a path inside a tracked folder, relative to ``root``.
    rev
        The Git revision that the files are held to; by default the baseline inside a DVC
        experiment, else ``HEAD``. ``workspace`` means the metadata in the work tree.
    decode
        Turns the bytes of a file and its path (relative to the DVC root, with forward slashes)
        into a sample. By default the bytes are the sample. To be used by workers that are
        spawned it must be importable: a function of a module, not a lambda.
    on_corrupt
        What to do about a file that is not what was committed: ``raise``.
    root
        A folder inside the DVC project.

    Raises
    ------
    RepositoryError
        If there is no such revision or target.
    ManifestError
        If a file of the target has no committed content hash to be held to.
    NothingToVerify
        If the target holds no file.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        rev: str | None = None,
        decode: Callable[[bytes, str], Sample] | None = None,
        on_corrupt: str = "raise",
        root: str | os.PathLike[str] = ".",
    ) -> None:
        # Here, not above: a worker imports this module, and must not import DVC with it.
        from dvc_integrity.repository import Repository  # noqa: PLC0415

        if on_corrupt != "raise":
            raise ValueError(f"on_corrupt is 'raise', not {on_corrupt!r}")
        repository = Repository(root)
        manifest = repository.manifest(target, rev=rev)
        _refuse_unverifiable(manifest)
        if not len(manifest):
            raise NothingToVerify(f"No file is tracked under '{printable(os.fspath(target))}'.")
        self.reader = Reader(manifest, repository.workspace)
        self._decode = decode

    @property
    def manifest(self) -> Manifest:
        """What the files must be; sample ``i`` is entry ``i``."""
        return self.reader.manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Sample:
        path = os.fsdecode(self.manifest.path(_position(index, len(self))))
        return self._decoded(self.reader.read(path), path)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples of a batch; the fetcher of a ``DataLoader`` calls this."""
        return [self[index] for index in indices]

    def _decoded(self, data: bytes, path: str) -> Sample:
        if self._decode is None:
            return data  # type: ignore[return-value]  # without decode a sample is its bytes
        try:
            return self._decode(data, path)
        except StopIteration as error:  # a DataLoader would take it for the end of the data
            raise RuntimeError(f"decode raised StopIteration for '{printable(path)}'") from error


def _position(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"sample {index} of a dataset of {length}")
    return index % length


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

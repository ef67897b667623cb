"""Checkpoints that are proven before they are opened.

A checkpoint of ``torch.save`` is a pickle, and a pickle can run code while it is read. So its
bytes are read once, hashed, and held to the commit; only then does that buffer go to PyTorch.
"""

from __future__ import annotations

import io
import os
from typing import Any, Literal

import torch

from dvc_integrity.errors import ManifestError, printable
from dvc_integrity.reader import Reader
from dvc_integrity.torch.samples import open_reader

__all__ = ["load"]

SAFETENSORS = ".safetensors"
"""How the name of a file ends that ``safetensors`` reads."""


def load(
    path: str | os.PathLike[str],
    *,
    rev: str | None = None,
    source: str = "workspace",
    on_corrupt: Literal["raise", "restore"] = "raise",
    root: str | os.PathLike[str] = ".",
    map_location: Any = None,
    weights_only: bool = True,
    reader: Reader | None = None,
    **options: Any,
) -> Any:
    """Load a checkpoint that DVC tracks, if its bytes are the committed ones.

    A file whose name ends in ``.safetensors`` is read by ``safetensors.torch.load``, any other
    by ``torch.load``. The file is held in memory as a whole, beside the tensors made of it.

    Parameters
    ----------
    path
        A tracked file, or one inside a tracked folder: a source or the output of a stage.
        Relative to ``root``; with ``reader`` as that takes it.
    rev
        The Git revision that the file is held to; by default the baseline inside a DVC
        experiment, else ``HEAD``. ``workspace`` means the metadata in the work tree.
    source
        Where the bytes come from: ``workspace``, ``cache``, ``remote`` or ``remote:NAME``.
    on_corrupt
        ``raise``; ``restore``: a proven copy from the cache or a remote takes the file's place,
        and is loaded.
    root
        A folder inside the DVC project.
    map_location
        Where tensors go, as for ``torch.load``; a device or its name for ``.safetensors``.
    weights_only
        Whether a pickle may hold nothing but tensors and plain values. The hash tells that the
        bytes are the committed ones, not that they are harmless: say False only if you trust
        whoever committed them. A ``.safetensors`` file never holds more.
    reader
        Reads the file instead of one that is made from ``rev``, ``source``, ``on_corrupt`` and
        ``root``: for many checkpoints of one manifest, or where DVC is not to be imported. It
        must hash every read.
    **options
        Further options of ``torch.load``.

    Returns
    -------
    Any
        What was saved; for ``.safetensors`` the tensors by their names.

    Raises
    ------
    CorruptDataError
        If the bytes are not the committed ones. Nothing of them was opened.
    ManifestError
        If no content hash is committed for the file, or ``path`` is a folder.
    RepositoryError
        If there is no such revision, or DVC tracks no such file.
    ImportError
        If a ``.safetensors`` file is asked for and ``safetensors`` is not installed.
    pickle.UnpicklingError
        From PyTorch, if ``weights_only`` forbids what the committed file holds.
    ValueError, TypeError
        If options contradict each other or do not fit the kind of file.
    """
    safetensors = os.fsdecode(path).lower().endswith(SAFETENSORS)
    if safetensors:
        _refuse_for_safetensors(map_location, options)
    if options.get("mmap"):
        raise ValueError(
            "mmap=True would read the file again, unproven, after it was hashed. Leave it out."
        )
    if on_corrupt not in ("raise", "restore"):
        raise ValueError(
            f"on_corrupt is 'raise' or 'restore', not {on_corrupt!r}: nothing can stand in for a "
            f"checkpoint"
        )
    own = (rev, source, on_corrupt, os.fspath(root)) == (None, "workspace", "raise", ".")
    if reader is not None and not own:
        raise ValueError(
            "A reader has its revision, its root, its source and its policy: give 'reader', or "
            "these."
        )
    if reader is not None and (reader.schedule.once or reader.schedule.epochs != 1):
        raise ValueError(
            "The reader does not hash every read (its schedule), so an unproven checkpoint could "
            "be opened. Give one that does, or none."
        )
    if reader is None:
        reader, path = _reader_for(path, rev=rev, source=source, on_corrupt=on_corrupt, root=root)
    if safetensors:
        return _load_safetensors(reader, path, map_location)
    data = io.BytesIO(reader.read(path))
    return torch.load(data, map_location=map_location, weights_only=weights_only, **options)


def _reader_for(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str], **options: Any
) -> tuple[Reader, str]:
    """Return a reader for one tracked file, and its path relative to the DVC root."""
    reader = open_reader(path, root=root, **options)
    manifest = reader.manifest
    (name,) = manifest.targets
    if manifest.find(name) is None:
        raise ManifestError(
            f"'{printable(os.fspath(path))}' is no single file at {manifest.rev}, but covers "
            f"{len(manifest)}, for example '{printable(manifest[0].path)}'. Name the checkpoint "
            f"itself."
        )
    return reader, name


def _refuse_for_safetensors(map_location: Any, options: dict[str, Any]) -> None:
    if options:
        raise TypeError(
            f"{', '.join(sorted(options))}: options of torch.load, which does not read "
            f"{SAFETENSORS} files. Leave them out."
        )
    if not isinstance(map_location, (str, torch.device, int, type(None))):
        raise TypeError(
            f"map_location is a device or its name for {SAFETENSORS} files, not {map_location!r}"
        )


def _load_safetensors(
    reader: Reader, path: str | os.PathLike[str], device: str | torch.device | int | None
) -> dict[str, torch.Tensor]:
    try:
        from safetensors import torch as decoder  # noqa: PLC0415 (an optional package)
    except ImportError as error:
        raise ImportError(
            f"'{printable(os.fspath(path))}' needs the package safetensors, which is not "
            f"installed: 'pip install safetensors'."
        ) from error
    tensors = decoder.load(reader.read(path))
    if device is None:
        return tensors
    return {name: tensor.to(device) for name, tensor in tensors.items()}

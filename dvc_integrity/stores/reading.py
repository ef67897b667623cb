"""What the workspace and object stores share in reading files of this machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockRecords, BlockUse, BlockwiseFiles
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.manifest import Manifest
from dvc_integrity.observation import Observation, SpecialFileError
from dvc_integrity.stores.protocol import Presence

__all__ = ["blockwise", "by_algorithm", "stat_file"]


def stat_file(path: str | bytes) -> Presence:
    """Tell what lies at a path; links are followed."""
    try:
        found = os.stat(path)
    except OSError as error:
        return Presence(None, error)
    if stat.S_ISREG(found.st_mode):
        return Presence(found.st_size)
    if stat.S_ISDIR(found.st_mode):
        return Presence(None, IsADirectoryError(errno.EISDIR, "is a folder, not a file", path))
    return Presence(None, SpecialFileError(errno.EINVAL, "is a special file", path))


def by_algorithm(
    manifest: Manifest,
    rows: Sequence[int],
    read: Callable[[Sequence[int], Algorithm], list[tuple[bytes, Observation]]],
) -> list[tuple[bytes, Observation]]:
    """Read entries of one algorithm after those of the other; the result is in order."""
    algorithms = manifest.algorithms(rows)
    if len(set(algorithms)) <= 1:
        return read(range(len(rows)), algorithms[0]) if rows else []
    found: dict[int, tuple[bytes, Observation]] = {}
    for algorithm in set(algorithms):
        some = [at for at, each in enumerate(algorithms) if each is algorithm]
        found |= zip(some, read(some, algorithm), strict=True)
    return [found[at] for at in range(len(rows))]


def blockwise(
    records: BlockRecords | None,
    use: BlockUse,
    manifest: Manifest,
    rows: NDArray[np.int64],
    algorithm: Algorithm,
) -> BlockwiseFiles | None:
    """Return what reads large files by blocks, where that is asked for and possible."""
    if records is None or use is BlockUse.NONE or algorithm is not Algorithm.MD5:
        return None
    return BlockwiseFiles(
        records, lambda at: Digest(algorithm, manifest.digests[rows[at]].tobytes()), use
    )

"""A version-aware remote: files under their own names, each in the version that was committed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockUse
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import StoreError
from dvc_integrity.hashing import Meter
from dvc_integrity.manifest import Manifest, Out
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import Hint
from dvc_integrity.stores.connection import Connection
from dvc_integrity.stores.objects import ObjectStore, StoredObject

__all__ = ["VersionedStore"]


class VersionedStore(ObjectStore):
    """A version-aware remote: files under their own names, each in the version that was committed.

    What lies under a name now does not count: each entry has an object of its own, which is the
    version that the metadata at the manifest's revision names. It is only read.

    Parameters
    ----------
    remote
        What DVC's configuration calls the remote.
    connect, has, is_home
        As of ``ObjectStore``.
    """

    writable = False
    attests = False  # a listing tells the ETags of the newest versions only

    def __init__(
        self,
        remote: str,
        connect: Callable[[], Connection],
        has: Callable[[Out], bool],
        *,
        is_home: Callable[[Out], bool] | None = None,
    ) -> None:
        super().__init__(f"remote:{remote}", connect, has, is_home=is_home)
        self._remote = remote

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what knows the project: the versions come with each manifest."""
        return {**super().__getstate__(), "_remote": self._remote}

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
        """Read and hash the committed versions of the entries at ``rows``."""
        named = np.array([self._version(manifest, row) is not None for row in rows.tolist()], bool)
        known, unknown = np.flatnonzero(named), np.flatnonzero(~named)
        for batch in super().observe(
            manifest, rows[known], algorithm, jobs=jobs, cold=cold, meter=meter, blocks=blocks
        ):
            yield Observations.of(known[batch.positions].tolist(), list(batch))
        if len(unknown):
            absent = [
                Observation(None, 0, None, None, _unversioned(manifest, row))
                for row in rows[unknown].tolist()
            ]
            if meter:
                meter.add(len(unknown), 0)
            yield Observations.of(unknown.tolist(), absent)

    def stream(self, digest: Digest, *, listing: bool = False) -> Iterator[bytes]:
        """Raise an error: nothing lies here under its digest, listings neither.

        Raises
        ------
        FileNotFoundError
            Always.
        """
        suffix = ".dir" if listing else ""
        said = f"the {self.name} keeps nothing under a digest"
        raise FileNotFoundError(errno.ENOENT, said, f"{digest.hex}{suffix}")

    def objects(self) -> Iterator[StoredObject]:
        """Yield nothing: nothing lies here under its digest."""
        return iter(())

    def listings(self, manifest: Manifest) -> Iterator[tuple[Out, Callable[..., Observation]]]:  # noqa: ARG002 (the protocol)
        """Yield nothing: the files of a folder stand in the metadata, one by one."""
        return iter(())

    def put(
        self,
        digest: Digest,  # noqa: ARG002 (of ``ObjectStore``)
        source: Callable[[], Iterable[bytes]],  # noqa: ARG002 (of ``ObjectStore``)
        *,
        listing: bool = False,  # noqa: ARG002 (of ``ObjectStore``)
        quarantine: str,  # noqa: ARG002 (of ``ObjectStore``)
    ) -> bool:
        """Refuse to store anything.

        Raises
        ------
        StoreError
            Always: another version would have another id than the one that is committed.
        """
        raise StoreError(
            f"The {self.name} is version-aware and only read: a new version has an id that is not "
            f"committed. 'dvc push' makes one and records it; commit that."
        )

    def locate(self, digest: Digest, *, listing: bool = False) -> None:
        """Return None: nothing lies under its digest."""

    def explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:  # noqa: ARG002 (the protocol)
        """Say what it means that a version is not there; nobody writes to one that is."""
        if found is not None:
            return Hint(written=False)
        detail = "no version of it is committed for this remote, or that version was deleted"
        return Hint(written=False, detail=detail)

    def detached(self) -> VersionedStore:
        """Return the same without what knows the project; it is opened for that.

        Raises
        ------
        StoreError
            If it cannot be opened.
        """
        detached = VersionedStore(self._remote, self._connect, self._has)
        detached.__dict__.update(self.__getstate__())
        return detached

    def _version(self, manifest: Manifest, row: int) -> str | None:
        """Return the committed version of an entry here, if the metadata names one."""
        return manifest.versions.get(self._remote, {}).get(manifest.path(row))

    def _address(self, manifest: Manifest, row: int) -> str:
        """Return where the committed version lies (``s3fs.S3FileSystem.split_path``)."""
        version = self._version(manifest, row)
        if version is None:
            raise _unversioned(manifest, row)
        name = os.fsdecode(manifest.path(row))
        return f"{self._connected().base}/{name}?versionId={version}"


def _unversioned(manifest: Manifest, row: int) -> FileNotFoundError:
    said = "no version of it is committed for this remote"
    return FileNotFoundError(errno.ENOENT, said, os.fsdecode(manifest.path(row)))

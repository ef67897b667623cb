"""What verification, loading and restoring ask of a place that holds bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.blocks import BlockRecords, BlockUse
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import StoreError
from dvc_integrity.hashing import Meter
from dvc_integrity.manifest import Manifest, Out
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import Hint

__all__ = ["Hints", "Presence", "SourceError", "Store"]


class SourceError(StoreError):
    """What was to be stored is not what it must be; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a place says of an object that was not read.

    Attributes
    ----------
    size
        Its length in bytes; None where there is nothing, or the place does not say.
    error
        Why there is nothing (``FileNotFoundError``), or why that cannot be told.
    """

    size: int | None
    error: OSError | None = None


class Hints(Protocol):
    """Looks up the cause of a difference."""

    def __call__(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Explain why ``path`` is not what was committed (None: nothing there, or not listed)."""


class Store(Protocol):
    """What verification needs of a place that holds bytes."""

    @property
    def name(self) -> str:
        """``workspace``, ``cache`` or ``remote:NAME``."""

    @property
    def immutable(self) -> bool:
        """Whether a difference can only be corruption, because nobody writes there."""

    @property
    def blocks(self) -> BlockRecords | None:
        """What is known of the blocks of large files, if anything can be."""

    def holds(self, out: Out) -> bool:
        """Return whether this store is to have the files of an output."""

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
        """Read and hash the entries at ``rows``, all of one algorithm.

        Each of ``rows`` comes once, in any batch; ``positions`` are indices into ``rows``.
        """

    def read(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        *,
        cold: bool = False,
    ) -> list[tuple[bytes, Observation]]:
        """Return the bytes of the entries at ``rows``, and what was seen of them.

        The digest is of the very bytes that are returned, which are empty after an error.
        """

    def read_unhashed(self, manifest: Manifest, row: int) -> tuple[bytes, Observation]:
        """Return the bytes of an entry as they are, and what was seen, without a digest."""

    def place(self, manifest: Manifest, row: int) -> bytes | None:
        """Return the path of an entry's file, if it is a plain path of this machine."""

    def stat(self, manifest: Manifest, rows: Sequence[int]) -> list[Presence]:
        """Tell what lies where the entries at ``rows`` belong, without reading it."""

    def chunks(self, manifest: Manifest, row: int) -> Iterator[bytes]:
        """Yield the bytes of an entry, in pieces; raise ``OSError`` where they cannot be had."""

    def extras(self, manifest: Manifest) -> Iterator[tuple[str, OSError | None]]:
        """Yield paths that the manifest does not list in folders that it describes in full.

        A folder that cannot be listed comes with the error that says so.
        """

    def listings(self, manifest: Manifest) -> Iterator[tuple[Out, Callable[..., Observation]]]:
        """Yield the folders whose listings are objects here, each with what reads and hashes it."""

    def explain(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        """Say what is known about the cause of a difference."""

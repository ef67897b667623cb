"""Which samples are hashed in which epoch, and which stand in for bad ones.

Hashing every sample every time is the default. A schedule that hashes a share of them still
reaches each sample within a known number of epochs. Both choices depend on nothing but the
seed, the epoch and the sample's position, so that they survive a resume and are the same in
every worker, on every rank, and with every version of Python and NumPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

__all__ = ["Schedule", "substitutes"]

MOST_SUBSTITUTES = 100
"""Samples that are tried in the place of a bad one before it is an error all the same."""

_DRAW_BYTES = 8

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio; Knuth, TAOCP 6.4


@dataclass(frozen=True)
class Schedule:
    """Every sample is hashed in one of ``epochs`` epochs in a row.

    Attributes
    ----------
    epochs
        1: in every epoch. A file that goes bad is used unchecked at most ``epochs - 1`` times.
    once
        Whether a process hashes a file only the first time that it reads it.
    seed
        Chooses which samples fall into which epoch.
    """

    epochs: int = 1
    once: bool = False
    seed: int = 0

    @classmethod
    def of(cls, check: str | float, seed: int = 0) -> Schedule:
        """Read ``always``, ``once``, or a share of the samples an epoch (0 < share <= 1).

        Raises
        ------
        TypeError, ValueError
            If it is anything else.
        """
        if check == "always":
            return cls(seed=seed)
        if check == "once":
            return cls(once=True, seed=seed)
        if isinstance(check, str) or not 0 < check <= 1:
            raise ValueError(f"check is 'always', 'once' or a share in (0, 1], not {check!r}")
        return cls(epochs=math.ceil(1 / check), seed=seed)

    @property
    def bound(self) -> str:
        """What the schedule promises, in words."""
        if self.once:
            return "each file is checked the first time that a process reads it, and not again"
        if self.epochs == 1:
            return "each file is checked each time that it is read"
        return (
            f"a bad file is used unchecked at most {self.epochs - 1} times, if 'set_epoch' names "
            f"each epoch"
        )

    def due(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.bool_]:
        """Return which samples are to be hashed in an epoch; bool[n]."""
        if self.epochs == 1:
            return np.ones(len(rows), np.bool_)
        mixed = (rows.astype(np.uint64) + np.uint64(self.seed % (1 << 32))) * _ODD
        turn = (mixed >> np.uint64(32)) % np.uint64(self.epochs)
        due: NDArray[np.bool_] = turn == np.uint64(epoch % self.epochs)
        return due


def substitutes(seed: int, epoch: int, index: int, count: int) -> Iterator[int]:
    """Yield the samples to try, in order, in the place of a bad one; never that one itself.

    Parameters
    ----------
    seed, epoch
        The same on all ranks.
    index
        The bad sample.
    count
        Samples of the dataset.
    """
    for attempt in range(MOST_SUBSTITUTES):
        text = json.dumps([seed, epoch, index, attempt]).encode()
        number = int.from_bytes(blake2b(text, digest_size=_DRAW_BYTES).digest(), "big")
        chosen = (number * count) >> (8 * _DRAW_BYTES)
        if chosen != index:
            yield chosen

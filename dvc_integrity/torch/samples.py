"""What the datasets share: an epoch that running workers see change, substitutes, named errors."""

from __future__ import annotations

import gc
import operator
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import Dataset, get_worker_info

from dvc_integrity.incidents import TooManyIncidents
from dvc_integrity.manifest import Manifest
from dvc_integrity.reader import OnCorrupt, Reader
from dvc_integrity.report import CorruptDataError
from dvc_integrity.schedule import substitutes

__all__ = ["VerifiedSamples", "call", "open_reader", "share_inherited_memory"]

Sample = TypeVar("Sample")
Read = TypeVar("Read")

_EPOCH, _NAMED = 0, 1

_entered = {os.getpid()}
"""Processes that inherited nothing, or did what is to be done about it."""


class VerifiedSamples(Dataset[Sample], Generic[Sample]):
    """A map-style dataset over a reader.

    Parameters
    ----------
    reader
        What reads the data.
    on_corrupt
        With ``substitute`` samples are pairs, the second of which says whether the first is the
        one that was asked for.
    seed
        Chooses the substitutes.
    """

    def __init__(self, reader: Reader, on_corrupt: OnCorrupt, seed: int) -> None:
        self.reader = reader
        self._substitutes = on_corrupt == "substitute"
        self._seed = operator.index(seed)
        self._epoch = torch.zeros(2, dtype=torch.int64)  # which one, and whether it was named
        self._share_epoch()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_epoch()  # a plain pickle brings it as private memory

    @property
    def manifest(self) -> Manifest:
        """What the files must be."""
        return self.reader.manifest

    @property
    def epoch(self) -> int:
        """Which epoch this is; 0 until it is named."""
        return int(self._epoch[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, as for a ``DistributedSampler``; running workers see it too.

        Raises
        ------
        ValueError
            If it is negative.
        """
        if operator.index(epoch) < 0:
            raise ValueError(f"an epoch is 0 or greater, not {epoch}")
        self._epoch.copy_(torch.tensor([operator.index(epoch), 1]))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the epoch."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the epoch in which ``state_dict`` was taken, unless ``set_epoch`` named one.

        So a state from the end of an epoch, which torchdata's loader hands to the workers when
        they start, does not undo what ``set_epoch`` says about the next one.
        """
        if not self._epoch[_NAMED]:
            self._epoch[_EPOCH] = state["epoch"]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        (sample,) = self.__getitems__([index])
        return sample

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Return the samples of a batch; the fetcher of a ``DataLoader`` calls this."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Sample]:
        """Yield each sample in order; an ``IndexError`` of ``decode`` does not end it."""
        return (self[index] for index in range(len(self)))

    def _position(self, index: int) -> int:
        """Return an index from 0 on."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)}")
        return operator.index(index) % len(self)

    def _due_epoch(self) -> int | None:
        """Return the epoch for the schedule: while none was named, every read is hashed."""
        epoch, named = self._epoch.tolist()
        return epoch if named or epoch else None

    def _instead(self, index: int, error: CorruptDataError, read: Callable[[int], Read]) -> Read:
        """Return what ``read`` gives for the first good sample that may stand in for one."""
        for other in substitutes(self._seed, self.epoch, index, len(self)):
            try:
                return read(other)
            except TooManyIncidents:
                raise
            except CorruptDataError:
                continue
        raise error

    def _share_epoch(self) -> None:
        """Put the epoch where running workers see it change, whatever the start method."""
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped


def share_inherited_memory() -> None:
    """Let a worker that was forked keep sharing the memory that it inherited.

    Python's garbage collector marks each object that it looks at, in the object. In a worker
    that would copy what the parent had imported (DVC, PyTorch): 50 MB each.
    """
    if os.getpid() not in _entered:
        _entered.add(os.getpid())
        if get_worker_info() is not None:
            gc.freeze()


def open_reader(
    target: str | os.PathLike[str], *, root: str | os.PathLike[str], **options: Any
) -> Reader:
    """Return ``Repository(root).reader(target, **options)``."""
    # Here, not above: a worker imports this module, and must not import DVC with it.
    from dvc_integrity.repository import Repository  # noqa: PLC0415

    return Repository(root).reader(target, **options)


def call(
    function: Callable[..., Read], *arguments: Any, what: str, where: Callable[[], str]
) -> Read:
    """Call a user's function; what it raises keeps its type, and names what it was about.

    A ``DataLoader`` carries an exception from a worker as its type and the text of its
    traceback, notes included.

    Parameters
    ----------
    function, *arguments
        What to call.
    what
        Which function it is, as in the signature of the dataset.
    where
        Tells what it was called for.

    Raises
    ------
    RuntimeError
        In the place of a ``StopIteration``, which would end the data in silence, and in a worker
        of an exception whose type cannot travel, which would let the parent wait for ever.
    """
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError(f"{what} raised StopIteration for {where()}") from error
    except Exception as error:
        if get_worker_info() is not None and not _travels(type(error)):
            raise RuntimeError(f"{what} raised {error!r} for {where()}") from error
        _add_note(error, f"while {what} worked on {where()}")
        raise


def _travels(kind: type[Exception]) -> bool:
    """Return whether ``torch._utils.ExceptionWrapper`` can carry an exception of a type."""
    try:
        pickle.dumps(kind)
        if getattr(kind, "message", None):
            kind(message="")  # type: ignore[call-arg]  # some classes take it, as PyTorch knows
    except Exception:  # noqa: BLE001 (pickling, and a class of somebody else, raise what they like)
        return False
    return True


def _add_note(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
        return
    first, *rest = error.args or ("",)
    if isinstance(first, str):
        error.args = (f"{first}\n{note}", *rest)
    if note not in str(error):  # OSError and others keep what they print elsewhere
        cause = RuntimeError(note)
        cause.__cause__, error.__cause__ = error.__cause__, cause

"""One step on its way, and the files that are made for it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from dvc_integrity.durable import InTheWayError
from dvc_integrity.errors import StoreError, printable
from dvc_integrity.manifest import Manifest
from dvc_integrity.observation import Observation
from dvc_integrity.quarantine import Identity
from dvc_integrity.restore.outcome import Outcome, Result
from dvc_integrity.restore.plan import CACHE, WORKSPACE, Step
from dvc_integrity.stores import ObjectStore, Workspace

__all__ = ["Place", "Places", "Staged", "Work"]

AnyStore = Workspace | ObjectStore


class Work:
    """A step, and how far it is.

    Attributes
    ----------
    left
        The places that are still to be made good.
    untried
        The sources that were not asked for the places at hand.
    into
        The places that the next copy goes to.
    tried
        What was wrong with the sources that were asked.
    seen
        What was read in the place that is to be made good.
    outcomes
        How places ended.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.entry = step.item.entry
        self.out = step.item.out
        self.row = step.item.row
        self.left = list(step.targets)
        self.untried: list[str] = []
        self.into: tuple[str, ...] = ()
        self.tried: list[str] = []
        self.seen: dict[str, Observation] = {}
        self.outcomes: list[Outcome] = []

    def begin(self, *into: str) -> None:
        """Turn to some places: every source but these may be asked."""
        self.into = into
        self.untried = [name for name in self.step.sources if name not in into]

    def end(self, place: str, result: Result, source: str | None = None, **more: Any) -> None:
        """Write down what became of one place."""
        if place in self.left:
            self.left.remove(place)
        self.outcomes.append(
            Outcome(
                self.entry.path,
                self.out.path,
                self.step.item.listing,
                place,
                result,
                source,
                **more,
            )
        )

    def failed(self, place: str, error: OSError | StoreError) -> None:
        """Write down that a place could not be made good."""
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, InTheWayError):
            why += f" ('{printable(error.place)}'); move it aside and run again"
        self.end(place, Result.FAILED, detail=why)

    def hopeless(self, place: str) -> None:
        """Write down that no source gave a good copy."""
        self.end(place, Result.HOPELESS, detail="; ".join(dict.fromkeys(self.tried)))

    def outcome(self, place: str) -> Outcome | None:
        """Return how a place ended, if it did."""
        return next((each for each in self.outcomes if each.place == place), None)

    def as_judged(self, place: str) -> Identity | None:
        """Return what tells what was judged in a place from anything else; None if unknown."""
        seen = self.seen.get(place)
        if seen is None:
            return None
        if isinstance(seen.error, FileNotFoundError):
            return ()
        state = seen.before
        return (state.device, state.inode, state.size, state.mtime_ns) if state else None


class Place(NamedTuple):
    """Where a file is to lie: a path below a root, which no link may lead out of."""

    store: str
    root: str
    path: str

    @property
    def full(self) -> str:
        """The whole path."""
        return os.path.join(self.root, self.path)


class Staged(NamedTuple):
    """A file in the staging folder: for which place, and from which source."""

    work: Work
    place: Place
    source: str
    path: str


class Places:
    """Where entries lie in stores of this machine."""

    def __init__(self, manifest: Manifest, stores: dict[str, AnyStore]) -> None:
        self.manifest = manifest
        self.stores = stores

    def of(self, work: Work, store_name: str) -> Place:
        """Return where an entry is to lie.

        Raises
        ------
        StoreError
            If that is no folder of this machine, or cannot be opened.
        """
        store = self.stores[store_name]
        if isinstance(store, Workspace):
            return Place(store_name, store.root, work.entry.path)
        full = work.entry.digest and store.locate(work.entry.digest, listing=work.row is None)
        if not full:
            raise StoreError(f"Objects cannot be put into the {store_name}.")
        folder, name = os.path.split(full)
        root, prefix = os.path.split(folder)
        return Place(store_name, root, f"{prefix}/{name}")

    def is_object_itself(self, work: Work) -> bool:
        """Return whether the file of the work tree is the object in the cache, by a link."""
        if work.row is None or CACHE not in self.stores:
            return False
        try:
            return os.path.samefile(self.of(work, WORKSPACE).full, self.of(work, CACHE).full)
        except (OSError, StoreError):
            return False

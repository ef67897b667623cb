"""Observations one by one, where a test looks at single files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dvc_integrity.hashing import hash_files
from dvc_integrity.observation import Observation, Observations


def in_order(batches: Iterable[Observations]) -> list[Observation]:
    """Bring batches into the order of their inputs; each input must come once."""
    seen: dict[int, Observation] = {}
    for batch in batches:
        for position, each in zip(batch.positions.tolist(), batch, strict=True):
            assert position not in seen
            seen[position] = each
    assert sorted(seen) == list(range(len(seen)))
    return [seen[position] for position in range(len(seen))]


def observe(paths: Iterable[str | bytes], *arguments: Any, **options: Any) -> list[Observation]:
    """Return what ``hash_files`` sees of each path, in the order of the paths."""
    return in_order(hash_files(paths, *arguments, **options))

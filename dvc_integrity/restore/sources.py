"""The first good copy among several places."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from dvc_integrity.errors import RestoreError, StoreError, printable
from dvc_integrity.judgement import is_expected
from dvc_integrity.manifest import Manifest
from dvc_integrity.observation import Observation
from dvc_integrity.stores import Store

__all__ = ["find_good", "why_not"]

Found = TypeVar("Found")
Source = TypeVar("Source", bound=Store)


def find_good(
    manifest: Manifest,
    row: int,
    sources: Iterable[Source],
    read: Callable[[Source], tuple[Found, Observation]],
) -> tuple[Found, str]:
    """Return the first good copy of a file among some stores, and the store's name.

    Parameters
    ----------
    manifest
        What the file must be.
    row
        Which of its entries.
    sources
        Where good copies may lie, the cheapest first.
    read
        Reads the copy of one store, in any form, and says what was seen of it.

    Raises
    ------
    RestoreError
        If no store holds a good copy; the message tells what was tried.
    """
    entry = manifest[row]
    tried = []
    for source in sources:
        try:
            copy, seen = read(source)
        except StoreError as error:
            tried.append(f"{source.name}: {error}")
            continue
        if is_expected(entry, seen):
            return copy, source.name
        tried.append(f"{source.name}: {why_not(seen)}")
    places = "; ".join(tried) or "no cache and no remote was given"
    raise RestoreError(
        f"'{printable(entry.path)}' has no good copy anywhere ({places}). Bring one back "
        f"from a machine that has it ('dvc push' there), or from a backup."
    )


def why_not(seen: Observation) -> str:
    """Say in a word what is wrong with a copy."""
    if isinstance(seen.error, FileNotFoundError):
        return "absent"
    return f"unreadable ({seen.error.strerror})" if seen.error else "damaged too"

"""The first good copy among several places."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from dvc_integrity.errors import RestoreError, StoreError, printable
from dvc_integrity.judgement import is_expected
from dvc_integrity.manifest import Manifest
from dvc_integrity.observation import Observation
from dvc_integrity.stores import Store

__all__ = ["find_good", "no_good_copy", "why_not"]

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
    raise no_good_copy(entry.path, "; ".join(tried))


def no_good_copy(path: str, tried: str) -> RestoreError:
    """Return the error that says which places were asked for a file, and what helps."""
    return RestoreError(
        f"'{printable(path)}' has no good copy anywhere "
        f"({tried or 'no cache and no remote was given'}). Bring one back from a machine that has "
        f"it ('dvc push' there), or from a backup."
    )


def why_not(seen: Observation) -> str:
    """Say in a word what is wrong with a copy."""
    if isinstance(seen.error, FileNotFoundError):
        return "absent"
    return f"unreadable ({seen.error.strerror})" if seen.error else "damaged too"

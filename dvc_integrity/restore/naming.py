"""Names for proven files, folder by folder; what lay there goes to the quarantine."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from dvc_integrity.durable import folder_below
from dvc_integrity.quarantine import Name, Quarantine
from dvc_integrity.restore.outcome import Result
from dvc_integrity.restore.plan import WORKSPACE
from dvc_integrity.restore.work import Place, Places, Staged
from dvc_integrity.stores import ObjectStore

__all__ = ["give_names", "inside"]

FOLDERS_AT_A_TIME = 2
"""Each is synced, and most of the time that is waited for."""

NEW_FOLDER_MODE = 0o777
"""Before the umask, as DVC makes them."""


def give_names(staged: list[Staged], places: Places, quarantine: Quarantine) -> None:
    """Give proven files their names, and write down how each place ended."""
    folders: dict[tuple[str, str], list[Staged]] = defaultdict(list)
    for each in staged:
        folders[each.place.root, os.path.dirname(each.place.path)].append(each)

    def name(some: list[Staged]) -> None:
        _name_in_folder(some, places, quarantine)

    if len(folders) == 1:  # a reader's one file needs no threads
        name(*folders.values())
        return
    with ThreadPoolExecutor(FOLDERS_AT_A_TIME, "dvc-integrity-name") as executor:
        list(executor.map(name, folders.values()))


def _name_in_folder(staged: list[Staged], places: Places, quarantine: Quarantine) -> None:
    place = staged[0].place
    store = places.stores[place.store]
    mode = store.folder_mode if isinstance(store, ObjectStore) else NEW_FOLDER_MODE
    named: list[tuple[Staged, str | None]] = []
    try:
        if place.store != WORKSPACE:
            os.makedirs(place.root, exist_ok=True)
        with inside(place, mode) as (folder, _):
            for each in staged:
                try:
                    named.append((each, _replace(each, folder, quarantine)))
                except OSError as error:
                    each.work.failed(each.place.store, error)
            os.fsync(folder)
    except OSError as error:
        for each in staged:
            if each.place.store in each.work.left:
                each.work.failed(each.place.store, error)
        return
    finally:
        for each in staged:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each.path)
    for each, kept in named:
        each.work.end(each.place.store, Result.RESTORED, each.source, quarantine=kept)


def _replace(staged: Staged, folder: int, quarantine: Quarantine) -> str | None:
    work, place = staged.work, staged.place
    seen = work.seen.get(place.store)
    note = {
        "found": seen.digest.hex() if seen and seen.digest else None,
        "size": seen.size if seen else None,
        "store": place.store,
    }
    name = Name(folder, os.path.basename(place.path), place.full)
    if work.entry.digest is None:
        raise OSError("no content hash is committed for it")
    as_judged = work.as_judged(place.store)
    return quarantine.replace(staged.path, name, work.entry.digest, note, as_judged=as_judged)


@contextlib.contextmanager
def inside(place: Place, make: int | None) -> Iterator[tuple[int, str]]:
    """Open the folder of a place without following a link below its root; with the last name."""
    folder, name = os.path.split(place.path)
    with folder_below(place.root, folder, make=make) as descriptor:
        yield descriptor, name

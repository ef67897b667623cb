"""Five hundred faults against real workers of every start method: none is decoded."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import faults
import pytest
import torch
from torch.utils.data import DataLoader

from dvc_integrity.torch import VerifiedFiles

if TYPE_CHECKING:
    from projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

SIZE = 4500
FILES = {
    f"data/{row:04}": b"%04d" % row + random.Random(row).randbytes(SIZE) for row in range(1100)
}
PATHS = sorted(FILES)
FAULTS = 500
BATCH = 10
LAST = range(900, 1100)
"""Positions that no worker has fetched when the first batch of an epoch is there."""


def shown(data: bytes, path: str) -> tuple[str, str]:
    """Decode to the path and the digest of what the decoder was given."""
    return path, hashlib.sha256(data).hexdigest()


SHOWN = {path: shown(data, path) for path, data in FILES.items()}


@pytest.fixture(autouse=True)
def _quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let workers go soon: PyTorch itself waits five seconds for each of them after an error."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose files are hard links to the objects of its cache."""
    from projects import new_project  # noqa: PLC0415 (a worker that is spawned imports this module)

    places = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SYSTEM_CONFIG_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SITE_CACHE_DIR"):
            patch.setenv(name, str(places))
        made = new_project(tmp_path_factory.mktemp("faults") / "project")
        made.dvc("config", "cache.type", "hardlink")
        made.add("data", FILES)
        made.commit("data")
    return made


def own(place: Path) -> Path:
    """Give a file bytes of its own: until then the cache shares them."""
    data = place.read_bytes()
    place.unlink()
    place.write_bytes(data)
    return place


def link(place: Path) -> None:
    """Replace a file by a link to other committed bytes of its size."""
    faults.replace_by_link(place, place.with_name("1099" if place.name != "1099" else "1098"))


def flip_object(place: Path) -> None:
    """Flip a bit of the object in the cache, and so in the work tree."""
    digest = hashlib.md5(FILES[f"data/{place.name}"]).hexdigest()
    cache = place.parent.parent / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    assert os.path.samefile(cache, place)
    with faults.changed(place):
        faults.flip_bit(cache, 7)


KINDS: list[Callable[[Path], None]] = [
    lambda place: faults.flip_bit(own(place)),
    lambda place: faults.flip_bit(own(place), place.stat().st_size - 1, 7),
    lambda place: faults.truncate(own(place)),
    lambda place: faults.truncate(own(place), 0),
    lambda place: faults.extend(own(place)),
    lambda place: faults.zero_page(own(place)),
    link,
    faults.delete,
    flip_object,
]


def harm(root: Path, paths: list[str], draw: random.Random) -> None:
    """Damage each file in one of all ways; two that stand together are swapped."""
    while paths:
        path = paths.pop()
        if paths and draw.random() < 0.1:
            faults.swap(own(root / path), own(root / paths.pop()))
        else:
            draw.choice(KINDS)(root / path)


def repair(project: Project) -> None:
    """Bring every file back, and its object with it."""
    for path, data in FILES.items():
        place = project.root / path
        digest = hashlib.md5(data).hexdigest()
        cache = project.cache / "files/md5" / digest[:2] / digest[2:]
        if cache.read_bytes() != data:
            faults.flip_bit(cache, 7)
        if not place.is_symlink() and place.exists() and place.samefile(cache):
            continue
        place.unlink(missing_ok=True)
        os.link(cache, place)
        assert data == place.read_bytes()


@pytest.mark.parametrize(
    ("workers", "start"),
    [(0, None), *((workers, how) for workers in (2, 4) for how in ("fork", "spawn", "forkserver"))],
)
def test_no_damaged_byte_is_decoded(workers: int, start: str | None, tracked: Project) -> None:
    """All faults are caught before ``decode``, and nothing else is.

    The first epoch is clean. Then four hundred files change between epochs, and a hundred more
    while the second epoch runs.
    """
    repair(tracked)
    draw = random.Random(f"{workers} {start}")
    between = draw.sample(range(len(PATHS)), FAULTS - 100)
    running = draw.sample(sorted(set(LAST) - set(between)), 100)
    data = VerifiedFiles(
        "data", root=tracked.root, decode=shown, on_corrupt="substitute", seed=workers
    )
    loader = DataLoader(
        data,
        batch_size=BATCH,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context=start,
        persistent_workers=bool(workers),
    )
    clean = [sample for batch in loader for sample in batch]
    assert [(SHOWN[path], True) for path in PATHS] == clean
    harm(tracked.root, [PATHS[row] for row in between], draw)
    batches = iter(loader)
    found = list(next(batches))
    harm(tracked.root, [PATHS[row] for row in running], draw)
    found += [sample for batch in batches for sample in batch]
    bad = sorted([*between, *running])
    assert FAULTS == len(bad)
    assert bad == [row for row, (_, intact) in enumerate(found) if not intact]
    for path, (sample, intact) in zip(PATHS, found, strict=True):
        assert SHOWN[sample[0]] == sample  # what was decoded is committed, for that path
        assert intact == (path == sample[0])
    incidents = data.reader.incidents
    assert incidents is not None
    lines = map(json.loads, Path(incidents.path).read_text().splitlines())
    assert {PATHS[row] for row in bad} == {line["path"] for line in lines}
    assert FAULTS == incidents.count()  # a link whose target changed too is one file, in two lines

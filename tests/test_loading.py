"""Verified loading with policies, sources and schedules, in real ``DataLoader`` workers."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import faults
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import dvc_integrity as di
from dvc_integrity import blocks, hashing
from dvc_integrity.incidents import TooManyIncidents
from dvc_integrity.torch import VerifiedArray, VerifiedFiles

if TYPE_CHECKING:
    from projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

COUNT = 40
FILES = {
    f"data/{'cat' if row % 2 else 'dog'}/{row:02}.bin": b"%d" % row * 900 for row in range(COUNT)
}
PATHS = sorted(FILES)
STARTS = ["fork", "spawn", "forkserver"]


def text(data: bytes, path: str) -> tuple[str, bytes]:
    """Decode to the path and the bytes."""
    return path, data


def known_modules(data: bytes, path: str) -> tuple[str, bytes, bool]:
    """Decode to a pair, and whether this process knows DVC."""
    return path, data, "dvc" in sys.modules


@pytest.fixture(autouse=True)
def _quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let workers go soon after an error: PyTorch itself waits five seconds for each of them."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with forty committed files, pushed to a local remote."""
    project.dvc("remote", "add", "-d", "disk", os.fspath(project.top.parent / "remote"))
    project.add("data", FILES)
    project.commit("data")
    project.dvc("push")
    return project


def samples(data: Any, workers: int = 0, start: str | None = None, **options: Any) -> list[Any]:
    """Return the samples of an epoch."""
    loader = DataLoader(
        data,
        batch_size=8,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context=start if workers else None,
        **options,
    )
    return [sample for batch in loader for sample in batch]


def flip(project: Project, *paths: str) -> dict[str, bytes]:
    """Flip a bit of some files, without a trace; return the bad bytes."""
    bad = {}
    for path in paths:
        place = project.root / path
        data = place.read_bytes()
        place.unlink()
        place.write_bytes(data)
        faults.flip_bit(place)
        bad[path] = place.read_bytes()
    return bad


def incidents(project: Project) -> list[dict[str, Any]]:
    """Return every line of every incident log."""
    logs = (project.root / ".dvc/tmp/integrity/incidents").glob("*.jsonl")
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


# ----------------------------------------------------------------- damage of every kind

FAULTS = {
    "flip": faults.flip_bit,
    "truncate": faults.truncate,
    "extend": faults.extend,
    "zero": faults.zero_page,
    "delete": faults.delete,
    "link": lambda place: faults.replace_by_link(place, "/etc/hostname"),
}


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (4, "fork"), (2, "spawn")])
@pytest.mark.parametrize("kind", FAULTS)
def test_every_damaged_file_is_caught_before_it_is_decoded(
    kind: str, workers: int, start: str | None, tracked: Project
) -> None:
    """Some damaged among forty: exactly these are replaced, and all else is as committed."""
    draw = random.Random(f"{kind}{workers}{start}")
    victims = draw.sample(PATHS, 9)
    for path in victims:
        flip(tracked, path)  # off the link to the cache
        (tracked.root / path).write_bytes(FILES[path])
        FAULTS[kind](tracked.root / path)
    data = VerifiedFiles("data", root=tracked.root, decode=text, on_corrupt="substitute", seed=3)
    found = samples(data, workers, start)
    assert [path not in victims for path in PATHS] == [intact for _, intact in found]
    for path, ((shown, content), intact) in zip(PATHS, found, strict=True):
        assert FILES[shown] == content
        assert (path == shown) == intact
    assert sorted(victims) == sorted(line["path"] for line in incidents(tracked))


def test_two_files_that_were_swapped_are_caught(tracked: Project) -> None:
    """Each has bytes that are committed, but not for it."""
    one, other = PATHS[2], PATHS[3]
    flip(tracked, one, other)
    (tracked.root / one).write_bytes(FILES[other])
    (tracked.root / other).write_bytes(FILES[one])
    data = VerifiedFiles("data", root=tracked.root, decode=text, on_corrupt="substitute")
    assert [2, 3] == [at for at, (_, intact) in enumerate(samples(data)) if not intact]


# ----------------------------------------------------------------- restore


@pytest.mark.parametrize(("workers", "start"), [(0, None), (4, "fork"), (2, "spawn")])
def test_restored_files_are_used_and_lie_there(
    workers: int, start: str | None, tracked: Project
) -> None:
    """Every sample is the committed one, each bad file is restored and kept once, none is lost."""
    bad = flip(tracked, *PATHS[::7])
    (tracked.root / PATHS[1]).unlink()
    data = VerifiedFiles("data", root=tracked.root, decode=text, on_corrupt="restore")
    assert [(path, FILES[path]) for path in PATHS] == samples(data, workers, start)
    quarantine = (tracked.root / ".dvc/tmp/integrity/quarantine").glob("*/bytes")
    assert sorted(bad.values()) == sorted(place.read_bytes() for place in quarantine)
    assert {(path, "restored", "cache") for path in [*bad, PATHS[1]]} == {
        (line["path"], line["action"], line["source"]) for line in incidents(tracked)
    }
    repository = di.Repository(tracked.root)
    assert di.verify(repository.manifest("data"), repository.workspace).ok


def test_what_cannot_be_restored_raises_and_says_what_was_tried(tracked: Project) -> None:
    """The cache and the remote are bad as well."""
    flip(tracked, PATHS[5])
    digest = hashlib.md5(FILES[PATHS[5]]).hexdigest()
    for store in (tracked.cache, tracked.top.parent / "remote"):
        faults.flip_bit(store / "files/md5" / digest[:2] / digest[2:])
    data = VerifiedFiles("data", root=tracked.root, on_corrupt="restore")
    with pytest.raises(di.CorruptDataError, match=r"remote:disk: damaged too") as caught:
        samples(data, 2, "fork")
    assert caught.value.finding
    assert PATHS[5] == caught.value.finding.path


# ----------------------------------------------------------------- substitute


def test_substitutes_depend_on_seed_epoch_and_index_alone(tracked: Project) -> None:
    """Any layout of workers gives the same; another epoch or seed gives others; no global RNG."""
    flip(tracked, *PATHS[::3])

    def shown(seed: int, epoch: int, workers: int = 0) -> list[Any]:
        data = VerifiedFiles(
            "data", root=tracked.root, decode=text, on_corrupt="substitute", seed=seed
        )
        data.load_state_dict({"epoch": epoch})
        return samples(data, workers, "fork")

    before = random.getstate()
    first = shown(1, 5)
    assert before == random.getstate()
    assert first == shown(1, 5, workers=3)
    assert first != shown(1, 6)
    assert first != shown(2, 5)
    assert COUNT == len(first)


def test_a_data_set_that_is_all_bad_ends(tracked: Project) -> None:
    """Substitutes that are bad are not used, and the search has an end."""
    flip(tracked, *PATHS)
    data = VerifiedFiles("data", root=tracked.root, on_corrupt="substitute")
    with pytest.raises(di.CorruptDataError):
        data[0]


@pytest.mark.parametrize("budget", [3, 0.1])
def test_too_many_bad_files_end_the_run(budget: float, tracked: Project) -> None:
    """The error arrives from a worker with its type, its finding and the name of the log."""
    flip(tracked, *PATHS[:30])
    data = VerifiedFiles("data", root=tracked.root, on_corrupt="substitute", error_budget=budget)
    with pytest.raises(TooManyIncidents, match=r"error budget is .*incidents.*jsonl") as caught:
        samples(data, 2, "fork")
    assert caught.value.finding


# ----------------------------------------------------------------- sources


@pytest.mark.parametrize("source", ["cache", "remote", "remote:disk"])
@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_another_version_is_read_without_a_checkout(
    source: str, workers: int, start: str | None, tracked: Project
) -> None:
    """The work tree holds later data; the bytes of the former revision come from elsewhere."""
    former = tracked.git("rev-parse", "HEAD").strip()
    tracked.add("data", {PATHS[0]: b"changed since"})
    tracked.commit("later")
    data = VerifiedFiles("data", rev=former, root=tracked.root, source=source, decode=known_modules)
    found = samples(data, workers, start)
    assert [(path, FILES[path]) for path in PATHS] == [sample[:2] for sample in found]
    if start == "spawn":
        assert {False} == {knows for _, _, knows in found}


def test_a_damaged_object_is_caught(tracked: Project) -> None:
    """A remote is trusted no more than a disk."""
    digest = hashlib.md5(FILES[PATHS[9]]).hexdigest()
    faults.flip_bit(tracked.top.parent / "remote/files/md5" / digest[:2] / digest[2:])
    data = VerifiedFiles("data", root=tracked.root, source="remote:disk")
    with pytest.raises(di.CorruptDataError) as caught:
        samples(data, 2, "fork")
    assert caught.value.finding
    assert (PATHS[9], di.Status.CORRUPT) == (caught.value.finding.path, caught.value.finding.status)


def test_only_files_of_the_workspace_are_restored(tracked: Project) -> None:
    """Anything else is refused before something is read."""
    with pytest.raises(ValueError, match="workspace can be restored"):
        VerifiedFiles("data", root=tracked.root, source="cache", on_corrupt="restore")


# ----------------------------------------------------------------- schedules


@pytest.mark.parametrize("start", STARTS)
def test_a_share_reaches_every_file_in_so_many_epochs(start: str, tracked: Project) -> None:
    """Persistent workers see the epoch change; a bad file is used unchecked three times at most.

    What stands in for it is hashed whatever the epoch.
    """
    bad = flip(tracked, *PATHS[::2])
    data = VerifiedFiles(
        "data", root=tracked.root, decode=text, check=0.25, on_corrupt="substitute"
    )
    loader = DataLoader(
        data,
        batch_size=8,
        collate_fn=list,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=start,
    )
    caught: list[str] = []
    for epoch in range(4):
        data.set_epoch(epoch)
        found = [sample for batch in loader for sample in batch]
        for path, ((shown, content), intact) in zip(PATHS, found, strict=True):
            assert (bad.get(path, FILES[path]) if intact else FILES[shown]) == content
        caught += [path for path, (_, intact) in zip(PATHS, found, strict=True) if not intact]
    assert sorted(bad) == sorted(caught)


def test_until_an_epoch_is_named_everything_is_hashed(tracked: Project) -> None:
    """Who forgets ``set_epoch`` checks too much, never the same share again and again."""
    bad = flip(tracked, *PATHS[::2])
    data = VerifiedFiles("data", root=tracked.root, check=0.25, on_corrupt="substitute")
    assert len(bad) == sum(not intact for _, intact in samples(data, 2, "fork"))


@pytest.mark.parametrize(
    ("check", "bound"),
    [(0.25, "a bad file is used unchecked at most 3 times"), ("once", "the first time")],
)
def test_what_is_promised_less_is_told(
    check: Any, bound: str, tracked: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning a dataset, from the parent, and none where each read is hashed."""
    with caplog.at_level("WARNING", "dvc_integrity"):
        data = VerifiedFiles("data", root=tracked.root, check=check)
        samples(data, 2, "fork")
        VerifiedFiles("data", root=tracked.root)
    (record,) = caplog.records
    assert "WARNING" == record.levelname
    assert bound in record.getMessage()


def test_once_checks_the_first_read_of_a_process(tracked: Project) -> None:
    """A file that goes bad later is used; a fresh process catches it. Absence is always told."""
    data = VerifiedFiles("data", root=tracked.root, check="once")
    assert [FILES[path] for path in PATHS] == samples(data)
    bad = flip(tracked, PATHS[0])
    assert bad[PATHS[0]] == data[0]
    with pytest.raises(di.CorruptDataError):
        samples(data, 1, "spawn")
    (tracked.root / PATHS[1]).unlink()
    with pytest.raises(di.CorruptDataError):
        data[1]


def test_always_sees_what_changes_between_epochs(tracked: Project) -> None:
    """The second epoch reads, and proves, anew."""
    data = VerifiedFiles("data", root=tracked.root)
    samples(data, 2, "fork")
    flip(tracked, PATHS[-1])
    with pytest.raises(di.CorruptDataError):
        samples(data, 2, "fork")


# ----------------------------------------------------------------- what a sample is


def test_labels_come_from_folders_or_a_function(tracked: Project) -> None:
    """``folder`` numbers the folders in order; a function gets the path."""
    data = VerifiedFiles("data", root=tracked.root, label="folder")
    assert ["cat", "dog"] == data.classes
    assert [(FILES[path], int("dog" in path)) for path in PATHS] == samples(data)
    data = VerifiedFiles("data", root=tracked.root, label=len)
    assert [(FILES[path], len(path)) for path in PATHS] == samples(data)


def test_patterns_select_files_below_the_target(tracked: Project) -> None:
    """Any of several patterns; none that matches is an error, not an empty dataset."""
    data = VerifiedFiles("data", root=tracked.root, decode=text, select=["cat/0*", "*/38.bin"])
    wanted = [path for path in PATHS if path.startswith("data/cat/0") or path.endswith("/38.bin")]
    assert (
        wanted == [path for path, _ in samples(data)] == [data.path(at) for at in range(len(data))]
    )
    with pytest.raises(di.NothingToVerify, match="'nothing'"):
        VerifiedFiles("data", root=tracked.root, select="nothing")


# ----------------------------------------------------------------- arrays


@pytest.fixture
def array(project: Project) -> np.ndarray[Any, Any]:
    """Return an array of 20 MiB, committed as ``big.npy``."""
    values = np.random.default_rng(0).integers(0, 1 << 30, (5 << 11, 2, 256), dtype=np.int32)
    np.save(project.root / "big.npy", values)
    project.dvc("add", "big.npy")
    project.commit("array")
    return values


def test_rows_of_a_large_array_are_proven_by_blocks(
    project: Project, array: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks on record a row costs one or two blocks, and a block is hashed once."""
    VerifiedArray("big.npy", root=project.root)  # records the blocks
    hashed: list[int] = []

    def counting(data: Any = b"") -> Any:
        hashed.append(len(data))
        return original(data)

    original = blocks.blake3
    monkeypatch.setattr(blocks, "blake3", counting)
    data = VerifiedArray("big.npy", root=project.root)
    hashed.clear()
    assert (len(array), array.shape, torch.int32) == (len(data), data.shape, data.dtype)
    for row in (7000, 7001, 7000, -1, 0):
        assert np.array_equal(array[row], data[row].numpy())
    assert sum(hashed) <= 4 * blocks.BLOCK_BYTES
    hashed.clear()
    data[7000]
    assert [] == hashed
    assert np.array_equal(array[100:300], data.rows(100, 200).numpy())


def test_damage_is_met_where_it_lies(project: Project, array: np.ndarray[Any, Any]) -> None:
    """Rows elsewhere are good; the row in the damaged block raises and names the bytes."""
    VerifiedArray("big.npy", root=project.root)
    data = VerifiedArray("big.npy", root=project.root)
    place = project.root / "big.npy"
    faults.flip_bit(place, 9 * blocks.BLOCK_BYTES + 5)
    assert np.array_equal(array[0], data[0].numpy())
    with pytest.raises(di.CorruptDataError) as caught:
        data[9 * 512]
    assert caught.value.finding
    assert ((9 << 20, 10 << 20),) == caught.value.finding.ranges
    with pytest.raises(di.CorruptDataError):
        samples(data, 2, "fork")


def test_what_is_written_to_an_open_array_is_proven_anew(
    project: Project, array: np.ndarray[Any, Any]
) -> None:
    """A block that was proven and left memory is hashed again once somebody wrote the file."""
    data = VerifiedArray("big.npy", root=project.root)
    assert np.array_equal(array[9 * 512], data[9 * 512].numpy())
    data.rows(0, 8 * 512)  # other blocks take its place in memory
    place = project.root / "big.npy"
    with faults.changed(place), place.open("r+b") as file:
        file.seek(data._start + 9 * 512 * array[0].nbytes)
        file.write(b"\xff\xfe")
    with pytest.raises(di.CorruptDataError):
        data[9 * 512]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_forked_worker_believes_nothing_its_parent_proved(
    project: Project, array: np.ndarray[Any, Any], workers: int
) -> None:
    """Each process proves what it reads: the parent read the header's block, or every file."""
    assert len(array)
    data = VerifiedArray("big.npy", root=project.root)
    data.rows(0, len(data))
    faults.flip_bit(project.root / "big.npy", 4096)
    with pytest.raises(di.CorruptDataError):
        samples(data, workers, "fork")


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_once_is_once_a_process(tracked: Project, start: str) -> None:
    """What the parent checked is checked again by a worker, whatever its start method."""
    data = VerifiedFiles("data", root=tracked.root, decode=text, check="once")
    assert list(data)
    flip(tracked, PATHS[3])
    with pytest.raises(di.CorruptDataError):
        samples(data, 2, start)


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, -1), (10**9, 1), (1, 10**9)])
def test_rows_that_do_not_exist_are_an_index_error(
    project: Project, array: np.ndarray[Any, Any], start: int, count: int
) -> None:
    """Nothing before the first row or behind the last is taken for numbers."""
    assert len(array)
    with pytest.raises(IndexError, match=str(len(array))):
        VerifiedArray("big.npy", root=project.root).rows(start, count)


def test_an_unhashed_file_of_another_length_is_judged(tracked: Project) -> None:
    """What costs nothing is looked at even where the schedule leaves the hash out."""
    tracked.add("one.bin", {"one.bin": bytes(1000)})  # its size is committed
    tracked.commit()
    data = VerifiedFiles("one.bin", root=tracked.root, check="once")
    assert [bytes(1000)] == list(data)
    faults.truncate(tracked.root / "one.bin", 999)
    with pytest.raises(di.CorruptDataError):
        data[0]


@pytest.mark.parametrize("damage", [faults.truncate, faults.extend])
def test_another_length_is_damage_from_the_start(
    damage: Any, project: Project, array: np.ndarray[Any, Any]
) -> None:
    """Whether blocks are on record or not."""
    for known in (False, True):
        if known:
            assert len(array) == len(VerifiedArray("big.npy", root=project.root))
        good = (project.root / "big.npy").read_bytes()
        damage(project.root / "big.npy")
        with pytest.raises(di.CorruptDataError):
            VerifiedArray("big.npy", root=project.root)
        (project.root / "big.npy").write_bytes(good)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=">f8").reshape(3, 4),
        np.arange(5, dtype=np.uint8),
        np.zeros((0, 3), np.float32),
        np.zeros((4, 0), np.float32),
        np.ones((2, 3, 4), bool),
        np.arange(6).reshape(2, 3) * 1j,
    ],
    ids=str,
)
def test_small_arrays_of_any_numbers(project: Project, values: np.ndarray[Any, Any]) -> None:
    """Shape, type and values are NumPy's."""
    np.save(project.root / "small.npy", values)
    project.dvc("add", "small.npy")
    project.commit()
    data = VerifiedArray("small.npy", root=project.root)
    assert values.shape == data.shape
    rows = [data[row].numpy() for row in range(len(data))]
    assert all(np.array_equal(one, other) for one, other in zip(values, rows, strict=True))
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize(
    "values",
    [np.asfortranarray(np.ones((3, 4))), np.array(["text"]), np.array([{}]), np.array(1.0)],
    ids=["columns", "text", "objects", "scalar"],
)
def test_what_has_no_rows_of_numbers_is_refused(
    project: Project, values: np.ndarray[Any, Any]
) -> None:
    """The message names the file and what it must be."""
    np.save(project.root / "odd.npy", values)
    project.dvc("add", "odd.npy")
    project.commit()
    with pytest.raises(di.ManifestError, match=r"'odd.npy' cannot be read by rows"):
        VerifiedArray("odd.npy", root=project.root)


def test_an_opened_file_reads_like_any_other(project: Project, array: np.ndarray[Any, Any]) -> None:
    """Seek, tell and read of a large file agree with plain reading, across blocks."""
    repository = di.Repository(project.root)
    reader = di.Reader(repository.manifest("big.npy"), repository.workspace)
    assert array.nbytes > hashing.LARGE_BYTES
    whole = (project.root / "big.npy").read_bytes()
    draw = random.Random(1)
    with reader.open("big.npy") as file:
        for _ in range(60):
            start, size = draw.randrange(len(whole)), draw.choice([1, 100, 70_000, 3_000_000])
            assert start == file.seek(start)
            assert whole[start : start + size] == file.read(size)
        assert len(whole) == file.seek(0, os.SEEK_END) == file.tell()
        assert b"" == file.read(1)
    assert np.array_equal(array, np.load(reader.open("big.npy")))

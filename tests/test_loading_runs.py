"""Verified datasets in runs as they are: samplers, resumes, substitutes, errors, restoring."""

from __future__ import annotations

import copy
import gc
import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import faults
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, RandomSampler, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

import dvc_integrity as di
from dvc_integrity import blocks
from dvc_integrity.incidents import TooManyIncidents
from dvc_integrity.torch import VerifiedArray, VerifiedFiles, VerifiedShards, load, samples

if TYPE_CHECKING:
    from projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata's
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]

COUNT = 40
FILES = {f"data/{row:02}": b"%d" % row * 900 for row in range(COUNT)}
PATHS = sorted(FILES)


def number(data: bytes, path: str) -> int:
    """Decode to the number in the name, which the bytes must show."""
    assert data == FILES[path]
    return int(path[-2:])


def tensor(data: bytes, path: str) -> torch.Tensor:
    """Decode to something that can be pinned."""
    return torch.tensor([number(data, path), len(data)])


@pytest.fixture(autouse=True)
def _quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let workers go soon: PyTorch itself waits five seconds for each of them after an error."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with forty committed files."""
    project.dvc("config", "cache.type", "copy")
    project.add("data", FILES)
    project.commit("data")
    return project


def damage(project: Project, *paths: str) -> None:
    for path in paths:
        faults.flip_bit(project.root / path)


def loader_of(data: Any, workers: int, kind: Any = DataLoader, **options: Any) -> Any:
    options.setdefault("collate_fn", list)
    method = "fork" if workers else None
    return kind(data, batch_size=4, num_workers=workers, multiprocessing_context=method, **options)


def epoch(loader: Any) -> list[Any]:
    return [sample for batch in loader for sample in batch]


def incidents(project: Project) -> list[dict[str, Any]]:
    """Return every line of every incident log."""
    logs = (project.root / ".dvc/tmp/integrity/incidents").glob("*.jsonl")
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


# ----------------------------------------------------------------- what PyTorch wraps around it


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_and_sums_are_verified(workers: int, tracked: Project) -> None:
    """``Subset``, ``ConcatDataset`` and one in the other: good samples come, bad ones raise."""
    data = VerifiedFiles("data", root=tracked.root, decode=number)
    whole: Any = ConcatDataset([Subset(data, [3, 1]), data, Subset(Subset(data, [9, 8, 7]), [2])])
    assert [3, 1, *range(COUNT), 7] == epoch(loader_of(whole, workers))
    damage(tracked, PATHS[7])
    with pytest.raises(di.CorruptDataError) as caught:
        epoch(loader_of(whole, workers))
    assert PATHS[7] == caught.value.finding.path  # type: ignore[union-attr]  # it has one
    masked = VerifiedFiles("data", root=tracked.root, decode=number, on_corrupt="substitute")
    found = epoch(loader_of(ConcatDataset([Subset(masked, [3, 7]), masked]), workers))
    assert [1, 9] == [at for at, (_, intact) in enumerate(found) if not intact]
    assert found[1] == found[9]  # the index in the dataset itself decides


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_and_persistent_workers(workers: int, tracked: Project) -> None:
    """Batches go through the thread that pins them, epoch after epoch, and so does the error."""
    data = VerifiedFiles("data", root=tracked.root, decode=tensor)
    loader = loader_of(
        data, workers, pin_memory=True, persistent_workers=bool(workers), collate_fn=None
    )
    for number_of_epoch in range(3):
        data.set_epoch(number_of_epoch)
        assert list(range(COUNT)) == torch.cat(list(loader))[:, 0].tolist()
    damage(tracked, PATHS[30])
    with pytest.raises(di.CorruptDataError) as caught:
        list(loader)
    assert PATHS[30] == caught.value.finding.path  # type: ignore[union-attr]  # it has one


def test_ranks_share_an_epoch(tracked: Project) -> None:
    """``DistributedSampler``: over its ranks each sample comes once, equally many on each."""
    data = VerifiedFiles("data", root=tracked.root, decode=number)
    found = []
    for rank in range(4):
        sampler = DistributedSampler(data, num_replicas=4, rank=rank, seed=3)
        sampler.set_epoch(2)
        found.append(epoch(loader_of(data, 2, sampler=sampler)))
    assert [COUNT // 4] * 4 == list(map(len, found))
    assert list(range(COUNT)) == sorted(chain(*found))


# ----------------------------------------------------------------- resumes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 3, 10])
def test_a_resume_hands_out_exactly_the_rest(workers: int, stop: int, tracked: Project) -> None:
    """``StatefulDataLoader`` in mid-epoch, shuffled: the same rest, substitutes and schedule too.

    The epoch travels in the state, and the next one, which ``set_epoch`` names, is not undone.
    """
    damage(tracked, *PATHS[::4])

    def make() -> tuple[VerifiedFiles[int], StatefulDataLoader[Any]]:
        data = VerifiedFiles(
            "data", root=tracked.root, decode=number_or_bad, on_corrupt="substitute", check=0.5
        )
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(5))
        return data, loader_of(data, workers, StatefulDataLoader, sampler=sampler)

    data, loader = make()
    data.set_epoch(3)
    whole = list(loader)
    assert COUNT // 4 > sum(not intact for batch in whole for _, intact in batch) > 0
    data, loader = make()
    data.set_epoch(3)
    batches = iter(loader)
    assert whole[:stop] == [next(batches) for _ in range(stop)]
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    data, again = make()
    again.load_state_dict(copy.deepcopy(state))
    assert whole[stop:] == list(again)
    assert workers or data.epoch == 3
    data.set_epoch(4)
    following = epoch(again)
    assert sorted(range(COUNT)) != sorted(sample for sample, _ in following)
    assert sum(not intact for _, intact in following) + sum(
        not intact for batch in whole for _, intact in batch
    ) == len(PATHS[::4])


def number_or_bad(_: bytes, path: str) -> int:
    """Decode to the number in the name, whatever the bytes."""
    return int(path[-2:])


def test_a_named_epoch_wins_over_a_state(tracked: Project) -> None:
    """Torchdata's loader hands the state to workers when they start, after ``set_epoch``."""
    data = VerifiedFiles("data", root=tracked.root)
    data.load_state_dict({"epoch": 5})
    assert (5, {"epoch": 5}) == (data.epoch, data.state_dict())
    data.set_epoch(6)
    pickle.loads(pickle.dumps(data)).load_state_dict({"epoch": 5})
    data.load_state_dict({"epoch": 5})
    assert 6 == data.epoch
    with pytest.raises(ValueError, match="0 or greater"):
        data.set_epoch(-1)


# ----------------------------------------------------------------- substitutes


def test_any_integer_is_a_seed(tracked: Project) -> None:
    """Negative and large ones too; the only good sample stands in for every other."""
    damage(tracked, *PATHS[:-1])
    for seed in (-1, 0, 1 << 70):
        data = VerifiedFiles(
            "data", root=tracked.root, decode=number, on_corrupt="substitute", seed=seed
        )
        assert [(COUNT - 1, False), (COUNT - 1, True)] == [data[5], data[-1]]


def test_a_negative_index_is_the_sample_that_it_means(tracked: Project) -> None:
    """So it has the same substitute."""
    damage(tracked, *PATHS[::2])
    data = VerifiedFiles("data", root=tracked.root, decode=number, on_corrupt="substitute")
    assert [data[at] for at in range(COUNT)] == [data[at - COUNT] for at in range(COUNT)]


def test_a_bad_file_counts_once(tracked: Project) -> None:
    """Two epochs in four workers: as many incidents as files, so a budget of as many is enough."""
    damage(tracked, *PATHS[::4])
    bad = len(PATHS[::4])
    data = VerifiedFiles(
        "data", root=tracked.root, decode=number, on_corrupt="substitute", error_budget=bad
    )
    for number_of_epoch in range(2):
        data.set_epoch(number_of_epoch)
        assert COUNT == len(epoch(loader_of(data, 4)))
    assert bad == len(incidents(tracked))
    damage(tracked, PATHS[1])
    with pytest.raises(TooManyIncidents, match=f"{bad + 1} times .* is {bad}: '{PATHS[1]}'"):
        epoch(loader_of(data, 4))


# ----------------------------------------------------------------- whose fault it is


class Picky(Exception):  # noqa: N818 (it is about its arguments)
    """Cannot be made of a text alone."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)


class Stubborn(Exception):  # noqa: N818 (it is about its attribute)
    """Has what PyTorch takes for a sign of another signature."""

    message = "none"


def local_error() -> Exception:
    class Local(Exception):  # noqa: N818 (it is about where it is defined)
        pass

    return Local("from inside")


ERRORS: dict[str, Callable[[], Exception]] = {
    "value": lambda: ValueError("bad"),
    "key": lambda: KeyError("bad"),
    "index": lambda: IndexError("bad"),
    "os": lambda: FileNotFoundError(2, "bad"),
    "bare": RuntimeError,
    "stop": StopIteration,
    "picky": lambda: Picky(1, 2),
    "stubborn": Stubborn,
    "local": local_error,
}
SAME = {
    "value": ValueError,
    "key": KeyError,
    "index": IndexError,
    "os": FileNotFoundError,
    "bare": RuntimeError,
}


class Raising:
    """Raises for one file, as decode or as label."""

    def __init__(self, error: str) -> None:
        self.error = error

    def __call__(self, *arguments: Any) -> str:
        """Return the path, which is the last argument."""
        path = arguments[-1]
        if path == PATHS[5]:
            raise ERRORS[self.error]()
        return str(path)


def raised_by(act: Callable[[], object]) -> Exception:
    """Return the exception that an act must raise, of whatever type."""
    try:
        act()
    except Exception as error:  # noqa: BLE001 (the types are what is compared)
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_the_user_names_the_file(error: str, workers: int, tracked: Project) -> None:
    """Its type stays wherever PyTorch can carry it, no worker hangs, none ends the data."""
    for what in ("decode", "label"):
        options: dict[str, Any] = {what: Raising(error)}
        data = VerifiedFiles("data", root=tracked.root, **options)
        raised = raised_by(partial(epoch, loader_of(data, workers)))
        if workers or error == "stop":
            assert SAME.get(error, RuntimeError) is type(raised)
        else:
            assert type(ERRORS[error]()).__name__ == type(raised).__name__
        told = "\n".join([str(raised), *getattr(raised, "__notes__", [])])
        assert PATHS[5] in told
        assert what in told
        assert workers == 0 or error in ("stop", "local") or type(ERRORS[error]()).__name__ in told


def test_plain_iteration_does_not_end_at_an_index_error(tracked: Project) -> None:
    """Python takes an ``IndexError`` for the end of what has no ``__iter__``."""
    data = VerifiedFiles("data", root=tracked.root, decode=Raising("index"))
    with pytest.raises(IndexError):
        list(data)


def test_where_exceptions_have_no_notes_the_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10: in the text, or in the cause of what keeps its text elsewhere."""
    monkeypatch.setattr(samples.sys, "version_info", (3, 10))

    def fail(error: Exception) -> None:
        raise error

    for error in (ValueError("bad"), ValueError(), ValueError(7), OSError(2, "bad")):
        with pytest.raises(type(error)) as caught:
            samples.call(fail, error, what="decode", where=lambda: "'data/x'")
        assert error is caught.value
        assert "while decode worked on 'data/x'" in f"{error}{error.__cause__}"


# ----------------------------------------------------------------- arrays, shards, checkpoints


@pytest.fixture
def array(project: Project) -> np.ndarray[Any, Any]:
    """Return an array of 17 MiB, two rows a block, committed as ``big.npy``."""
    values = np.random.default_rng(0).integers(0, 1 << 30, (34, 1 << 17), dtype=np.int32)
    np.save(project.root / "big.npy", values)
    project.dvc("config", "cache.type", "copy")
    project.dvc("add", "big.npy")
    project.commit("array")
    return values


def first(row: torch.Tensor) -> int:
    """Decode a row to its first number."""
    return int(row[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_in_a_bad_block_are_substituted(
    workers: int, project: Project, array: np.ndarray[Any, Any]
) -> None:
    """Another row of the same array with a mask, the same in any worker; a budget counts blocks."""
    VerifiedArray("big.npy", root=project.root)
    for block in (3, 9):
        faults.flip_bit(project.root / "big.npy", block * blocks.BLOCK_BYTES + 5000)
    options: dict[str, Any] = {"root": project.root, "transform": first, "on_corrupt": "substitute"}
    data = VerifiedArray("big.npy", error_budget=2, **options)
    found = epoch(loader_of(data, workers))
    bad = [5, 6, 7, 17, 18, 19]  # a row ends 128 bytes into the next block
    good = {int(row[0]) for at, row in enumerate(array) if at not in bad}
    assert bad == [at for at, (_, intact) in enumerate(found) if not intact]
    assert [int(row[0]) for at, row in enumerate(array) if at not in bad] == [
        value for value, intact in found if intact
    ]
    assert good >= {value for value, intact in found if not intact}
    assert found == epoch(loader_of(VerifiedArray("big.npy", **options), 0))
    with pytest.raises(TooManyIncidents):
        epoch(loader_of(VerifiedArray("big.npy", error_budget=1, **options), workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_array_is_restored_and_read_on(
    workers: int, project: Project, array: np.ndarray[Any, Any]
) -> None:
    """Damage that comes while the array is open: every row is the committed one."""
    VerifiedArray("big.npy", root=project.root)
    data = VerifiedArray("big.npy", root=project.root, transform=first, on_corrupt="restore")
    assert int(array[0][0]) == data[0]
    faults.flip_bit(project.root / "big.npy", 9 * blocks.BLOCK_BYTES + 5)
    assert [int(row[0]) for row in array] == epoch(loader_of(data, workers))
    assert [("big.npy", "restored")] == [
        (line["path"], line["action"]) for line in incidents(project)
    ]
    faults.truncate(project.root / "big.npy", 100)
    data = VerifiedArray("big.npy", root=project.root, transform=first, on_corrupt="restore")
    assert [int(row[0]) for row in array] == epoch(loader_of(data, workers))
    fresh = pickle.loads(pickle.dumps(data))  # as in a worker that is spawned
    faults.delete(project.root / "big.npy")
    assert int(array[7][0]) == fresh[7]
    assert data._whole is fresh._whole is None  # it is read by blocks again, not kept in memory


def test_a_bad_header_has_no_substitute(project: Project, array: np.ndarray[Any, Any]) -> None:
    """Without its header an array has no rows; a small array is good or bad as a whole."""
    np.save(project.root / "small.npy", array[:2])
    project.dvc("add", "small.npy")
    project.commit("small")
    VerifiedArray("big.npy", root=project.root)
    faults.flip_bit(project.root / "big.npy", 200)
    for name in ("big.npy", "small.npy"):
        with pytest.raises(di.CorruptDataError):
            VerifiedArray(name, root=project.root, on_corrupt="substitute")
        faults.flip_bit(project.root / "small.npy")


def test_an_error_of_a_transform_names_the_row(project: Project) -> None:
    """As of ``decode``."""
    np.save(project.root / "rows.npy", np.arange(6).reshape(3, 2))
    project.dvc("add", "rows.npy")
    project.commit("rows")

    def fail(_: torch.Tensor) -> None:
        raise LookupError("bad")

    with pytest.raises(LookupError) as caught:
        VerifiedArray("rows.npy", root=project.root, transform=fail)[-1]
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "row 2 of 'rows.npy'" in told


def test_shards_and_checkpoints_are_restored_and_read_elsewhere(project: Project) -> None:
    """``restore`` brings the file back; ``source`` needs no file in the work tree at all."""
    import test_shards  # noqa: PLC0415 (for what makes a shard)

    torch.save({"weight": torch.ones(3)}, project.root / "model.pt")
    project.dvc("config", "cache.type", "copy")
    project.dvc("add", "model.pt")
    project.add("tars", {"tars/00.tar": test_shards.shard_of(["0/0", "0/1"])})
    project.commit("all")
    restoring: dict[str, Any] = {"root": project.root, "on_corrupt": "restore"}
    for path in ("model.pt", "tars/00.tar"):
        faults.flip_bit(project.root / path)
    assert 2 == len(list(VerifiedShards("tars", error_budget=1, **restoring)))
    assert [1, 1, 1] == load("model.pt", **restoring)["weight"].tolist()
    assert {"model.pt", "tars/00.tar"} == {line["path"] for line in incidents(project)}
    for path in ("model.pt", "tars/00.tar"):
        faults.delete(project.root / path)
    assert 2 == len(list(VerifiedShards("tars", root=project.root, source="cache")))
    assert 3 == len(load("model.pt", root=project.root, source="cache")["weight"])
    with pytest.raises(TooManyIncidents):
        list(VerifiedShards("tars", error_budget=0, **restoring))
    with pytest.raises(ValueError, match=r"not known, .* Use on_corrupt='restore'"):
        VerifiedShards("tars", root=project.root, on_corrupt="substitute")  # type: ignore[arg-type]  # it is refused
    with pytest.raises(ValueError, match="nothing can stand in"):
        load("model.pt", root=project.root, on_corrupt="substitute")  # type: ignore[arg-type]  # the same

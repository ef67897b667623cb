"""Verified datasets over ranks, over processes that share files, and in forked memory."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

COUNT = 40
FILES = {f"data/{row:02}": b"%d" % row * 900 for row in range(COUNT)}
PATHS = sorted(FILES)
HERE = Path(__file__).parent


def number(data: bytes, path: str) -> int:
    """Decode to the number in the name, which the bytes must show."""
    assert data == FILES[path]
    return int(path[-2:])


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


# ----------------------------------------------------------------- ranks


RANK_PROGRAM = """
import json, pathlib, pickle, sys
import torch.distributed as dist
from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from dvc_integrity.torch import VerifiedFiles, assert_same_manifest

STOP = 2

def name(data, path):
    return path

def make(workers):
    data = VerifiedFiles("data", decode=name, on_corrupt="substitute", seed=9)
    sampler = DistributedSampler(data, seed=1)
    loader = StatefulDataLoader(data, batch_size=4, sampler=sampler, collate_fn=list,
                                num_workers=workers)
    return data, sampler, loader

def run(data, sampler, batches):
    found = []
    for batch in batches:
        counts = [None] * dist.get_world_size()
        dist.all_gather_object(counts, len(batch))  # a rank with fewer batches would hang here
        assert len(set(counts)) == 1
        found.append(batch)
    return found

def begin(data, sampler, loader, epoch):
    data.set_epoch(epoch)
    sampler.set_epoch(epoch)
    return iter(loader)

if __name__ == "__main__":
    folder, mode, workers = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo")
    place = folder / f"{dist.get_rank()}"
    data, sampler, loader = made = make(workers)
    assert_same_manifest(data.manifest)
    if mode == "whole":
        whole = [run(*made[:2], begin(*made, epoch)) for epoch in range(3)]
        place.with_suffix(".whole").write_text(json.dumps(whole))
        made = make(workers)
        run(*made[:2], begin(*made, 0))
        batches = begin(*made, 1)
        run(*made[:2], (next(batches) for _ in range(STOP)))
        place.with_suffix(".state").write_bytes(pickle.dumps(made[2].state_dict()))
    else:
        loader.load_state_dict(pickle.loads(place.with_suffix(".state").read_bytes()))
        rest = [run(*made[:2], begin(*made, epoch)) for epoch in (1, 2)]
        place.with_suffix(".rest").write_text(json.dumps(rest))
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(("ranks", "workers"), [(2, 2), (4, 0)])
def test_ranks_substitute_alike_and_after_a_resume(
    ranks: int, workers: int, tracked: Project, tmp_path: Path
) -> None:
    """Torchrun with gloo: equal lengths, no hang, and a resumed run is the uninterrupted one."""
    bad = PATHS[::3]
    damage(tracked, *bad)
    program = tmp_path / "rank.py"
    program.write_text(RANK_PROGRAM)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", os.fspath(program), os.fspath(tmp_path)]
    for mode in ("whole", "resumed"):
        done = subprocess.run(
            [*command, mode, str(workers)],
            cwd=tracked.root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
    whole = [json.loads((tmp_path / f"{rank}.whole").read_text()) for rank in range(ranks)]
    rest = [json.loads((tmp_path / f"{rank}.rest").read_text()) for rank in range(ranks)]
    for ours, resumed in zip(whole, rest, strict=True):
        assert [ours[1][2:], ours[2]] == resumed
    for number_of_epoch in range(3):
        found = [epoch(ours[number_of_epoch]) for ours in whole]
        assert [COUNT // ranks] * ranks == list(map(len, found))
        every = list(chain(*found))
        assert len(bad) == sum(not intact for _, intact in every)
        assert set(PATHS) - set(bad) >= {path for path, _ in every}
        assert sorted(set(PATHS) - set(bad)) == sorted(path for path, intact in every if intact)
    assert set(bad) == {line["path"] for line in incidents(tracked)}


# ----------------------------------------------------------------- restoring side by side


def restore_all(root: Path, place: Path) -> None:
    data = VerifiedFiles("data", root=root, decode=number, on_corrupt="restore")
    place.write_text(json.dumps(epoch(loader_of(data, 4))))


def test_two_processes_with_four_workers_restore_once(
    tracked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight readers of the same bad files: one restoration each, no torn read, nothing lost."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    damage(tracked, *PATHS[::2])
    bad = {path: (tracked.root / path).read_bytes() for path in PATHS[::2]}
    context = multiprocessing.get_context("fork")
    places = [tmp_path / str(process) for process in range(2)]
    processes = [
        context.Process(target=restore_all, args=(tracked.root, place)) for place in places
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert 0 == process.exitcode
    for place in places:  # ``number`` saw the committed bytes, or it would have raised
        assert list(range(COUNT)) == json.loads(place.read_text())
    kept = list((tracked.root / ".dvc/tmp/integrity/quarantine").glob("*/bytes"))
    assert sorted(bad.values()) == sorted(place.read_bytes() for place in kept)
    assert [(path, "restored", "cache") for path in sorted(bad)] == sorted(
        (line["path"], line["action"], line["source"])
        for line in incidents(tracked)
        if line["action"] != "transient"  # read once more just after another had restored it
    )
    assert FILES == {path: (tracked.root / path).read_bytes() for path in PATHS}


# ----------------------------------------------------------------- memory


def test_forked_workers_share_the_manifest(project: Project) -> None:
    """200,000 entries, four workers, one epoch: each gains at most 30 MB of private memory."""
    from projects import md5, plant, raw_listing  # noqa: PLC0415 (they import DVC)

    names = [f"{row:06}" for row in range(200_000)]
    folder = project.root / "data"
    folder.mkdir()
    for row, name in enumerate(names):
        if row % 20_000 == 0:  # file systems bound the links of a file
            (folder / name).write_bytes(b"content")
            origin = folder / name
        else:
            os.link(origin, folder / name)
    entries = [{"md5": md5(b"content"), "relpath": name} for name in names]
    oid = plant(project.cache, raw_listing(entries), ".dir")
    project.write_outs("data.dvc", {"md5": oid, "path": "data", "hash": "md5"})
    project.write({".gitignore": b"/data\n"})
    project.commit("data")
    program = [sys.executable, "-W", "ignore", os.fspath(HERE / "forked_memory.py")]
    done = subprocess.run(
        [*program, os.fspath(project.root)], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert (len(names), 4) == (found["entries"], len(found["grown"]))
    assert max(found["grown"]) <= 30_000_000

"""All ranks hold the same manifest, or every rank raises: with real processes and gloo."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from projects import Project

import dvc_integrity as di
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.torch import assert_same_manifest, distributed
from dvc_integrity.torch.distributed import Held

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

LIMIT_SECONDS = 60
"""Ranks that take longer hang."""

REVS = ["0" * 40, "1" * 40, "2" * 64, "workspace"]
AGREED = "agreed"

Act = Callable[[int, dist.ProcessGroup | None], None]


def manifest_of(content: bytes, rev: str) -> Manifest:
    """Return the manifest of one file."""
    builder = ManifestBuilder(rev, ["data"])
    builder.add_out(Out("data"))
    builder.add_entry("data", di.Digest(di.Algorithm.MD5, content.ljust(16)), 1)
    return builder.build()


def held_by(contents: str) -> list[Manifest]:
    """Return one manifest a rank: ranks with the same letter have the same data."""
    return [manifest_of(each.encode(), rev) for each, rev in zip(contents, REVS, strict=False)]


def outcomes(folder: Path, manifests: Sequence[Manifest], members: Sequence[int] = ()) -> list[str]:
    """Run one process a rank; return what each was told.

    With ``members`` these ranks compare with each other, as a group of their own.
    """
    context = mp.start_processes(
        _rank, (folder, manifests, members), len(manifests), join=False, start_method="fork"
    )
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not context.join(LIMIT_SECONDS):  # comes back whenever a rank has ended
            assert time.monotonic() < deadline, "the ranks hang"
    finally:
        for process in context.processes:
            process.kill()
    return [(folder / f"{rank}.txt").read_text() for rank in range(len(manifests))]


def _rank(rank: int, folder: Path, manifests: Sequence[Manifest], members: Sequence[int]) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=len(manifests),
        timeout=dt.timedelta(seconds=LIMIT_SECONDS / 2),
    )
    group = dist.new_group(list(members)) if members else None
    (folder / f"{rank}.txt").write_text(told(manifests[rank], group))
    total = torch.ones(1)
    dist.all_reduce(total)  # the group still works, and no rank is left behind
    assert len(manifests) == total.item()
    dist.destroy_process_group()


def told(manifest: Manifest, group: dist.ProcessGroup | None) -> str:
    try:
        assert_same_manifest(manifest, group)
    except (di.ManifestError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return AGREED


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_with_the_same_data_go_on(tmp_path: Path, ranks: int) -> None:
    """Equal manifests agree, whatever the revisions that they come from."""
    assert [AGREED] * ranks == outcomes(tmp_path, held_by("a" * ranks))


@pytest.mark.parametrize("contents", ["ba", "baa", "aba", "aab", "aaba", "abca"])
def test_every_rank_raises_where_one_differs(tmp_path: Path, contents: str) -> None:
    """No rank goes on and none hangs; each is told every digest and revision, and who differs."""
    manifests = held_by(contents)
    for rank, said in enumerate(outcomes(tmp_path, manifests)):
        assert said.startswith(f"ManifestError: The {len(contents)} ranks hold")
        for other, manifest in enumerate(manifests):
            assert f"  rank {other}: sha256:{manifest.digest} at {manifest.rev}\n" in said
        assert f"This is rank {rank}; rank" in said
        assert "git rev-parse HEAD" in said


def test_a_group_is_compared_alone(tmp_path: Path) -> None:
    """Ranks outside of a group do not count, and are told that they do not belong to it."""
    first, second, third, fourth = outcomes(tmp_path, held_by("baca"), members=[1, 3])
    assert (AGREED, AGREED) == (second, fourth)
    assert first.startswith("RuntimeError: Rank 0 does not belong to the group")
    assert third.startswith("RuntimeError: Rank 2 does not belong to the group")


def test_ranks_of_a_group_are_global_ones(tmp_path: Path) -> None:
    """The message names ranks as ``torchrun`` does, not by their position in the group."""
    manifests = held_by("abca")
    said = outcomes(tmp_path, manifests, members=[1, 2, 3])
    assert said[0].startswith("RuntimeError")
    assert "This is rank 2; ranks 1, 3 differ from it." in said[2]
    for rank in (1, 2, 3):
        assert f"rank {rank}: sha256:{manifests[rank].digest} at {REVS[rank]}" in said[rank]
    assert f"sha256:{manifests[0].digest}" not in said[1].replace(manifests[3].digest, "")


def test_without_a_process_group_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no ranks nothing was compared, which is no success."""
    manifest = manifest_of(b"a", REVS[0])
    with pytest.raises(RuntimeError, match="init_process_group on every rank"):
        assert_same_manifest(manifest)
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "is_initialized")  # a build without it has no more than that
    with pytest.raises(RuntimeError, match="not initialised"):
        assert_same_manifest(manifest)


@pytest.mark.parametrize(
    ("config", "device"),
    [
        ("cpu:gloo,cuda:gloo", "cpu"),
        ("cpu:gloo", "cpu"),
        ("cuda:nccl", "cuda"),
        ("cpu:gloo,cuda:nccl", "cpu"),
        ("cuda:nccl,cpu:gloo", "cpu"),
        ("xpu:xccl", "xpu"),
    ],
)
def test_the_tensor_lies_where_the_backend_can_reach_it(config: str, device: str) -> None:
    """On the CPU where the group can talk from there, else on its own device, as for NCCL."""
    assert device == distributed._first_device(config)


# ----------------------------------------------------------------- the message


def disagreement(contents: str, own: int = 0) -> str:
    held = [Held(rank, each * 64, f"rev-{each}") for rank, each in enumerate(contents)]
    return distributed._disagreement(held, own)


@pytest.mark.parametrize(
    ("contents", "verdict"),
    [
        ("aab", "rank 2 differs from the majority."),
        ("baa", "rank 0 differs from the majority."),
        ("bacaa", "ranks 0, 2 differ from the majority."),
        ("ab", "No manifest has a majority."),
        ("aabb", "No manifest has a majority."),
        ("aabc", "No manifest has a majority."),
    ],
)
def test_the_majority_is_more_than_half(contents: str, verdict: str) -> None:
    """Only what more than half of the ranks hold is a majority; it is not called right."""
    assert f"the same data. {verdict} This is" in disagreement(contents)


def test_each_rank_is_told_who_differs_from_it() -> None:
    """The same ranks look different from the odd one than from the others."""
    assert "This is rank 0; rank 1 differs from it." in disagreement("aba", 0)
    assert "This is rank 1; ranks 0, 2 differ from it." in disagreement("aba", 1)


def test_many_ranks_make_a_short_message() -> None:
    """Ranks that hold the same are named together, in runs."""
    lines = disagreement("a" * 500 + "b" + "a" * 500).splitlines()
    digest, other = ("a" * 64, "b" * 64)
    assert [
        f"  ranks 0-499, 501-1000: sha256:{digest} at rev-a",
        f"  rank 500: sha256:{other} at rev-b",
    ] == lines[1:-1]


def test_ranks_with_one_digest_and_two_revisions_are_listed_by_revision() -> None:
    """A revision is told for each rank, also where the data are the same."""
    held = [Held(0, "a", "x"), Held(1, "a", "y"), Held(2, "b", "y")]
    said = distributed._disagreement(held, 2).splitlines()
    assert ["  rank 0: sha256:a at x", "  rank 1: sha256:a at y"] == said[1:3]
    assert "hold 2 different manifests" in said[0]
    assert "rank 2 differs from the majority" in said[0]


# ----------------------------------------------------------------- as it is used

SCRIPT = """\
import os, sys
import torch.distributed as dist
from dvc_integrity import ManifestError
from dvc_integrity.torch import VerifiedFiles, assert_same_manifest

folder, old = sys.argv[1:]
rank = os.environ["RANK"]
dist.init_process_group("gloo")
for rev in (old, "HEAD"):
    data = VerifiedFiles("data", rev=rev, root=os.path.join(folder, rank))
    said = "agreed"
    try:
        assert_same_manifest(data.manifest)
    except ManifestError as error:
        said = str(error)
    with open(os.path.join(folder, f"{rank}-{rev}.txt"), "w") as file:
        file.write(said)
dist.destroy_process_group()
"""


def test_two_checkouts_under_torchrun(project: Project, tmp_path: Path) -> None:
    """Two checkouts, one of which moved on: the ranks agree on the old commit, not on ``HEAD``."""
    project.add("data", {"data/a": b"old", "data/b": b"b"})
    old = project.commit("old")
    clones = [tmp_path / "0", tmp_path / "1"]
    for clone in clones:
        project.git("clone", "--quiet", ".", str(clone))
        (clone / ".dvc/config.local").write_text(f"[cache]\n    dir = {project.cache}\n")
    project.add("data", {"data/a": b"new"})
    new = project.commit("new")
    project.git("-C", str(clones[1]), "pull", "--quiet")

    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, str(tmp_path / "script.py"), str(tmp_path), old],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * LIMIT_SECONDS,
    )

    assert 0 == done.returncode, done.stderr
    for rank in range(2):
        assert AGREED == (tmp_path / f"{rank}-{old}.txt").read_text()
        said = (tmp_path / f"{rank}-HEAD.txt").read_text()
        assert f"at {old}\n  rank 1: sha256:" in said
        assert f"at {new}\n" in said
        assert f"This is rank {rank}; rank {1 - rank} differs from it." in said


def test_names_of_ranks() -> None:
    """Every set of ranks can be read back from its name."""
    for ranks in itertools.chain.from_iterable(
        itertools.combinations(range(6), count) for count in range(1, 7)
    ):
        word, _, text = distributed._named(ranks[::-1]).partition(" ")
        runs = [[int(edge) for edge in run.split("-")] for run in text.split(", ")]
        assert [*ranks] == [rank for run in runs for rank in range(run[0], run[-1] + 1)]
        assert word == ("rank" if len(ranks) == 1 else "ranks")

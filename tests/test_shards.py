"""``VerifiedShards``: proven tar shards, each sample exactly once, and on after a stop.

A worker that is spawned imports this module to find ``decode``, so nothing here may import DVC
while it is imported: what builds projects is imported inside fixtures.
"""

from __future__ import annotations

import bz2
import contextlib
import copy
import gc
import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import numpy as np
import pytest
import torch
import torch.distributed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker as torch_worker
from torchdata.stateful_dataloader import StatefulDataLoader

import dvc_integrity as di
from dvc_integrity.report import Status
from dvc_integrity.torch import ShardError, VerifiedShards, shards

if TYPE_CHECKING:
    from projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata's
]

COUNTS = [3, 1, 4, 0, 2, 5]
"""Samples in each shard."""

PATHS = [f"data/{shard:02}.tar" for shard in range(len(COUNTS))]
KEYS = [[f"{shard}/{sample}" for sample in range(count)] for shard, count in enumerate(COUNTS)]
EVERY_KEY = [key for keys in KEYS for key in keys]
VICTIM = "data/02.tar"


def tar_of(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """Return a tar with these files, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shard_of(keys: list[str]) -> bytes:
    """Return a shard with samples of two files each."""
    return tar_of({f"{key}.{kind}": f"{kind} of {key}".encode() for key in keys for kind in "xy"})


def sample_of(key: str) -> dict[str, Any]:
    """Return what a sample of ``shard_of`` must be."""
    path = PATHS[int(key[0])]
    parts = {kind: f"{kind} of {key}".encode() for kind in "xy"}
    return {"__key__": key, "__shard__": path, **parts}


def key_of(sample: dict[str, Any]) -> str:
    """Decode to the name alone."""
    return str(sample["__key__"])


def key_and_process(sample: dict[str, Any]) -> tuple[str, int, bool]:
    """Decode to the name, the process, and whether it knows DVC."""
    return sample["__key__"], os.getpid(), "dvc" in sys.modules


def broken(sample: dict[str, Any]) -> str:
    """Decode with faults of three types."""
    if sample["__key__"] == "0/1":
        raise {"key": KeyError, "stop": StopIteration, "value": ValueError}[sample["fault"]]("bad")
    return str(sample["__key__"])


def fault_key(sample: dict[str, Any]) -> str:
    """Decode with a KeyError."""
    return broken({**sample, "fault": "key"})


def fault_stop(sample: dict[str, Any]) -> str:
    """Decode with what would end an epoch in silence."""
    return broken({**sample, "fault": "stop"})


def fault_value(sample: dict[str, Any]) -> str:
    """Decode with a ValueError."""
    return broken({**sample, "fault": "value"})


@pytest.fixture(autouse=True)
def _quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let workers go soon after an error: PyTorch itself waits five seconds for each of them."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    gc.collect()


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with committed shards, made once; tests work on copies of it."""
    from projects import new_project  # noqa: PLC0415

    places = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SYSTEM_CONFIG_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SITE_CACHE_DIR"):
            patch.setenv(name, str(places))
        made = new_project(tmp_path_factory.mktemp("master") / "project")
        files = dict(zip(PATHS, map(shard_of, KEYS), strict=True))
        made.dvc("config", "cache.type", "copy")
        made.add("data", {**files, "data/README": b"no shard", "data/sub/more.tgz": gzipped()})
        made.commit("data")
    return made


def gzipped() -> bytes:
    return gzip.compress(tar_of({"zipped.x": b"gzip"}), mtime=0)


@pytest.fixture
def tracked(master: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a clean project with shards, the current folder inside it."""
    shutil.copytree(master.top, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return type(master)(tmp_path / "copy", tmp_path / "copy")


@contextlib.contextmanager
def as_worker(worker: int, workers: int) -> Iterator[None]:
    """Make this process what a DataLoader's worker is; 0 workers change nothing."""
    if workers:
        torch_worker._worker_info = torch_worker.WorkerInfo(
            id=worker, num_workers=workers, seed=0, dataset=None
        )
    try:
        yield
    finally:
        torch_worker._worker_info = None


def epoch(loader: DataLoader[Any]) -> list[Any]:
    """Return the samples of an epoch, batch after batch."""
    return [sample for batch in loader for sample in batch]


def loader_of(data: Any, kind: Any = DataLoader, **options: Any) -> Any:
    if options.get("num_workers"):
        options.setdefault("multiprocessing_context", "fork")
    return kind(data, batch_size=2, collate_fn=list, **options)


def finding_of(act: Callable[[], object]) -> di.Finding:
    """Return the finding of the CorruptDataError that an act must raise."""
    with pytest.raises(di.CorruptDataError) as caught:
        act()
    assert di.CorruptDataError is type(caught.value)
    assert caught.value.finding is not None
    return caught.value.finding


def reads_of(data: VerifiedShards[Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each shard that is read."""
    reads: list[str] = []
    read = data.reader.open

    def note(path: str) -> Any:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(data.reader, "open", note)
    return reads


# ----------------------------------------------------------------- samples


def test_samples_come_in_the_order_of_the_shards(tracked: Project) -> None:
    """Unshuffled: each shard in order of the paths, each sample in order of its first file."""
    data = VerifiedShards("data")
    assert PATHS == data.shards
    assert [sample_of(key) for key in EVERY_KEY] == list(data) == list(data)
    assert tracked.git("rev-parse", "HEAD") == data.manifest.rev


@pytest.mark.parametrize(
    ("target", "select", "expected"),
    [
        ("data", ["01.tar", "00.tar"], EVERY_KEY[:4]),
        ("data", "data/0[01].tar", EVERY_KEY[:4]),
        ("data", "*.t*", [*EVERY_KEY, "zipped"]),
        ("data", ["*/sub/*", "0?.TAR"], ["zipped"]),
        ("data/sub", "*.tgz", ["zipped"]),
        (Path("data/04.tar"), "*.tar", KEYS[4]),
    ],
)
def test_patterns_choose_the_shards(
    tracked: Project, target: Any, select: Any, expected: list[str]
) -> None:
    """A pattern goes by the name, or with a slash by the path; a part of a folder will do."""
    data = VerifiedShards(target, select=select, root=tracked.root, decode=key_of)
    assert expected == list(data)


@pytest.mark.parametrize("select", ["*.tgz2", [], "sub", "tar"])
def test_no_shard_is_refused_at_once(tracked: Project, select: Any) -> None:
    """A stream without a shard would train on nothing, and prove nothing."""
    with pytest.raises(di.NothingToVerify, match="select"):
        VerifiedShards("data", select=select, root=tracked.root)


@pytest.mark.parametrize(
    "options",
    [
        {"on_corrupt": "skip"},
        {"shuffle_buffer": -1},
        {"rank": 1},
        {"world_size": 2},
        {"rank": 2, "world_size": 2},
        {"rank": -1, "world_size": 2},
    ],
)
def test_an_impossible_option_is_refused(tracked: Project, options: dict[str, Any]) -> None:
    """What has no meaning fails when the dataset is made."""
    with pytest.raises(ValueError, match=next(iter(options))):
        VerifiedShards("data", root=tracked.root, **options)


def test_what_cannot_be_verified_is_refused_at_once(tracked: Project) -> None:
    """A target with a file that has no committed hash fails when the dataset is made."""
    tracked.write_outs("import.dvc", {"path": "import"})
    tracked.write({".gitignore": b"/data\n/import\n"})
    tracked.commit("import")
    with pytest.raises(di.ManifestError, match="no committed content hash"):
        VerifiedShards("import", select="*", root=tracked.root)


# ----------------------------------------------------------------- tar files


def samples_in(data: bytes) -> dict[str, dict[str, Any]]:
    """Return the samples of a tar by their key, without key and shard."""
    shard = shards._Shard("some.tar", data)
    samples = [shard.sample(index) for index in range(len(shard))]
    assert {"some.tar"} >= {sample.pop("__shard__") for sample in samples}
    return {sample.pop("__key__"): sample for sample in samples}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_the_webdataset_convention(compress: Callable[[bytes], bytes]) -> None:
    """Up to the first dot of the last component is the key, the rest the kind, in lower case."""
    long = "ä" * 120
    files = {
        "a.jpg": b"1",
        "v1.2/b.Seg.PNG": b"2",
        "./c.x": b"3",
        "a.cls": b"4",
        f"{long}.x": b"5",
        "d.": b"",
        ".hidden": b"no key",
        "v1.2/README": b"no dot",
    }
    expected = {
        "a": {"jpg": b"1", "cls": b"4"},
        "v1.2/b": {"seg.png": b"2"},
        "./c": {"x": b"3"},
        long: {"x": b"5"},
        "d": {"": b""},
    }
    found = samples_in(compress(tar_of(files)))
    assert expected == found
    assert list(expected) == list(found)


def test_folders_links_and_sparse_files(tmp_path: Path) -> None:
    """What the program ``tar`` writes is read: links inside the tar too, as their bytes."""
    sparse = bytes(1 << 20) + b"end"
    (tmp_path / "f.d").mkdir()
    (tmp_path / "f.d" / "a.x").write_bytes(b"one")
    (tmp_path / "f.d" / "b.x").hardlink_to(tmp_path / "f.d" / "a.x")
    (tmp_path / "f.d" / "c.x").symlink_to("a.x")
    with (tmp_path / "f.d" / "e.x").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", "-S", "-cf", "t.tar", "f.d"], cwd=tmp_path, check=True)
    packed = (tmp_path / "t.tar").read_bytes()
    assert len(sparse) > len(packed)
    names = {"f.d/a": b"one", "f.d/b": b"one", "f.d/c": b"one", "f.d/e": sparse}
    assert {key: {"x": data} for key, data in names.items()} == samples_in(packed)


def special(kind: bytes, link: str = "") -> bytes:
    member = tarfile.TarInfo("a.x")
    member.type, member.linkname = kind, link
    return member.tobuf() + bytes(1024)


WHOLE = shard_of(KEYS[2])
BROKEN = {
    "empty": (b"", "could not be opened|empty file"),
    "no tar": (b"no tar at all" * 100, "could not be opened"),
    "no end": (WHOLE[:8192], "end-of-archive"),
    "second header": (WHOLE[:1024] + b"?" * 512 + WHOLE[1536:], "no valid header at byte 1024"),
    "joined": (WHOLE + WHOLE, "more follows"),
    "twice": (tar_of({"a.x": b"1", "b.x": b"2"})[:2048] + tar_of({"a.X": b"3"}), "same part"),
    "reserved": (tar_of({"a.__key__": b"1"}), "same part"),
    "link to nothing": (special(tarfile.SYMTYPE, "b.x"), "no link to one"),
    "link to itself": (special(tarfile.SYMTYPE, "a.x"), "no link to one"),
    "pipe": (special(tarfile.FIFOTYPE), "is no file"),
    "cut gzip": (gzip.compress(WHOLE)[:-9], "end-of-stream"),
    "damaged gzip": (gzip.compress(WHOLE)[:-8] + bytes(8), "CRC"),
    "no tar in gzip": (gzip.compress(b"no tar" * 1000), "could not be opened"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tar_is_refused_as_a_whole(case: str) -> None:
    """No sample of it is dropped in silence; the message names the shard and says what helps."""
    data, why = BROKEN[case]
    with pytest.raises(ShardError, match=why) as caught:
        samples_in(data)
    assert "'some.tar'" in str(caught.value)
    assert "committed" in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value)))


@given(st.integers(0, len(WHOLE) - 1))
@settings(deadline=None)
def test_a_tar_that_is_cut_off_never_passes(size: int) -> None:
    """A tar that was cut anywhere gives all of its samples or an error."""
    try:
        found = samples_in(WHOLE[:size])
    except ShardError:
        return
    assert samples_in(WHOLE) == found


def test_a_broken_tar_with_the_right_hash_names_its_shard(tracked: Project) -> None:
    """Committed like this: an error of its own type from a worker too, never CorruptDataError."""
    tracked.add("bad", {"bad/ok.tar": WHOLE, "bad/torn\n.tar": WHOLE[:-9000]})
    tracked.commit("bad")
    data = VerifiedShards("bad", root=tracked.root, decode=key_of)
    for workers in (0, 1):
        with pytest.raises(ShardError, match=r"torn\\n\.tar"):
            epoch(loader_of(data, num_workers=workers))


def test_memory_stays_at_one_shard(tracked: Project) -> None:
    """The buffer of a shard goes when its samples are gone, without the garbage collector."""
    size = 1 << 22
    files = {f"big/{row}.tar": tar_of({"a.x": bytes([row]) * size}) for row in range(4)}
    files |= {"big/4.tar": gzip.compress(files["big/0.tar"], 1)}
    tracked.add("big", files)
    tracked.commit("big")
    data = VerifiedShards("big", root=tracked.root)
    gc.disable()
    tracemalloc.start()
    try:
        assert [0, 1, 2, 3, 0] == [sample["x"][0] for sample in data]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert 3.5 * size > peak


# ----------------------------------------------------------------- damage

DAMAGE: dict[str, tuple[Callable[[Path], object], Status]] = {
    "bit": (faults.flip_bit, Status.MODIFIED),
    "last bit": (lambda path: faults.flip_bit(path, path.stat().st_size - 1), Status.MODIFIED),
    "cut": (faults.truncate, Status.MODIFIED),
    "swap": (lambda path: faults.swap(path, path.with_name("00.tar")), Status.MODIFIED),
    "gone": (faults.delete, Status.MISSING),
    "link": (lambda path: faults.replace_by_link(path, "00.tar"), Status.MODIFIED),
    "loose link": (lambda path: faults.replace_by_link(path, "nowhere"), Status.MISSING),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_no_sample_leaves_a_damaged_shard(tracked: Project, case: str) -> None:
    """Every fault raises with its finding before one of the shard's samples is handed out."""
    harm, status = DAMAGE[case]
    decoded: list[str] = []

    def note(sample: dict[str, Any]) -> str:
        decoded.append(sample["__shard__"])
        return key_of(sample)

    data = VerifiedShards("data", root=tracked.root, decode=note)
    assert EVERY_KEY == list(data)
    decoded.clear()
    harm(tracked.root / VICTIM)
    damaged = {VICTIM} | ({"data/00.tar"} if case == "swap" else set())
    finding = finding_of(lambda: list(data))
    assert (min(damaged), "data", status) == (finding.path, finding.out, finding.status)
    assert [] == [path for path in decoded if path in damaged]
    assert ([] if case == "swap" else [PATHS[0]] * 3 + [PATHS[1]]) == decoded


def test_a_large_shard_is_hashed_in_every_epoch(project: Project) -> None:
    """What was proven in one epoch is not believed in the next: no block record speaks for it."""
    parts = {f"{number:02}.bin": bytes([number]) * (1 << 20) for number in range(18)}
    project.add("big", {"big/0.tar": tar_of(parts)})
    project.commit()
    data = VerifiedShards("big", root=project.root, decode=key_of)
    assert 18 == len(list(data))
    faults.flip_bit(project.root / "big/0.tar", 8 << 20)
    with pytest.raises(di.CorruptDataError) as caught:
        next(iter(data))
    assert caught.value.finding
    assert "big/0.tar" == caught.value.finding.path


@pytest.mark.parametrize("victim", [path for path, n in zip(PATHS, COUNTS, strict=True) if n])
def test_each_shard_is_proven(tracked: Project, victim: str) -> None:
    """Whichever shard is damaged, with a shuffle buffer or not, in a worker or not."""
    for options, workers in [({}, 0), ({"shuffle": True, "shuffle_buffer": 4}, 0), ({}, 2)]:
        data = VerifiedShards("data", root=tracked.root, decode=key_of, **options)
        assert sorted(EVERY_KEY) == sorted(epoch(loader_of(data, num_workers=workers)))
        faults.flip_bit(tracked.root / victim, 0)
        finding = finding_of(lambda: epoch(loader_of(data, num_workers=workers)))  # noqa: B023 (called at once)
        assert victim == finding.path
        faults.flip_bit(tracked.root / victim, 0)


def test_a_pass_that_goes_on_after_damage_leaves_nothing_out(tracked: Project) -> None:
    """Asked again it raises again; once the bytes are back, every sample comes, once."""
    for size in (0, 5):
        data = VerifiedShards("data", root=tracked.root, decode=key_of, shuffle_buffer=size)
        faults.flip_bit(tracked.root / VICTIM)
        found, damages, samples = [], 0, iter(data)
        while damages < 2:
            try:
                found.append(next(samples))
            except di.CorruptDataError:
                damages += 1
        faults.flip_bit(tracked.root / VICTIM)
        assert sorted(EVERY_KEY) == sorted([*found, *samples])


def test_shards_are_held_to_the_revision_that_is_named(tracked: Project) -> None:
    """A newer version of a shard raises under the older revision."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.add("data", {VICTIM: shard_of(["2/new"])})
    tracked.commit("next")
    assert "2/new" in list(VerifiedShards("data", root=tracked.root, decode=key_of))
    before = VerifiedShards("data", root=tracked.root, decode=key_of, rev=old)
    assert VICTIM == finding_of(lambda: list(before)).path


# ----------------------------------------------------------------- exactly once


def passes(
    root: Path, ranks: int, workers: list[int], **options: Any
) -> Iterator[VerifiedShards[Any]]:
    """Yield the dataset of each worker of each rank, while this process is that worker."""
    for rank in range(ranks):
        data = VerifiedShards("data", root=root, rank=rank, world_size=ranks, **options)
        for worker in range(max(1, workers[rank])):
            with as_worker(worker, workers[rank]):
                yield data


def test_every_sample_comes_exactly_once(tracked: Project) -> None:
    """For any numbers of shards, ranks, workers (also unequal), and any buffer, each epoch."""

    @given(
        shards=st.integers(1, len(PATHS)),
        workers=st.lists(st.integers(0, 4), min_size=1, max_size=3),
        size=st.sampled_from([0, 1, 2, 5, 100]),
        shuffle=st.booleans(),
        seed=st.integers(-1, 1 << 70),
        number=st.integers(0, 3),
    )
    @settings(
        deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    def check(
        shards: int, workers: list[int], size: int, shuffle: bool, seed: int, number: int
    ) -> None:
        found: list[str] = []
        options = {"shuffle": shuffle, "shuffle_buffer": size, "seed": seed}
        names = [os.path.basename(path) for path in PATHS[:shards]]
        for data in passes(tracked.root, len(workers), workers, select=names, **options):
            data.set_epoch(number)
            found += map(key_of, data)
        expected = [key for keys in KEYS[:shards] for key in keys]
        assert Counter(expected) == Counter(found)

    check()


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_real_workers_share_the_shards(tracked: Project, workers: int) -> None:
    """Over two ranks of a real DataLoader each sample comes once, more workers than shards too."""
    found: list[str] = []
    for rank in range(2):
        data = VerifiedShards(
            "data", root=tracked.root, rank=rank, world_size=2, shuffle=True, decode=key_of
        )
        found += epoch(loader_of(data, num_workers=workers))
    assert sorted(EVERY_KEY) == sorted(found)


def test_the_rank_comes_from_where_it_is_known(
    tracked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, then ``torch.distributed`` (pickled along, too), then the variables, then one."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    data = VerifiedShards("data", root=tracked.root, decode=key_of)
    third = [[key for keys in KEYS[rank::3] for key in keys] for rank in range(3)]
    assert EVERY_KEY == list(data)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert third[2] == list(data) == list(pickle.loads(pickle.dumps(data)))
    torch.distributed.init_process_group("fake", rank=1, world_size=3, store=fake.FakeStore())
    try:
        assert third[1] == list(data)
        sent = pickle.dumps(data)
        given = VerifiedShards("data", root=tracked.root, decode=key_of, rank=0, world_size=3)
        assert third[0] == list(given)
    finally:
        torch.distributed.destroy_process_group()
    assert third[1] == list(pickle.loads(sent))
    assert third[2] == list(data)
    assert third[0] == list(given)


@pytest.mark.parametrize(
    "variables",
    [("1", None), (None, "2"), ("2", "2"), ("one", "2"), ("-1", "2"), ("", "2"), ("0", "0")],
)
def test_half_known_ranks_are_refused(
    tracked: Project, monkeypatch: pytest.MonkeyPatch, variables: tuple[str | None, str | None]
) -> None:
    """One variable without the other would hand every rank every sample."""
    data = VerifiedShards("data", root=tracked.root)
    for name, value in zip(("RANK", "WORLD_SIZE"), variables, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"RANK.*WORLD_SIZE"):
        iter(data)


# ----------------------------------------------------------------- order


def test_the_order_follows_from_seed_and_epoch(tracked: Project) -> None:
    """Another epoch or seed is another order; the same ones give the same, in any process."""
    options: dict[str, Any] = {"root": tracked.root, "decode": key_of}

    def order(seed: int, number: int, **more: Any) -> tuple[str, ...]:
        data = VerifiedShards("data", seed=seed, **options, **more)
        data.set_epoch(number)
        return tuple(data)

    for more in ({"shuffle": True}, {"shuffle_buffer": 8}, {"shuffle": True, "shuffle_buffer": 8}):
        assert order(1, 2, **more) == order(1, 2, **more)
        orders = {order(seed, number, **more) for seed in range(3) for number in range(3)}
        assert 9 == len(orders | {tuple(EVERY_KEY)}) - 1
    assert tuple(EVERY_KEY) == order(1, 2)
    assert "0/2 5/0 0/0 0/1 5/1 5/4 5/3 2/0 1/0 2/3 2/1 5/2 4/0 2/2 4/1" == " ".join(
        order(7, 3, shuffle=True, shuffle_buffer=4)
    ), "the order is promised for all versions: a state taken with another one must still fit"


def test_a_shuffle_buffer_reaches_over_shards(tracked: Project) -> None:
    """Every sample can come first from a buffer that holds them all, about equally often."""
    data = VerifiedShards("data", root=tracked.root, decode=key_of, shuffle_buffer=100)
    firsts: Counter[str] = Counter()
    for number in range(150):
        data.set_epoch(number)
        firsts[next(iter(data))] += 1
    assert set(EVERY_KEY) == set(firsts)
    assert 30 > max(firsts.values())


def test_each_rank_and_worker_draws_for_itself(tracked: Project) -> None:
    """Equal shares would come in equal orders if all drew the same numbers."""
    draws = set()
    for data in passes(tracked.root, 2, [2, 2], shuffle_buffer=3):
        samples: Any = iter(data)
        draws.add(tuple(samples._random(b"%d" % number) for number in range(4)))
    assert 4 == len(draws)


def test_no_global_generator_is_touched(tracked: Project) -> None:
    """Neither does a pass change Python's, NumPy's or PyTorch's state, nor depend on it."""
    data = VerifiedShards("data", root=tracked.root, decode=key_of, shuffle=True, shuffle_buffer=4)

    def states() -> tuple[Any, ...]:
        legacy = np.random.get_state()  # noqa: NPY002 (that nobody touches it is the claim)
        return random.getstate(), legacy[1].tobytes(), torch.get_rng_state().numpy().tobytes()

    before = states()
    first = list(data)
    assert before == states()
    random.seed(1)
    torch.manual_seed(1)
    assert first == list(data)


@pytest.mark.parametrize("number", [-1, "1", 1.5, None])
def test_an_impossible_epoch_is_refused(tracked: Project, number: Any) -> None:
    """An epoch is a number from 0 on."""
    with pytest.raises((ValueError, TypeError)):
        VerifiedShards("data", root=tracked.root).set_epoch(number)


def test_the_epoch_is_fixed_when_a_pass_begins(tracked: Project) -> None:
    """``set_epoch`` in the middle of a pass changes the next pass, not this one."""
    data = VerifiedShards("data", root=tracked.root, decode=key_of, shuffle=True)
    zero = list(data)
    samples = iter(data)
    data.set_epoch(1)
    assert 1 == data.epoch
    assert zero == list(samples)
    assert zero != list(data)


# ----------------------------------------------------------------- on after a stop


@pytest.mark.parametrize("size", [0, 3, 100])
def test_a_resume_hands_out_exactly_the_rest(
    tracked: Project, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """At every position: the same rest in the same order, and no consumed shard is read."""

    def make() -> VerifiedShards[Any]:
        data = VerifiedShards(
            "data", root=tracked.root, shuffle=True, shuffle_buffer=size, seed=3, rank=0,
            world_size=1,
        )  # fmt: skip
        data.set_epoch(5)
        return data

    whole = list(make())
    for stop in range(len(whole) + 1):
        first = make()
        samples = iter(first)
        assert whole[:stop] == [next(samples) for _ in range(stop)]
        state = json.loads(json.dumps(first.state_dict()))
        again = make()
        again.load_state_dict(state)
        assert state == again.state_dict()
        reads = reads_of(again, monkeypatch)
        rest = list(again)
        assert whole[stop:] == rest
        left = {sample["__shard__"] for sample in rest} | {PATHS[3]}  # the empty one has none
        assert left >= set(reads)
        assert len(set(reads)) == len(reads)
        assert whole == list(again)  # the state is used up
        assert list(samples) == rest  # and the pass that it was taken from was not disturbed


def test_the_state_in_a_chain_of_stops_stays_exact(tracked: Project) -> None:
    """Stopped after every sample, one dataset after the other, an epoch is the same."""
    options: dict[str, Any] = {"shuffle": True, "shuffle_buffer": 4, "root": tracked.root}
    whole = list(VerifiedShards("data", **options))
    data = VerifiedShards("data", **options)
    state, found = data.state_dict(), []
    for _ in whole:
        data.load_state_dict(state)
        found.append(next(iter(data)))
        state = data.state_dict()
    assert whole == found
    data.load_state_dict(state)
    assert [] == list(data)


def test_the_state_is_small(tracked: Project) -> None:
    """It holds no bytes of samples, and two numbers for each one in the buffer."""
    tracked.add("big", {"big/a.tar": tar_of({f"{row}.x": bytes(10_000) for row in range(50)})})
    tracked.commit("big")
    for size, limit in [(0, 400), (40, 900)]:
        data = VerifiedShards("big", root=tracked.root, shuffle_buffer=size)
        next(iter(data))
        assert limit > len(json.dumps(data.state_dict()))


def test_states_that_do_not_fit_are_refused(tracked: Project) -> None:
    """Another seed, option, shard or share would hand out samples twice or not at all."""
    options: dict[str, Any] = {"root": tracked.root, "shuffle": True, "shuffle_buffer": 2}
    data = VerifiedShards("data", **options)
    next(iter(data))
    state = data.state_dict()
    others: list[dict[str, Any]] = [
        {"seed": 1}, {"shuffle": False}, {"shuffle_buffer": 3}, {"select": "0[0-4].tar"},
    ]  # fmt: skip
    for other in others:
        name = "shards" if "select" in other else next(iter(other))
        with pytest.raises(ValueError, match=f"{name} is"):
            VerifiedShards("data", **{**options, **other}).load_state_dict(state)
    for name in state:
        with pytest.raises(ValueError, match=name):
            data.load_state_dict({key: state[key] for key in state if key != name})
    for share in [{"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2}]:
        moved = VerifiedShards("data", **options, **share)
        moved.load_state_dict(state)
        with pytest.raises(ValueError, match="rank 0 of 1"):
            iter(moved)
    data.load_state_dict(state)
    with as_worker(0, 2), pytest.raises(ValueError, match="worker 0 of 1"):
        iter(data)
    assert len(EVERY_KEY) - 1 == len(list(data))  # nothing of this used the state up


def test_new_bytes_in_a_shard_are_other_shards(tracked: Project) -> None:
    """A state holds positions in proven bytes; it is refused for others of the same name."""
    data = VerifiedShards("data", root=tracked.root)
    next(iter(data))
    state = data.state_dict()
    tracked.add("data", {VICTIM: shard_of(["2/new"])})
    tracked.commit("next")
    with pytest.raises(ValueError, match="shards is"):
        VerifiedShards("data", root=tracked.root).load_state_dict(state)


def test_a_state_and_another_epoch(tracked: Project) -> None:
    """The middle of an epoch is never left for another one unasked; the end of it may be."""
    data = VerifiedShards("data", root=tracked.root, shuffle=True, decode=key_of)
    orders = []
    for number in range(3):
        data.set_epoch(number)
        orders.append(list(data))
    data.set_epoch(1)
    samples = iter(data)
    next(samples)
    middle = data.state_dict()
    list(samples)
    end = data.state_dict()
    unset = VerifiedShards("data", root=tracked.root, shuffle=True, decode=key_of)
    unset.load_state_dict(middle)
    assert orders[1][1:] == list(unset)
    assert orders[0] == list(unset)
    data.set_epoch(2)
    data.load_state_dict(middle)
    with pytest.raises(ValueError, match=r"set_epoch\(1\)"):
        iter(data)
    data.set_epoch(1)
    assert orders[1][1:] == list(data)
    data.load_state_dict(end)
    assert [] == list(data)
    data.load_state_dict(end)
    data.set_epoch(2)
    assert orders[2] == list(data)


def test_damage_is_found_after_a_resume_too(tracked: Project) -> None:
    """Samples that wait in the buffer are proven anew, from a shard that is read anew."""
    data = VerifiedShards("data", root=tracked.root, decode=key_of, shuffle_buffer=100)
    samples = iter(data)
    first = next(samples)
    data.load_state_dict(data.state_dict())
    faults.flip_bit(tracked.root / VICTIM)
    again = iter(data)
    assert VICTIM == finding_of(lambda: next(again)).path
    assert VICTIM == finding_of(lambda: next(again)).path
    faults.flip_bit(tracked.root / VICTIM)
    assert sorted(EVERY_KEY) == sorted([first, *again])


def test_a_state_for_one_process_is_refused_in_a_worker(tracked: Project) -> None:
    """Loaded in the parent, it would start every later epoch in the middle."""
    data = VerifiedShards("data", root=tracked.root, decode=key_of)
    with as_worker(0, 1):
        next(iter(data))
    data.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="StatefulDataLoader"):
        epoch(loader_of(data, num_workers=1))


@pytest.mark.parametrize(("workers", "size"), [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_torchdata_s_loader_goes_on_where_it_was(tracked: Project, workers: int, size: int) -> None:
    """``StatefulDataLoader`` resumes exactly, and the epoch after that is a whole one."""

    def make() -> StatefulDataLoader[Any]:
        data = VerifiedShards(
            "data", root=tracked.root, shuffle=True, shuffle_buffer=size, decode=key_of
        )
        loader = loader_of(data, StatefulDataLoader, num_workers=workers)
        data.set_epoch(1)
        return loader

    whole = list(make())
    for stop in range(0, len(whole) + 1, 3 if workers else 1):
        loader = make()
        batches = iter(loader)
        assert whole[:stop] == [next(batches) for _ in range(stop)]
        state = copy.deepcopy(loader.state_dict())
        again = make()
        again.load_state_dict(state)
        assert whole[stop:] == list(again)
        again.dataset.set_epoch(2)
        following = epoch(again)
        assert sorted(EVERY_KEY) == sorted(following)
        assert [key for batch in whole for key in batch] != following


def test_torchdata_s_loader_begins_the_next_epoch(tracked: Project) -> None:
    """A state from the end of an epoch, and then ``set_epoch``: the whole next epoch comes."""
    data = VerifiedShards("data", root=tracked.root, shuffle=True, decode=key_of)
    for workers in (0, 2):
        data.set_epoch(0)
        loader = loader_of(data, StatefulDataLoader, num_workers=workers)
        assert sorted(EVERY_KEY) == sorted(epoch(loader))
        state = loader.state_dict()
        data.set_epoch(1)
        expected = epoch(loader)
        again = loader_of(data, StatefulDataLoader, num_workers=workers)
        again.load_state_dict(state)
        assert expected == epoch(again)


# ----------------------------------------------------------------- decode


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("decode", "kind"),
    [(fault_key, KeyError), (fault_value, ValueError), (fault_stop, RuntimeError)],
)
def test_an_exception_of_decode_keeps_its_type(
    tracked: Project, workers: int, decode: Callable[[dict[str, Any]], str], kind: type[Exception]
) -> None:
    """It names sample and shard; a ``StopIteration`` never ends the data in silence."""
    data = VerifiedShards("data", root=tracked.root, decode=decode)
    method = "fork" if workers else None
    loader = DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=method)
    samples = iter(loader)
    assert "0/0" == next(samples)
    with pytest.raises(kind) as caught:
        next(samples)
    assert kind is type(caught.value)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "sample '0/1' of shard 'data/00.tar'" in told
    assert "bad" in told or kind is RuntimeError
    assert EVERY_KEY[2:] == list(samples)  # who catches it goes on with the next sample


# ----------------------------------------------------------------- workers


def test_a_dataset_pickles_small_and_without_dvc(tracked: Project) -> None:
    """What a worker is sent is the manifest and some numbers, not the shard that is open."""
    data = VerifiedShards("data", root=tracked.root, decode=key_of, shuffle_buffer=100)
    data.set_epoch(4)
    running = iter(data)
    next(running)
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    assert list(data) == list(again) == list(copy.deepcopy(data))
    assert 4 == again.epoch
    assert 0 == pickle.loads(sent).state_dict()["handed_out"]
    assert again._epoch.is_shared()
    assert len(pickle.dumps(data.manifest)) + 2000 >= len(sent)
    assert b"dvc_integrity.repository" not in sent


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_persistent_workers_of_every_start_method(tracked: Project, method: str) -> None:
    """They see ``set_epoch``, know no DVC, hand out each sample once, and tell damage."""
    options: dict[str, Any] = {"root": tracked.root, "shuffle": True, "shuffle_buffer": 3}
    data = VerifiedShards("data", decode=key_and_process, **options)
    loader = loader_of(data, num_workers=2, persistent_workers=True, multiprocessing_context=method)
    processes, orders = set(), []
    for number in (0, 1, 0):
        data.set_epoch(number)
        samples = epoch(loader)
        orders.append([key for key, _, _ in samples])
        processes |= {process for _, process, _ in samples}
        assert sorted(EVERY_KEY) == sorted(orders[-1])
        assert method == "fork" or not any(knows_dvc for _, _, knows_dvc in samples)
    assert orders[0] == orders[2] != orders[1]
    assert 2 == len(processes - {os.getpid()})
    faults.flip_bit(tracked.root / VICTIM)
    finding = finding_of(lambda: epoch(loader))
    assert (VICTIM, Status.MODIFIED) == (finding.path, finding.status)

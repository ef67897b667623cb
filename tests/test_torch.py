"""``VerifiedFiles`` in a real ``DataLoader``: proven samples, or the finding, from any worker.

A worker that is spawned imports this module to find ``decode``, so nothing here may import DVC
while it is imported: ``projects`` comes through fixtures alone.
"""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

import dvc_integrity as di
from dvc_integrity.report import Status
from dvc_integrity.torch import VerifiedFiles

if TYPE_CHECKING:
    from projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

FILES = {f"data/{row:02}.bin": b"sample %d" % row for row in range(6)} | {
    "data/sub/é.bin": b"accent",
    "data/sub/last.bin": b"",
}
SAMPLES = [(path, FILES[path]) for path in sorted(FILES, key=os.fsencode)]
VICTIM = "data/03.bin"


def pair(data: bytes, path: str) -> tuple[str, bytes]:
    """Decode to what shows that the right bytes came with the right path."""
    return path, data


def pair_and_imports(data: bytes, path: str) -> tuple[str, bytes, bool, int]:
    """Decode to a pair, whether this process knows DVC, and which process it is."""
    return path, data, "dvc" in sys.modules, os.getpid()


def length(data: bytes, _: str) -> torch.Tensor:
    """Decode to a tensor that the default collation can stack."""
    return torch.tensor([len(data)])


def stop(data: bytes, path: str) -> tuple[str, bytes]:
    """Decode with a fault that, raised as it is, would end an epoch in silence."""
    if path == VICTIM:
        raise StopIteration
    return path, data


@pytest.fixture(autouse=True)
def _quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let workers go soon after an error: PyTorch itself waits five seconds for each of them."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project that tracks the folder ``data``, committed and clean."""
    project.add("data", FILES)
    project.commit("data")
    return project


def loader_of(data: Any, **options: Any) -> DataLoader[Any]:
    options.setdefault("batch_size", 3)
    options.setdefault("collate_fn", list)
    return DataLoader(data, **options)


def epoch(loader: DataLoader[Any]) -> list[Any]:
    """Return the samples of an epoch, batch after batch."""
    return [sample for batch in loader for sample in batch]


def finding_of(act: Callable[[], object]) -> di.Finding:
    """Return the finding of the CorruptDataError that an act must raise."""
    with pytest.raises(di.CorruptDataError) as caught:
        act()
    assert di.CorruptDataError is type(caught.value)
    finding = caught.value.finding
    assert finding is not None
    return finding


def damage(project: Project, path: str = VICTIM) -> di.Finding:
    """Flip a bit without a trace; return what must be said about it."""
    place = project.root / path
    place.unlink()  # it may be a link to the cache, which shall stay good
    place.write_bytes(FILES[path])
    faults.flip_bit(place)
    return di.Finding(
        path=path,
        out="data",
        status=Status.MODIFIED,
        expected=digest_of(FILES[path]),
        found=digest_of(place.read_bytes()),
        size=len(FILES[path]),
    )


def digest_of(data: bytes) -> di.Digest:
    return di.Digest(di.Algorithm.MD5, hashlib.md5(data).digest())


# ----------------------------------------------------------------- in one process


def test_samples_come_in_the_order_of_their_paths(tracked: Project) -> None:
    """Sample ``i`` is entry ``i`` of the manifest: its bytes, decoded with its path."""
    data = VerifiedFiles("data", decode=pair)
    assert len(SAMPLES) == len(data)
    assert SAMPLES == [data[row] for row in range(len(data))]
    assert SAMPLES == [data[row - len(data)] for row in range(len(data))]
    assert SAMPLES[::-1] == data.__getitems__(list(range(len(data)))[::-1])
    assert [path for path, _ in SAMPLES] == [entry.path for entry in data.manifest]
    assert tracked.git("rev-parse", "HEAD") == data.manifest.rev


def test_without_decode_a_sample_is_its_bytes(tracked: Project) -> None:
    """The default gives the proven buffer itself."""
    data = VerifiedFiles("data", root=tracked.root)
    assert [content for _, content in SAMPLES] == [data[row] for row in range(len(data))]


@pytest.mark.parametrize("row", [2, np.int64(2), torch.tensor(2), -6])
def test_an_index_may_be_any_integer(tracked: Project, row: Any) -> None:
    """Samplers give Python, NumPy or PyTorch integers."""
    data = VerifiedFiles("data", root=tracked.root, decode=pair)
    assert SAMPLES[2] == data[row]
    assert [SAMPLES[2]] == data.__getitems__([row])


@pytest.mark.parametrize("row", [8, -9, 10**9])
def test_an_index_outside_is_an_index_error(tracked: Project, row: int) -> None:
    """Positions beyond the data are refused, so that plain iteration ends."""
    data = VerifiedFiles("data", root=tracked.root, decode=pair)
    with pytest.raises(IndexError, match="dataset of 8"):
        data[row]
    assert SAMPLES == list(data)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("data/sub", ["data/sub/last.bin", "data/sub/é.bin"]),
        ("data/00.bin", ["data/00.bin"]),
        (Path("data"), [path for path, _ in SAMPLES]),
    ],
)
def test_a_part_of_a_folder_is_a_dataset_too(
    tracked: Project,
    target: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A target is relative to ``root``, wherever one is; a folder or a file inside one will do."""
    monkeypatch.chdir("/")
    data = VerifiedFiles(target, root=tracked.root, decode=pair)
    assert expected == [path for path, _ in data]


def test_the_default_collation_stacks_what_decode_gives(tracked: Project) -> None:
    """Tensors from ``decode`` arrive as batches of tensors."""
    data = VerifiedFiles("data", root=tracked.root, decode=length)
    (batch,) = DataLoader(data, batch_size=len(data))
    assert [[len(content)] for _, content in SAMPLES] == batch.tolist()


def test_a_flipped_bit_raises_with_its_finding(tracked: Project) -> None:
    """Damage raises from every way into the dataset, and ``decode`` never sees the bytes."""
    decoded = []

    def note(data: bytes, path: str) -> bytes:
        decoded.append(path)
        return data

    data = VerifiedFiles("data", root=tracked.root, decode=note)
    expected = damage(tracked)
    row = [path for path, _ in SAMPLES].index(VICTIM)
    assert expected == finding_of(lambda: data[row])
    assert expected == finding_of(lambda: data.__getitems__([0, row]))
    assert expected == finding_of(lambda: epoch(loader_of(data)))
    assert expected == finding_of(lambda: list(DataLoader(data, batch_size=None)))
    assert expected == finding_of(lambda: epoch(loader_of(Subset(data, [0, row]))))
    assert expected == finding_of(lambda: Subset(Subset(data, [0, row]), [1])[0])
    assert VICTIM not in decoded


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_no_exception_of_decode_ends_an_epoch_in_silence(
    tracked: Project, workers: int, batch_size: int | None
) -> None:
    """A ``StopIteration`` in ``decode`` is an error, never the end of the data."""
    data = VerifiedFiles("data", root=tracked.root, decode=stop)
    options: dict[str, Any] = {"multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(
        data, batch_size=batch_size, num_workers=workers, collate_fn=list, **options
    )
    with pytest.raises(RuntimeError, match=r"StopIteration|03\.bin"):
        list(loader)


# ----------------------------------------------------------------- the contract


def test_data_are_held_to_the_revision_that_is_named(tracked: Project) -> None:
    """Bytes of another version raise, whichever of the two versions is newer."""
    old = tracked.git("rev-parse", "HEAD")
    (tracked.root / VICTIM).unlink()
    tracked.add("data", {VICTIM: b"the next version"})
    tracked.commit("next")
    new = VerifiedFiles("data", root=tracked.root, decode=pair)
    assert (VICTIM, b"the next version") in list(new)
    before = VerifiedFiles("data", root=tracked.root, decode=pair, rev=old)
    assert (old, 8) == (before.manifest.rev, len(before))
    finding = finding_of(lambda: list(before))
    assert (VICTIM, digest_of(FILES[VICTIM]), digest_of(b"the next version")) == (
        finding.path,
        finding.expected,
        finding.found,
    )
    assert SAMPLES[:3] == [before[row] for row in range(3)]


def test_the_metadata_in_the_work_tree_hold_nothing(tracked: Project) -> None:
    """What ``dvc add`` adopted without a commit raises: the contract is the commit."""
    (tracked.root / VICTIM).unlink()
    tracked.add("data", {VICTIM: b"drifted"})
    assert VICTIM == finding_of(lambda: list(VerifiedFiles("data", root=tracked.root))).path
    assert 8 == len(list(VerifiedFiles("data", root=tracked.root, rev="workspace")))


@pytest.mark.parametrize("policy", ["skip", "", None, "RAISE"])
def test_an_unknown_policy_is_refused(tracked: Project, policy: Any) -> None:
    """What is no policy is refused before anything is read."""
    with pytest.raises(ValueError, match="on_corrupt"):
        VerifiedFiles("data", root=tracked.root, on_corrupt=policy)


def test_what_cannot_be_verified_is_refused_at_once(tracked: Project) -> None:
    """A target with a file that has no committed hash fails when the dataset is made."""
    name = "imp\x1b[31mort"
    tracked.write_outs("import.dvc", {"path": name})
    tracked.write({".gitignore": f"/data\n/{name}\n".encode()})
    tracked.commit("import")
    with pytest.raises(di.ManifestError, match="no committed content hash") as caught:
        VerifiedFiles(name, root=tracked.root)
    assert r"imp\x1b[31mort" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_without_its_listing_is_refused_at_once(tracked: Project) -> None:
    """A folder whose listing is gone fails when the dataset is made, with what helps."""
    for listing in tracked.cache.rglob("*.dir"):
        listing.unlink()
    with pytest.raises(di.ManifestError, match="listing"):
        VerifiedFiles("data", root=tracked.root)


def test_an_empty_folder_is_refused_at_once(tracked: Project) -> None:
    """A dataset without a sample would train on nothing, and prove nothing."""
    (tracked.root / "none").mkdir()
    tracked.dvc("add", "none")
    tracked.commit("none")
    with pytest.raises(di.NothingToVerify):
        VerifiedFiles("none", root=tracked.root)


@pytest.mark.parametrize(
    ("target", "options"),
    [("nothing", {}), ("data/nothing", {}), ("data", {"rev": "nowhere"}), ("..", {})],
)
def test_an_unknown_target_or_revision_is_refused(
    tracked: Project, target: str, options: dict[str, str]
) -> None:
    """What the repository does not know is a RepositoryError when the dataset is made."""
    with pytest.raises(di.RepositoryError):
        VerifiedFiles(target, root=tracked.root, **options)


def test_a_dataset_pickles_small_and_without_dvc(tracked: Project) -> None:
    """What a worker is sent is the manifest and a folder; it reads the same there."""
    data = VerifiedFiles("data", root=tracked.root, decode=pair)
    sent = pickle.dumps(data)
    again = pickle.loads(sent)
    assert SAMPLES == list(again)
    assert len(pickle.dumps(data.manifest)) + 2000 >= len(sent)
    assert b"dvc_integrity.repository" not in sent


# ----------------------------------------------------------------- workers


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_give_the_same_samples_and_the_same_error(tracked: Project, method: str) -> None:
    """Two workers, however started: all samples in order, without DVC; then damage, as it is."""
    data = VerifiedFiles("data", root=tracked.root, decode=pair_and_imports)
    loader = loader_of(
        data,
        num_workers=2,
        multiprocessing_context=method,
        persistent_workers=True,
        prefetch_factor=2,
    )
    samples = epoch(loader)
    assert SAMPLES == [(path, content) for path, content, _, _ in samples]
    workers = {process for _, _, _, process in samples}
    assert os.getpid() not in workers
    assert 2 == len(workers)
    if method != "fork":
        assert not any(knows_dvc for _, _, knows_dvc, _ in samples)
    expected = damage(tracked)
    assert expected == finding_of(lambda: epoch(loader))


@pytest.mark.parametrize("case", ["batches", "no batches", "subset", "missing", "no listing"])
def test_the_finding_arrives_from_a_worker(tracked: Project, case: str) -> None:
    """Type and finding survive the way to the parent, for every way that a worker reads."""
    data: Any = VerifiedFiles("data", root=tracked.root, decode=pair)
    options: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "fork"}
    if case == "missing":
        faults.delete(tracked.root / VICTIM)
        assert Status.MISSING is finding_of(lambda: epoch(loader_of(data, **options))).status
        return
    expected = damage(tracked)
    if case == "subset":
        data = Subset(data, [5, 3])
    elif case == "no batches":
        options |= {"batch_size": None, "collate_fn": None}
    elif case == "no listing":
        for listing in tracked.cache.rglob("*.dir"):
            listing.unlink()  # a worker needs no cache: it has the manifest
    assert expected == finding_of(lambda: list(loader_of(data, **options)))


def test_the_number_of_workers_does_not_change_an_epoch(tracked: Project) -> None:
    """The same seed gives the same shuffled samples with no worker and with two."""
    data = VerifiedFiles("data", root=tracked.root, decode=pair)
    epochs = [
        epoch(
            loader_of(
                data,
                shuffle=True,
                generator=torch.Generator().manual_seed(7),
                num_workers=workers,
                multiprocessing_context="fork" if workers else None,
            )
        )
        for workers in (0, 2)
    ]
    assert epochs[0] == epochs[1]
    assert SAMPLES == sorted(epochs[0], key=lambda sample: os.fsencode(sample[0]))
    assert SAMPLES != epochs[0]

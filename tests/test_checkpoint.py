"""A checkpoint is opened only if its bytes are the committed ones."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from projects import Project
from safetensors.torch import save as save_safetensors

import dvc_integrity as di
from dvc_integrity.report import Status
from dvc_integrity.schedule import Schedule
from dvc_integrity.torch import VerifiedFiles, checkpoint, load

WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}
NAMES = ["model.pt", "model.safetensors"]


class Evil:
    """A pickle that makes a file when it is opened without restraint."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mknod, (str(self.mark),)


def saved(value: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


FILES = {"model.pt": saved(WEIGHTS), "model.safetensors": save_safetensors(WEIGHTS)}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Return where the file lies that only a pickle makes that was run."""
    return tmp_path / "was-run"


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project that tracks a checkpoint of either kind, committed and clean."""
    for name, data in FILES.items():
        project.add(name, {name: data})
    project.commit("models")
    return project


def replace(project: Project, name: str, data: bytes) -> None:
    """Put other bytes in the place of a file."""
    (project.root / name).unlink()
    project.write({name: data})


def assert_weights(found: Any) -> None:
    assert WEIGHTS.keys() == found.keys()
    for name, tensor in WEIGHTS.items():
        assert torch.equal(tensor, found[name])


def refused(act: Callable[[], object], name: str) -> di.Finding:
    """Return the finding of an act that must be refused, and must say what helps."""
    with pytest.raises(
        di.CorruptDataError, match=f"'{name}' is .* 'dvc-integrity verify'"
    ) as caught:
        act()
    assert caught.value.finding is not None
    return caught.value.finding


# ----------------------------------------------------------------- good bytes


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_comes_back(tracked: Project, name: str) -> None:
    """Both kinds give the tensors that were saved, ready to be written to."""
    found = load(name)
    assert_weights(found)
    found["layer.bias"] += 1
    assert_weights(load(tracked.root / name))


def test_the_end_of_a_name_is_read_in_either_case(tracked: Project) -> None:
    """A file is one of safetensors however the end of its name is spelled."""
    tracked.add("MODEL.SafeTensors", {"MODEL.SafeTensors": FILES["model.safetensors"]})
    tracked.commit("loud")
    assert_weights(load("MODEL.SafeTensors"))


def test_a_path_is_relative_to_the_root(tracked: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is found from any folder, by ``root`` or by its whole path."""
    monkeypatch.chdir("/")
    assert_weights(load("model.pt", root=tracked.root))
    assert_weights(load(tracked.root / "model.pt", root=tracked.root))
    (tracked.root / "sub").mkdir()
    assert_weights(load("../model.pt", root=tracked.root / "sub"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_a_folder_or_of_a_stage_will_do(project: Project, name: str) -> None:
    """A target may lie in a tracked folder, source or output of a stage."""
    project.add("models", {f"models/{name}": FILES[name], "models/other": b"other"})
    stage = {"cmd": f"mkdir run && cp models/{name} run/", "deps": ["models"], "outs": ["run"]}
    single = {"cmd": f"cp models/{name} best-{name}", "deps": ["models"], "outs": [f"best-{name}"]}
    project.run_stages({"train": stage, "best": single})
    project.commit("trained")
    for path in (f"models/{name}", f"run/{name}", f"best-{name}"):
        assert_weights(load(path))
        faults.flip_bit(project.root / path)
        assert path == refused(lambda path=path: load(path), path).path  # type: ignore[misc]


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("name", NAMES)
def test_tensors_go_where_they_are_sent(name: str) -> None:
    """``map_location`` takes a device or its name; without it tensors are on the CPU."""
    for device in ("meta", torch.device("meta")):
        assert {"meta"} == {
            tensor.device.type for tensor in load(name, map_location=device).values()
        }
    assert {"cpu"} == {tensor.device.type for tensor in load(name).values()}


@pytest.mark.usefixtures("tracked")
def test_options_reach_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``torch.load`` takes is passed on; ``weights_only`` is always said."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "load", lambda _, **options: seen.append(options))
    load("model.pt")
    load("model.pt", map_location="meta", weights_only=False, encoding="latin1")
    assert [
        {"map_location": None, "weights_only": True},
        {"map_location": "meta", "weights_only": False, "encoding": "latin1"},
    ] == seen


# ----------------------------------------------------------------- bad bytes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [faults.flip_bit, faults.truncate, faults.extend, faults.delete])
def test_damage_is_refused_and_nothing_is_decoded(
    tracked: Project, name: str, fault: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No decoder sees a byte of a file that is not the committed one."""
    fault(tracked.root / name)
    monkeypatch.setattr(torch, "load", pytest.fail)
    monkeypatch.setattr("safetensors.torch.load", pytest.fail)
    finding = refused(lambda: load(name), name)
    expected = Status.MISSING if fault is faults.delete else Status.MODIFIED
    assert (name, expected) == (finding.path, finding.status)


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_pickle_in_the_place_of_a_checkpoint_is_not_run(
    tracked: Project, mark: Path, weights_only: bool
) -> None:
    """Whoever replaces a checkpoint cannot have code run, even where pickles are allowed."""
    replace(tracked, "model.pt", saved({"layer": Evil(mark)}))
    refused(lambda: load("model.pt", weights_only=weights_only), "model.pt")
    assert not mark.exists()
    torch.load("model.pt", weights_only=False)
    assert mark.exists(), "the pickle was harmless, so this test proved nothing"


def test_a_committed_pickle_is_run_by_choice_alone(tracked: Project, mark: Path) -> None:
    """The right hash is no promise of harmlessness: PyTorch refuses, until told not to."""
    tracked.add("evil.pt", {"evil.pt": saved({"layer": Evil(mark)})})
    tracked.commit("evil")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load("evil.pt")
    assert not mark.exists()
    faults.flip_bit(tracked.root / "evil.pt", 0)
    refused(lambda: load("evil.pt", weights_only=False), "evil.pt")
    assert not mark.exists()
    faults.flip_bit(tracked.root / "evil.pt", 0)
    load("evil.pt", weights_only=False)
    assert mark.exists()


def test_the_environment_does_not_allow_pickles(
    tracked: Project, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's variable against ``weights_only`` does not reach what was not asked for here."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    tracked.add("evil.pt", {"evil.pt": saved(Evil(mark))})
    tracked.commit("evil")
    with pytest.raises(pickle.UnpicklingError):
        load("evil.pt")
    assert not mark.exists()


def test_the_bytes_that_were_hashed_are_opened(
    tracked: Project, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced after it was hashed is not opened: there is one read."""
    real = torch.load

    def late(file: Any, **options: Any) -> Any:
        replace(tracked, "model.pt", saved({"layer": Evil(mark)}))
        return real(file, **options)

    monkeypatch.setattr(torch, "load", late)
    assert_weights(load("model.pt", weights_only=False))
    assert not mark.exists()


# ----------------------------------------------------------------- revisions and readers


def test_a_checkpoint_is_held_to_the_revision_that_is_named(tracked: Project) -> None:
    """The workspace serves one revision; another is refused, or read from the cache."""
    old = tracked.git("rev-parse", "HEAD")
    (tracked.root / "model.pt").unlink()
    tracked.add("model.pt", {"model.pt": saved({"epoch": 2})})
    refused(lambda: load("model.pt"), "model.pt")  # not committed yet
    assert {"epoch": 2} == load("model.pt", rev="workspace")
    tracked.commit("next")
    assert {"epoch": 2} == load("model.pt")
    refused(lambda: load("model.pt", rev=old), "model.pt")
    repo = di.Repository()
    assert_weights(
        load("model.pt", reader=di.Reader(repo.manifest("model.pt", rev=old), repo.cache))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_ones_own_is_used(tracked: Project, name: str) -> None:
    """A reader reads with its own manifest and root; no repository is opened."""
    repo = di.Repository()
    reader = di.Reader(repo.manifest(), repo.workspace)
    (tracked.root / ".git").rename(tracked.top / "hidden")
    assert_weights(load(name, reader=reader))
    faults.flip_bit(tracked.root / name)
    refused(lambda: load(name, reader=reader), name)


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("schedule", [Schedule(once=True), Schedule(epochs=2)])
def test_a_reader_that_does_not_hash_every_read_is_refused(schedule: Schedule) -> None:
    """Sampling is for data; a checkpoint is proven each time."""
    repo = di.Repository()
    reader = di.Reader(repo.manifest("model.pt"), repo.workspace, schedule=schedule)
    with pytest.raises(ValueError, match="does not hash every read"):
        load("model.pt", reader=reader)
    seeded = di.Reader(repo.manifest("model.pt"), repo.workspace, schedule=Schedule(seed=3))
    assert_weights(load("model.pt", reader=seeded))


def test_a_reader_excludes_rev_and_root(tracked: Project) -> None:
    """A reader has a revision and a root already."""
    reader = VerifiedFiles("model.pt").reader
    for options in ({"rev": "HEAD"}, {"root": tracked.root}):
        with pytest.raises(ValueError, match="A reader has its revision"):
            load("model.pt", reader=reader, **options)  # type: ignore[arg-type]


def test_loading_with_a_reader_imports_no_dvc() -> None:
    """``load`` is there without DVC, which only a repository needs."""
    program = "import sys; from dvc_integrity.torch import load; assert 'dvc' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# ----------------------------------------------------------------- requests that cannot be met


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("target", ["models", "models.dvc"])
def test_a_folder_is_no_checkpoint(project: Project, files: int, target: str) -> None:
    """A target that is not one file is refused with the name of one that is."""
    project.add("models", {f"models/{row}.pt": FILES["model.pt"] for row in range(files)})
    project.commit("models")
    with pytest.raises(di.ManifestError, match=rf"'{target}' .* covers {files}, .*'models/0\.pt'"):
        load(target)


def test_what_is_not_tracked_is_refused(tracked: Project) -> None:
    """A checkpoint that no commit knows has nothing to be held to."""
    tracked.write({"new.pt": FILES["model.pt"]})
    with pytest.raises(di.RepositoryError, match=r"new\.pt"):
        load("new.pt")
    with pytest.raises(di.RepositoryError, match="nowhere"):
        load("model.pt", rev="nowhere")


def test_what_has_no_committed_hash_is_refused(tracked: Project) -> None:
    """An import without a hash cannot be proven, so it is not opened."""
    tracked.write_outs("import.dvc", {"path": "import.pt"})
    tracked.write({"import.pt": FILES["model.pt"], ".gitignore": b"/import.pt\n"})
    tracked.commit("import")
    with pytest.raises(di.ManifestError, match=r"import\.pt"):
        load("import.pt")


@pytest.mark.usefixtures("tracked")
def test_mapping_a_file_into_memory_is_refused() -> None:
    """``mmap`` would read the file again after it was hashed."""
    with pytest.raises(ValueError, match="unproven"):
        load("model.pt", mmap=True)
    assert_weights(load("model.pt", mmap=False))


@pytest.mark.usefixtures("tracked")
def test_options_that_safetensors_lacks_are_refused() -> None:
    """Nothing that was asked for is left out in silence."""
    with pytest.raises(TypeError, match="encoding"):
        load("model.safetensors", encoding="latin1")
    with pytest.raises(TypeError, match="map_location"):
        load("model.safetensors", map_location=lambda storage, _: storage)


@pytest.mark.usefixtures("tracked")
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without safetensors its files are refused with what to install; others are read."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"'model\.safetensors' .*pip install safetensors"):
        load("model.safetensors")
    assert_weights(load("model.pt"))
    assert "safetensors" not in vars(checkpoint)

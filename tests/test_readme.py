"""The Python of the README runs as it stands, one snippet after the other."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from projects import Project

README = Path(__file__).parent.parent / "README.md"
SHAPES = ["VerifiedFiles", "VerifiedArray", "VerifiedShards"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fork(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start workers so that they find what the snippets define."""
    torch.multiprocessing.set_start_method("fork", force=True)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()
    torch.multiprocessing.set_start_method(None, force=True)


@pytest.fixture
def data(project: Project) -> Project:
    """Return a project with data of the three shapes, and a checkpoint."""
    from test_shards import shard_of  # noqa: PLC0415 (for what makes a shard)

    for folder in ("data/images/cat", "data/images/dog", "data/shards", "models"):
        (project.root / folder).mkdir(parents=True)
    for name in ("cat/0001", "cat/0002", "dog/0001"):
        Image.new("RGB", (4, 3)).save(project.root / f"data/images/{name}.png")
    np.save(project.root / "data/features.npy", np.zeros((5, 2)))
    (project.root / "data/shards/0.tar").write_bytes(shard_of(["0/0", "0/1"]))
    torch.save({"weight": torch.ones(3)}, project.root / "models/model.pt")
    for target in ("data/images", "data/features.npy", "data/shards", "models/model.pt"):
        project.dvc("add", target)
    project.commit("data")
    return project


def test_the_snippets_run(data: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the section on Python, in order, in one namespace; each loop sees a batch."""
    text = README.read_text(encoding="utf-8")
    section = text.partition("\n## Python\n")[2].partition("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert SHAPES == [name for name in SHAPES if any(f"{name}(" in each for each in snippets)]
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert "Verdict.CLEAN []\n" == capsys.readouterr().out.splitlines(keepends=True)[-1]
    assert (3, 3, 4, 3) == names["images"].shape  # type: ignore[attr-defined]
    assert [0, 0, 1] == sorted(names["labels"].tolist())  # type: ignore[attr-defined]
    assert {"__key__", "__shard__", "x", "y"} == set(names["batch"])  # type: ignore[call-overload]
    assert (data.root / "data/images/cat/0001.png").read_bytes() == names["data"]

"""A reader fits where a library takes a loader, a file object or bytes.

Every example of ``docs/howto-drop-in.md`` runs here: on clean data it gives what plain loading
gives, and with one flipped bit it raises before the library is called. There is no build of
torchvision that goes with the CPU build of PyTorch in the package index, so where it cannot be
imported a stand-in keeps to what its ``DatasetFolder`` promises a ``loader``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import types
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import dvc_integrity as di
from dvc_integrity.report import Status

if TYPE_CHECKING:
    from projects import Project

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

GUIDE = Path(__file__).parent.parent / "docs/howto-drop-in.md"
LIBRARIES = {
    "PIL": "pillow",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
}
"""What the examples import, by the name of the package that brings it."""

IMAGES = [f"data/images/{kind}/{row}.png" for kind in ("cat", "dog") for row in range(3)]
NUMBERS = np.arange(24, dtype=np.float32).reshape(4, 6)


class FolderStandIn(Dataset[Any]):
    """Keeps to the contract of ``torchvision.datasets.DatasetFolder`` (torchvision 0.28).

    Classes are the sorted names of the folders below ``root``; samples are the sorted files
    with one of the extensions, as ``(os.path.join(root, …), class)``; a sample is
    ``loader(path)``, called when it is asked for and with nothing but that path.
    """

    def __init__(
        self, root: str | Path, loader: Callable[[str], Any], extensions: tuple[str, ...]
    ) -> None:
        self.loader = loader
        self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self.samples = [
            (os.path.join(folder, name), label)
            for label, kind in enumerate(self.classes)
            for folder, _, names in sorted(os.walk(os.path.join(root, kind), followlinks=True))
            for name in sorted(names)
            if name.lower().endswith(extensions)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        return self.loader(path), label


@pytest.fixture
def folder_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return torchvision's ``DatasetFolder``, or put the stand-in in its place."""
    try:
        return importlib.import_module("torchvision.datasets").DatasetFolder
    except (ImportError, RuntimeError):  # RuntimeError: its build does not fit that of PyTorch
        datasets = types.ModuleType("torchvision.datasets")
        datasets.DatasetFolder = FolderStandIn  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
        return FolderStandIn


# ----------------------------------------------------------------- the data


def png(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    image = pytest.importorskip("PIL.Image").fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "png", **options)
    return buffer.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def parquet(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    pa = pytest.importorskip("pyarrow")
    buffer = io.BytesIO()
    table = pa.table({str(column): values for column, values in enumerate(array.T)})
    pytest.importorskip("pyarrow.parquet").write_table(table, buffer, **options)
    return buffer.getvalue()


def csv(array: np.ndarray[Any, Any]) -> bytes:
    rows = [",".join(map(str, range(array.shape[1])))]
    rows += [",".join(map(str, row)) for row in array.tolist()]
    return "\n".join(rows).encode()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inside.txt", content)
    return buffer.getvalue()


def checkpoint(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def pixels(row: int) -> np.ndarray[Any, Any]:
    return np.full((4, 5, 3), row, np.uint8)


def small_files() -> dict[str, bytes]:
    """Return one file for each example."""
    safetensors = pytest.importorskip("safetensors.torch")
    return {path: png(pixels(row)) for row, path in enumerate(IMAGES)} | {
        "data/array.npy": npy(NUMBERS),
        "data/table.csv": csv(NUMBERS),
        "data/table.parquet": parquet(NUMBERS),
        "data/archive.zip": zipped(b"inside"),
        "data/model.safetensors": safetensors.save({"layer": torch.from_numpy(NUMBERS)}),
        "data/model.pt": checkpoint({"layer": torch.from_numpy(NUMBERS)}),
    }


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project that tracks the files of the examples, committed and clean."""
    project.add("data", small_files())
    project.commit("data")
    return project


@pytest.fixture
def reader(tracked: Project) -> di.Reader:
    """Return the reader that all examples start with."""
    repo = di.Repository(tracked.root)
    return di.Reader(repo.manifest("data"), repo.workspace)


def refused(act: Callable[[], object], path: str) -> di.Finding:
    """Return the finding that an act must raise, about this file."""
    with pytest.raises(di.CorruptDataError) as caught:
        act()
    finding = caught.value.finding
    assert finding is not None
    assert (path, Status.MODIFIED) == (finding.path, finding.status)
    return finding


# ----------------------------------------------------------------- every example of the guide


@dataclass(frozen=True)
class Example:
    """What an example reads, what it calls to decode it, and what plain loading gives."""

    file: str
    decoder: str
    result: Callable[[dict[str, Any]], Any]
    plain: Callable[[], Any]


def _as_array(image: Any) -> Any:
    return np.asarray(image).tolist()


def _plain(module: str, function: str, path: str) -> Any:
    return getattr(importlib.import_module(module), function)(path)


def _lists(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def _inside() -> bytes:
    with zipfile.ZipFile("data/archive.zip") as archive:
        return archive.read("inside.txt")


def _images() -> list[Any]:
    labels = [0, 0, 0, 1, 1, 1]
    opened = [_as_array(_plain("PIL.Image", "open", path).convert("RGB")) for path in IMAGES]
    return list(zip(opened, labels, strict=True))


EXAMPLES = {
    "torchvision": Example(
        IMAGES[4],
        "PIL.Image.open",
        lambda names: [(_as_array(image), label) for image, label in names["images"]],
        _images,
    ),
    "Pillow": Example(
        IMAGES[0],
        "PIL.Image.open",
        lambda names: _as_array(names["image"]),
        lambda: _as_array(_plain("PIL.Image", "open", IMAGES[0])),
    ),
    "NumPy": Example(
        "data/array.npy",
        "numpy.load",
        lambda names: names["array"].tolist(),
        lambda: np.load("data/array.npy").tolist(),
    ),
    "pandas, CSV": Example(
        "data/table.csv",
        "pandas.read_csv",
        lambda names: names["frame"].to_dict(),
        lambda: _plain("pandas", "read_csv", "data/table.csv").to_dict(),
    ),
    "pandas, Parquet": Example(
        "data/table.parquet",
        "pandas.read_parquet",
        lambda names: names["frame"].to_dict(),
        lambda: _plain("pandas", "read_parquet", "data/table.parquet").to_dict(),
    ),
    "PyArrow": Example(
        "data/table.parquet",
        "pyarrow.parquet.read_table",
        lambda names: names["table"].to_pydict(),
        lambda: _plain("pyarrow.parquet", "read_table", "data/table.parquet").to_pydict(),
    ),
    "safetensors": Example(
        "data/model.safetensors",
        "safetensors.torch.load",
        lambda names: _lists(names["tensors"]),
        lambda: _lists(_plain("safetensors.torch", "load_file", "data/model.safetensors")),
    ),
    "zipfile": Example(
        "data/archive.zip", "zipfile.ZipFile", lambda names: names["inside"], _inside
    ),
    "Checkpoints": Example(
        "data/model.pt",
        "torch.load",
        lambda names: _lists(names["weights"]),
        lambda: _lists(_plain("torch", "load", "data/model.pt")),
    ),
}


def blocks() -> dict[str, str]:
    """Return the Python of the guide by its heading; what comes before the first one is ""."""
    headings = re.split(r"^## (.+)$", GUIDE.read_text(), flags=re.MULTILINE)
    sections = {"": headings[0]} | dict(zip(headings[1::2], headings[2::2], strict=True))
    fence = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return {name: "\n".join(fence.findall(text)) for name, text in sections.items()}


def run(heading: str) -> dict[str, Any]:
    """Run an example as a reader of the guide would; return its names."""
    names: dict[str, Any] = {}
    exec(blocks()[""], names)
    exec(blocks()[heading], names)
    return names


def test_every_example_is_tested() -> None:
    """The guide has no example that does not run here, and none is only here."""
    assert {heading for heading, code in blocks().items() if code} == {"", *EXAMPLES}
    assert GUIDE.read_text().count("```python") == len(EXAMPLES) + 1


def test_the_development_environment_has_what_the_examples_import() -> None:
    """Nothing is skipped where ``.[dev]`` is installed, as in CI."""
    requires = importlib.metadata.requires("dvc-integrity") or []
    names = {re.split(r"[^\w-]", each)[0].lower() for each in requires if "dev" in each}
    assert set(LIBRARIES.values()) <= names
    for module in LIBRARIES:
        assert importlib.util.find_spec(module) is not None


@pytest.mark.usefixtures("tracked", "folder_class")
@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_gives_what_plain_loading_gives(
    heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On clean data nothing changes but who read the bytes; the decoder named here is used."""
    example = EXAMPLES[heading]
    expected = example.plain()
    calls = count_calls(example.decoder, monkeypatch)
    assert expected == example.result(run(heading))
    assert calls


@pytest.mark.usefixtures("folder_class")
@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_raises_before_the_library_is_called(
    tracked: Project, heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit, size, mode and time kept: the finding, and no decoder saw that file."""
    example = EXAMPLES[heading]
    faults.flip_bit(tracked.root / example.file)
    calls = count_calls(example.decoder, monkeypatch)
    finding = refused(lambda: example.result(run(heading)), example.file)
    good = [path for path in IMAGES if path < example.file] if heading == "torchvision" else []
    assert len(good) == len(calls)
    assert (tracked.root / example.file).stat().st_size == finding.size


def count_calls(decoder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each call of a library's function, and let it through."""
    module, _, name = decoder.rpartition(".")
    real = getattr(pytest.importorskip(module), name)
    calls: list[str] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(decoder)
        return real(*arguments, **options)

    monkeypatch.setattr(decoder, noted)
    return calls


# ----------------------------------------------------------------- folder datasets


def load_image(reader: di.Reader, path: str) -> Any:
    """Decode an image of a reader; importable, so that a worker that is spawned finds it."""
    image = importlib.import_module("PIL.Image")
    with image.open(reader.open(path)) as opened:
        return np.asarray(opened).tolist()


def same(batch: Sequence[Any]) -> Sequence[Any]:
    return batch


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_loads_in_workers(
    tracked: Project, reader: di.Reader, folder_class: Any, method: str
) -> None:
    """A loader with a reader in it goes to DataLoader workers, and its error comes back."""
    data = folder_class("data/images", loader=partial(load_image, reader), extensions=(".png",))
    loader = DataLoader(
        data, batch_size=2, num_workers=1, collate_fn=same, multiprocessing_context=method
    )
    expected = [(pixels(row).tolist(), row // 3) for row in range(len(IMAGES))]
    assert expected == [sample for batch in loader for sample in batch]
    faults.flip_bit(tracked.root / IMAGES[4])
    refused(lambda: list(loader), IMAGES[4])


def test_read_itself_is_a_loader(tracked: Project, reader: di.Reader, folder_class: Any) -> None:
    """``reader.read`` gives the proven bytes of each file, for relative and absolute roots."""
    expected = [(tracked.root / path).read_bytes() for path in IMAGES]
    for root in ("data/images", "./data/images/", tracked.root / "data/images"):
        data = folder_class(root, loader=reader.read, extensions=(".png",))
        assert expected == [content for content, _ in data]
    faults.flip_bit(tracked.root / IMAGES[0])
    refused(lambda: data[0], IMAGES[0])


def test_a_file_that_no_commit_knows_is_refused(
    tracked: Project, reader: di.Reader, folder_class: Any
) -> None:
    """A folder dataset lists what lies there; what is not tracked does not get through."""
    tracked.write({"data/images/cat/new.png": png(pixels(9))})
    data = folder_class("data/images", loader=reader.read, extensions=(".png",))
    with pytest.raises(di.ManifestError, match=r"cat/new\.png"):
        list(data)


# ----------------------------------------------------------------- large files

LARGE = 17 << 20


def _noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def _large_csv() -> bytes:
    line = b"1.5," * 250 + b"2.5\n"
    return line * (LARGE // len(line) + 1)


LARGE_FILES: dict[str, tuple[str, Callable[[], bytes], Callable[[Any], Any]]] = {
    "Pillow": (
        "data/large.png",
        lambda: png(_noise(2500, 2500, 3), compress_level=0),
        lambda file: _plain("PIL.Image", "open", file).load(),
    ),
    "NumPy": ("data/large.npy", lambda: npy(_noise(LARGE)), np.load),
    "pandas, CSV": (
        "data/large.csv",
        _large_csv,
        lambda file: _plain("pandas", "read_csv", file),
    ),
    "pandas, Parquet": (
        "data/large.parquet",
        lambda: parquet(_noise(LARGE // 4, 4), compression="none", use_dictionary=False),
        lambda file: _plain("pandas", "read_parquet", file),
    ),
    "PyArrow": (
        "data/large.parquet",
        lambda: parquet(_noise(LARGE // 4, 4), compression="none", use_dictionary=False),
        lambda file: _plain("pyarrow.parquet", "read_table", file),
    ),
    "zipfile": (
        "data/large.zip",
        lambda: zipped(_noise(LARGE).tobytes()),
        lambda file: zipfile.ZipFile(file).read("inside.txt"),
    ),
}


@pytest.mark.parametrize("library", LARGE_FILES)
def test_damage_in_a_large_file_comes_out_of_the_library(project: Project, library: str) -> None:
    """A large file is proven block by block; no library takes the error for something else."""
    path, content, decode = LARGE_FILES[library]
    project.add("data", {path: content()})
    project.commit("large")
    repo = di.Repository()
    manifest = repo.manifest("data")
    assert (project.root / path).stat().st_size >= 16 << 20
    with di.Reader(manifest, repo.workspace).open(path) as file:
        decode(file)  # and its blocks are on record now
    faults.flip_bit(project.root / path)
    with di.Reader(manifest, repo.workspace).open(path) as file:
        finding = refused(lambda: decode(file), path)
    ((start, stop),) = finding.ranges
    assert start <= (project.root / path).stat().st_size // 2 < stop

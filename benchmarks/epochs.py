"""One process that reads a tracked folder or array, and tells how long it took.

``benchmarks/loading.py`` runs it in a project, for ours and for a peer in turn:
``python epochs.py WORK READER``. It prints one JSON object.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import DataLoader, Dataset

from dvc_integrity import blocks
from dvc_integrity.torch import VerifiedArray, VerifiedFiles
from workload import SEED

BATCH, WORKERS = 64, 2
ROWS = 2_000
MIB = 1 << 20


def decode_raw(data: bytes, _: str) -> torch.Tensor:
    """Return the numbers of a raw array, copied as a tensor that may be written."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def decode_jpeg(data: bytes, _: str) -> torch.Tensor:
    """Return an image as a tensor of height, width and channels."""
    from PIL import Image  # noqa: PLC0415 (only the images need it)

    return torch.from_numpy(np.array(Image.open(io.BytesIO(data))))


class PlainFiles(Dataset[Any]):
    """The same samples as ``VerifiedFiles`` gives, as people read them without it."""

    def __init__(self, folder: str, decode: Callable[[bytes, str], Any]) -> None:
        self._paths = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
        self._decode = decode

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        with open(self._paths[index], "rb") as file:
            return self._decode(file.read(), self._paths[index])


def timed_epoch(dataset: Any, epochs: int) -> dict[str, float]:
    """Return the seconds of the last of some epochs of one loader, and its samples."""
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True
    )
    for _ in range(epochs):
        clock = time.perf_counter()
        samples = sum(len(batch) for batch in loader)
        seconds = time.perf_counter() - clock
    return {"seconds": seconds, "samples": samples}


def files(reader: str, decode: Callable[[bytes, str], Any], epochs: int = 2) -> dict[str, float]:
    """Time an epoch over the files of ``data``: ``plain``, ``always``, or a share to check."""
    if reader == "plain":
        return timed_epoch(PlainFiles("data", decode), epochs)
    check = reader if reader == "always" else float(reader)
    data = VerifiedFiles("data", decode=decode, check=check)
    data.set_epoch(1)  # a share is only left out in an epoch that was named
    return timed_epoch(data, epochs)


def streamed(reader: str) -> dict[str, float]:
    """Time the first epoch, which is the only one that MosaicML Streaming validates."""
    if reader != "streaming":
        return files(reader, decode_raw, epochs=1)
    from streaming import StreamingDataset  # noqa: PLC0415 (an optional peer)

    class Decoded(StreamingDataset):  # type: ignore[misc]  # it ships no types
        def __getitem__(self, index: int) -> Any:
            return decode_raw(super().__getitem__(index)["data"], "")

    shutil.rmtree("local", ignore_errors=True)
    return timed_epoch(
        Decoded(remote="mds", local="local", validate_hash="sha1", batch_size=BATCH), epochs=1
    )


def write_streamed(_: str) -> dict[str, float]:
    """Write the files of ``data`` as MosaicML Streaming's shards."""
    from streaming import MDSWriter  # noqa: PLC0415 (an optional peer)

    with MDSWriter(out="mds", columns={"data": "bytes"}, hashes=["sha1"]) as writer:
        for path in sorted(Path("data").rglob("*.bin")):
            writer.write({"data": path.read_bytes()})
    return {}


def rows(reader: str) -> dict[str, float]:
    """Time random rows of one large array twice, and count what is hashed for them."""
    source: Any = np.load("data.npy", mmap_mode="r") if reader == "plain" else None
    dataset = None if reader == "plain" else VerifiedArray("data.npy")
    wanted = np.random.default_rng(SEED).integers(len(dataset or source), size=ROWS).tolist()
    told = {}
    for turn in ("first", "again"):
        counted = [0]
        setattr(blocks, "blake3", partial(counting, counted))  # noqa: B010 (it is not exported)
        clock = time.perf_counter()
        for row in wanted:
            _ = torch.from_numpy(np.array(source[row])) if dataset is None else dataset[row]
        told[f"{turn} seconds"] = time.perf_counter() - clock
        told[f"{turn} MiB"] = counted[0] / MIB / ROWS
    return told


def counting(counted: list[int], data: Any = b"") -> Any:
    """Hash, and add the bytes to a count."""
    counted[0] += len(data)
    return blake3(data)


WORK: dict[str, Callable[[str], dict[str, float]]] = {
    "raw": partial(files, decode=decode_raw),
    "jpeg": partial(files, decode=decode_jpeg),
    "streamed": streamed,
    "write": write_streamed,
    "rows": rows,
}

if __name__ == "__main__":
    print(json.dumps(WORK[sys.argv[1]](sys.argv[2])))

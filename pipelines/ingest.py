"""Stage ``ingest``: scikit-learn's handwritten digits, from its source file to image files.

The result is the same, byte for byte, on every machine: the source is held to a SHA-256
before anything interprets it, the split depends on hashes alone, and the image format has no
codec. Either the whole folder appears or the former one stays.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import os
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from digits import FOLDER, LABELS, MAX_GREY, SIDE, encode, sample_name

__all__ = ["Samples", "SourceError", "checked", "parse", "read_source", "split", "write"]

SAMPLES = 1797
"""Samples in the source."""

SOURCE = "sklearn/datasets/data/digits.csv.gz"
"""The source file as scikit-learn installs it; one line a sample, the label last."""


class SourceError(Exception):
    """The source is not the data that this pipeline was written for."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Validated images, uint8[n, 8, 8] from 0 to 16, and their labels, uint8[n] from 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @classmethod
    def validated(cls, images: NDArray[np.float64], labels: NDArray[np.float64]) -> Samples:
        """Accept ``images``, float64[1797, 64], and ``labels``, float64[1797], or refuse them.

        Raises
        ------
        SourceError
            If a shape, a value or the set of labels is not the expected one.
        """
        _require(images.shape == (SAMPLES, SIDE * SIDE), "images of shape (1797, 64)", images.shape)
        _require(labels.shape == (SAMPLES,), "labels of shape (1797,)", labels.shape)
        _require_integers("pixels", images, MAX_GREY)
        _require_integers("labels", labels, LABELS - 1)
        present = np.unique(labels).tolist()
        _require(len(present) == LABELS, "every label from 0 to 9", present)
        return cls(images.astype(np.uint8).reshape(-1, SIDE, SIDE), labels.astype(np.uint8))


def read_source() -> bytes:
    """Return the bytes of the source file, uninterpreted."""
    package, _, inside = SOURCE.partition("/")
    return importlib.resources.files(package).joinpath(inside).read_bytes()


def checked(source: bytes, sha256: str) -> bytes:
    """Return ``source`` if it has the expected SHA-256.

    The digest is that of the compressed file, as shipped: not even gzip sees bytes that
    nobody vouched for.

    Raises
    ------
    SourceError
        If the digest differs.
    """
    found = hashlib.sha256(source).hexdigest()
    if found == sha256:
        return source
    raise SourceError(
        f"{SOURCE} is not the file that this pipeline was written for.\n"
        f"  expected SHA-256 {sha256} (ingest.sha256 in params.yaml)\n"
        f"  found    SHA-256 {found} ({len(source)} bytes)\n"
        "It may be damaged: `python -m pip install --force-reinstall --no-cache-dir scikit-learn`\n"
        "brings a fresh copy. If scikit-learn changed it and you trust the new one, put the found\n"
        "SHA-256 into params.yaml."
    )


def parse(source: bytes) -> Samples:
    """Read the compressed table and validate it.

    Raises
    ------
    SourceError
        If it is no table of numbers, or not that of the digits.
    """
    try:
        lines = gzip.decompress(source).decode("ascii").splitlines()
        table = np.array([line.split(",") for line in lines], dtype=np.float64, ndmin=2)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise SourceError(f"{SOURCE} is not a compressed table of numbers: {error}") from error
    pixels = SIDE * SIDE
    return Samples.validated(table[:, :pixels], table[:, pixels:].ravel())


def split(labels: NDArray[np.uint8], seed: int, test_share: float) -> NDArray[np.bool_]:
    """Return which samples are for the test, bool[n].

    Within each label the samples are ordered by the SHA-256 of seed and index, and the first
    ``test_share`` of them is taken: no random number generator whose stream may change with
    its version.
    """
    is_test = np.zeros(len(labels), dtype=np.bool_)
    for label in range(LABELS):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
        is_test[members[: round(len(members) * test_share)]] = True
    return is_test


def write(samples: Samples, is_test: NDArray[np.bool_], folder: str) -> None:
    """Write one image file per sample; ``folder`` appears whole or stays as it was."""
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ingest-", dir=parent) as scratch:
        fresh = os.path.join(scratch, "fresh")
        _write_images(samples, is_test, fresh)
        _replace(folder, fresh, os.path.join(scratch, "former"))


def _replace(folder: str, fresh: str, former: str) -> None:
    """Put ``fresh`` in the place of ``folder``, which a rename alone does only if it is empty."""
    if not os.path.lexists(folder):
        os.rename(fresh, folder)
        return
    os.rename(folder, former)
    try:
        os.rename(fresh, folder)
    except BaseException:
        os.rename(former, folder)
        raise


def _write_images(samples: Samples, is_test: NDArray[np.bool_], folder: str) -> None:
    for index, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
        part = "test" if is_test[index] else "train"
        path = os.path.join(folder, sample_name(part, int(label), index))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(encode(image))


def _require_integers(what: str, values: NDArray[np.float64], largest: int) -> None:
    finite = np.isfinite(values)
    _require(bool(finite.all()), f"finite {what}", f"{np.count_nonzero(~finite)} that are not")
    span = f"{what} that are integers from 0 to {largest}"
    good = (values == np.round(values)) & (values >= 0) & (values <= largest)
    _require(bool(good.all()), span, f"for example {values[~good][:3].tolist()}")


def _require(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise SourceError(f"{SOURCE}: expected {expected}, found {found}")


def main() -> None:
    """Run the stage with the parameters of ``params.yaml``."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["ingest"]
    try:
        samples = parse(checked(read_source(), params["sha256"]))
    except SourceError as error:
        sys.exit(f"ingest: {error}")
    is_test = split(samples.labels, params["seed"], params["test_share"])
    write(samples, is_test, FOLDER)
    tests = np.count_nonzero(is_test)
    print(f"ingest: {SAMPLES - tests} training and {tests} test images in {FOLDER}")


if __name__ == "__main__":
    main()

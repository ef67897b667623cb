"""The handwritten digits as files: one image per sample, in the folder of its label.

The format is Netpbm's binary grey map (PGM, magic number ``P5``): a text header, then one
byte a pixel. It has no codec, no version and no metadata, so the same pixels are the same
bytes on every machine, for ever. The grey scale ends at 16, as in the source: stretched to 255
the values would have to be rounded, and viewers stretch it themselves.

Source: http://netpbm.sourceforge.net/doc/pgm.html
"""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOLDER", "LABELS", "MAX_GREY", "SIDE", "decode", "encode", "label_of", "sample_name"]

FOLDER = "data/digits"
"""The tracked folder, relative to the DVC root; ``train`` and ``test`` lie inside it."""

LABELS = 10
"""The digits 0 to 9."""

SIDE = 8
"""Width and height of an image, in pixels."""

MAX_GREY = 16
"""The largest grey value; 0 is paper, 16 is ink."""

_HEADER = f"P5\n{SIDE} {SIDE}\n{MAX_GREY}\n".encode("ascii")


def sample_name(part: str, label: int, index: int) -> str:
    """Return where a sample lies inside the folder, for example ``train/3/0042.pgm``."""
    return f"{part}/{label}/{index:04d}.pgm"


def label_of(path: str) -> int:
    """Return the label that a sample's folder names.

    Raises
    ------
    ValueError
        If that folder is not one of the ten digits.
    """
    folder = PurePosixPath(path).parent.name
    if folder not in {str(label) for label in range(LABELS)}:
        raise ValueError(f"{path!r} lies in the folder {folder!r}, which is not a digit 0-9")
    return int(folder)


def encode(image: NDArray[np.uint8]) -> bytes:
    """Return the image file of ``image``, uint8[8, 8] with values up to 16."""
    return _HEADER + image.tobytes()


def decode(data: bytes, path: str) -> NDArray[np.uint8]:
    """Return the pixels of an image file, uint8[8, 8].

    Only the exact form that `encode` writes is accepted: a decoder that guesses turns damage
    into plausible pictures.

    Raises
    ------
    ValueError
        If the header, the length or a pixel is anything else; the message names ``path``.
    """
    size = len(_HEADER) + SIDE * SIDE
    if not data.startswith(_HEADER):
        raise ValueError(f"{path!r} starts with {data[: len(_HEADER)]!r}, expected {_HEADER!r}")
    if len(data) != size:
        raise ValueError(f"{path!r} has {len(data)} bytes, expected {size}")
    image = np.frombuffer(data, np.uint8, offset=len(_HEADER)).reshape(SIDE, SIDE)
    if image.max() > MAX_GREY:
        raise ValueError(f"{path!r} has a pixel of {image.max()}, expected at most {MAX_GREY}")
    return image

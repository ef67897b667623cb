"""Digest values, and the algorithms that DVC's metadata can name.

A digest is its algorithm and its bytes together: ``md5`` and ``md5-dos2unix`` of one file
are different claims, so two digests are equal only if both parts are.
"""

from __future__ import annotations

import binascii
import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = ["Algorithm", "Digest", "Hasher", "TextNormalizedMD5"]

DIGEST_BYTES = 16
"""Length in bytes of every digest that DVC writes as a content hash."""


class Hasher(Protocol):
    """What hashlib's objects offer, as far as it is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""

    def digest(self) -> bytes:
        """Return the digest of everything taken in."""


class Algorithm(str, Enum):
    """A content hash of DVC, by the name that its metadata gives it."""

    MD5 = "md5"
    MD5_DOS2UNIX = "md5-dos2unix"
    """DVC 2: MD5 over the file with CRLF turned into LF where a block looks like text."""

    def hasher(self) -> Hasher:
        """Return a fresh hash object."""
        if self is Algorithm.MD5:
            return hashlib.md5(usedforsecurity=False)
        return TextNormalizedMD5()


class TextNormalizedMD5:
    """DVC 2's ``md5-dos2unix``, block by block.

    DVC reads blocks of 1 MiB, calls a block text by its first 512 bytes, and replaces CRLF
    by LF inside such a block only. A CRLF across two blocks therefore stays. The bytes may
    come in pieces of any size; they are cut into the same blocks here.

    Source: ``dvc_data.hashfile.hash.Dos2UnixHashStreamFile`` and
    ``dvc_data.hashfile.istextfile.istextblock``.
    """

    BLOCK_BYTES = 1 << 20
    SAMPLE_BYTES = 512
    TEXT = bytes(range(32, 127)) + b"\n\r\t\f\b"
    MAX_BINARY_SHARE = 0.30

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._pending = bytearray()

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""
        self._pending += data
        while len(self._pending) >= self.BLOCK_BYTES:
            self._md5.update(self._normalized(bytes(self._pending[: self.BLOCK_BYTES])))
            del self._pending[: self.BLOCK_BYTES]

    def digest(self) -> bytes:
        """Return the digest of everything taken in."""
        final = self._md5.copy()
        final.update(self._normalized(bytes(self._pending)))
        return final.digest()

    def _normalized(self, block: bytes) -> bytes:
        sample = block[: self.SAMPLE_BYTES]
        if b"\0" in sample:
            return block
        binary = len(sample.translate(None, self.TEXT))
        if sample and binary / len(sample) > self.MAX_BINARY_SHARE:
            return block
        return block.replace(b"\r\n", b"\n")


@dataclass(frozen=True, slots=True)
class Digest:
    """A content hash: the algorithm and its 16 bytes."""

    algorithm: Algorithm
    value: bytes

    @classmethod
    def from_hex(cls, algorithm: Algorithm, text: str) -> Digest:
        """Read 32 hexadecimal digits.

        Raises
        ------
        ValueError
            If ``text`` is anything else.
        """
        try:
            value = binascii.unhexlify(text)
        except (ValueError, UnicodeError) as error:
            raise ValueError(f"{text!r} is not a hexadecimal digest") from error
        if len(value) != DIGEST_BYTES:
            raise ValueError(f"{text!r} has {len(value)} bytes, a digest has {DIGEST_BYTES}")
        return cls(algorithm, value)

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read the form that ``str`` writes, for example ``md5:d41d8cd98f00b204e9800998ecf8427e``.

        Raises
        ------
        ValueError
            If the algorithm is unknown or the digits are not a digest.
        """
        name, _, digits = text.partition(":")
        return cls.from_hex(Algorithm(name), digits)

    @property
    def hex(self) -> str:
        """The digest in 32 hexadecimal digits, as DVC writes it."""
        return self.value.hex()

    def __str__(self) -> str:
        return f"{self.algorithm.value}:{self.hex}"

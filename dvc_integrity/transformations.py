"""What tools do to a file as a whole: line endings, encodings, compression.

Each is proven: after the transformation the bytes are equal, or have the committed digest.
Contents are streamed, and no further than to the first difference.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from dvc_integrity.damage import BLOCK_BYTES, LINE_BYTES, Content
from dvc_integrity.digest import Digest

__all__ = ["are_same", "hashes_to", "kind_of", "transformations", "undone"]

LINE_ENDINGS, ENCODING = "line-endings", "encoding"
DECOMPRESSED, COMPRESSED, RECOMPRESSED = "decompressed", "compressed", "recompressed"
"""The names of the patterns."""

_KINDS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF-": "PDF",
    b"\x93NUMPY": "a NumPy array",
    b"PAR1": "Parquet",
    b"\x89HDF": "HDF5",
    b"version https://git-lfs": "a pointer of Git LFS",
    b"<!DOCTYPE html": "an HTML page (an error page of a server?)",
    b"<html": "an HTML page (an error page of a server?)",
    b"<?xml": "XML (an error document of a storage service?)",
}


def kind_of(content: Content) -> str:
    """Return what a content begins like, in words."""
    head = content.read_at(0, LINE_BYTES).lstrip(b"\xef\xbb\xbf \r\n")
    for magic, name in _KINDS.items():
        if head.startswith(magic):
            return name
    return "nothing known" if head else "nothing"


def transformations(bad: Content, good: Content, first: int | None) -> list[tuple[str, str]]:
    """Return what was done to the good bytes to make the bad ones: its name, and how in words.

    Parameters
    ----------
    bad, good
        The two contents, which differ.
    first
        Offset of the first byte that differs; None if one is the beginning of the other.

    Raises
    ------
    OSError
        If one cannot be read.
    """
    at = min(bad.size, good.size) if first is None else first
    texts = [*_line_endings(bad, good, at)] or [*_encodings(bad, good, at)]
    return texts or [*_compressions(bad, good)]


def _line_endings(bad: Content, good: Content, at: int) -> Iterator[tuple[str, str]]:
    pair = bad.read_at(at, 1) + good.read_at(at, 1)
    if pair not in {b"\r\n", b"\n\r"}:
        return
    if are_same(_with_lf(bad.chunks()), _with_lf(good.chunks())):
        yield LINE_ENDINGS, _rewritten(bad, good)


def _rewritten(bad: Content, good: Content) -> str:
    theirs, ours = _count_crlf(bad), _count_crlf(good)
    way = "LF became CRLF" if theirs > ours else "CRLF became LF"
    if theirs == ours:
        return "some LF became CRLF and some CRLF became LF; nothing else differs"
    return f"{way} in {abs(theirs - ours):,} lines; nothing else differs"


def _with_lf(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Turn CRLF into LF, also across two pieces."""
    held = b""
    for chunk in chunks:
        data = held + chunk
        held = b"\r" if data.endswith(b"\r") else b""
        yield data[: len(data) - len(held)].replace(b"\r\n", b"\n")
    yield held


def _with_crlf(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in _with_lf(chunks):
        yield chunk.replace(b"\n", b"\r\n")


def _count_crlf(content: Content) -> int:
    count, before = 0, b""
    for chunk in content.chunks():
        count += (before + chunk).count(b"\r\n")
        before = b"\r" if chunk.endswith(b"\r") else b""
    return count


_UTF_8, _CODEPAGES = "utf-8", ("cp1252", "latin-1")
_WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
_MARKED = "utf-8-sig"

_NAMES = {
    _UTF_8: "UTF-8",
    _MARKED: "UTF-8 with a byte order mark",
    "cp1252": "Windows-1252",
    "latin-1": "Latin-1",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16 (little endian)",
    "utf-16-be": "UTF-16 (big endian)",
    "utf-32": "UTF-32",
}

_ASCII = 0x80
_FIRST_CHARACTER_BYTES = 4


def _encodings(bad: Content, good: Content, at: int) -> Iterator[tuple[str, str]]:
    """Yield the two encodings that make one text of both.

    Where both are ASCII at the first difference, and it is not right at the beginning, no pair
    can; so nothing large is decoded in vain.
    """
    pair = bad.read_at(at, 1), good.read_at(at, 1)
    if at >= _FIRST_CHARACTER_BYTES and not any(each and each[0] >= _ASCII for each in pair):
        return
    others = (_MARKED, *_WIDE, *_CODEPAGES)
    pairs = [(other, _UTF_8) for other in others] + [(_UTF_8, other) for other in others]
    for theirs, ours in pairs:
        for lines, note in ((_as_is, ""), (_text_with_lf, ", and the line endings too")):
            decoded = lines(_decoded(bad, theirs)), lines(_decoded(good, ours))
            if are_same(*decoded, failure=UnicodeError):
                detail = f"the same text as {_NAMES[theirs]} instead of {_NAMES[ours]}{note}"
                if theirs == _UTF_8 and ours in _CODEPAGES and _is_utf_8(good):
                    detail = f"UTF-8 was taken for {_NAMES[ours]} and encoded once more"
                yield ENCODING, detail
                return


def _decoded(content: Content, encoding: str) -> Iterator[str]:
    if encoding in {_MARKED, "utf-16", "utf-32"} and not _has_mark(content, encoding):
        raise UnicodeError("no byte order mark")
    decoder = codecs.getincrementaldecoder(encoding)()
    for chunk in content.chunks():
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _has_mark(content: Content, encoding: str) -> bool:
    head = content.read_at(0, _FIRST_CHARACTER_BYTES)
    return head.startswith(_MARKS[encoding])


_MARKS = {
    _MARKED: (codecs.BOM_UTF8,),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}


def _is_utf_8(content: Content) -> bool:
    try:
        for _ in _decoded(content, _UTF_8):
            pass
    except UnicodeError:
        return False
    return True


def _as_is(pieces: Iterator[str]) -> Iterator[str]:
    return pieces


def _text_with_lf(pieces: Iterator[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text[: len(text) - len(held)].replace("\r\n", "\n")
    yield held


_OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    "gzip": lambda file: cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb")),
    "bzip2": lambda file: cast("BinaryIO", bz2.BZ2File(file)),
    "xz": lambda file: cast("BinaryIO", lzma.LZMAFile(file)),  # noqa: SIM115 (who reads it closes it)
}


class _NotCompressed(Exception):  # noqa: N818 (a signal between functions, not an error)
    """The bytes do not unpack."""


def _compressions(bad: Content, good: Content) -> Iterator[tuple[str, str]]:
    theirs, ours = (kind_of(each) for each in (bad, good))
    if ours in _OPENERS and are_same(bad.chunks(), _unpacked(good), failure=_NotCompressed):
        yield DECOMPRESSED, f"the good bytes are {ours}, the bad ones unpacked"
    elif theirs in _OPENERS and are_same(_unpacked(bad), good.chunks(), failure=_NotCompressed):
        yield COMPRESSED, f"the bad bytes are {theirs} of the good ones"
    elif {theirs, ours} <= {*_OPENERS} and are_same(
        _unpacked(bad), _unpacked(good), failure=_NotCompressed
    ):
        how = f"both are {ours}" if theirs == ours else f"{theirs} instead of {ours}"
        yield RECOMPRESSED, f"{how}, and unpack to the same bytes"


def _unpacked(content: Content) -> Iterator[bytes]:
    """Yield what a compressed content holds, in pieces.

    Raises
    ------
    _NotCompressed
        If it does not unpack.
    """
    try:
        with _OPENERS[kind_of(content)](content.reader()) as file:
            while piece := file.read(BLOCK_BYTES):
                yield piece
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _NotCompressed from error
    except OSError as error:
        if error.errno is not None:  # the disk, not the format
            raise
        raise _NotCompressed from error


def undone(bad: Content) -> Iterator[tuple[str, str, Callable[[], Iterator[bytes]]]]:
    """Yield what may have been done to a content, each with what undoes it."""
    yield LINE_ENDINGS, "LF became CRLF", lambda: _with_lf(bad.chunks())
    yield LINE_ENDINGS, "CRLF became LF", lambda: _with_crlf(bad.chunks())
    for encoding in (_MARKED, *_WIDE, *_CODEPAGES):
        detail = f"the same text as {_NAMES[encoding]} instead of UTF-8"
        yield ENCODING, detail, lambda name=encoding: _in_utf_8(bad, name)  # type: ignore[misc]  # mypy takes the default for a parameter
    if kind_of(bad) in _OPENERS:
        detail = f"the bad bytes are {kind_of(bad)} of the good ones"
        yield COMPRESSED, detail, lambda: _unpacked(bad)


def _in_utf_8(content: Content, encoding: str) -> Iterator[bytes]:
    for piece in _decoded(content, encoding):
        yield piece.encode()


def hashes_to(expected: Digest, chunks: Iterator[bytes]) -> bool:
    """Return whether a stream has a digest; one that turns out to be no text has not."""
    hasher = expected.algorithm.hasher()
    try:
        for chunk in chunks:
            hasher.update(chunk)
    except (UnicodeError, _NotCompressed):
        return False
    return hasher.digest() == expected.value


def are_same(
    one: Iterator[Any], other: Iterator[Any], *, failure: type[Exception] = _NotCompressed
) -> bool:
    """Return whether two streams carry the same, read no further than to the first difference.

    ``failure`` is what a stream raises if its content is not what it was taken for.
    """
    try:
        return _are_equal(one, other)
    except failure:
        return False


def _are_equal(one: Iterator[Any], other: Iterator[Any]) -> bool:
    left, right = next(one, None), next(other, None)
    while left is not None and right is not None:
        common = min(len(left), len(right))
        if left[:common] != right[:common]:
            return False
        left, right = left[common:] or next(one, None), right[common:] or next(other, None)
    rest = (piece for stream in (one, other) for piece in stream)
    return not left and not right and not any(rest)

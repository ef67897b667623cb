r"""DVC's ``.dir`` objects: the listing of a tracked folder.

A listing is the JSON that ``dvc_data.hashfile.tree.Tree.as_bytes`` writes: a list of objects
with ``md5`` and ``relpath``, sorted by path. The parser takes bytes whose digest the caller
has already proven, in chunks that it lets go of one by one, so that a listing of a million
files is never in memory twice. It judges the form only: whether a path is safe is for the
manifest to say.
"""

from __future__ import annotations

import binascii
import json
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["ListedFiles", "parse_listing"]

_HEAD = b'[{"md5": "'
_MIDDLE = b'", "relpath": "'
_BETWEEN = b'"}, {"md5": "'
_TAIL = b'"}]'
"""What stands around digests and names in the bytes that ``json.dumps(…, sort_keys=True)`` gives.

Quotes inside a name are escaped, so none of these can occur in one.
"""

_HEX_BYTES = 32

_PLAIN = bytes(byte for byte in range(0x20, 0x80) if byte not in b'"\\')
"""Bytes that stand for themselves in the JSON form of a name."""

_HEX = b"0123456789abcdef"

_LONGEST_ENTRY_BYTES = 1 << 20
"""More bytes than this without the end of an entry: the listing is of another form."""


class ListedFiles(NamedTuple):
    """Some consecutive entries of a listing.

    ``names`` are paths relative to the tracked folder, in the file system's bytes; ``digests``
    holds 16 bytes for each of them.
    """

    names: list[bytes]
    digests: bytes


def parse_listing(chunks: deque[bytes]) -> Iterator[ListedFiles]:
    """Read a listing; ``chunks`` is emptied on the way.

    The bytes that every DVC since 1.0 writes are cut at what stands between two entries.
    Anything else (other spacing, further keys) goes through the JSON parser, from the first
    piece that differs.

    Raises
    ------
    ValueError
        If the bytes are not a list of objects with an ``md5`` and a ``relpath``.
    """
    rest = b""
    while chunks and len(rest) < len(_HEAD):
        rest += chunks.popleft()
    if not rest.startswith(_HEAD):
        yield _parse_json(rest, chunks)
        return
    rest = rest[len(_HEAD) :]
    while True:
        end = rest.rfind(_BETWEEN) if chunks else len(rest) - len(_TAIL)
        complete = end >= 0 and (bool(chunks) or rest.endswith(_TAIL))
        if not complete and chunks and len(rest) < _LONGEST_ENTRY_BYTES:
            rest += chunks.popleft()
            continue
        listed = _cut(rest[:end]) if complete else None
        if listed is None:
            yield _parse_json(_HEAD + rest, chunks)
            return
        yield listed
        if not chunks:
            return
        rest = rest[end + len(_BETWEEN) :] + chunks.popleft()


def _cut(body: bytes) -> ListedFiles | None:
    """Cut consecutive entries apart; None if they are not of the usual form."""
    entries = body.split(_BETWEEN)
    start = _HEX_BYTES + len(_MIDDLE)
    if any(entry[_HEX_BYTES:start] != _MIDDLE for entry in entries):
        return None
    names = [entry[start:] for entry in entries]
    try:
        if b"".join(names).translate(None, _PLAIN):
            names = [_unescape(name) for name in names]
    except ValueError:
        return None
    digests = b"".join([entry[:_HEX_BYTES] for entry in entries])
    if digests.translate(None, _HEX):
        return None
    return ListedFiles(names, binascii.unhexlify(digests))


def _unescape(name: bytes) -> bytes:
    text = json.loads(b'"' + name + b'"')
    return _file_system_bytes(text)


def _file_system_bytes(text: str) -> bytes:
    """Encode a path as the file system holds it; bytes that are not UTF-8 come as surrogates."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"the path {text!r} cannot be a file name") from error


def _parse_json(start: bytes, chunks: deque[bytes]) -> ListedFiles:
    """Read what is left of a listing, in any form, with the JSON parser."""
    text = start + b"".join(chunks)
    chunks.clear()
    document = json.loads(text)
    if not isinstance(document, list):
        raise ValueError(f"the listing is a {type(document).__name__}, not a list")  # noqa: TRY004 (bad data, not a bad type)
    names = []
    digests = []
    for entry in document:
        name, digest = _entry_of(entry)
        names.append(name)
        digests.append(digest)
    return ListedFiles(names, b"".join(digests))


def _entry_of(entry: Any) -> tuple[bytes, bytes]:
    if not isinstance(entry, dict):
        raise ValueError(f"an entry of the listing is {entry!r}, not an object")  # noqa: TRY004 (bad data, not a bad type)
    name, digest = entry.get("relpath"), entry.get("md5")
    if not isinstance(name, str) or not isinstance(digest, str):
        raise ValueError(f"an entry of the listing lacks its md5 or relpath: {entry!r}")  # noqa: TRY004 (bad data, not a bad type)
    if not re.fullmatch(r"[0-9a-f]{32}", digest):
        raise ValueError(f"an entry of the listing has {digest!r} for an md5")
    return _file_system_bytes(name), bytes.fromhex(digest)

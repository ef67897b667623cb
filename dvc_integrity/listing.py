r"""DVC's ``.dir`` objects: the listing of a tracked folder.

A listing is the JSON that ``dvc_data.hashfile.tree.Tree.as_bytes`` writes: a list of objects
with ``md5`` and ``relpath``, sorted by path. The parser takes bytes whose digest the caller
has already proven, in chunks that it lets go of one by one, so that a listing of a million
files is never in memory twice. It judges the form only: whether a path is safe is for the
manifest to say.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["ListedFiles", "parse_listing"]

_ENTRY = re.compile(
    rb'(?:\[|, )\{"md5": "([0-9a-f]{32})", "relpath": "((?:[^"\\\x00-\x1f\x80-\xff]|\\.)*)"\}'
)
"""One entry in the bytes that ``json.dumps(…, sort_keys=True)`` gives, and what precedes it."""


class ListedFiles(NamedTuple):
    """Some consecutive entries of a listing.

    ``names`` are paths relative to the tracked folder, in the file system's bytes; ``digests``
    holds 16 bytes for each of them.
    """

    names: list[bytes]
    digests: bytes


def parse_listing(chunks: deque[bytes]) -> Iterator[ListedFiles]:
    """Read a listing; ``chunks`` is emptied on the way.

    The form that every DVC since 1.0 writes is matched by one regular expression. Anything
    else (other spacing, further keys, raw UTF-8) goes through the JSON parser from the first
    entry that differs.

    Raises
    ------
    ValueError
        If the bytes are not a list of objects with an ``md5`` and a ``relpath``.
    """
    rest = b""
    started = False
    while chunks:
        rest += chunks.popleft()
        names, digests, rest = _match_entries(rest, first=not started)
        if names:
            started = True
            yield ListedFiles(names, bytes.fromhex("".join(digests)))
        elif len(rest) > _LONGEST_ENTRY_BYTES:
            break
    rest += b"".join(chunks)
    chunks.clear()
    if started and rest == b"]":
        return
    yield _parse_json(rest, started)


_LONGEST_ENTRY_BYTES = 1 << 20
"""More bytes than this without a canonical entry: the listing is of another form."""


def _match_entries(data: bytes, first: bool) -> tuple[list[bytes], list[str], bytes]:
    """Match canonical entries from the start of ``data``; return them and what is left."""
    names: list[bytes] = []
    digests: list[str] = []
    position = 0
    expected = b"[" if first else b","
    for match in _ENTRY.finditer(data):
        if match.start() != position or data[position : position + 1] != expected:
            break
        digest, name = match.groups()
        names.append(_unescape(name) if b"\\" in name else name)
        digests.append(digest.decode("ascii"))
        position = match.end()
        expected = b","
    return names, digests, data[position:]


def _unescape(name: bytes) -> bytes:
    text = json.loads(b'"' + name + b'"')
    return _file_system_bytes(text)


def _file_system_bytes(text: str) -> bytes:
    """Encode a path as the file system holds it; bytes that are not UTF-8 come as surrogates."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"the path {text!r} cannot be a file name") from error


def _parse_json(rest: bytes, started: bool) -> ListedFiles:
    """Read what is left of a listing of any spacing with the JSON parser."""
    if started:
        if not rest.startswith(b","):
            raise ValueError("the listing is cut off or followed by other bytes")
        rest = b"[" + rest[1:]
    document = json.loads(rest)
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

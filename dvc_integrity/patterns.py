"""The patterns that damage fits, and what is told about each: the values of a diagnosis.

A match says which pattern, how it fits, what usually causes it and what to check next.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from dvc_integrity.digest import Digest

__all__ = ["Elsewhere", "Known", "Match", "Pattern", "Version", "match"]


class Pattern(str, Enum):
    """A kind of damage; of two that explain as much, the one that stands first is told first."""

    SINGLE_BIT = "single-bit"
    """One bit differs."""
    OLDER_VERSION = "older-version"
    """The bytes are committed for the same path in another commit."""
    SWAPPED = "swapped"
    """The bytes are committed for another path."""
    LINE_ENDINGS = "line-endings"
    """CRLF became LF, or LF became CRLF."""
    ENCODING = "encoding"
    """The same text in another encoding, or with or without a byte order mark."""
    DECOMPRESSED = "decompressed"
    """What the good bytes hold, out of its compression."""
    COMPRESSED = "compressed"
    """The good bytes, compressed."""
    RECOMPRESSED = "recompressed"
    """Both are compressed and hold the same."""
    TRUNCATED = "truncated"
    """Bytes at the end lack."""
    APPENDED = "appended"
    """There are bytes past the end."""
    ZEROED = "zeroed"
    """Zeros lie where other bytes should."""
    REPEATED_PAGE = "repeated-page"
    """A page holds what another page should."""
    BIT_POSITION = "bit-position"
    """The same bit of several bytes flipped."""
    BURST = "burst"
    """All differing bits lie within one page or less."""
    SHIFTED = "shifted"
    """Bytes in one place were inserted, lost or replaced; the rest moved."""
    REGION = "region"
    """One stretch differs, the rest is good."""
    REENCODED_IMAGE = "re-encoded-image"
    """Another image file of the same format and dimensions."""
    WHOLLY_DIFFERENT = "wholly-different"
    """Nearly everything differs."""
    SCATTERED = "scattered"
    """Differences in several places that fit nothing above."""


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern that the damage fits.

    Attributes
    ----------
    pattern
        Which.
    share
        The share of the differing bytes that it explains, from 0 to 1; None where only a good
        copy could tell.
    detail
        How it fits: where, how much.
    cause
        What usually does that.
    next
        What to check next.
    """

    pattern: Pattern
    share: float | None
    detail: str
    cause: str
    next: str

    def to_json(self) -> dict[str, Any]:
        """Return the match as a JSON object."""
        return {
            "pattern": self.pattern.value,
            "share": None if self.share is None else round(self.share, 6),
            "detail": self.detail,
            "cause": self.cause,
            "next": self.next,
        }


class Version(NamedTuple):
    """What a path was to be at a commit: its SHA, date (ISO 8601), subject, and the digest."""

    sha: str
    date: str
    subject: str
    digest: Digest


class Elsewhere(NamedTuple):
    """A path whose committed digest is the one that was found.

    ``holds_ours``: whether that path holds the bytes that are missed here; None if it could not
    be told.
    """

    path: str
    holds_ours: bool | None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about the digest that was found.

    Attributes
    ----------
    elsewhere
        Other paths of the manifest that are to have it.
    version
        Another commit where the same path is to have it.
    """

    elsewhere: tuple[Elsewhere, ...] = ()
    version: Version | None = None


class _Advice(NamedTuple):
    cause: str
    next: str


_DISK = (
    "Keep the bad file, verify again with '--cold', and look at the kernel's log, SMART values "
    "and a memory test before that machine writes more data."
)
_TRANSFER = (
    "Look for a transfer that was broken off, a disk that was full or a quota, and verify the "
    "store it came from with 'dvc-integrity verify --store STORE'."
)
_TOOL = (
    "Find the tool that rewrote it. If the change is meant, 'dvc add' and commit it; if not, "
    "bring the committed bytes back."
)

_ADVICE = {
    Pattern.SINGLE_BIT: _Advice(
        "A bit flipped: memory without ECC while the file was written or copied, or a medium that "
        "ages.",
        _DISK,
    ),
    Pattern.OLDER_VERSION: _Advice(
        "The file is another committed version: a checkout or a pull that did not happen, or a "
        "copy from another branch.",
        "Run 'dvc checkout' for this path, and look whether links or a read-only file kept DVC "
        "from replacing it.",
    ),
    Pattern.SWAPPED: _Advice(
        "Files were exchanged, renamed or copied over each other.",
        "Look at the scripts that move or rename files here, and verify the other path too.",
    ),
    Pattern.LINE_ENDINGS: _Advice(
        "A program rewrote the line endings: Git's core.autocrlf, an editor, or an FTP transfer "
        "in text mode.",
        f"Check 'git config core.autocrlf' and .gitattributes. {_TOOL}",
    ),
    Pattern.ENCODING: _Advice(
        "A program read the text and wrote it in another encoding: an editor, a spreadsheet, or a "
        "shell's redirection.",
        _TOOL,
    ),
    Pattern.DECOMPRESSED: _Advice(
        "Something unpacked the file on the way: a client that honours 'Content-Encoding', or a "
        "proxy.",
        "Look at the Content-Encoding metadata of the object on the remote, and at the tool that "
        "fetched it.",
    ),
    Pattern.COMPRESSED: _Advice(
        "Something packed the file on the way: a server, a proxy or a backup tool.",
        "Look at the Content-Encoding metadata of the object on the remote, and at the tool that "
        "stored it.",
    ),
    Pattern.RECOMPRESSED: _Advice(
        "The content was unpacked and packed again; the same data give other bytes with another "
        "time stamp, level or library.",
        f"Pack reproducibly ('gzip -n', a fixed level). {_TOOL}",
    ),
    Pattern.TRUNCATED: _Advice(
        "A write or a transfer ended early.",
        _TRANSFER,
    ),
    Pattern.APPENDED: _Advice(
        "Something wrote past the end: a log or an editor, or two transfers into one file.",
        "Look at the last bytes; they often show who wrote them. Then look for programs that open "
        "the file for appending.",
    ),
    Pattern.ZEROED: _Advice(
        "Space was reserved and never written: a crash or a power cut before the data reached the "
        "disk, a download into a file of full size that stopped, or a bad sector that reads as "
        "zeros.",
        "Look for a crash or an unclean unmount at the file's modification time, then at the "
        "kernel's log and SMART values. Keep the bad file.",
    ),
    Pattern.REPEATED_PAGE: _Advice(
        "A page was written to, or read from, the wrong place: a fault of the page cache, the "
        "file system, a RAID or the controller's firmware.",
        _DISK,
    ),
    Pattern.BIT_POSITION: _Advice(
        "One data line is bad: a memory module or a bus delivers the same bit wrong.",
        "Test the memory (memtest86+) before anything else; do not trust what this machine wrote.",
    ),
    Pattern.BURST: _Advice(
        "A short stretch was damaged as a whole: a cache line, a sector or a page that was stored "
        "or transferred wrong, or a program that wrote into the file.",
        _DISK,
    ),
    Pattern.SHIFTED: _Advice(
        "Bytes were inserted, deleted or replaced in one place, as an editor or a script does.",
        _TOOL,
    ),
    Pattern.REGION: _Advice(
        "A stretch holds other bytes: a write that was torn by a crash, a lost write that left "
        "old data, or a program that wrote into the file.",
        _DISK,
    ),
    Pattern.REENCODED_IMAGE: _Advice(
        "Probably an image tool or a content network saved the picture again; its pixels may "
        "differ too.",
        _TOOL,
    ),
    Pattern.WHOLLY_DIFFERENT: _Advice(
        "Another content under this name: the file was overwritten or generated anew, or it was "
        "encrypted.",
        "Compare the first bytes and the modification time with what you know of the file. "
        f"{_TOOL}",
    ),
    Pattern.SCATTERED: _Advice(
        "Several places differ: bad memory or a bad disk over time, or an edit in many places.",
        _DISK,
    ),
}


def match(pattern: Pattern, share: float | None, detail: str, *, cause: str = "") -> Match:
    """Return a match with what is told about its pattern; ``cause`` takes the usual one's place."""
    usual_cause, usual_next = _ADVICE[pattern]
    return Match(pattern, share, detail, cause or usual_cause, usual_next)

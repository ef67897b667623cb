"""The exceptions of dvc-integrity, and how untrusted names appear in their messages.

Damage is a value (a finding in a report), inability is an exception::

    IntegrityError
    ├── RepositoryError    no Git, no DVC, no commit, an unknown revision or target
    ├── ManifestError      the expectation cannot be read: damaged listing, unsafe path, broken YAML
    ├── StoreError         a place that holds bytes cannot be used
    ├── RestoreError       there is no good copy, or it cannot be put in its place
    ├── NothingToVerify    the request covers no file at all
    └── CorruptDataError   a reader met bytes that differ (lives in ``report``, beside ``Finding``)

Every class can be rebuilt from its message alone, because that is all that a PyTorch
``DataLoader`` carries from a worker to the parent process.
"""

from __future__ import annotations

import os

__all__ = [
    "IntegrityError",
    "ManifestError",
    "NothingToVerify",
    "RepositoryError",
    "RestoreError",
    "StoreError",
    "printable",
]


class IntegrityError(Exception):
    """Base of everything that dvc-integrity raises on purpose."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class RepositoryError(IntegrityError):
    """The request does not fit the repository; the message says what to change."""


class ManifestError(IntegrityError):
    """What the files must be could not be established from the committed metadata."""


class StoreError(IntegrityError):
    """A workspace, cache, remote or receipt file cannot be used."""


class RestoreError(IntegrityError):
    """A file could not be brought back; it is what it was."""


class NothingToVerify(IntegrityError):  # noqa: N818 (the public name says what happened)
    """The request covers no file: nothing checked is a failure, not a success."""


def printable(path: str | bytes) -> str:
    r"""Return a name that is safe to print on a terminal, on one line.

    Control characters, line breaks, bidirectional overrides and bytes that are not UTF-8
    come out as escapes (``\x1b``, ``\n``, ``\udc80``); every other character stays.
    """
    text = os.fsdecode(path)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )

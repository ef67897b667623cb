"""The judgement on one file, pure.

An expected entry, what one or two reads showed, and a hint on the cause give a finding,
without I/O: the same arguments give the same finding.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from dvc_integrity.digest import Digest
from dvc_integrity.manifest import Entry
from dvc_integrity.observation import Observation, SpecialFileError
from dvc_integrity.report import Finding, Hint, Status

__all__ = ["Explain", "has_execute_bit", "is_absent", "is_expected", "judge"]

Explain = Callable[[Digest | None], Hint]
"""Gives the hint on a file from the digest that was found in it."""


def judge(
    entry: Entry,
    first: Observation,
    second: Observation | None,
    explain: Explain,
    *,
    immutable: bool = False,
) -> Finding | None:
    """Judge one file. Pure: the same arguments give the same finding.

    Parameters
    ----------
    entry
        What the file must be.
    first
        What an ordinary read showed.
    second
        What a read past the page cache showed, if the first one was not good.
    explain
        Looks up the cause of a difference; asked only if there is one.
    immutable
        Whether nobody writes in that store, so that a difference is corruption.

    Returns
    -------
    Finding or None
        None if the file is good.
    """
    seen = second or first
    if seen.error is not None:
        return _judge_error(entry, seen.error, explain, immutable)
    if not seen.stable:
        return _finding(entry, seen, Status.UNSTABLE, "it changed while it was read, twice")
    if is_expected(entry, seen):
        return _judge_good_bytes(entry, first, seen, immutable)
    hint = explain(_digest(entry, seen))
    status = Status.CORRUPT if immutable or hint.written is False else Status.MODIFIED
    return _finding(entry, seen, status, hint.detail, hint)


def is_absent(error: OSError | None) -> bool:
    """Return whether an error says that nothing lies at a path."""
    return isinstance(error, (FileNotFoundError, NotADirectoryError))


def is_expected(entry: Entry, seen: Observation) -> bool:
    """Return whether the bytes that were read have the committed digest, and size if known.

    DVC 2's hash does not see a CRLF that became LF; the size does.
    """
    same_size = entry.size is None or entry.size == seen.size
    return entry.digest is not None and entry.digest.value == seen.digest and same_size


def has_execute_bit(seen: Observation) -> bool:
    """Return whether the file that was read is executable for its owner."""
    return seen.after is not None and bool(seen.after.mode & stat.S_IXUSR)


def _judge_error(entry: Entry, error: OSError, explain: Explain, immutable: bool) -> Finding:
    if is_absent(error):
        hint = explain(None)
        return _finding(entry, None, Status.MISSING, hint.detail, hint)
    reason = error.strerror or str(error)
    if isinstance(error, (IsADirectoryError, SpecialFileError)):
        return _finding(entry, None, Status.CORRUPT if immutable else Status.MODIFIED, reason)
    return _finding(entry, None, Status.UNREADABLE, reason)


def _judge_good_bytes(
    entry: Entry, first: Observation, seen: Observation, immutable: bool
) -> Finding | None:
    if entry.executable and not immutable and not has_execute_bit(seen):
        detail = "its bytes are good, but it lost the executable bit that DVC records"
        return _finding(entry, seen, Status.MODIFIED, detail)
    if _read_the_same(first, seen) or _was_touched(first, seen):
        return None
    gave = first.error or _digest(entry, first) or "other blocks"
    detail = f"a first read gave {gave}, a second one past the page cache gave the committed bytes"
    if first.error is None or first.error.errno == errno.EIO:
        detail += ": suspect the memory, the cable or the controller"
    return _finding(entry, seen, Status.OK, detail, transient=True)


def _read_the_same(first: Observation, second: Observation) -> bool:
    """Return whether two reads showed the same bytes.

    Blocks that are the same twice while the whole digest is good: the record of them was wrong.
    """
    same_blocks = first.blocks is not None and first.blocks == second.blocks
    return first.digest == second.digest or same_blocks


def _was_touched(first: Observation, second: Observation) -> bool:
    """Return whether somebody wrote the file, so that two reads may differ with good reason."""
    if first.error is not None:
        return first.before is not None and first.before != second.before
    return not first.stable or first.after != second.before


def _finding(
    entry: Entry,
    seen: Observation | None,
    status: Status,
    detail: str,
    hint: Hint | None = None,
    *,
    transient: bool = False,
) -> Finding:
    return Finding(
        path=entry.path,
        out=entry.out,
        status=status,
        expected=entry.digest,
        found=_digest(entry, seen) if seen else None,
        size=seen.size if seen else None,
        transient=transient,
        adopted=hint.adopted if hint else False,
        detail=detail,
    )


def _digest(entry: Entry, seen: Observation) -> Digest | None:
    """Return what was found as a digest of the algorithm that was expected."""
    if seen.digest is None or entry.digest is None:
        return None
    return Digest(entry.digest.algorithm, seen.digest)

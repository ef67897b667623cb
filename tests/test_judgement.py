"""The judgement on one file, to exhaustion: it is pure, so every combination can be asked."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.judgement import has_execute_bit, is_absent, is_expected, judge
from dvc_integrity.manifest import Entry
from dvc_integrity.observation import FileState, Observation
from dvc_integrity.report import Finding, Hint, Status

GOOD, BAD, WORSE = b"G" * 16, b"B" * 16, b"W" * 16
SIZE = 5

PLAIN = FileState(1, 2, SIZE, 100, 100, stat.S_IFREG | 0o644)
RUNNABLE = PLAIN._replace(mode=stat.S_IFREG | 0o755)
TOUCHED = PLAIN._replace(mtime_ns=200, ctime_ns=200)


def entry(*, executable: bool = False, algorithm: Algorithm = Algorithm.MD5) -> Entry:
    return Entry("data/a", Digest(algorithm, GOOD), SIZE, executable, "data")


def seen(
    digest: bytes, before: FileState | None = PLAIN, after: FileState | None = PLAIN
) -> Observation:
    return Observation(digest, SIZE, before, after, None)


def failed(number: int, before: FileState | None = None) -> Observation:
    """Return a read that failed: at once, or, with a state, half way."""
    return Observation(None, 3 if before else 0, before, None, OSError(number, os.strerror(number)))


class Kind(NamedTuple):
    """One thing that a read can show, and what it proves when it is the last word."""

    observation: Observation
    proves: str


KINDS = {
    "good": Kind(seen(GOOD), "good"),
    "good, executable": Kind(seen(GOOD, RUNNABLE, RUNNABLE), "good"),
    "good, touched before": Kind(seen(GOOD, TOUCHED, TOUCHED), "good"),
    "good, no stat": Kind(seen(GOOD, None, None), "good"),
    "bad": Kind(seen(BAD), "differs"),
    "bad, executable": Kind(seen(BAD, RUNNABLE, RUNNABLE), "differs"),
    "bad, touched before": Kind(seen(BAD, TOUCHED, TOUCHED), "differs"),
    "bad, no stat": Kind(seen(BAD, None, None), "differs"),
    "worse": Kind(seen(WORSE), "differs"),
    "good, another size": Kind(seen(GOOD)._replace(size=SIZE + 1), "differs"),
    "good, unstable": Kind(seen(GOOD, PLAIN, TOUCHED), "unstable"),
    "bad, unstable": Kind(seen(BAD, PLAIN, TOUCHED), "unstable"),
    "missing": Kind(failed(errno.ENOENT), "missing"),
    "no folder": Kind(failed(errno.ENOTDIR), "missing"),
    "a folder": Kind(failed(errno.EISDIR), "no file"),
    "EIO": Kind(failed(errno.EIO), "unreadable"),
    "EIO half way": Kind(failed(errno.EIO, PLAIN), "unreadable"),
    "EACCES": Kind(failed(errno.EACCES), "unreadable"),
    "ELOOP": Kind(failed(errno.ELOOP), "unreadable"),
    "ESTALE": Kind(failed(errno.ESTALE), "unreadable"),
    "ENAMETOOLONG": Kind(failed(errno.ENAMETOOLONG), "unreadable"),
}

HINTS = {
    "nothing known": Hint(),
    "written": Hint(written=True, detail="written since"),
    "adopted": Hint(written=True, adopted=True, detail="adopted"),
    "not written": Hint(written=False, detail="nothing wrote it"),
}

STATUSES = {
    "unstable": Status.UNSTABLE,
    "missing": Status.MISSING,
    "unreadable": Status.UNREADABLE,
}


def expected_status(
    proves: str, last: Observation, hint: Hint, *, immutable: bool, executable: bool
) -> Status | None:
    """Return the status that the words of design.md ask for; None for a good file."""
    if proves in STATUSES:
        return STATUSES[proves]
    if proves == "no file":
        return Status.CORRUPT if immutable else Status.MODIFIED
    if proves == "differs":
        return Status.CORRUPT if immutable or hint.written is False else Status.MODIFIED
    lost = executable and not immutable and not has_execute_bit(last)
    return Status.MODIFIED if lost else None


ALL = list(
    product(
        KINDS,
        [None, *KINDS],
        HINTS,
        [False, True],
        [False, True],
    )
)


def test_every_combination_is_judged_by_its_last_read() -> None:
    """Status, digests and size follow from the last read, over all reads, hints and stores."""
    assert 21 * 22 * 4 * 2 * 2 == len(ALL)
    for first, second, hint_name, immutable, executable in ALL:
        case = (first, second, hint_name, immutable, executable)
        last, proves = KINDS[second or first]
        hint = HINTS[hint_name]
        wanted = entry(executable=executable)
        again = KINDS[second].observation if second else None
        finding = judge(
            wanted, KINDS[first].observation, again, lambda _, hint=hint: hint, immutable=immutable
        )
        status = expected_status(proves, last, hint, immutable=immutable, executable=executable)
        if status is None:
            assert finding is None or (Status.OK, True) == (finding.status, finding.transient), case
            continue
        assert finding is not None, case
        assert status is finding.status, case
        assert ("data/a", "data", wanted.digest) == (finding.path, finding.out, finding.expected)
        assert finding.transient is False
        found = Digest(Algorithm.MD5, last.digest) if last.digest else None
        assert (found, last.size if found else None) == (finding.found, finding.size), case
        assert finding.detail or (proves in ("differs", "missing") and not hint.detail), case


def test_good_is_said_only_of_equal_bytes() -> None:
    """No combination without the committed bytes in a stable last read is None or ``ok``."""
    for first, second, hint_name, immutable, executable in ALL:
        last = KINDS[second or first].observation
        finding = judge(
            entry(executable=executable),
            KINDS[first].observation,
            KINDS[second].observation if second else None,
            lambda _, name=hint_name: HINTS[name],
            immutable=immutable,
        )
        if finding is None or finding.status is Status.OK:
            assert (GOOD, SIZE, True, None) == (last.digest, last.size, last.stable, last.error)


def test_could_not_tell_is_neither_good_nor_corrupt() -> None:
    """``unreadable`` and ``unstable`` are said of exactly those last reads, in every store."""
    for first, second, hint_name, immutable, executable in ALL:
        proves = KINDS[second or first].proves
        finding = judge(
            entry(executable=executable),
            KINDS[first].observation,
            KINDS[second].observation if second else None,
            lambda _, name=hint_name: HINTS[name],
            immutable=immutable,
        )
        status = finding.status if finding else Status.OK
        for name in ("unreadable", "unstable"):
            assert (proves == name) is (status is STATUSES[name])


def test_the_same_arguments_give_the_same_finding() -> None:
    """The judgement is pure: asked twice, it says the same."""
    for first, second, hint_name, immutable, executable in ALL[::17]:
        arguments = (
            entry(executable=executable),
            KINDS[first].observation,
            KINDS[second].observation if second else None,
            lambda _, name=hint_name: HINTS[name],
        )
        assert judge(*arguments, immutable=immutable) == judge(*arguments, immutable=immutable)


def never(_: Digest | None) -> Hint:
    raise AssertionError("asked for a cause where there is no difference")


def test_a_cause_is_asked_for_only_if_there_is_a_difference() -> None:
    """Good, unreadable and unstable files cost no look into DVC's records."""
    for name, (observation, proves) in KINDS.items():
        if proves in ("good", "unreadable", "unstable", "no file"):
            judge(entry(), observation, observation, never)
        else:
            with pytest.raises(AssertionError, match="asked for a cause"):
                judge(entry(), observation, observation, never)
        assert name


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_cause_is_asked_with_what_was_found(algorithm: Algorithm) -> None:
    """The hint is looked up by the digest of the last read, in the expected algorithm."""
    asked: list[Digest | None] = []

    def explain(found: Digest | None) -> Hint:
        asked.append(found)
        return Hint()

    finding = judge(entry(algorithm=algorithm), seen(BAD), seen(WORSE), explain)
    judge(entry(algorithm=algorithm), failed(errno.ENOENT), None, explain)
    assert [Digest(algorithm, WORSE), None] == asked
    assert finding is not None
    assert Digest(algorithm, WORSE) == finding.found


# ----------------------------------------------------------------- transient errors


def transient(first: Observation, second: Observation, *, immutable: bool = False) -> bool:
    """Return whether a good second read is reported as a transient error."""
    finding = judge(entry(), first, second, never, immutable=immutable)
    if finding is None:
        return False
    expected = Finding(
        path="data/a",
        out="data",
        status=Status.OK,
        expected=entry().digest,
        found=entry().digest,
        size=SIZE,
        transient=True,
        detail=finding.detail,
    )
    assert expected == finding
    assert finding.detail
    return True


@pytest.mark.parametrize("immutable", [False, True])
def test_a_good_second_read_of_an_untouched_file_is_transient(immutable: bool) -> None:
    """Other bytes first and the committed ones then, nothing written between: hardware is named."""
    assert transient(seen(BAD), seen(GOOD), immutable=immutable)


def test_without_any_stat_a_good_second_read_is_transient() -> None:
    """A remote tells no times; its objects do not change, so the transfer is what failed."""
    assert transient(seen(BAD, None, None), seen(GOOD, None, None), immutable=True)


def test_a_file_that_was_put_right_between_the_reads_is_good() -> None:
    """A file written between the two reads blames no hardware."""
    assert not transient(seen(BAD), seen(GOOD, TOUCHED, TOUCHED))


def test_a_file_that_was_being_written_blames_no_hardware() -> None:
    """A first read during a write, and a good one after it, is no transient error."""
    assert not transient(seen(BAD, PLAIN, TOUCHED), seen(GOOD, TOUCHED, TOUCHED))


def test_two_good_reads_are_nothing_to_tell() -> None:
    """A good first read, or one that was merely unstable, gives no finding."""
    assert not transient(seen(GOOD), seen(GOOD))
    assert not transient(seen(GOOD, PLAIN, TOUCHED), seen(GOOD, TOUCHED, TOUCHED))


@pytest.mark.parametrize("before", [None, PLAIN])
def test_a_read_that_failed_once_is_transient(before: FileState | None) -> None:
    """EIO first and the committed bytes then is told, with the error: a device begins to fail."""
    first = failed(errno.EIO, before)
    assert transient(first, seen(GOOD))
    finding = judge(entry(), first, seen(GOOD), never)
    assert finding is not None
    assert os.strerror(errno.EIO) in finding.detail


def other_blocks(blocks: bytes, before: FileState = PLAIN, after: FileState = PLAIN) -> Observation:
    """Return a read by blocks that showed others than the recorded ones."""
    return Observation(None, SIZE, before, after, None, blocks, by_blocks=True)


@pytest.mark.parametrize("immutable", [False, True])
def test_other_blocks_once_are_transient(immutable: bool) -> None:
    """Blocks that the second read does not show again are told, though there was no digest."""
    first = other_blocks(b"B" * 32)
    for second in (seen(GOOD), seen(GOOD)._replace(blocks=b"G" * 32)):
        assert transient(first, second, immutable=immutable)
        finding = judge(entry(), first, second, never, immutable=immutable)
        assert finding is not None
        assert "a first read gave other blocks, a second one" in finding.detail


@pytest.mark.parametrize("immutable", [False, True])
def test_the_same_blocks_twice_are_a_wrong_record(immutable: bool) -> None:
    """Both reads showed the same bytes, and their digest is the committed one: nothing to tell."""
    second = seen(GOOD)._replace(blocks=b"B" * 32)
    assert not transient(other_blocks(b"B" * 32), second, immutable=immutable)


def test_other_blocks_of_a_file_that_was_written_blame_no_hardware() -> None:
    """A file that changed during the first read, or between the two, is good if the last is."""
    second = seen(GOOD, TOUCHED, TOUCHED)
    assert not transient(other_blocks(b"B" * 32, PLAIN, TOUCHED), second)
    assert not transient(other_blocks(b"B" * 32), second)


@pytest.mark.parametrize("immutable", [False, True])
def test_other_blocks_are_never_good_by_themselves(immutable: bool) -> None:
    """Whatever blocks were seen first, a second read of other bytes is damage, with its digest."""
    for blocks in (b"", b"B" * 32, b"W" * 32):
        second = seen(BAD)._replace(blocks=b"B" * 32)
        finding = judge(
            entry(), other_blocks(blocks), second, lambda _: Hint(), immutable=immutable
        )
        assert finding is not None
        expected = Status.CORRUPT if immutable else Status.MODIFIED
        assert (expected, Digest(Algorithm.MD5, BAD)) == (finding.status, finding.found)
        finding = judge(entry(), other_blocks(blocks), None, lambda _: Hint(), immutable=immutable)
        assert finding is not None
        assert expected is finding.status


# ----------------------------------------------------------------- details


def test_what_is_expected_is_digest_and_size() -> None:
    """Equal bytes have the digest, and the size where DVC records one; without a digest none do."""
    wanted = entry()
    assert is_expected(wanted, seen(GOOD))
    assert not is_expected(wanted, seen(BAD))
    assert not is_expected(wanted, seen(GOOD)._replace(size=SIZE - 1))
    assert is_expected(replace(wanted, size=None), seen(GOOD)._replace(size=SIZE - 1))
    for without in (replace(wanted, digest=None), replace(wanted, digest=None, size=None)):
        assert not is_expected(without, seen(GOOD))
        assert not is_expected(without, failed(errno.EIO))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_a_refusal_of_the_file_system_is_unreadable(number: int) -> None:
    """EINVAL or EPERM from the system says nothing about bytes: not ``corrupt``."""
    finding = judge(entry(), failed(number), failed(number), lambda _: Hint(), immutable=True)
    assert finding is not None
    assert Status.UNREADABLE is finding.status


@pytest.mark.parametrize(
    ("expected", "number"),
    [
        (True, errno.ENOENT),
        (True, errno.ENOTDIR),
        (False, errno.EACCES),
        (False, errno.EIO),
        (False, errno.EISDIR),
    ],
)
def test_absence_is_told_from_failure(expected: bool, number: int) -> None:
    """Only "no such file" and "not a folder" mean that nothing lies there."""
    assert expected is is_absent(OSError(number, "x"))
    assert not is_absent(None)


@pytest.mark.parametrize(
    ("expected", "mode"), [(True, 0o755), (True, 0o100), (False, 0o644), (False, 0o011)]
)
def test_the_execute_bit_is_that_of_the_owner(expected: bool, mode: int) -> None:
    """DVC records the owner's bit, so that one counts."""
    state = PLAIN._replace(mode=stat.S_IFREG | mode)
    assert expected is has_execute_bit(seen(GOOD, state, state))
    assert not has_execute_bit(failed(errno.EIO))


def test_a_lost_execute_bit_says_that_the_bytes_are_good() -> None:
    """The bytes are the committed ones, which the finding shows; the mode is what differs."""
    finding = judge(entry(executable=True), seen(GOOD), None, never)
    assert finding is not None
    assert (Status.MODIFIED, finding.expected) == (finding.status, finding.found)
    assert "executable" in finding.detail

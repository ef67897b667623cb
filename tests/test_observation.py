"""Observations as values and as columns say the same."""

from __future__ import annotations

import errno
import os
import stat

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvc_integrity.observation import (
    RECORD,
    FileState,
    Observation,
    Observations,
    SpecialFileError,
)

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SIGNED = st.integers(-(1 << 63), (1 << 63) - 1)
UNSIGNED = st.integers(0, (1 << 64) - 1)

PLAIN = FileState(1, 2, 5, 100, 100, stat.S_IFREG | 0o644)

ERRORS = [
    OSError(errno.EIO, os.strerror(errno.EIO)),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)),
    SpecialFileError(errno.EINVAL, "is a FIFO"),
    OSError("without a number"),
]

states = st.builds(FileState, SIGNED, SIGNED, SIGNED, SIGNED, SIGNED, st.integers(1, (1 << 32) - 1))


@st.composite
def observations(draw: st.DrawFn, by_blocks: bool) -> Observation:
    """Draw one of the things that a read can show: bytes, other blocks, or an error."""
    size = draw(st.integers(0, (1 << 63) - 1))
    before = draw(st.none() | states)
    after = draw(st.none() | st.just(before) | states)
    kind = draw(st.sampled_from(["digest", "blocks", "both", "error"]))
    if kind == "error":
        error = draw(st.sampled_from(ERRORS))
        return Observation(None, size, before, None, error, by_blocks=by_blocks)
    digest = None if kind == "blocks" else draw(st.binary(min_size=16, max_size=16))
    blocks = None if kind == "digest" else draw(st.integers(0, 3).map(lambda n: b"b" * 32 * n))
    return Observation(digest, size, before, after, None, blocks, by_blocks)


batches = st.booleans().flatmap(lambda by_blocks: st.lists(observations(by_blocks), max_size=8))


@law
@given(batches, st.data())
def test_values_come_back_from_columns(seen: list[Observation], data: st.DataObject) -> None:
    """Digests, sizes, states, errors and blocks survive, in order, with their positions."""
    positions = data.draw(st.permutations(range(len(seen))))
    batch = Observations.of(positions, seen)
    assert positions == batch.positions.tolist()
    assert seen == list(batch) == [batch[row] for row in range(len(batch))]
    assert [each.error for each in seen] == [each.error for each in batch]
    assert len(seen) == len(batch)


@law
@given(batches)
def test_columns_say_what_the_values_say(seen: list[Observation]) -> None:
    """Each column, row by row, is the field of the value; a batch is by blocks as a whole."""
    batch = Observations.of(range(len(seen)), seen)
    assert [each.digest or bytes(16) for each in seen] == [row.tobytes() for row in batch.digests]
    assert [each.size for each in seen] == batch.sizes.tolist()
    assert [each.after.mode if each.after else 0 for each in seen] == batch.modes.tolist()
    assert [each.digest is None for each in seen] == batch.failed.tolist()
    assert [each.stable for each in seen] == batch.stable.tolist()
    assert any(each.by_blocks for each in seen) == batch.by_blocks


@law
@given(st.tuples(UNSIGNED, UNSIGNED), st.tuples(UNSIGNED, UNSIGNED))
def test_numbers_of_64_bits_wrap_and_stay_apart(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    """Devices and inodes may use the 64th bit: as columns, they differ where they differed."""
    before = PLAIN._replace(device=one[0], inode=one[1])
    after = PLAIN._replace(device=other[0], inode=other[1])
    seen = Observation(b"D" * 16, 5, before, after, None)
    batch = Observations.of([0], [seen])
    assert (before == after) == seen.stable == batch[0].stable == bool(batch.stable[0])
    for was, now in ((before, batch[0].before), (after, batch[0].after)):
        assert now is not None
        assert (was.device % (1 << 64), was.inode % (1 << 64)) == (
            now.device % (1 << 64),
            now.inode % (1 << 64),
        )
        assert -(1 << 63) <= min(now) <= max(now) < 1 << 63


@pytest.mark.parametrize("field", FileState._fields)
def test_any_field_that_changed_makes_a_file_unstable(field: str) -> None:
    """Not one field of the state may differ between before and after."""
    after = PLAIN._replace(**{field: getattr(PLAIN, field) + 1})
    seen = [
        Observation(b"D" * 16, 5, PLAIN, PLAIN, None),
        Observation(b"D" * 16, 5, PLAIN, after, None),
        Observation(b"D" * 16, 5, PLAIN, None, None),
        Observation(b"D" * 16, 5, None, None, None),
    ]
    assert [True, False, False, True] == [each.stable for each in seen]
    assert [True, False, False, True] == Observations.of(range(4), seen).stable.tolist()


def test_a_read_without_a_digest_is_never_a_digest_of_zeros() -> None:
    """Other blocks than the recorded ones, and an error, are told from a file whose MD5 is 0."""
    seen = [
        Observation(bytes(16), 5, PLAIN, PLAIN, None),
        Observation(None, 5, PLAIN, PLAIN, None, b"b" * 32),
        Observation(None, 5, PLAIN, None, ERRORS[0]),
    ]
    batch = Observations.of([0, 1, 2], seen)
    assert [False, True, True] == batch.failed.tolist()
    assert [bytes(16), None, None] == [each.digest for each in batch]
    assert [None, None, ERRORS[0]] == [each.error for each in batch]
    assert [None, b"b" * 32, None] == [each.blocks for each in batch]


def test_an_empty_batch_is_empty() -> None:
    """No file, no row, in every column."""
    batch = Observations.of([], [])
    assert (0, [], False) == (len(batch), list(batch), batch.by_blocks)
    for column in (batch.digests, batch.sizes, batch.modes, batch.failed, batch.stable):
        assert 0 == len(column)


def test_the_states_of_real_files_are_kept(tmp_path: os.PathLike[str]) -> None:
    """``FileState.of`` takes the fields that tell whether a file was touched."""
    result = os.stat(tmp_path)
    state = FileState.of(result)
    assert (result.st_dev, result.st_ino, result.st_size) == state[:3]
    assert (result.st_mtime_ns, result.st_ctime_ns, result.st_mode) == state[3:]


def test_columns_given_directly_are_taken_as_they_are() -> None:
    """A kernel's rows: an error number, and the exception that goes with the row."""
    rows = np.zeros(2, RECORD)
    rows["digest"][0] = 7
    rows["error"][1] = errno.EIO
    batch = Observations(np.array([4, 9]), rows, {1: ERRORS[0]})
    assert ([4, 9], False) == (batch.positions.tolist(), batch.by_blocks)
    assert [
        Observation(b"\7" * 16, 0, None, None, None),
        Observation(None, 0, None, None, ERRORS[0]),
    ] == list(batch)

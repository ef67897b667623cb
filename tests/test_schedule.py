"""Which samples are hashed in which epoch: deterministic, and nothing is left out for long."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvc_integrity.schedule import Schedule, substitutes

GOLDEN = [709607, 696325, 756365]
"""A run that is resumed with a later version must find the same substitutes."""


@given(
    share=st.floats(0.01, 1),
    count=st.integers(1, 2000),
    first=st.integers(0, 1000),
    seed=st.integers(0, 1 << 40),
)
def test_every_sample_is_due_once_in_so_many_epochs(
    share: float, count: int, first: int, seed: int
) -> None:
    """In any ``ceil(1 / share)`` epochs in a row each sample is due exactly once."""
    schedule = Schedule.of(share, seed)
    epochs = math.ceil(1 / share)
    rows = np.arange(count)
    due = [schedule.due(rows, epoch) for epoch in range(first, first + epochs)]
    assert [1] * count == np.sum(due, axis=0).tolist()


def test_about_the_share_is_due_in_each_epoch() -> None:
    """The work is spread over the epochs, for consecutive rows too."""
    rows = np.arange(10_000)
    for epoch in range(10):
        assert 800 < Schedule.of(0.1).due(rows, epoch).sum() < 1200


def test_the_seed_and_nothing_else_chooses() -> None:
    """Equal seeds agree for any selection of rows; other seeds do not."""
    rows = np.arange(1000)
    one, same, other = (Schedule.of(0.25, seed).due(rows, 3) for seed in (7, 7, 8))
    assert one.tolist() == same.tolist() != other.tolist()
    assert one[::3].tolist() == Schedule.of(0.25, 7).due(rows[::3], 3).tolist()


@pytest.mark.parametrize("check", ["sometimes", "", 0, -0.5, 1.5, float("nan")])
def test_what_is_no_schedule_is_refused(check: str | float) -> None:
    """The message says what it may be."""
    with pytest.raises(ValueError, match="'always', 'once' or a share"):
        Schedule.of(check)


def test_the_promise_is_said_in_words() -> None:
    """A tenth is reached in ten epochs: unchecked at most nine times."""
    assert "at most 9 times" in Schedule.of(0.1).bound
    assert "each time" in Schedule.of("always").bound
    assert "first time" in Schedule.of("once").bound
    assert Schedule.of(1) == Schedule.of(1.0) == Schedule.of("always")


def test_substitutes_are_spread_and_never_the_sample_itself() -> None:
    """In range, all over the data, others for another seed, epoch and sample, for good the same."""
    tried = {
        (seed, epoch, index): list(substitutes(seed, epoch, index, 10))
        for seed in (-1, 0)
        for epoch in (0, 1)
        for index in range(10)
    }
    assert len(tried) == len(set(map(tuple, tried.values())))
    for (*_, index), others in tried.items():
        assert set(range(10)) - {index} == set(others)
    first = Counter(next(substitutes(0, 0, index, 10)) for index in range(10, 2010))
    assert all(150 < count < 250 for count in first.values())
    assert GOLDEN == list(islice(substitutes(1, 2, 3, 1_000_000), 3))
    assert [] == list(substitutes(0, 0, 0, 1))

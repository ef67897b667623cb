"""Exceptions travel between processes, and no name reaches a terminal raw."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dvc_integrity as di
from dvc_integrity.errors import printable

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CLASSES = [
    di.IntegrityError,
    di.RepositoryError,
    di.ManifestError,
    di.StoreError,
    di.NothingToVerify,
    di.CorruptDataError,
]

names = st.one_of(st.text(), st.binary().map(os.fsdecode))
"""File names as people, and as broken archives, make them."""


@pytest.mark.parametrize("kind", CLASSES)
def test_an_exception_is_rebuilt_from_its_text(kind: type[di.IntegrityError]) -> None:
    """``kind(str(error))``, a pickle and a copy keep the type and the message."""
    error = kind("what happened\nand what helps: 'x\udc80' {}")
    for again in (kind(str(error)), pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert kind is type(again)
        assert str(error) == str(again)
        assert error.args == again.args


@pytest.mark.parametrize("kind", CLASSES)
def test_a_dataloader_takes_an_exception_for_one_that_it_can_rebuild(
    kind: type[di.IntegrityError],
) -> None:
    """No class has a ``message`` of its own, and each can be made without arguments."""
    assert not hasattr(kind, "message")
    assert "" == str(kind())


@pytest.mark.parametrize("kind", CLASSES)
def test_one_base_and_no_valueerror(kind: type[di.IntegrityError]) -> None:
    """Everything raised on purpose is an IntegrityError, and nothing is a ValueError."""
    assert issubclass(kind, di.IntegrityError)
    assert not issubclass(kind, ValueError | OSError | StopIteration)


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("plain name.txt", "plain name.txt"),
        ("prüfung-测试-🙂.png", "prüfung-测试-🙂.png"),
        (r"red\x1b[31m", "red\x1b[31m"),
        (r"a\nb\r\tc", "a\nb\r\tc"),
        (r"nul\x00", "nul\0"),
        (r"bell\x07 del\x7f c1\x9b", "bell\x07 del\x7f c1\x9b"),
        (r"\u202egnp.exe", "\u202egnp.exe"),
        (r"\u2028line \u2029paragraph", "\u2028line \u2029paragraph"),
        (r"\ufeffbom", "\ufeffbom"),
        (r"\udc80\udcff", "\udc80\udcff"),
        (r"\udc80 é", b"\x80 \xc3\xa9"),
        (r"\x1b", b"\x1b"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(expected: str, name: str | bytes) -> None:
    """Control characters, line ends, overrides and stray bytes become escapes; text stays."""
    assert expected == printable(name)


@law
@given(names)
def test_any_name_prints_on_one_line(name: str) -> None:
    """A printable name holds nothing that is not printable, and encodes as UTF-8."""
    shown = printable(name)
    assert shown.isprintable()
    assert 1 >= len(shown.splitlines())
    assert shown == shown.encode().decode()
    assert shown == printable(shown)


@law
@given(st.text().filter(str.isprintable))
def test_a_harmless_name_stays_as_it_is(name: str) -> None:
    """Printable text comes out unchanged, also when it came as bytes."""
    assert name == printable(name) == printable(name.encode())

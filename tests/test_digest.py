"""A ``Digest`` is a claim about bytes: the same claim that hashlib, or DVC 2, would make."""

from __future__ import annotations

import hashlib
import os
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
from dvc_data.hashfile.hash import file_md5
from dvc_data.hashfile.istextfile import istextblock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dvc_integrity.digest import Algorithm, Digest, TextNormalizedMD5

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

BLOCK = TextNormalizedMD5.BLOCK_BYTES
SAMPLE = TextNormalizedMD5.SAMPLE_BYTES

LINE = b"a line of text\r\n"
EMPTY_HEX = "d41d8cd98f00b204e9800998ecf8427e"

values = st.binary(min_size=16, max_size=16)


def dvc2(data: bytes, folder: Path) -> str:
    """Return what dvc_data itself computes for a file with these bytes."""
    path = folder / "file"
    path.write_bytes(data)
    return str(file_md5(os.fspath(path), name="md5-dos2unix"))


def ours(data: bytes, algorithm: Algorithm = Algorithm.MD5_DOS2UNIX, piece: int = 0) -> str:
    """Return what the package computes, taking in ``piece`` bytes at a time (0: all at once)."""
    hasher = algorithm.hasher()
    for start in range(0, len(data), piece or len(data) or 1):
        hasher.update(data[start : start + (piece or len(data))])
    return hasher.digest().hex()


def sized(pattern: bytes, size: int) -> bytes:
    """Return ``size`` bytes of a repeated pattern."""
    return (pattern * (size // len(pattern) + 1))[:size]


@law
@given(st.binary(max_size=3000))
def test_md5_is_that_of_hashlib(data: bytes) -> None:
    """``md5`` is MD5 of the bytes as they are."""
    assert hashlib.md5(data).hexdigest() == ours(data, Algorithm.MD5)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\r\n", id="one line end"),
        pytest.param(b"\r", id="a lone CR"),
        pytest.param(LINE * 100, id="text"),
        pytest.param(LINE.replace(b"\r", b"") * 100, id="text with LF"),
        pytest.param("Zeile mit Umlauten: äöü\r\n".encode() * 20, id="mostly ASCII"),
        pytest.param("строка\r\n".encode() * 20, id="Cyrillic, thus binary"),
        pytest.param(bytes(range(256)) * 9 + LINE, id="binary"),
        pytest.param(b"\0" + LINE * 100, id="NUL first"),
        pytest.param(sized(LINE, SAMPLE - 1) + b"\0\r\n", id="NUL last in the sample"),
        pytest.param(sized(LINE, SAMPLE) + b"\0\r\n", id="NUL just behind the sample"),
        pytest.param(b"\x80" * 3 + b"a" * 5 + b"\r\n", id="exactly 30 % binary"),
        pytest.param(b"\x80" * 4 + b"a" * 5 + b"\r\n", id="just more than 30 % binary"),
        pytest.param(sized(LINE, SAMPLE - 1) + b"\r\n", id="CRLF across the sample's end"),
        pytest.param(sized(b"a", BLOCK - 1) + b"\r\nend\r\n", id="CRLF across two blocks"),
        pytest.param(sized(b"a", BLOCK) + b"\r\nend\r\n", id="CRLF first in the second block"),
        pytest.param(sized(LINE, BLOCK), id="exactly one block"),
        pytest.param(sized(LINE, 2 * BLOCK), id="exactly two blocks"),
        pytest.param(sized(LINE, BLOCK) + sized(b"\0\r\n", BLOCK) + LINE, id="text, binary, text"),
        pytest.param(sized(b"\0\r\n", BLOCK) + LINE * 3, id="binary, then text"),
    ],
)
@pytest.mark.parametrize("piece", [0, 1000, BLOCK - 1, BLOCK + 1])
def test_dos2unix_is_that_of_dvc(data: bytes, piece: int, tmp_path: Path) -> None:
    """``md5-dos2unix`` is what dvc_data computes, whatever pieces the bytes come in."""
    assert dvc2(data, tmp_path) == ours(data, piece=piece)


@law
@given(
    parts=st.lists(
        st.sampled_from([b"\r\n", b"\r", b"\n", b"a", b"\0", b"\x80\x81", LINE, LINE * 40]),
        max_size=30,
    ),
    filler=st.sampled_from([0, SAMPLE - 2, SAMPLE - 1, SAMPLE, BLOCK - 2, BLOCK - 1, BLOCK]),
    pattern=st.sampled_from([b"x", b"\r\n", b"x\r\n", b"\x80"]),
    cuts=st.lists(st.integers(0, BLOCK + 2000), max_size=6),
)
@example(parts=[b"\n"], filler=BLOCK - 1, pattern=b"\r\n", cuts=[BLOCK])
def test_dos2unix_does_not_depend_on_the_pieces(
    parts: list[bytes],
    filler: int,
    pattern: bytes,
    cuts: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bytes cut at any places give the digest that dvc_data gives for the whole file."""
    data = sized(pattern, filler) + b"".join(parts)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    hasher = Algorithm.MD5_DOS2UNIX.hasher()
    for start, stop in pairwise(places):
        hasher.update(memoryview(data)[start:stop])
    assert dvc2(data, tmp_path_factory.getbasetemp()) == hasher.digest().hex()


def test_the_two_algorithms_differ_on_text_with_crlf() -> None:
    """The comparison with dvc_data means something: CRLF is turned into LF in text, only there."""
    assert istextblock(LINE)
    assert hashlib.md5(LINE.replace(b"\r\n", b"\n")).hexdigest() == ours(LINE)
    assert ours(LINE, Algorithm.MD5) != ours(LINE)
    assert ours(b"\0" + LINE, Algorithm.MD5) == ours(b"\0" + LINE)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_asking_for_the_digest_ends_nothing(algorithm: Algorithm) -> None:
    """``digest()`` can be asked twice, and the hasher takes in more afterwards."""
    hasher = algorithm.hasher()
    hasher.update(b"\0one")
    assert hashlib.md5(b"\0one").digest() == hasher.digest() == hasher.digest()
    hasher.update(b"two")
    assert hashlib.md5(b"\0onetwo").digest() == hasher.digest()


@law
@given(st.sampled_from(Algorithm), values)
def test_the_text_of_a_digest_reads_back(algorithm: Algorithm, value: bytes) -> None:
    """``parse(str(digest))``, ``from_hex(digest.hex)`` and a pickle give the digest again."""
    digest = Digest(algorithm, value)
    assert digest == Digest.parse(str(digest))
    assert digest == Digest.from_hex(algorithm, digest.hex)
    assert digest == pickle.loads(pickle.dumps(digest))
    assert f"{algorithm.value}:{value.hex()}" == str(digest)


def test_digests_of_two_algorithms_are_never_equal() -> None:
    """The same 16 bytes are two claims under two algorithms."""
    md5 = Digest.from_hex(Algorithm.MD5, EMPTY_HEX)
    assert md5 != Digest.from_hex(Algorithm.MD5_DOS2UNIX, EMPTY_HEX)
    assert 2 == len({md5, Digest.from_hex(Algorithm.MD5_DOS2UNIX, EMPTY_HEX)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY_HEX[:-1],
        EMPTY_HEX[:-2],
        EMPTY_HEX + "00",
        EMPTY_HEX + ".dir",
        "g" + EMPTY_HEX[1:],
        " " + EMPTY_HEX[1:],
        EMPTY_HEX + "\n",
        "0x" + EMPTY_HEX[2:],
        "é" + EMPTY_HEX[1:],
        "\N{ARABIC-INDIC DIGIT ONE}" + EMPTY_HEX[1:],
        "\udc80" + EMPTY_HEX[1:],
    ],
)
def test_what_is_not_a_digest_is_refused(text: str) -> None:
    """``from_hex`` takes 32 hexadecimal digits and nothing else."""
    with pytest.raises(ValueError, match="digest"):
        Digest.from_hex(Algorithm.MD5, text)


@law
@given(st.text(max_size=40))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    """``from_hex`` gives a digest that says those digits, or raises ValueError."""
    try:
        digest = Digest.from_hex(Algorithm.MD5, text)
    except ValueError:
        return
    assert text.lower() == digest.hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY_HEX,
        f":{EMPTY_HEX}",
        f"MD5:{EMPTY_HEX}",
        f"sha256:{EMPTY_HEX * 2}",
        f"etag:{EMPTY_HEX}",
        f"md5 :{EMPTY_HEX}",
        f"md5::{EMPTY_HEX}",
        f"md5:{EMPTY_HEX}.dir",
        "md5:",
        "md5",
    ],
)
def test_a_claim_without_known_algorithm_and_digits_is_refused(text: str) -> None:
    """``parse`` takes what ``str`` writes and nothing else."""
    with pytest.raises(ValueError, match=r"digest|Algorithm"):
        Digest.parse(text)

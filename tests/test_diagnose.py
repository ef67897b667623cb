"""What kind of damage it is: counted exactly, named rightly, shown safely, and nothing changed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import itertools
import json
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree as ET

import faults
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import Project, listing, md5, object_path

import dvc_integrity.cli
from dvc_integrity import damage as measuring
from dvc_integrity.damage import CellKind, Content, Damage, DamageMap, compare
from dvc_integrity.diagnose import Context, Diagnosis, diagnose, examine
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import ManifestError, StoreError
from dvc_integrity.hashing import hash_buffers
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.matching import PARTS, find_matches, guess
from dvc_integrity.patterns import Elsewhere, Known, Match, Pattern, Version, match
from dvc_integrity.report import Finding, Status
from dvc_integrity.stores import Connection, ObjectStore, Workspace

PAGE, SECTOR, MIB = 4096, 512, 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that compress no further and repeat nowhere."""
    return random.Random(seed).randbytes(size)


def digest_of(data: bytes) -> Digest:
    """Return the MD5 of bytes."""
    return hash_buffers([data])[0]


def measure(bad: bytes, good: bytes) -> Damage:
    """Return what differs, after asserting that the digests are those of what was compared."""
    damage, found, proven = compare(Content.of_bytes(bad), Content.of_bytes(good))
    assert (digest_of(bad), digest_of(good)) == (found, proven)
    return damage


def matches_of(bad: bytes, good: bytes, known: Known | None = None) -> tuple[Match, ...]:
    """Return the patterns that bad bytes fit beside good ones."""
    pair = Content.of_bytes(bad), Content.of_bytes(good)
    return find_matches(*pair, measure(bad, good), known or Known())


def patterns_of(bad: bytes, good: bytes) -> list[str]:
    """Return their names, in order."""
    return [each.pattern.value for each in matches_of(bad, good)]


def first(bad: bytes, good: bytes) -> Match:
    """Return the pattern that is told first; it must explain everything."""
    found = matches_of(bad, good)[0]
    assert 1 == found.share
    return found


def put(data: bytes, at: int, piece: bytes) -> bytes:
    """Return bytes with a piece of them replaced."""
    return data[:at] + piece + data[at + len(piece) :]


def flip(data: bytes, at: int, mask: int = 1) -> bytes:
    """Return bytes with bits of one of them flipped."""
    return put(data, at, bytes([data[at] ^ mask]))


# Counting ----------------------------------------------------------------------------------------

SMALL = {
    "BLOCK_BYTES": 2 * PAGE,
    "MAP_CELLS": 6,
    "RANGES_KEPT": 5,
    "PAGES_KEPT": 3,
}
"""Limits that contents of a few pages reach."""

EDITS = st.lists(
    st.tuples(st.integers(0, 40_000), st.integers(0, 600), st.integers(0, 9)), max_size=8
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a content and the same with a few edits, zeroed stretches, and another length."""
    size = draw(st.integers(0, 5 * PAGE) | st.sampled_from([PAGE, 2 * PAGE, 4 * PAGE]))
    good = noise(size, draw(st.integers(0, 99)))
    if draw(st.booleans()):
        good = bytes(byte & 1 for byte in good)
    bad = bytearray(good)
    for at, length, seed in draw(EDITS):
        stretch = bad[at : at + length]
        bad[at : at + length] = noise(len(stretch), seed) if seed else bytes(len(stretch))
    if draw(st.booleans()):
        bad[draw(st.integers(0, size)) :] = noise(draw(st.integers(0, 3 * PAGE)), 7)
    return bytes(bad), good


def naive_ranges(positions: list[int]) -> list[list[int]]:
    """Join positions with fewer than 16 equal bytes between them."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and position - ranges[-1][1] < 16:
            ranges[-1][1] = position + 1
        else:
            ranges.append([position, position + 1])
    return ranges


@settings(max_examples=150, deadline=None)
@given(pair=pairs())
def test_what_differs_is_counted_exactly(pair: tuple[bytes, bytes]) -> None:
    """Bits, bytes, ranges, sectors, pages, blocks and zeros are what a loop over bytes counts."""
    bad, good = pair
    with patch.multiple(measuring, **SMALL):
        damage = measure(bad, good)
    common = min(len(bad), len(good))
    positions = [at for at in range(common) if bad[at] != good[at]]
    xors = [bad[at] ^ good[at] for at in positions]
    ranges = naive_ranges(positions)
    assert len(positions) == damage.bytes
    assert sum(xor.bit_count() for xor in xors) == damage.bits
    assert sum((bad[at] & ~good[at]).bit_count() for at in positions) == damage.bits_set
    assert [sum(xor >> bit & 1 for xor in xors) for bit in range(8)] == list(damage.flips)
    assert (positions or [None])[0] == damage.first
    assert (positions or [None])[-1] == damage.last
    assert ranges[:5] == [list(each) for each in damage.ranges]
    assert len(ranges) == damage.range_count
    assert len({at // SECTOR for at in positions}) == damage.sectors
    pages = sorted({at // PAGE for at in positions})
    assert (len(pages), pages[:3]) == (damage.pages, list(damage.page_numbers))
    assert len({at // (2 * PAGE) for at in positions}) == damage.blocks
    for unit, count in ((PAGE, damage.zeroed_pages), (SECTOR, damage.zeroed_sectors)):
        zero = [at for at in positions if not any(bad[:common][at // unit * unit :][:unit])]
        assert len(zero) == count
    assert sum(bad[at] == 0 for at in positions) == damage.zeroed
    apart = [later - earlier for earlier, later in itertools.pairwise(positions)]
    assert (divisor(apart) if apart else 0) == damage.stride
    assert (max(0, len(good) - common), max(0, len(bad) - common)) == (
        damage.lacking,
        damage.surplus,
    )


def divisor(numbers: list[int]) -> int:
    """Return the largest divisor of all numbers."""
    return max(each for each in range(1, min(numbers) + 1) if not any(n % each for n in numbers))


@settings(max_examples=150, deadline=None)
@given(pair=pairs(), cells=st.sampled_from([1, 2, 6, 256]))
def test_the_map_covers_exactly_what_differs(pair: tuple[bytes, bytes], cells: int) -> None:
    """Its cells follow each other over both contents, never too many, each counted exactly."""
    bad, good = pair
    with patch.multiple(measuring, BLOCK_BYTES=PAGE, MAP_CELLS=cells):
        damage = measure(bad, good)
    size, common = max(len(bad), len(good)), min(len(bad), len(good))
    differs = [at >= common or bad[at] != good[at] for at in range(size)]
    drawn = list(damage.cells())
    assert len(drawn) <= cells
    assert [0, *(cell.stop for cell in drawn)] == [*(cell.start for cell in drawn), size]
    for cell in drawn:
        assert sum(differs[cell.start : cell.stop]) == cell.differing
        assert (cell.differing > 0) == (cell.kind is not CellKind.GOOD)
        if cell.kind is CellKind.LACKS:
            assert cell.start >= len(bad)
        if cell.kind is CellKind.SURPLUS:
            assert cell.start >= len(good)


@pytest.mark.parametrize("start", [100, 2 * PAGE - 1, 2 * PAGE - 9])
@pytest.mark.parametrize(("gap", "count"), [(15, 1), (16, 2)])
def test_sixteen_equal_bytes_part_two_ranges(start: int, gap: int, count: int) -> None:
    """Fewer do not; and it is the same where a border of two pieces lies between."""
    bad = flip(flip(DATA, start), start + 1 + gap)
    with patch.multiple(measuring, **SMALL):
        assert count == measure(bad, DATA).range_count


def test_a_level_is_zero_only_where_nothing_differs() -> None:
    """One byte of a cell of many still shows, and only a full cell is full."""
    levels = {
        count: measuring.Cell(0, 100, count, CellKind.DIFFERS).level(4) for count in range(101)
    }
    assert {0} == {count for count, level in levels.items() if level == 0}
    assert (1, 1, 2, 4, 4) == tuple(levels[count] for count in (1, 25, 26, 99, 100))


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 3 * PAGE), seed=st.integers(0, 9), at=st.integers(0), bit=st.integers(0, 7)
)
def test_one_flipped_bit_is_always_a_single_bit(size: int, seed: int, at: int, bit: int) -> None:
    """Whatever the content, and wherever the bit is: that comes first, and explains everything."""
    good = noise(size, seed) if seed else bytes(size)
    bad = flip(good, at % size, 1 << bit)
    found = first(bad, good)
    assert Pattern.SINGLE_BIT is found.pattern
    assert f"bit {bit} of byte {at % size:,} (" in found.detail
    was = good[at % size] >> bit & 1
    assert f"is {1 - was} instead of {was}" in found.detail


@settings(max_examples=100, deadline=None)
@given(pair=pairs())
def test_whatever_differs_has_a_pattern_that_explains(pair: tuple[bytes, bytes]) -> None:
    """No damage is without a name, shares are shares, and they fall from first to last."""
    bad, good = pair
    found = matches_of(bad, good)
    assert (bad == good) == (not found)
    shares = [each.share for each in found]
    assert all(share is not None and 0 < share <= 1 for share in shares)
    assert sorted(shares, reverse=True) == shares
    assert len({each.pattern for each in found}) == len(found)
    assert all(each.detail and each.cause.endswith(".") and each.next for each in found)


# Patterns ----------------------------------------------------------------------------------------

TEXT = "".join(f"{number},Zürich,{number * 7}\n" for number in range(2000)).encode()
PLAIN = "".join(f"{number},Bern,{number * 7}\n" for number in range(2000)).encode()
DATA = noise(64 * PAGE)


def png(width: int, height: int, seed: int) -> bytes:
    """Return what begins as a PNG of some dimensions."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + noise(20_000 + seed, seed)


def jpeg(width: int, height: int, seed: int) -> bytes:
    """Return what begins as a JPEG of some dimensions, after a segment of metadata."""
    note = b"\xff\xe0" + struct.pack(">H", 16) + noise(14, seed)
    frame = b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width) + bytes(10)
    return b"\xff\xd8" + note + frame + noise(20_000 + seed, seed)


CASES: list[tuple[str, bytes, bytes, Pattern, str]] = [
    ("burst in a line", DATA, put(DATA, 6400, noise(40, 1)), Pattern.BURST,
     "it fits a cache line of 64 B, aligned: it lies in number 100"),
    ("a whole sector", DATA, put(DATA, 1024, bytes(b ^ 255 for b in DATA[1024:1536])),
     Pattern.BURST, "it fits a sector of 512 B, aligned: it is number 2"),
    ("burst across sectors", DATA, put(DATA, 500, noise(200, 2)), Pattern.BURST,
     "a sector of 512 B in length, and lies across two of them in a page of 4 KiB"),
    ("burst across pages", DATA, put(DATA, 4000, noise(300, 3)), Pattern.BURST,
     "it fits a sector of 512 B, but crosses the border of two pages"),
    ("two bits", DATA, flip(DATA, 70, 3), Pattern.BURST, "2 bits within 1 byte from byte 70"),
    ("zeroed page", DATA, put(DATA, 3 * PAGE, bytes(PAGE)), Pattern.ZEROED,
     "whole pages of 4 KiB are zero"),
    ("zeroed to the end", DATA, put(DATA, 60 * PAGE, bytes(4 * PAGE)), Pattern.ZEROED,
     "to 262,143, up to the end"),
    ("zeroed last short page", DATA[:-96], put(DATA[:-96], 63 * PAGE, bytes(PAGE - 96)),
     Pattern.ZEROED, "whole pages of 4 KiB are zero"),
    ("zeroed sector", DATA, put(DATA, 3 * PAGE + SECTOR, bytes(SECTOR)), Pattern.ZEROED,
     "whole sectors of 512 B are zero"),
    ("zeroed stretch", DATA, put(DATA, 3 * PAGE + 7, bytes(100)), Pattern.ZEROED,
     "100 bytes from byte 12,295 are zero, not whole sectors"),
    ("page before", DATA, put(DATA, 8 * PAGE, DATA[7 * PAGE : 8 * PAGE]), Pattern.REPEATED_PAGE,
     "page 8 holds what belongs into page 7, the one before it"),
    ("page from elsewhere", DATA, put(DATA, 8 * PAGE, DATA[40 * PAGE : 41 * PAGE]),
     Pattern.REPEATED_PAGE, "page 8 holds what belongs into page 40 (of 4 KiB)"),
    ("stuck line", bytes(64 * PAGE), b"".join(flip(bytes(PAGE), 8, 16) for _ in range(64)),
     Pattern.BIT_POSITION,
     "(all became 1), all a multiple of 4,096 bytes apart: the same bit of a 64-bit word"),
    ("same bit, both ways", b"\0\xff" * PAGE, flip(flip(flip(b"\0\xff" * PAGE, 0), 31), 62),
     Pattern.BIT_POSITION, "bit 0 flipped in 3 bytes, all a multiple of 31 bytes apart"),
    ("truncated anywhere", DATA, DATA[:777], Pattern.TRUNCATED, "no multiple of a page"),
    ("truncated at a page", DATA, DATA[: 3 * PAGE], Pattern.TRUNCATED,
     "the end of a page of 4 KiB: 3 pages"),
    ("truncated to nothing", DATA, b"", Pattern.TRUNCATED, "it is empty; 262,144 bytes lack"),
    ("one byte less", DATA, DATA[:-1], Pattern.TRUNCATED, "1 bytes lack"),
    ("line end added", TEXT[:-1], TEXT, Pattern.APPENDED, "a line end, as editors add it"),
    ("zeros added", DATA + b"x", DATA + b"x" + bytes(PAGE - 1), Pattern.APPENDED,
     "all zero: padding; the size is then whole pages"),
    ("written twice", DATA, DATA * 2, Pattern.APPENDED, "it was written a second time"),
    ("started over", DATA, DATA + DATA[:500], Pattern.APPENDED, "it was written a second time"),
    ("something added", DATA, DATA + b"log: done", Pattern.APPENDED, "9 bytes follow the end at"),
    ("to CRLF", TEXT, TEXT.replace(b"\n", b"\r\n"), Pattern.LINE_ENDINGS,
     "LF became CRLF in 2,000 lines; nothing else differs"),
    ("to LF", TEXT.replace(b"\n", b"\r\n"), TEXT, Pattern.LINE_ENDINGS,
     "CRLF became LF in 2,000 lines"),
    ("some to CRLF", TEXT, TEXT.replace(b"9\n", b"9\r\n"), Pattern.LINE_ENDINGS,
     "LF became CRLF in 200 lines"),
    ("mixed", b"a\r\nb\nc\n", b"a\nb\r\nc\n", Pattern.LINE_ENDINGS, "some LF became CRLF and some"),
    ("to Latin-1", TEXT, TEXT.decode().encode("latin-1"), Pattern.ENCODING,
     "the same text as Windows-1252 instead of UTF-8"),
    ("from Latin-1", TEXT.decode().encode("latin-1"), TEXT, Pattern.ENCODING,
     "the same text as UTF-8 instead of Windows-1252"),
    ("C1 controls", "a\x81é\n".encode("latin-1"), "a\x81é\n".encode(), Pattern.ENCODING,
     "the same text as UTF-8 instead of Latin-1"),
    ("encoded twice", TEXT, TEXT.decode("latin-1").encode(), Pattern.ENCODING,
     "UTF-8 was taken for Windows-1252 and encoded once more"),
    ("mark added", TEXT, codecs.BOM_UTF8 + TEXT, Pattern.ENCODING,
     "the same text as UTF-8 with a byte order mark instead of UTF-8"),
    ("mark lost", codecs.BOM_UTF8 + TEXT, TEXT, Pattern.ENCODING,
     "the same text as UTF-8 instead of UTF-8 with a byte order mark"),
    ("to UTF-16", PLAIN, PLAIN.decode().encode("utf-16"), Pattern.ENCODING,
     "the same text as UTF-16 instead of UTF-8"),
    ("to UTF-16 without mark", PLAIN, PLAIN.decode().encode("utf-16-be"), Pattern.ENCODING,
     "the same text as UTF-16 (big endian) instead of UTF-8"),
    ("to UTF-16 and CRLF", TEXT, TEXT.decode().replace("\n", "\r\n").encode("utf-16"),
     Pattern.ENCODING, "the same text as UTF-16 instead of UTF-8, and the line endings too"),
    ("gunzipped", gzip.compress(PLAIN), PLAIN, Pattern.DECOMPRESSED, "the good bytes are gzip"),
    ("un-xzed", lzma.compress(PLAIN), PLAIN, Pattern.DECOMPRESSED, "the good bytes are xz"),
    ("gzipped", PLAIN, gzip.compress(PLAIN), Pattern.COMPRESSED, "the bad bytes are gzip"),
    ("bzipped", PLAIN, bz2.compress(PLAIN), Pattern.COMPRESSED, "the bad bytes are bzip2"),
    ("gzipped twice", gzip.compress(PLAIN), gzip.compress(gzip.compress(PLAIN)),
     Pattern.COMPRESSED, "the bad bytes are gzip of the good ones"),
    ("gzipped anew", gzip.compress(PLAIN, mtime=1), gzip.compress(PLAIN, 1, mtime=2),
     Pattern.RECOMPRESSED, "both are gzip, and unpack to the same bytes"),
    ("xz instead", gzip.compress(PLAIN), lzma.compress(PLAIN), Pattern.RECOMPRESSED,
     "xz instead of gzip"),
    ("line inserted", PLAIN, put(PLAIN, 0, b"")[:3000] + b"extra\n" + PLAIN[3000:],
     Pattern.SHIFTED, "6 bytes were inserted at byte 3,00"),
    ("bytes gone", DATA, DATA[:1000] + DATA[1500:], Pattern.SHIFTED,
     "500 bytes at byte 1,000 are gone"),
    ("bytes replaced", DATA, DATA[:1000] + b"\0\1" * 400 + DATA[1500:], Pattern.SHIFTED,
     "bytes stand at byte 1,000 instead of 500"),
    ("torn write", DATA, noise(32 * PAGE, 5) + DATA[32 * PAGE :], Pattern.REGION,
     "131,072 bytes from byte 0 to 131,071, both borders at multiples of a page of 4 KiB"),
    ("lost block", noise(3 * MIB), put(noise(3 * MIB), MIB, noise(MIB, 6)), Pattern.REGION,
     "both borders at multiples of blocks of 1 MiB"),
    ("unaligned region", DATA, put(DATA, 5001, noise(9000, 6)), Pattern.REGION,
     "9,000 bytes from byte 5,001 to 14,000"),
    ("another PNG", png(640, 480, 1), png(640, 480, 2), Pattern.REENCODED_IMAGE,
     "both are PNG of 640 x 480 pixels"),
    ("another JPEG", jpeg(1024, 768, 1), jpeg(1024, 768, 2), Pattern.REENCODED_IMAGE,
     "both are JPEG of 1,024 x 768 pixels"),
    ("a PNG of another size", png(640, 480, 1), png(64, 48, 2), Pattern.WHOLLY_DIFFERENT, "differ"),
    ("a JPEG without frame", b"\xff\xd8\xff" + DATA, b"\xff\xd8\xff" + noise(len(DATA), 9),
     Pattern.WHOLLY_DIFFERENT, "of the bytes differ"),
    ("an error page", gzip.compress(PLAIN), b"<!DOCTYPE html>" + noise(9999),
     Pattern.WHOLLY_DIFFERENT,
     "the bad bytes begin like an HTML page (an error page of a server?), the good ones like gzip"),
    ("other bytes", DATA, noise(len(DATA), 8), Pattern.WHOLLY_DIFFERENT,
     "99.6% of the bytes differ"),
    ("other bytes instead of none", b"", DATA, Pattern.WHOLLY_DIFFERENT, "100.0% of the bytes"),
    ("a few bytes", b"alpha", b"bravo", Pattern.WHOLLY_DIFFERENT, "100.0% of the bytes"),
    ("scattered", DATA, flip(flip(flip(DATA, 0, 5), 9000, 6), 200_000, 9), Pattern.SCATTERED,
     "3 bytes in 3 places"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("good", "bad", "pattern", "words"),
    [each[1:] for each in CASES],
    ids=[each[0] for each in CASES],
)
def test_damage_is_named(good: bytes, bad: bytes, pattern: Pattern, words: str) -> None:
    """Each kind of damage comes first under its name, explains everything, and says how."""
    assert good != bad
    found = first(bad, good)
    assert pattern is found.pattern
    assert words in found.detail


@pytest.mark.parametrize(("part", "whose"), PARTS.items())
def test_a_boundary_of_a_multipart_transfer_is_named(part: int, whose: str, tmp_path: Path) -> None:
    """A file that ends after three parts says how many of which size, and whose default it is."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    for path, size in ((bad, 3 * part), (good, 3 * part + 1)):
        with path.open("wb") as file:
            file.truncate(size)
    with Content.of_file(os.fspath(bad)) as theirs, Content.of_file(os.fspath(good)) as ours:
        with patch.object(Algorithm, "hasher", lambda _: NoHasher()):
            damage, _, _ = compare(theirs, ours)
        (found,) = find_matches(theirs, ours, damage, Known())
    assert Pattern.TRUNCATED is found.pattern
    assert f"3 parts of {part // MIB} MiB ({whose})" in found.detail


class NoHasher:
    """Hashes nothing: a test about lengths need not wait for MD5."""

    def update(self, data: bytes) -> None:
        """Take in nothing."""

    def digest(self) -> bytes:
        """Return a digest of nothing."""
        return bytes(16)


def test_a_part_smaller_than_any_default_is_a_multiple_of_a_mebibyte() -> None:
    """An end that no default explains is still told to be round."""
    good = noise(3 * MIB + 5)
    assert "a multiple of 1 MiB: 3" in first(good[: 3 * MIB], good).detail


def test_two_kinds_of_damage_are_told_apart_by_their_shares() -> None:
    """A truncated file with a zeroed page has both, each with its share, and no third."""
    bad = put(DATA, 3 * PAGE, bytes(PAGE))[: 60 * PAGE]
    found = matches_of(bad, DATA)
    assert ["truncated", "zeroed"] == [each.pattern.value for each in found][:2]
    assert 1 == pytest.approx(sum(each.share for each in found[:2]))
    assert "region" not in [each.pattern.value for each in found]


def test_a_zeroed_page_and_a_flip_elsewhere_are_both_explained() -> None:
    """The zeros explain their part; what remains is described as well."""
    bad = flip(put(DATA, 3 * PAGE, bytes(PAGE)), 40 * PAGE)
    shares = {each.pattern: each.share for each in matches_of(bad, DATA)}
    assert 0.99 < shares[Pattern.ZEROED] < 1
    assert 1 == shares[Pattern.SCATTERED]


def test_the_page_before_is_preferred_as_the_origin_of_a_copy() -> None:
    """Where several pages hold the same, the nearest cause is named."""
    good = put(DATA, 2 * PAGE, DATA[7 * PAGE : 8 * PAGE])
    good = put(good, 50 * PAGE, DATA[7 * PAGE : 8 * PAGE])
    bad = put(good, 8 * PAGE, DATA[7 * PAGE : 8 * PAGE])
    assert "page 8 holds what belongs into page 7, the one" in first(bad, good).detail


def test_many_repeated_pages_are_counted() -> None:
    """Three are named, the others counted."""
    bad = DATA[: 8 * PAGE] + DATA[:PAGE] * 10 + DATA[18 * PAGE :]
    detail = next(m for m in matches_of(bad, DATA) if m.pattern is Pattern.REPEATED_PAGE).detail
    assert "page 10 holds what belongs into page 0; and 7 pages more (of 4 KiB)" in detail


def test_a_page_of_one_byte_is_no_copy_of_another() -> None:
    """A page of 0xff is like many; that tells nothing of where it came from."""
    good = put(DATA, 40 * PAGE, b"\xff" * PAGE)
    bad = put(good, 8 * PAGE, b"\xff" * PAGE)
    assert ["burst"] == patterns_of(bad, good)


def test_a_broken_archive_is_not_taken_for_another_packing() -> None:
    """Bytes that do not unpack, or unpack to something else, are no re-encoding."""
    good = gzip.compress(noise(9000))
    for bad in (flip(good, 5000, 3), good[:4000], gzip.compress(noise(9000, 1))):
        assert not {"recompressed", "compressed", "decompressed"} & {*patterns_of(bad, good)}


def test_text_of_another_content_is_no_other_encoding() -> None:
    """One more word in another encoding is not the same text."""
    for other in ("Bern", "Genf"):
        bad = TEXT.decode().replace("Zürich", f"{other}é").encode("latin-1")
        assert "encoding" not in patterns_of(bad, TEXT)


@pytest.mark.parametrize("cut", range(8))
def test_streams_are_compared_across_their_pieces(cut: int) -> None:
    """A CRLF or a character on the border of two pieces is one all the same."""
    text = "ä\n" * 40
    with patch("dvc_integrity.damage.BLOCK_BYTES", 8):
        good = b"x" * cut + text.encode()
        assert "LF became CRLF in 40 lines" in first(good.replace(b"\n", b"\r\n"), good).detail
        wide = ("x" * cut + text.replace("\n", "\r\n")).encode("utf-16")
        assert Pattern.ENCODING is first(wide, good).pattern


def test_what_is_known_about_the_digest_comes_first() -> None:
    """Another version and another path explain everything, whatever else fits."""
    bad = noise(len(DATA), 3)
    version = Version("c0ffee" * 7, "2026-01-02T03:04:05+00:00", "Add \x1b[31mred", digest_of(bad))
    elsewhere = (Elsewhere("b.bin", True), Elsewhere("c.bin", False), Elsewhere("d\n.bin", None),
                 Elsewhere("e.bin", None))  # fmt: skip
    older, swapped = matches_of(bad, DATA, Known(elsewhere, version))
    assert (Pattern.OLDER_VERSION, Pattern.SWAPPED) == (older.pattern, swapped.pattern)
    assert 'commit c0ffeec0ffee (2026-01-02, "Add \\x1b[31mred")' in older.detail
    assert "'b.bin' (which holds the bytes of this path: the two were exchanged)" in swapped.detail
    assert "'c.bin' (which does not hold" in swapped.detail
    assert r"'d\n.bin' and 1 paths more" in swapped.detail


def test_an_empty_file_is_not_swapped_with_every_other_empty_file() -> None:
    """All empty files are alike; that one is empty tells of a write that failed."""
    (found,) = matches_of(b"", DATA, Known((Elsewhere("empty", False),)))
    assert Pattern.TRUNCATED is found.pattern
    assert "created and never written" in found.cause


def test_every_pattern_has_a_cause_and_a_next_step() -> None:
    """People are told what usually does it, and what to check next, in whole sentences."""
    for pattern in Pattern:
        found = match(pattern, 1, "detail")
        assert found.cause.endswith(".")
        assert found.next.endswith(".")
        assert set(found.to_json()) == {"pattern", "share", "detail", "cause", "next"}


# Without a good copy -----------------------------------------------------------------------------


def guesses(bad: bytes, good: bytes, size: int | None = None) -> dict[Pattern, Match]:
    """Return what is told of bad bytes alone."""
    found = guess(Content.of_bytes(bad), digest_of(good), size, Known())
    return {each.pattern: each for each in found}


@pytest.mark.parametrize(
    ("bad", "good", "pattern", "words"),
    [
        (TEXT.replace(b"\n", b"\r\n"), TEXT, Pattern.LINE_ENDINGS, "LF became CRLF"),
        (TEXT, TEXT.replace(b"\n", b"\r\n"), Pattern.LINE_ENDINGS, "CRLF became LF"),
        (codecs.BOM_UTF8 + TEXT, TEXT, Pattern.ENCODING, "UTF-8 with a byte order mark"),
        (TEXT.decode().encode("utf-16"), TEXT, Pattern.ENCODING, "UTF-16"),
        (TEXT.decode().encode("latin-1"), TEXT, Pattern.ENCODING, "Windows-1252"),
        (gzip.compress(DATA), DATA, Pattern.COMPRESSED, "gzip"),
        (DATA + b"more", DATA, Pattern.APPENDED, "4 bytes follow the end"),
    ],
)
def test_the_committed_digest_proves_what_was_done(
    bad: bytes, good: bytes, pattern: Pattern, words: str
) -> None:
    """Without a good copy, what undoes the damage is tried, and its digest is the proof."""
    found = guesses(bad, good, len(good))[pattern]
    assert 1 == found.share
    assert words in found.detail


def test_what_is_short_or_has_zero_pages_is_told_without_a_share() -> None:
    """Size and zeros are hints: how much they explain only a good copy could tell."""
    bad = put(DATA, 2 * PAGE, bytes(PAGE))[: 60 * PAGE] + bytes(2 * PAGE)
    found = guesses(bad, DATA, len(DATA))
    assert {Pattern.TRUNCATED, Pattern.ZEROED} == set(found)
    assert (None, None) == tuple(each.share for each in found.values())
    assert "3 pages of 4 KiB hold only zeros, the last 2 of them at the end" in (
        found[Pattern.ZEROED].detail
    )


def test_nothing_is_told_where_nothing_is_known() -> None:
    """Other bytes of the right size, or of an unknown one, have no pattern without a good copy."""
    assert {} == guesses(noise(9000), DATA, 9000)
    assert {} == guesses(noise(9000), DATA)
    assert {} == guesses(DATA + b"x", noise(500, 1), 500)


# The diagnosis -----------------------------------------------------------------------------------


def context_of(bad: bytes, good: bytes) -> Context:
    """Return a context in which nothing else is known."""
    finding = Finding(
        "a", "a", Status.CORRUPT, digest_of(good), digest_of(bad), len(bad), ranges=((0, 1),)
    )
    return Context("0" * 40, "cache", finding, len(good), "remote:r", notes=("a note",))


def test_a_diagnosis_is_a_document() -> None:
    """Its members are those of the reference, with numbers as JSON has them."""
    bad = flip(DATA, 70_000, 8)
    diagnosis = diagnose(Content.of_bytes(bad), Content.of_bytes(DATA), context_of(bad, DATA))
    document = diagnosis.to_json()
    damage = document.pop("damage")
    (pattern,) = document.pop("patterns")
    assert {
        "schema": "dvc-integrity/diagnosis/1",
        "rev": "0" * 40,
        "store": "cache",
        "path": "a",
        "out": "a",
        "status": "corrupt",
        "expected": str(digest_of(DATA)),
        "found": str(digest_of(bad)),
        "size": len(bad),
        "transient": False,
        "adopted": False,
        "detail": "",
        "good_copy": "remote:r",
        "notes": ["a note"],
    } == document
    assert ("single-bit", 1) == (pattern["pattern"], pattern["share"])
    cells = damage.pop("map")
    assert {"cell_bytes": 1024, "cells": [int(at == 68) for at in range(256)]} == cells
    assert {
        "bad_bytes": len(DATA), "good_bytes": len(DATA), "bits": 1, "bytes": 1,
        "bits_set": int(DATA[70_000] & 8 == 0), "lacking": 0, "surplus": 0, "first": 70_000,
        "last": 70_000, "flips": [0, 0, 0, 1, 0, 0, 0, 0], "stride": 0, "sectors": 1, "pages": 1,
        "blocks": 1, "range_count": 1, "ranges": [[70_000, 70_001]],
    } == damage  # fmt: skip


def test_contents_that_are_not_those_of_the_context_are_refused() -> None:
    """Reads that differ from the first ones say nothing about the damage at rest."""
    bad = flip(DATA, 5)
    context = context_of(bad, DATA)
    for pair in ((flip(DATA, 6), DATA), (bad, flip(DATA, 9))):
        with pytest.raises(StoreError, match="suspect the memory, the cable or the controller"):
            diagnose(*map(Content.of_bytes, pair), context)
    with pytest.raises(ValueError, match="takes the digests"):
        diagnose(Content.of_bytes(b""), None, Context("", "", Finding("a", "a", Status.MISSING)))


# Contents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 10, 1 << 20])
def test_a_stream_is_kept_in_memory_or_in_a_file_without_a_name(limit: int, tmp_path: Path) -> None:
    """Large or small, its bytes can be read at any place, and nothing is left behind."""
    scratch = tmp_path / "scratch"
    with (
        patch.object(measuring, "IN_MEMORY_BYTES", limit),
        Content.of_stream(iter([b"abc", b"", b"defghijk"]), os.fspath(scratch)) as content,
    ):
        assert (11, b"cde") == (content.size, content.read_at(2, 3))
        assert [b"abcdefghijk"] == list(content.chunks())
        assert [b"bc"] == list(content.chunks(1, 3))
        assert b"jk" == content.read_at(9, 99)
        assert b"" == content.read_at(99, 1)
        assert content.stable
        assert not scratch.exists() or not list(scratch.iterdir())
        assert (limit < 11) == scratch.exists()


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    """The error comes through, and no file stays open or behind."""

    def broken() -> itertools.chain[bytes]:
        yield bytes(20)
        raise OSError(5, "gone")

    with patch.object(measuring, "IN_MEMORY_BYTES", 1), pytest.raises(OSError, match="gone"):
        Content.of_stream(broken(), os.fspath(tmp_path))
    assert [] == list(tmp_path.iterdir())


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """It is not stable any more, and what is gone from it is an error."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with Content.of_file(os.fspath(path)) as content:
        assert content.stable
        faults.truncate(path, 100)
        assert not content.stable
        assert DATA[:100] == content.read_at(0, 100)
        with pytest.raises(OSError, match="became shorter"):
            content.read_at(0, 101)


MEASURED = """\
import resource, sys
from dvc_integrity.damage import Content, compare
from dvc_integrity.matching import find_matches, guess
from dvc_integrity.patterns import Known

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Content.of_file(sys.argv[1]) as bad, Content.of_file(sys.argv[2]) as good:
    damage, found, _ = compare(bad, good)
    for each in find_matches(bad, good, damage, Known()):
        print(each.pattern.value)
    assert len(damage.map.cells) <= 256
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

MOST_KIB = 64 << 10
"""Memory that comparing may take: some pieces, far less than a file."""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 2 GiB takes a few MiB, whatever of it differs."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    for path, size in ((bad, 2 << 30), (good, 1 << 29)):
        with path.open("wb") as file:
            file.truncate(size)
    with bad.open("r+b") as file:
        file.seek(1 << 28)
        file.write(noise(PAGE * 3))
        file.seek(1 << 27)
        file.write(b"\1" * MIB)
    command = [sys.executable, "-c", MEASURED, os.fspath(bad), os.fspath(good)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (0, "") == (done.returncode, done.stderr)
    *patterns, grown = done.stdout.split()
    assert ["appended", "scattered"] == patterns
    assert int(grown) < MOST_KIB


# Examining a store -------------------------------------------------------------------------------


def manifest_of(files: dict[str, bytes]) -> Manifest:
    """Return what some files must be."""
    builder = ManifestBuilder("0" * 40)
    for path, data in files.items():
        builder.add_out(Out(path, digest=digest_of(data), size=len(data)))
        builder.add_entry(path, digest_of(data), len(data))
    return builder.build()


def far_away(name: str, objects: list[bytes]) -> ObjectStore:
    """Return a remote that is no path of this machine."""
    filesystem = MemoryFileSystem()
    connection = Connection(filesystem, f"/{name}", local=False)
    for data in objects:
        filesystem.pipe(connection.locate(digest_of(data)), data)
    return ObjectStore(f"remote:{name}", lambda: connection, lambda _: True)


def look(
    root: Path,
    files: dict[str, bytes],
    store: Workspace | ObjectStore,
    *sources: Workspace | ObjectStore,
    everything: Callable[[], Manifest] | None = None,
) -> Diagnosis:
    """Examine the first of some files."""
    manifest = manifest_of(files)
    return examine(
        manifest,
        0,
        store,
        sources=sources,
        scratch=os.fspath(root / "scratch"),
        everything=everything or (lambda: manifest),
        versions=lambda _: (),
    )


def test_a_good_copy_is_taken_from_a_remote_that_is_far_away(tmp_path: Path) -> None:
    """The first proven one: an absent, a damaged and an unreachable source are passed over."""
    (tmp_path / "a").write_bytes(flip(DATA, 9))
    damaged = far_away(f"{tmp_path.name}-damaged", [])
    place = damaged._connected().locate(digest_of(DATA))
    damaged._connected().filesystem.pipe(place, DATA[:-1])

    def unreachable() -> Connection:
        raise StoreError("no route")

    sources = [
        far_away(f"{tmp_path.name}-empty", []),
        damaged,
        ObjectStore("remote:unreachable", unreachable, lambda _: True),
        far_away(f"{tmp_path.name}-good", [DATA]),
    ]
    workspace = Workspace(os.fspath(tmp_path))
    with patch.object(measuring, "IN_MEMORY_BYTES", 1):
        diagnosis = look(tmp_path, {"a": DATA}, workspace, *sources)
    assert (Pattern.SINGLE_BIT, f"remote:{tmp_path.name}-good") == (
        diagnosis.matches[0].pattern,
        diagnosis.good_copy,
    )
    assert [] == list((tmp_path / "scratch").iterdir())
    without = look(tmp_path, {"a": DATA}, workspace, *sources[:3])
    assert without.damage is None
    (note,) = without.notes
    assert "empty: absent;" in note
    assert "damaged: damaged too; remote:unreachable: no route" in note


def test_a_bad_object_of_a_remote_is_held_to_the_workspace(tmp_path: Path) -> None:
    """The store that is diagnosed is no source, the work tree is one."""
    (tmp_path / "a").write_bytes(DATA)
    remote = far_away(tmp_path.name, [])
    connection = remote._connected()
    connection.filesystem.pipe(connection.locate(digest_of(DATA)), DATA[: 3 * PAGE])
    diagnosis = look(tmp_path, {"a": DATA}, remote, remote, Workspace(os.fspath(tmp_path)))
    assert ("workspace", Status.CORRUPT) == (diagnosis.good_copy, diagnosis.finding.status)
    assert Pattern.TRUNCATED is diagnosis.matches[0].pattern


def test_good_bytes_are_no_damage(tmp_path: Path) -> None:
    """Nothing is compared or looked up for a good file."""
    (tmp_path / "a").write_bytes(DATA)

    def never() -> Manifest:
        raise AssertionError

    diagnosis = look(tmp_path, {"a": DATA}, Workspace(os.fspath(tmp_path)), everything=never)
    assert (Status.OK, None, ()) == (
        diagnosis.finding.status,
        diagnosis.damage,
        diagnosis.matches,
    )


def test_what_cannot_be_looked_up_is_a_note(tmp_path: Path) -> None:
    """Metadata that cannot be read takes nothing from the rest of the diagnosis."""
    (tmp_path / "a").write_bytes(flip(DATA, 9))

    def broken() -> Manifest:
        raise ManifestError("broken")

    workspace, source = Workspace(os.fspath(tmp_path)), far_away(tmp_path.name, [DATA])
    diagnosis = look(tmp_path, {"a": DATA}, workspace, source, everything=broken)
    assert Pattern.SINGLE_BIT is diagnosis.matches[0].pattern
    assert ("Whether another path is to have these bytes is not known: broken",) == diagnosis.notes


def test_a_file_that_is_written_meanwhile_is_refused(tmp_path: Path) -> None:
    """What changed while it was compared says nothing."""
    path = tmp_path / "a"
    path.write_bytes(flip(DATA, 9))

    def touch() -> Manifest:
        os.utime(path, ns=(1, 1))
        return manifest_of({"a": DATA})

    workspace, source = Workspace(os.fspath(tmp_path)), far_away(tmp_path.name, [DATA])
    with pytest.raises(StoreError, match="was written while it was read"):
        look(tmp_path, {"a": DATA}, workspace, source, everything=touch)


def test_many_paths_with_the_digest_are_bounded(tmp_path: Path) -> None:
    """Of a thousand copies a hundred are kept, and three read."""
    (tmp_path / "a").write_bytes(DATA)
    good = noise(500)
    files = {"a": good, **{f"copy{number:04}": DATA for number in range(1000)}}
    workspace, source = Workspace(os.fspath(tmp_path)), far_away(tmp_path.name, [good])
    everything = manifest_of(files)
    diagnosis = look(tmp_path, {"a": good}, workspace, source, everything=lambda: everything)
    assert diagnosis.matches[0].detail.endswith("'copy0001', 'copy0002' and 97 paths more")


def test_the_values_are_frozen() -> None:
    """Nobody changes a diagnosis, its damage or its map."""
    damage = measure(b"a", b"b")
    for value, name in (
        (damage, "bits"),
        (DamageMap(1, (1,)), "cells"),
        (match(Pattern.BURST, 1, ""), "share"),
        (Diagnosis("", "", Finding("a", "a", Status.OK)), "damage"),
    ):
        with pytest.raises(AttributeError):
            setattr(value, name, None)
    assert hashlib.md5(b"a").digest() == digest_of(b"a").value


# The command line, on real projects --------------------------------------------------------------

KEYS = {
    "schema", "rev", "store", "path", "out", "status", "expected", "found", "size", "transient",
    "adopted", "detail", "good_copy", "damage", "patterns", "notes",
}  # fmt: skip

OSC = "\x1b]0;owned\x07"
"""Sets a terminal's title if it gets there raw."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left behind."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Return the one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def patterns(self) -> list[str]:
        """Return the patterns of the document."""
        return [each["pattern"] for each in self.document["patterns"]]


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs ``dvc-integrity diagnose`` in this process, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dvc-integrity", "diagnose", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            dvc_integrity.cli.main()
        said = capsys.readouterr()
        return Outcome(ended.value.code, said.out, said.err)

    return call


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a file, a folder and a local remote that has both."""
    remote = project.top.parent / "remote"
    project.dvc("remote", "add", "--default", "store", os.fspath(remote))
    project.add("one.bin", {"one.bin": DATA})
    project.add("data", {"data/a.bin": noise(PAGE, 1), "data/b.bin": noise(PAGE, 2)})
    project.commit("Add data")
    project.dvc("push")
    return project


def cached(project: Project, data: bytes, store: str = "cache") -> Path:
    """Return where the cache, or the remote, keeps an object."""
    folder = project.cache if store == "cache" else project.top.parent / "remote"
    return object_path(folder, md5(data))


def test_a_single_file_and_one_in_a_folder_are_diagnosed(tracked: Project, run: Run) -> None:
    """Each is held to the copy in the cache; the document has the members of the reference."""
    faults.flip_bit(tracked.root / "one.bin", 5000, 3)
    faults.zero_page(tracked.root / "data" / "b.bin")
    one, other = run("one.bin", "--json"), run("data/b.bin", "--json")
    assert (1, 1) == (one.status, other.status)
    assert set(one.document) == KEYS
    assert (["single-bit"], "cache") == (one.patterns, one.document["good_copy"])
    assert "zeroed" == other.patterns[0]
    assert [[5000, 5001]] == one.document["damage"]["ranges"]
    assert ("corrupt", "corrupt") == (one.document["status"], other.document["status"])


@pytest.mark.parametrize(("store", "good_copy"), [("cache", "workspace"), ("remote", "cache")])
def test_objects_of_the_cache_and_of_a_remote_are_diagnosed(
    tracked: Project, run: Run, store: str, good_copy: str
) -> None:
    """A bad object is held to the first place that has good bytes."""
    faults.truncate(cached(tracked, DATA, store), 3 * PAGE)
    outcome = run("one.bin", "--store", store, "--json")
    assert (1, ["truncated"]) == (outcome.status, outcome.patterns)
    assert good_copy == outcome.document["good_copy"]


def test_a_remote_serves_where_workspace_and_cache_are_bad(tracked: Project, run: Run) -> None:
    """A link to a damaged object of the cache is damaged with it; the remote's copy is proven."""
    faults.flip_bit(tracked.root / "one.bin", 5000)
    faults.flip_bit(cached(tracked, DATA), 5000)
    outcome = run("one.bin", "--json")
    assert ("remote:store", ["single-bit"]) == (outcome.document["good_copy"], outcome.patterns)


def test_swapped_files_name_each_other(tracked: Project, run: Run) -> None:
    """Each names the path whose bytes it has, and that this one has its own."""
    faults.swap(tracked.root / "data" / "a.bin", tracked.root / "data" / "b.bin")
    for path, other in (("data/a.bin", "data/b.bin"), ("data/b.bin", "data/a.bin")):
        outcome = run(path, "--json")
        assert ["swapped"] == outcome.patterns
        detail = outcome.document["patterns"][0]["detail"]
        assert f"'{other}' (which holds the bytes of this path: the two were exchanged)" in detail


def test_a_copy_of_another_file_is_no_exchange(tracked: Project, run: Run) -> None:
    """The other path still has its own bytes, which is said."""
    tracked.write({"data/a.bin": noise(PAGE, 2)})
    detail = run("data/a.bin", "--json").document["patterns"][0]["detail"]
    assert "'data/b.bin' (which does not hold the bytes of this path)" in detail


def test_an_older_version_names_its_commit(tracked: Project, run: Run) -> None:
    """A file and a file in a folder that were left behind at an earlier commit name that one."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.add("one.bin", {"one.bin": noise(PAGE, 9)})
    tracked.add("data", {"data/a.bin": noise(PAGE, 8)})
    tracked.commit("Clean the data")
    tracked.write({"one.bin": DATA, "data/a.bin": noise(PAGE, 1)})
    for path in ("one.bin", "data/a.bin"):
        outcome = run(path, "--json")
        assert "older-version" == outcome.patterns[0]
        detail = outcome.document["patterns"][0]["detail"]
        assert f"the version of commit {old[:12]} (" in detail
        assert detail.endswith(', "Add data")')


def test_without_a_good_copy_what_can_be_told_is_told(tracked: Project, run: Run) -> None:
    """The committed size shows what lacks, and the note says where a copy was looked for."""
    for store in ("cache", "remote"):
        faults.delete(cached(tracked, DATA, store))
    faults.truncate(tracked.root / "one.bin", 3 * PAGE)
    outcome = run("one.bin", "--json")
    assert (1, None, ["truncated"]) == (
        outcome.status, outcome.document["damage"], outcome.patterns)  # fmt: skip
    (note,) = outcome.document["notes"]
    assert "has no good copy anywhere (cache: absent; remote:store: absent)" in note
    assert "has no good copy anywhere" in run("one.bin").out.replace("\n  ", "")


def test_a_good_file_is_clean(tracked: Project, run: Run) -> None:
    """Exit status 0, no damage, no picture."""
    outcome = run("one.bin", "--svg", "map.svg")
    assert 0 == outcome.status
    assert "Its bytes are the committed ones." in outcome.out
    assert "no picture was drawn" in outcome.err
    assert not (tracked.root / "map.svg").exists()


def test_a_missing_file_is_damage(tracked: Project, run: Run) -> None:
    """Nothing can be compared; what brings it back is said."""
    faults.delete(tracked.root / "one.bin")
    outcome = run("one.bin")
    assert 1 == outcome.status
    assert "missing  one.bin" in outcome.out
    assert "'dvc checkout' brings committed files back" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data"], "'data' stands for 2 files"),
        (["nothing.bin"], "No DVC output covers 'nothing.bin'"),
        (["one.bin", "--store", "moon"], "There is no store 'moon'"),
        (["one.bin", "--rev", "nope"], "There is no revision 'nope'"),
        ([], "Missing argument 'PATH'"),
    ],
)
def test_wrong_usage_has_status_2(
    tracked: Project, run: Run, arguments: list[str], words: str
) -> None:
    """What is no tracked file of this project is refused, with what would do."""
    assert tracked.root.is_dir()
    outcome = run(*arguments)
    assert (2, "") == (outcome.status, outcome.out)
    assert words in outcome.err


def test_what_cannot_be_told_has_status_3(tracked: Project, run: Run) -> None:
    """No content hash, or a store that is not to have the file: nothing was judged."""
    tracked.write_outs("none.bin.dvc", {"path": "none.bin"})
    tracked.run_stages(
        {"make": {"cmd": "echo 1 > out.txt", "outs": [{"out.txt": {"cache": False}}]}}
    )
    tracked.commit()
    assert "cannot be diagnosed" in run("none.bin").err
    outcome = run("out.txt", "--store", "cache", "--json")
    assert (3, "NothingToVerify") == (outcome.status, outcome.document["error"])


def test_an_unreadable_file_has_status_3(tracked: Project) -> None:
    """What the system refuses to read is neither good nor bad."""
    command = [sys.executable, "-m", "dvc_integrity", "diagnose", "one.bin"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything here, and that cannot be taken away")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--", *command]
    (tracked.root / "one.bin").chmod(0)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 3 == done.returncode
    assert "unreadable  one.bin" in done.stdout


def test_nothing_is_changed(tracked: Project, run: Run) -> None:
    """Every byte, mode and time of workspace, cache, remote and ``.git`` stays."""
    faults.swap(tracked.root / "data" / "a.bin", tracked.root / "data" / "b.bin")
    faults.truncate(cached(tracked, DATA), 100)
    faults.flip_bit(cached(tracked, DATA, "remote"))
    before = faults.snapshot(tracked.top.parent)
    for arguments in (
        ["data/a.bin"], ["one.bin", "--store", "cache"], ["one.bin", "--store", "remote"],
    ):  # fmt: skip
        assert 1 == run(*arguments).status
    assert before == faults.snapshot(tracked.top.parent)


def test_the_map_on_a_terminal_fits_and_is_legible(tracked: Project, run: Run) -> None:
    """Four lines of 64 cells with their offsets, a legend, and nothing beyond 80 columns."""
    faults.truncate(tracked.root / "one.bin", 40 * PAGE)
    with faults.changed(tracked.root / "one.bin"):
        (tracked.root / "one.bin").write_bytes(put(DATA, 10 * PAGE, bytes(PAGE))[: 40 * PAGE])
    outcome = run("one.bin")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    drawn = [line for line in lines if line.lstrip().startswith(("0 ", "65,536 ", "131,072 "))]
    assert "      0 ········································████····················" == drawn[0]
    assert " 65,536 ················································" + "·" * 16 == drawn[1]
    assert "131,072 " + "·" * 32 + "-" * 32 == drawn[2]
    assert "one cell is 1 KiB: · good, ░▒▓█ differs (few to all bytes), - lacks" in outcome.out
    assert "1. truncated (" in outcome.out
    assert "cause: A write or a transfer ended early." in outcome.out


def test_a_terminal_without_unicode_gets_ascii(tracked: Project) -> None:
    """The map is as legible in plain characters."""
    faults.flip_bit(tracked.root / "one.bin", 0)
    command = [sys.executable, "-m", "dvc_integrity", "diagnose", "one.bin"]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert 1 == done.returncode
    assert "      0 1" + "." * 63 in done.stdout
    assert "one cell is 1 KiB: . good, 1234 differs (few to all bytes)" in done.stdout


def test_odd_names_reach_neither_terminal_nor_picture_raw(project: Project, run: Run) -> None:
    """Escape sequences, markup and bytes that are no UTF-8 are shown, not obeyed."""
    name = f"[red]{OSC}<b>&'\".bin"
    project.add("data", {f"data/{name}": DATA, "data/b": noise(PAGE)})
    project.commit(f"Add {OSC}")
    project.write({f"data/{name}": noise(PAGE), "data/b": DATA})
    outcome = run(f"data/{name}", "--svg", "map.svg")
    assert 1 == outcome.status
    assert OSC not in outcome.out
    assert "[red]\\x1b]0;owned\\x07<b>" in outcome.out
    picture = (project.root / "map.svg").read_text()
    assert OSC not in picture
    assert "<title>Damage map of data/[red]\\x1b]0;owned\\x07&lt;b&gt;" in picture


def test_a_picture_is_whole_and_stands_alone(tracked: Project, run: Run) -> None:
    """XML with title, legend, offsets, a square for each cell; light and dark; no reference."""
    faults.zero_page(tracked.root / "one.bin", 20)
    assert 1 == run("one.bin", "--svg", "pictures/map.svg").status
    place = tracked.root / "pictures" / "map.svg"
    text = place.read_text()
    tree = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert "Damage map of one.bin" == tree.findtext(f"{space}title")
    squares = [each for each in tree.iter(f"{space}rect") if each.find(f"{space}title") is not None]
    assert 256 == len(squares)
    assert {"good": 252, "d4": 4} == Counter(each.get("class") for each in squares)
    words = [each.text for each in tree.iter(f"{space}text")]
    assert {"0", "65,536", "131,072", "196,608", "good", "differs, to 100 %"} <= {*words}
    assert "corrupt: one.bin" == words[0]
    assert any("zeroed: whole pages" in str(each) for each in words)
    assert "prefers-color-scheme: dark" in text
    assert not any(each in text for each in ("href", "url(", "<script", "@import", "var("))
    faults.flip_bit(tracked.root / "one.bin", 0)
    assert 1 == run("one.bin", "--svg", "pictures/map.svg").status
    assert text != place.read_text()


@pytest.mark.parametrize("place", ["data/map.svg", "one.bin", "drawing.svg", "notes.txt", ""])
def test_a_picture_is_written_over_nothing_of_others(
    tracked: Project, run: Run, place: str
) -> None:
    """Not into tracked data, nor over a file that is no such picture, be it an SVG."""
    tracked.write({"drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "notes.txt": b"n"})
    faults.flip_bit(tracked.root / "one.bin")
    before = faults.snapshot(tracked.root)
    outcome = run("one.bin", "--svg", place)
    assert (2, "") == (outcome.status, outcome.out)
    assert before == faults.snapshot(tracked.root)


def test_damage_wins_over_a_picture_that_cannot_be_written(tracked: Project, run: Run) -> None:
    """The verdict stands; what could not be written is said."""
    faults.flip_bit(tracked.root / "one.bin")
    outcome = run("one.bin", "--svg", "/proc/map.svg")
    assert 1 == outcome.status
    assert "single bit" in outcome.out
    assert "'/proc/map.svg' could not be written" in outcome.err


# History -----------------------------------------------------------------------------------------


def versions(project: Project, path: str) -> list[tuple[str, str]]:
    """Return the subjects and digests of the versions of a path."""
    repository = dvc_integrity.Repository(project.root)
    return [(each.subject, each.digest.hex) for each in repository.versions(path)]


def test_versions_come_from_every_branch_the_newest_first(project: Project) -> None:
    """Commits that do not touch the file are left out; one on another branch is not."""
    for number in (1, 2):
        project.add("a.txt", {"a.txt": b"%d" % number})
        project.commit(f"version {number}")
    project.git("checkout", "--quiet", "-b", "side", "HEAD~1")
    project.add("a.txt", {"a.txt": b"side"})
    project.commit("aside")
    project.git("checkout", "--quiet", "main")
    project.add("other.txt", {"other.txt": b"other"})
    project.commit("unrelated")
    found = versions(project, "a.txt")
    assert {("version 1", md5(b"1")), ("version 2", md5(b"2")), ("aside", md5(b"side"))} == {*found}
    assert found.index(("version 2", md5(b"2"))) < found.index(("version 1", md5(b"1")))
    assert [] == versions(project, "never.txt")


def test_versions_are_read_as_they_are_asked_for(project: Project) -> None:
    """The first comes before any other commit is opened."""
    for number in range(3):
        project.add("a.txt", {"a.txt": b"%d" % number})
        project.commit(f"version {number}")
    repository = dvc_integrity.Repository(project.root)
    with patch.object(repository, "_repo_at", wraps=repository._repo_at) as opened:
        assert md5(b"2") == next(repository.versions("a.txt")).digest.hex
        assert 1 == opened.call_count


def test_versions_of_stage_outputs_and_of_files_in_folders(project: Project) -> None:
    """``dvc.lock`` tells the first, the proven listing in the cache the second."""
    for number in (1, 2):
        project.add("d", {"d/x": b"x%d" % number, "d/s/y": b"y"})
        project.run_stages({"make": {"cmd": f"echo {number} > out.txt", "outs": ["out.txt"]}})
        project.commit(f"v{number}")
    assert [("v2", md5(b"2\n")), ("v1", md5(b"1\n"))] == versions(project, "out.txt")
    assert [("v2", md5(b"x2")), ("v1", md5(b"x1"))] == versions(project, "d/x")
    assert [("v2", md5(b"y")), ("v1", md5(b"y"))] == versions(project, "d/s/y")
    gone, damaged = (md5(listing({"s/y": b"y", "x": b"x%d" % number})) for number in (1, 2))
    faults.delete(object_path(project.cache, f"{gone}.dir"))
    faults.flip_bit(object_path(project.cache, f"{damaged}.dir"))
    assert [] == versions(project, "d/x")


def test_history_that_is_odd_takes_nothing_from_the_rest(project: Project) -> None:
    """Broken metadata, a name full of magic characters, and a file of a chosen name."""
    name = "a*[b] :(c).txt"
    project.add(name, {name: b"1"})
    project.commit("good")
    metadata = project.root / f"{name}.dvc"
    kept = metadata.read_bytes()
    metadata.write_bytes(b"outs: [{: nonsense")
    project.commit("broken")
    metadata.write_bytes(kept)
    project.commit("mended")
    project.add("ab :c.txt", {"ab :c.txt": b"3", "aXb :(c).txt": b"4"})
    project.add("aXb :(c).txt", {})
    project.commit("a name that the magic would cover")
    assert [("mended", md5(b"1")), ("good", md5(b"1"))] == versions(project, name)
    project.write_outs("chosen.dvc", {"path": "far.txt", "md5": md5(b"2"), "hash": "md5"})
    project.commit("chosen")
    repository = dvc_integrity.Repository(project.root)
    repository.outs("HEAD")
    assert [md5(b"2")] == [each.digest.hex for each in repository.versions("far.txt")]


def test_a_project_in_a_sub_folder_has_its_history(make_project: Callable[..., Project]) -> None:
    """Paths are relative to the DVC root, wherever that is in Git."""
    project = make_project("nested", "deep/down")
    project.add("a.txt", {"a.txt": b"1"})
    project.commit("first")
    assert [("first", md5(b"1"))] == versions(project, "a.txt")

"""A listing is read as the JSON that it is, whatever pieces it comes in."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import pytest
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from projects import md5, raw_listing

from dvc_integrity.listing import ListedFiles, parse_listing

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Pairs = list[tuple[bytes, bytes]]

hexes = st.binary(min_size=16, max_size=16).map(bytes.hex)
parts = st.one_of(
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=6),
    st.sampled_from(['"', "\\", "\n", '"}, {"md5": "', '"}]', "\x7f", "é", "🙂", "a", "{}", " "]),
    st.binary(min_size=1, max_size=6).map(
        lambda data: os.fsdecode(data.replace(b"/", b"_").replace(b"\0", b"_"))
    ),
)
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(paths, hexes, max_size=12)
cuts = st.lists(st.integers(0, 2000), max_size=8)


def dvc_listing(files: dict[str, str]) -> bytes:
    """Return the bytes that dvc_data writes for a folder with these files."""
    tree = Tree()
    for path, digest in files.items():
        tree.add(tuple(path.split("/")), None, HashInfo("md5", digest))
    return tree.as_bytes()


def pairs_of(files: dict[str, str]) -> Pairs:
    """Return what a listing of these files must give, in DVC's order."""
    return [(os.fsencode(path), bytes.fromhex(files[path])) for path in by_part(files)]


def by_part(files: dict[str, str]) -> list[str]:
    """Return paths in the order of DVC's own listing."""
    return [entry["relpath"] for entry in json.loads(dvc_listing(files))]


def cut(data: bytes, places: Sequence[int]) -> deque[bytes]:
    """Return ``data`` in pieces, some of which may be empty."""
    ends = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return deque(data[start:stop] for start, stop in pairwise(ends))


def parse(data: bytes, places: Sequence[int] = ()) -> Pairs:
    """Return names and digests of a listing that comes in pieces."""
    chunks = cut(data, places)
    listed = list(parse_listing(chunks))
    assert not chunks, "the chunks are let go of"
    return flat(listed)


def flat(listed: list[ListedFiles]) -> Pairs:
    for names, digests in listed:
        assert 16 * len(names) == len(digests)
    names = [name for each in listed for name in each.names]
    digests = b"".join(each.digests for each in listed)
    return [(name, digests[16 * row : 16 * row + 16]) for row, name in enumerate(names)]


def oracle(data: bytes) -> Pairs | None:
    """Return what the JSON parser finds in a listing; None if it is none."""
    try:
        document = json.loads(data)
        if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
            return None
        found = []
        for each in document:
            if not re.fullmatch(r"[0-9a-f]{32}", each["md5"]):
                return None
            found.append((os.fsencode(each["relpath"]), bytes.fromhex(each["md5"])))
    except (ValueError, KeyError, TypeError):
        return None
    return found


def outcome(data: bytes, places: Sequence[int] = ()) -> Pairs | None:
    """Return what the package finds in a listing; None if it refuses it."""
    try:
        return parse(data, places)
    except ValueError:
        return None


SMALL = raw_listing(
    [
        {"md5": md5(b"1"), "relpath": "a"},
        {"md5": md5(b"2"), "relpath": 'sub/b"\\é'},
        {"md5": md5(b"3"), "relpath": "sub/c"},
    ]
)


@law
@given(trees)
@example({})
@example({'"}, {"md5": "': md5(b""), '"}]': md5(b""), "\\": md5(b"")})
def test_what_dvc_writes_is_read_back(files: dict[str, str]) -> None:
    """Every listing that dvc_data writes gives its names, as bytes, and its digests, in order."""
    assert pairs_of(files) == parse(dvc_listing(files))


@law
@given(trees, cuts)
def test_the_pieces_do_not_matter(files: dict[str, str], places: list[int]) -> None:
    """Cut at any places, also into empty pieces, a listing gives the same."""
    assert pairs_of(files) == parse(dvc_listing(files), places)


def test_every_single_cut_gives_the_same() -> None:
    """A listing cut in two at any byte, and one that comes byte by byte, gives the same."""
    expected = oracle(SMALL)
    assert expected
    for place in range(len(SMALL) + 1):
        assert expected == parse(SMALL, [place])
    assert expected == parse(SMALL, range(len(SMALL)))


def test_a_listing_cut_short_is_refused() -> None:
    """A listing that ends at any byte before its last is a ValueError, however it is cut."""
    for size in range(len(SMALL)):
        for places in ([], [size // 2], range(size)):
            with pytest.raises(ValueError, match=r"."):
                parse(SMALL[:size], places)


def test_any_changed_byte_is_refused_or_seen() -> None:
    """One byte changed in any way gives what the JSON parser gives, or ValueError as there."""
    good = oracle(SMALL)
    for place, old in enumerate(SMALL):
        for new in {old ^ (1 << bit) for bit in range(8)} | set(b'"\\{}[], \n\0aA0'):
            changed = SMALL[:place] + bytes([new]) + SMALL[place + 1 :]
            expected = oracle(changed)
            assert expected == outcome(changed), changed
            if old != new and expected == good:
                assert json.loads(SMALL) == json.loads(changed), "only JSON's own spelling"


def test_any_byte_more_or_less_is_refused_or_seen() -> None:
    """A byte put in or left out anywhere gives what the JSON parser gives, however it is cut."""
    for place in range(len(SMALL) + 1):
        for middle in (b"", b" ", b'"', b"\\", b"}", b",", b"0", b"\0", b"\xff"):
            changed = SMALL[:place] + middle + SMALL[place + (not middle) :]
            expected = oracle(changed)
            for places in ([], [place], [len(SMALL) // 2], range(len(changed))):
                assert expected == outcome(changed, places), changed


@law
@given(trees, cuts, st.data())
def test_damage_is_read_as_the_json_parser_reads_it(
    files: dict[str, str], places: list[int], data: st.DataObject
) -> None:
    """A listing with bytes removed, doubled or put in between is judged as JSON, cut or not."""
    listing = dvc_listing(files)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(listing))] * 2)))
    middle = data.draw(
        st.sampled_from([b"", b'"', b"\\", b" ", b"[", b"\0", b"\xff", listing[start:stop] * 2])
        | st.binary(max_size=4)
    )
    damaged = listing[:start] + middle + listing[stop:]
    assert oracle(damaged) == outcome(damaged, places)


def test_upper_case_digits_are_judged_alike_in_every_form() -> None:
    """A digest in upper case is taken or refused, whatever spacing stands around it."""
    entries = [{"md5": md5(b"x").upper(), "relpath": "a"}]
    assert outcome(raw_listing(entries, indent=1)) == outcome(raw_listing(entries))


FORMS = {
    "indented": json.dumps([{"md5": md5(b"x"), "relpath": "a/é"}], indent=2).encode(),
    "compact": json.dumps([{"md5": md5(b"x"), "relpath": "a"}], separators=(",", ":")).encode(),
    "raw UTF-8": json.dumps([{"md5": md5(b"x"), "relpath": "a/é🙂"}], ensure_ascii=False).encode(),
    "another order of keys": json.dumps([{"relpath": "a", "md5": md5(b"x")}] * 2).encode(),
    "a size first": json.dumps([{"isexec": True, "md5": md5(b"x"), "relpath": "a"}]).encode(),
    "a key behind": json.dumps([{"md5": md5(b"x"), "relpath": "a", "size": 3}] * 3).encode(),
    "keys behind some": json.dumps(
        [
            {"md5": md5(b"x"), "relpath": "a"},
            {"md5": md5(b"y"), "relpath": "b", "z": [{"relpath": "no"}]},
            {"md5": md5(b"z"), "relpath": "c"},
        ]
    ).encode(),
    "a key twice": b'[{"md5": "%b", "relpath": "a", "relpath": "b"}]' % md5(b"").encode(),
    "a line end behind": SMALL + b"\n",
    "a line end before": b"\n" + SMALL,
    "escapes that are not needed": SMALL.replace(b'"sub', rb'"\u0073\u0075\u0062'),
    "an escaped slash": SMALL.replace(b"sub/", rb"sub\/"),
    "no file": b"[]",
    "no file, with space": b" [ ] ",
    "a mark of byte order": b"\xef\xbb\xbf" + SMALL,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_is_read(form: str) -> None:
    """Other spacing, keys and spellings give what the JSON parser gives, cut at any byte."""
    data = FORMS[form]
    expected = oracle(data)
    for place in range(len(data) + 1):
        assert expected == outcome(data, [place])


def test_the_form_may_change_in_the_middle() -> None:
    """A listing that begins in the usual form and goes on in another is read to its end."""
    entries = [{"md5": md5(b"%d" % row), "relpath": f"file-{row}"} for row in range(40)]
    usual, other = raw_listing(entries[:20])[:-1], raw_listing(entries[20:], indent=1)[1:]
    data = usual + b"," + other
    expected = oracle(data)
    assert expected is not None
    assert 40 == len(expected)
    for place in range(0, len(data), 7):
        assert expected == parse(data, [place])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b'"text"',
        b"[1]",
        b"[null]",
        b"[[]]",
        b"[{}]",
        b"not json",
        b"\0" * 4096,
        b"\xff\xfe",
        raw_listing([{"md5": md5(b"")}]),
        raw_listing([{"relpath": "a"}]),
        raw_listing([{"md5": 5, "relpath": "a"}]),
        raw_listing([{"md5": md5(b""), "relpath": 5}]),
        raw_listing([{"md5": md5(b""), "relpath": None}]),
        raw_listing([{"md5": "", "relpath": "a"}]),
        raw_listing([{"md5": "z" * 32, "relpath": "a"}]),
        raw_listing([{"md5": md5(b"")[:-1], "relpath": "a"}]),
        raw_listing([{"md5": md5(b"") + "0", "relpath": "a"}]),
        raw_listing([{"md5": md5(b"")[:30] + "é", "relpath": "a"}]),
        raw_listing([{"md5": "sha256:" + md5(b""), "relpath": "a"}]),
        raw_listing([{"md5": md5(b""), "relpath": "\ud800"}]),
        raw_listing([{"md5": md5(b""), "relpath": "a"}, 5]),
        SMALL[:-1] + b",]",
        SMALL + b"[]",
        SMALL[1:],
    ],
)
def test_what_is_no_listing_is_refused(data: bytes) -> None:
    """Anything but a list of objects with a digest and a path is a ValueError that says why."""
    for places in ([], [1], [len(data) // 2], range(len(data))):
        with pytest.raises(ValueError, match=r"."):
            parse(data, places)


def test_fifty_thousand_entries_come_in_the_pieces_they_were_read_in() -> None:
    """A large listing gives every entry, some at a time: never all of it at once."""
    entries = [
        {"md5": md5(b"%d" % row), "relpath": f"folder-{row // 100}/file-{row:06}.png"}
        for row in range(50_000)
    ]
    data = raw_listing(entries)
    listed = list(parse_listing(deque(cut(data, range(0, len(data), 1 << 20)))))
    expected = [(each["relpath"].encode(), bytes.fromhex(each["md5"])) for each in entries]
    assert expected == flat(listed)
    assert len(data) >> 20 <= len(listed)


def test_an_entry_longer_than_any_piece_is_read() -> None:
    """A path of two megabytes, which no file system has, is still read as JSON."""
    entries = [{"md5": md5(b"x"), "relpath": "x" * (2 << 20)}, {"md5": md5(b"y"), "relpath": "y"}]
    data = raw_listing(entries)
    assert oracle(data) == parse(data, range(0, len(data), 1 << 18))

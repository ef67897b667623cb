"""A manifest is what was committed, sorted, and free of paths that could do harm."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from projects import Tree, listing, md5, raw_listing

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import ManifestError
from dvc_integrity.manifest import Entry, Manifest, ManifestBuilder, Out

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA = "0123456789abcdef0123456789abcdef01234567"
DATA = Out("data", directory=True, digest=Digest(Algorithm.MD5, b"D" * 16), defined_in="data.dvc")

Facts = tuple[Digest | None, int | None, bool]
"""Digest, size and executable bit of an entry."""

components = (
    st.one_of(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=4),
        st.sampled_from(["a", "b", "sub", "a.b", "a b", "%", "%25", "\n", "\x7f", "é", "\x1b"]),
        st.binary(min_size=1, max_size=3).map(
            lambda data: os.fsdecode(data.replace(b"/", b"_").replace(b"\0", b"_"))
        ),
    )
    .map(lambda text: os.fsdecode(os.fsencode(text)))
    .filter(lambda text: text not in (".", ".."))
)
paths = st.lists(components, min_size=1, max_size=3).map("/".join)
digests = st.builds(Digest, st.sampled_from(Algorithm), st.binary(min_size=16, max_size=16))
facts = st.tuples(st.none() | digests, st.none() | st.integers(0, 2**63 - 1), st.booleans())


def compatible(files: Mapping[str, object]) -> dict[str, object]:
    """Return those of ``files`` that can lie in one folder together, on any file system."""
    kept: dict[str, object] = {}
    folded: set[str] = set()
    for path, value in files.items():
        above = [path[:at] for at, char in enumerate(path) if char == "/"]
        below = any(other.startswith(f"{path}/") for other in kept)
        if below or path.casefold() in folded or any(folder in kept for folder in above):
            continue
        kept[path] = value
        folded.add(path.casefold())
    return kept


entries = st.dictionaries(paths, facts, max_size=15).map(compatible)
"""What single files must be, by path; paths without conflicts."""

folders = st.dictionaries(paths, st.binary(max_size=3), max_size=15).map(compatible)
"""Contents of a folder, by path; paths without conflicts."""


def from_entries(files: Mapping[str, Facts], rev: str = SHA) -> Manifest:
    """Return a manifest of single files, each an output of its own."""
    builder = ManifestBuilder(rev, ["."])
    for path, (digest, size, executable) in files.items():
        builder.add_out(Out(path, digest=digest, size=size))
        builder.add_entry(path, digest, size, executable)
    return builder.build()


def from_listing(data: bytes, out: Out = DATA, only: tuple[str, ...] = ()) -> Manifest:
    """Return a manifest of one folder with this listing."""
    builder = ManifestBuilder(SHA, [out.path])
    builder.add_out(out)
    builder.add_listing(deque([data]), Algorithm.MD5, only=only)
    return builder.build()


def from_tree(files: Tree, out: Out = DATA, only: tuple[str, ...] = ()) -> Manifest:
    """Return a manifest of one folder with these files."""
    return from_listing(listing(files), out, only)


def listing_of(paths: Iterable[str]) -> bytes:
    """Return a listing of these paths, in this order."""
    return raw_listing([{"md5": md5(b""), "relpath": path} for path in paths])


def names(manifest: Manifest) -> list[str]:
    return [entry.path for entry in manifest]


def expected_entries(files: Tree, out: str = "data") -> list[Entry]:
    """Return what the manifest of a folder must hold, in order."""
    return [
        Entry(
            path=f"{out}/{path}",
            digest=Digest.from_hex(Algorithm.MD5, md5(files[path])),
            size=None,
            executable=False,
            out=out,
        )
        for path in sorted(files, key=os.fsencode)
    ]


# ----------------------------------------------------------------- what goes in comes out


@law
@given(entries)
def test_single_files_come_out_sorted_and_unchanged(files: dict[str, Facts]) -> None:
    """Entries added in any order come out in the order of their paths' bytes, with all facts."""
    expected = [Entry(path, *files[path], out=path) for path in sorted(files, key=os.fsencode)]
    manifest = from_entries(files)
    assert expected == list(manifest)
    assert len(expected) == len(manifest)
    assert expected == [manifest[row] for row in range(len(manifest))]
    assert expected == [manifest[row - len(manifest)] for row in range(len(manifest))]


@law
@given(folders, st.randoms(use_true_random=False))
def test_a_listing_in_any_order_comes_out_sorted(files: Tree, random: object) -> None:
    """A listing that is sorted in another way, or not at all, gives the same entries."""
    shuffled = list(files)
    random.shuffle(shuffled)
    data = raw_listing([{"md5": md5(files[path]), "relpath": path} for path in shuffled])
    assert expected_entries(files) == list(from_listing(data))


@law
@given(folders, st.lists(st.integers(0, 900), max_size=5))
def test_a_listing_may_come_in_pieces(files: Tree, places: list[int]) -> None:
    """However its bytes are cut, a listing gives the same manifest, and is let go of."""
    data = listing(files)
    ends = sorted({0, *(min(place, len(data)) for place in places), len(data)})
    chunks = deque(data[start:stop] for start, stop in pairwise(ends))
    builder = ManifestBuilder(SHA, ["data"])
    builder.add_out(DATA)
    builder.add_listing(chunks, Algorithm.MD5)
    assert from_listing(data).digest == builder.build().digest
    assert not chunks


@law
@given(entries)
def test_a_pickle_gives_the_same_manifest(files: dict[str, Facts]) -> None:
    """A manifest that was pickled has the same entries, outs, digest and look-up."""
    manifest = from_entries(files)
    again = pickle.loads(pickle.dumps(manifest))
    assert (manifest.digest, manifest.outs, manifest.rev) == (again.digest, again.outs, again.rev)
    assert list(manifest) == list(again)
    assert manifest.to_json() == again.to_json()
    assert [manifest.find(path) for path in files] == [again.find(path) for path in files]


def test_no_entry_has_a_position_beyond_the_last() -> None:
    """Positions outside are an IndexError, as of any sequence."""
    manifest = from_tree({"a": b"1", "b": b"2"})
    for row in (2, -3, 1000):
        with pytest.raises(IndexError, match="2 files"):
            manifest[row]


def test_an_empty_manifest_holds_nothing() -> None:
    """Without outputs, or with an empty folder, there is nothing to iterate, find or add up."""
    for manifest in (ManifestBuilder(SHA).build(), from_tree({})):
        assert [] == list(manifest)
        assert (0, 0, None) == (len(manifest), manifest.total_bytes, manifest.find("data"))
        assert range(0) == manifest.below("data")
        assert hashlib.sha256(b"dvc-integrity/manifest/1\n").hexdigest() == manifest.digest


# ----------------------------------------------------------------- look-up


@law
@given(entries, st.lists(paths, max_size=8))
def test_bisection_finds_what_a_dict_finds(files: dict[str, Facts], others: list[str]) -> None:
    """``find`` gives the position of every listed path, as text or bytes, and None for others."""
    manifest = from_entries(files)
    positions = {path: row for row, path in enumerate(sorted(files, key=os.fsencode))}
    prefixes = [path[:-1] for path in files] + [f"{path}x" for path in files]
    for path in [*files, *others, *prefixes, ""]:
        assert positions.get(path) == manifest.find(path) == manifest.find(os.fsencode(path))


@law
@given(entries, st.lists(paths, max_size=5))
def test_bisection_finds_what_lies_below_a_folder(
    files: dict[str, Facts], others: list[str]
) -> None:
    """``below`` gives exactly the entries inside a folder, not the neighbours of its name."""
    manifest = from_entries(files)
    ordered = sorted(files, key=os.fsencode)
    above = [path[:at] for path in files for at, char in enumerate(path) if char == "/"]
    for folder in [*above, *others, *files]:
        rows = [row for row, path in enumerate(ordered) if path.startswith(f"{folder}/")]
        assert rows == list(manifest.below(folder)) == list(manifest.below(os.fsencode(folder)))


def test_neighbours_of_a_folder_are_not_inside_it() -> None:
    """Names that sort around a folder's slash are outside: ``data-1``, ``data.x``, ``data0``."""
    single: Facts = (None, None, False)
    files = ["data", "data-1/x", "data.x", "data/a", "data/b/c", "data0", "data0/y"]
    manifest = from_entries({path: single for path in files if path not in ("data", "data0")})
    assert ["data/a", "data/b/c"] == [manifest[row].path for row in manifest.below("data")]


@law
@given(entries, st.integers(0, 20), st.integers(0, 20))
def test_paths_come_in_bulk_as_they_come_one_by_one(
    files: dict[str, Facts], start: int, stop: int
) -> None:
    """``paths(start, stop)`` is ``path(i)`` for each position between."""
    manifest = from_entries(files)
    start, stop = min(start, len(manifest)), min(stop, len(manifest))
    assert [manifest.path(row) for row in range(start, stop)] == manifest.paths(start, stop)


@law
@given(entries)
def test_rows_are_parted_by_algorithm(files: dict[str, Facts]) -> None:
    """Every entry is in the rows of its algorithm, or of none, and in no others."""
    manifest = from_entries(files)
    for algorithm in (*Algorithm, None):
        expected = [
            row
            for row, entry in enumerate(manifest)
            if (entry.digest.algorithm if entry.digest else None) is algorithm
        ]
        assert expected == manifest.rows(algorithm).tolist()
    assert [entry.executable for entry in manifest] == [
        *manifest.are_executable(np.arange(len(manifest))).tolist()
    ]


# ----------------------------------------------------------------- canonical text and digest


def canonical(files: Mapping[str, Facts]) -> bytes:
    """Return the documented text, written down from the documentation alone."""
    text = b"dvc-integrity/manifest/1\n"
    for path in sorted(map(os.fsencode, files)):
        digest, size, executable = files[os.fsdecode(path)]
        escaped = b"".join(
            f"%{byte:02x}".encode() if byte < 0x20 or byte in (0x25, 0x7F) else bytes([byte])
            for byte in path
        )
        columns = (str(digest or "-"), "-" if size is None else str(size), "-x"[executable])
        text += " ".join(columns).encode() + b" " + escaped + b"\n"
    return text


@law
@given(entries)
def test_the_canonical_text_is_as_documented(files: dict[str, Facts]) -> None:
    """Text and digest can be recomputed from the documentation alone."""
    manifest = from_entries(files)
    assert canonical(files) == b"".join(manifest.canonical_text())
    assert hashlib.sha256(canonical(files)).hexdigest() == manifest.digest
    assert 1 + len(files) == canonical(files).count(b"\n")


def test_a_canonical_text_in_full() -> None:
    """One text, letter by letter: it must never change under this schema's name."""
    md5_digest = Digest.from_hex(Algorithm.MD5, md5(b""))
    files: dict[str, Facts] = {
        "z/é\n%": (md5_digest, 0, True),
        "a b": (Digest(Algorithm.MD5_DOS2UNIX, b"\x0a" * 16), 7, False),
        "\udc80": (None, None, False),
    }
    expected = (
        b"dvc-integrity/manifest/1\n"
        b"md5-dos2unix:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a 7 - a b\n"
        b"md5:d41d8cd98f00b204e9800998ecf8427e 0 x z/\xc3\xa9%0a%25\n"
        b"- - - \x80\n"
    )
    assert expected == b"".join(from_entries(files).canonical_text())
    assert hashlib.sha256(expected).hexdigest() == from_entries(files).digest


@law
@given(folders)
def test_a_listing_and_single_files_have_the_same_digest(files: Tree) -> None:
    """How DVC records the files, at which commit and for which target, does not matter."""
    listed = from_tree(files)
    single = {entry.path: (entry.digest, None, False) for entry in listed}
    assert from_entries(single, rev="workspace").digest == listed.digest


@law
@given(st.lists(folders, min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_the_order_of_the_outputs_does_not_matter(trees: list[Tree], random: object) -> None:
    """Outputs added in any order give the same manifest."""
    outs = [(replace(DATA, path=f"out{number}"), files) for number, files in enumerate(trees)]
    texts = set()
    for _ in range(3):
        builder = ManifestBuilder(SHA)
        for out, files in outs:
            builder.add_out(out)
            builder.add_listing(deque([listing(files)]), Algorithm.MD5)
        manifest = builder.build()
        texts.add(manifest.digest)
        assert all(entry.path.startswith(f"{entry.out}/") for entry in manifest)
        random.shuffle(outs)
    assert 1 == len(texts)


@law
@given(entries, st.data())
def test_any_other_fact_gives_another_digest(files: dict[str, Facts], data: st.DataObject) -> None:
    """Another hash, size, executable bit or path, one more or one less, is another manifest."""
    assume(files)
    path = data.draw(st.sampled_from(sorted(files)))
    old = files[path]
    new = data.draw(facts.filter(lambda drawn: drawn != old))
    before = from_entries(files).digest
    without = {other: files[other] for other in files if other != path}
    assert before != from_entries(files | {path: new}).digest
    assert before != from_entries(without).digest
    assert before != from_entries(without | {f"{path}x": old}).digest


def test_a_text_made_in_pieces_is_one_text() -> None:
    """A manifest too large for one piece of text has the digest of the whole text."""
    files = {f"{row % 7}/{row}": b"%d" % row for row in range(20_000)}
    manifest = from_tree(files)
    text = canonical({f"data/{path}": (_md5(data), None, False) for path, data in files.items()})
    assert 2 < len(list(manifest.canonical_text()))
    assert hashlib.sha256(text).hexdigest() == manifest.digest


def _md5(data: bytes) -> Digest:
    return Digest.from_hex(Algorithm.MD5, md5(data))


def test_a_large_manifest_pickles_small() -> None:
    """100,000 entries take their paths and 37 bytes each: what a spawned worker is sent."""
    count = 100_000
    data = listing_of(f"folder/{row:08}.png" for row in range(count))
    manifest = from_listing(data)
    assert count == len(manifest)
    assert len(manifest.blob) + 37 * count + 4096 >= len(pickle.dumps(manifest))
    assert len("data/folder/00000000.png") + 1 == len(manifest.blob) / count


# ----------------------------------------------------------------- what is refused

UNSAFE = [
    "",
    "/",
    "/etc/passwd",
    "//x",
    ".",
    "./a",
    "a/./b",
    "a/.",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "../../../../etc/passwd",
    "a//b",
    "a/",
    "a\0b",
    "\0",
    "a\0/../b",
]


@pytest.mark.parametrize("path", UNSAFE)
@pytest.mark.parametrize("others", [(), ("b", "c"), ("..b", "...", "a.", ".a")])
def test_a_listing_with_an_unsafe_path_is_refused(path: str, others: tuple[str, ...]) -> None:
    """Absolute, dotted, empty or NUL parts in any path of a listing refuse it, and say so."""
    for order in ((path, *others), (*others, path)):
        with pytest.raises(ManifestError, match="not a plain relative path") as caught:
            from_listing(listing_of(order))
        assert all(part in str(caught.value) for part in ("'data'", "data.dvc", DATA.digest.hex))


@pytest.mark.parametrize("path", UNSAFE)
def test_a_single_file_with_an_unsafe_path_is_refused(path: str) -> None:
    """An entry of its own obeys the same law."""
    builder = ManifestBuilder(SHA)
    builder.add_out(DATA)
    with pytest.raises(ManifestError, match="not a plain relative path"):
        builder.add_entry(path, _md5(b""))


@pytest.mark.parametrize("path", UNSAFE)
def test_a_folder_with_an_unsafe_path_is_refused(path: str) -> None:
    """An output that lies elsewhere refuses its files, however harmless their own names are."""
    with pytest.raises(ManifestError, match="not a plain relative path"):
        from_tree({"a": b"1"}, replace(DATA, path=path))


@pytest.mark.parametrize("path", ["...", "..a", "a..", ".a", "a./b", ".../x", "-", "~", "C:", "\\"])
def test_odd_paths_that_are_safe_are_taken(path: str) -> None:
    """Names that only look like dots, drives or options are names."""
    assert [f"data/{path}"] == names(from_listing(listing_of([path])))


@law
@given(
    st.lists(
        st.one_of(components, st.sampled_from(["", ".", "..", "...", "\0", "a\0b"])),
        max_size=4,
    ).map("/".join)
)
def test_no_path_leaves_its_folder(path: str) -> None:
    """Whatever is listed, a path in a manifest is a place inside of its output."""
    try:
        manifest = from_listing(listing_of([path]))
    except ManifestError:
        assert "\0" in path or os.path.normpath(f"/data/{path}") != f"/data/{path}"
        return
    (entry,) = manifest
    assert f"data/{path}" == entry.path
    assert f"/root/{entry.path}" == os.path.normpath(f"/root/{entry.path}")


@pytest.mark.parametrize("order", [("a", "a"), ("a", "b", "a"), ("b", "a", "c", "a"), ("é", "é")])
def test_a_path_listed_twice_is_refused(order: tuple[str, ...]) -> None:
    """A duplicate anywhere in a listing refuses it, and is named."""
    with pytest.raises(ManifestError, match="occurs twice") as caught:
        from_listing(listing_of(order))
    assert f"'data/{order[-1]}'" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "A"),
        ("sub/File.PNG", "sub/file.png"),
        ("Sub/file", "sub/file"),
        ("é", "É"),
        ("straße", "STRASSE"),
        ("straße", "strasse"),
        ("ς", "\N{GREEK SMALL LETTER SIGMA}"),
        ("k", "\N{KELVIN SIGN}"),
        ("\N{LATIN SMALL LETTER LONG S}", "S"),
        ("ﬁle", "FILE"),
    ],
)
@pytest.mark.parametrize("others", [(), ("b", "c"), ("\udc80", "Z")])
def test_paths_that_differ_in_case_alone_are_refused(
    one: str, other: str, others: tuple[str, ...]
) -> None:
    """Two names that one file system takes for the same file refuse the listing; both are named."""
    for order in ((one, *others, other), (other, *others, one), sorted((one, other, *others))):
        with pytest.raises(ManifestError, match="differ in case alone") as caught:
            from_listing(listing_of(order))
        assert f"'data/{one}'" in str(caught.value)
        assert f"'data/{other}'" in str(caught.value)


def test_paths_that_differ_in_more_than_case_are_taken() -> None:
    """Names in different folders, and with other letters, are different files everywhere."""
    files = ["A/x", "B/x", "a.x", "é", "e", "ss", "s", "\udc80", "\udc81"]
    assert len(files) == len(from_listing(listing_of(files)))


@pytest.mark.parametrize(
    "order",
    [("a", "a/b"), ("a/b", "a"), ("a", "a-", "a/b"), ("x/y", "x/y/z/w"), ("x/y/z/w", "x", "y")],
)
def test_a_path_that_is_file_and_folder_is_refused(order: tuple[str, ...]) -> None:
    """A listing that wants a file where others need a folder is refused; the path is named."""
    with pytest.raises(ManifestError, match="both as a file and as a folder") as caught:
        from_listing(listing_of(order))
    assert f"'data/{min(order, key=len)}'" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b"[" * 100_000, listing({"a": b"1"})[:-1], raw_listing([{"md5": "x"}])],
)
def test_bytes_that_are_no_listing_are_refused(data: bytes) -> None:
    """Proven bytes of another form are a ManifestError that names output, listing and file."""
    with pytest.raises(ManifestError, match="cannot be used") as caught:
        from_listing(data)
    assert all(part in str(caught.value) for part in ("'data'", "data.dvc", DATA.digest.hex))


@pytest.mark.parametrize("size", [-1, -5, 2**63, 10**30])
def test_a_size_that_is_none_is_refused(size: int) -> None:
    """A size below zero, or beyond any file system, is refused."""
    builder = ManifestBuilder(SHA)
    builder.add_out(Out("file"))
    with pytest.raises(ManifestError, match=str(size)):
        builder.add_entry("file", _md5(b""), size)


def test_a_hostile_name_is_printed_harmlessly() -> None:
    """What a refusal says of an untrusted path holds no control character."""
    for bad in (["\x1b[31m/.."], ["\x1b[31m"] * 2, ["\x1b[31mA", "\x1b[31ma"]):
        with pytest.raises(ManifestError) as caught:
            from_listing(listing_of(bad))
        assert r"\x1b[31m" in str(caught.value)
        assert str(caught.value).isprintable()


def add_file(builder: ManifestBuilder, path: str) -> None:
    builder.add_out(Out(path, digest=_md5(b"")))
    builder.add_entry(path, _md5(b""))


def add_folder(builder: ManifestBuilder, path: str, *files: str) -> None:
    builder.add_out(replace(DATA, path=path))
    builder.add_listing(deque([listing_of(files)]), Algorithm.MD5)


Additions = list[Callable[[ManifestBuilder], None]]

OVERLAPS: dict[str, Additions] = {
    "a file twice": [lambda b: add_file(b, "x")] * 2,
    "a folder twice": [lambda b: add_folder(b, "data", "a")] * 2,
    "a listed file on its own": [
        lambda b: add_folder(b, "data", "a", "b", "c"),
        lambda b: add_file(b, "data/b"),
    ],
    "an unlisted file among the listed": [
        lambda b: add_folder(b, "data", "a", "c"),
        lambda b: add_file(b, "data/b"),
    ],
    "an unlisted file behind the listed": [
        lambda b: add_folder(b, "data", "a"),
        lambda b: add_file(b, "data/b"),
    ],
    "a folder in a folder": [
        lambda b: add_folder(b, "data", "a", "z"),
        lambda b: add_folder(b, "data/sub", "b"),
    ],
    "a folder that is a file": [
        lambda b: add_folder(b, "data", "a"),
        lambda b: add_file(b, "data"),
    ],
    "a folder in a file": [
        lambda b: add_file(b, "data/sub"),
        lambda b: add_folder(b, "data/sub/more", "a"),
    ],
}


@pytest.mark.parametrize("case", OVERLAPS)
@pytest.mark.parametrize("backwards", [False, True])
def test_outputs_that_overlap_are_refused(case: str, backwards: bool) -> None:
    """A file belongs to one output only: DVC refuses such metadata, and so does a manifest."""
    builder = ManifestBuilder(SHA)
    for add in reversed(OVERLAPS[case]) if backwards else OVERLAPS[case]:
        add(builder)
    with pytest.raises(ManifestError, match=r"tracked twice|lies inside|both as a file"):
        builder.build()


def test_outputs_with_names_alike_do_not_overlap() -> None:
    """``data``, ``data.csv``, ``data-3`` and ``data/../data0`` are apart, in any order."""
    builder = ManifestBuilder(SHA)
    add_file(builder, "data0")
    add_folder(builder, "data", "a", "z")
    add_file(builder, "data.csv")
    add_folder(builder, "data-3", "m")
    assert ["data-3/m", "data.csv", "data/a", "data/z", "data0"] == names(builder.build())


def test_an_external_output_has_no_entries() -> None:
    """An output elsewhere is named among the outs, whatever its path, and overlaps with nothing."""
    builder = ManifestBuilder(SHA)
    add_folder(builder, "data", "a")
    outside = ["s3://bucket/key", "/abs/file", "../beside", "data/../data", "s3://bucket", "data/x"]
    for path in outside:
        builder.add_out(Out(path, unverifiable="it lies outside", external=True))
    manifest = builder.build()
    assert ["data/a"] == names(manifest)
    assert ["data", *outside] == [out.path for out in manifest.outs]


@pytest.mark.parametrize("path", UNSAFE)
def test_an_unsafe_path_without_a_hash_is_refused(path: str) -> None:
    """An entry that nothing can be held to is a place in the project like any other."""
    builder = ManifestBuilder(SHA)
    builder.add_out(Out(path, unverifiable="never run"))
    with pytest.raises(ManifestError, match="not a plain relative path"):
        builder.add_entry(path, None)


# ----------------------------------------------------------------- parts, sizes, JSON


def test_a_part_of_a_listing_can_be_chosen() -> None:
    """``only`` keeps the named files and what lies in the named folders, and nothing like them."""
    files = dict.fromkeys(("a", "a.b", "sub/x", "sub/deep/y", "sub2/z", "sub-", "other/sub/w"), b"")
    manifest = from_tree(files, only=("sub", "a"))
    assert ["data/a", "data/sub/deep/y", "data/sub/x"] == names(manifest)
    assert ("data/sub",) == manifest.trees
    assert ("data",) == from_tree(files).trees


@law
@given(folders, st.data())
def test_a_part_has_the_entries_that_the_whole_has(files: Tree, data: st.DataObject) -> None:
    """A selection is the whole, filtered: same digests, same order."""
    assume(files)
    above = [path[:at] for path in files for at, char in enumerate(path) if char == "/"]
    chosen = data.draw(st.lists(st.sampled_from(sorted([*files, *above, "no"])), min_size=1))
    expected = [
        entry
        for entry in from_tree(files)
        if any(
            entry.path == f"data/{path}" or entry.path.startswith(f"data/{path}/")
            for path in chosen
        )
    ]
    assert expected == list(from_tree(files, only=tuple(chosen)))


@law
@given(
    trees=st.lists(folders, min_size=1, max_size=4),
    single=st.booleans(),
    kept=st.sets(st.sampled_from(["out0", "out1", "out2", "out3", "single", "far"])),
)
def test_some_outputs_make_the_manifest_of_them_alone(
    trees: list[Tree], single: bool, kept: set[str]
) -> None:
    """``of`` gives what would have been built without the other outputs, look-up and all."""

    def build(wanted: Callable[[str], bool]) -> Manifest:
        builder = ManifestBuilder(SHA, ["."])
        for number, files in enumerate(trees):
            if wanted(f"out{number}"):
                builder.add_out(replace(DATA, path=f"out{number}"))
                builder.add_listing(deque([listing(files)]), Algorithm.MD5)
        if single and wanted("single"):
            builder.add_out(Out("single", size=3))
            builder.add_entry("single", _md5(b"x"), 3, executable=True)
        if wanted("far"):
            builder.add_out(Out("far", unverifiable="why", external=True))
        return builder.build()

    whole = build(lambda _: True)
    whole_digest = whole.digest
    part, alone = whole.of(lambda out: out.path in kept), build(kept.__contains__)
    assert alone.to_json() == part.to_json()
    assert (alone.trees, alone.total_bytes) == (part.trees, part.total_bytes)
    assert [*range(len(alone))] == [part.find(path) for path in names(alone)]
    assert all(entry.path == entry.out or entry.path.startswith(f"{entry.out}/") for entry in part)
    assert (whole_digest, len(build(lambda _: True))) == (whole.digest, len(whole))


def test_a_part_of_a_folder_stays_one_in_a_manifest_of_some_outputs() -> None:
    """A chosen folder below an output is still searched for extras when others are left out."""
    builder = ManifestBuilder(SHA)
    builder.add_out(DATA)
    files = {"sub/a": b"", "b": b""}
    builder.add_listing(deque([listing(files)]), Algorithm.MD5, only=("sub",))
    add_file(builder, "database")
    manifest = builder.build()
    assert ("data/sub",) == manifest.of(lambda out: out.path == "data").trees
    assert () == manifest.of(lambda out: out.path == "database").trees


def test_sizes_add_up_where_they_are_recorded() -> None:
    """The total is that of the files, or of the folder; one unknown size makes it unknown."""
    sized = replace(DATA, size=100)
    tree = {"a": b"1", "sub/b": b"2"}
    single: dict[str, Facts] = {"x": (_md5(b""), 3, False), "y": (_md5(b""), 2**52, False)}
    assert 2**52 + 3 == from_entries(single).total_bytes
    assert 100 == from_tree(tree, sized).total_bytes
    assert None is from_tree(tree).total_bytes
    assert None is from_tree(tree, sized, only=("sub",)).total_bytes
    assert None is from_entries(single | {"z": (None, None, False)}).total_bytes
    assert 0 == from_tree({}, sized).total_bytes

    builder = ManifestBuilder(SHA)
    builder.add_out(sized)
    builder.add_listing(deque([listing(tree)]), Algorithm.MD5)
    builder.add_out(Out("file", size=7))
    builder.add_entry("file", _md5(b""), 7)
    assert 107 == builder.build().total_bytes


def test_the_json_export_says_everything() -> None:
    """The JSON document holds digest, outs and entries under the documented names."""
    builder = ManifestBuilder(SHA, ["b", "data"])
    builder.add_out(replace(DATA, size=9))
    builder.add_listing(deque([listing({"é\udc80": b"1"})]), Algorithm.MD5)
    builder.add_out(Out("b", source=False, stage="make", defined_in="dvc.lock", unverifiable="why"))
    builder.add_entry("b", None, None, executable=True)
    manifest = builder.build()
    expected = {
        "schema": "dvc-integrity/manifest/1",
        "rev": SHA,
        "digest": manifest.digest,
        "files": 2,
        "bytes": None,
        "targets": ["b", "data"],
        "outs": [
            {
                "path": "data",
                "digest": f"md5:{b'D'.hex() * 16}",
                "directory": True,
                "source": True,
                "stage": None,
                "size": 9,
                "defined_in": "data.dvc",
                "unverifiable": None,
            },
            {
                "path": "b",
                "digest": None,
                "directory": False,
                "source": False,
                "stage": "make",
                "size": None,
                "defined_in": "dvc.lock",
                "unverifiable": "why",
            },
        ],
        "entries": [
            {"path": "b", "digest": None, "size": None, "executable": True, "out": "b"},
            {
                "path": "data/é\udc80",
                "digest": f"md5:{md5(b'1')}",
                "size": None,
                "executable": False,
                "out": "data",
            },
        ],
    }
    assert expected == manifest.to_json()
    assert expected == json.loads(json.dumps(manifest.to_json()))

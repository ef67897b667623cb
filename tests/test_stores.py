"""A store turns entries into observations: every kind of store passes the same contract."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observing import in_order
from projects import Tree, listing, md5

from dvc_integrity import stores
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import StoreError
from dvc_integrity.hashing import Meter
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.observation import Observation
from dvc_integrity.report import Hint
from dvc_integrity.stores import Connection, ObjectStore, SourceError, Workspace

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

FILES = {"a": b"alpha", "b": b"", "sub/c": b"charlie" * 1000, "sub/deep/d": b"delta"}


def folder_out(files: Tree, path: str = "data") -> Out:
    digest = Digest.from_hex(Algorithm.MD5, md5(listing(files)))
    return Out(path, directory=True, digest=digest, defined_in=f"{path}.dvc")


def manifest_of(files: Tree, only: tuple[str, ...] = ()) -> Manifest:
    """Return the manifest of a tracked folder ``data``."""
    builder = ManifestBuilder("0" * 40, ["data"])
    builder.add_out(folder_out(files))
    builder.add_listing(deque([listing(files)]), Algorithm.MD5, only=only)
    return builder.build()


def write(folder: Path, files: Tree) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def rows_of(manifest: Manifest) -> np.ndarray:
    return np.arange(len(manifest))


# ----------------------------------------------------------------- the contract


@dataclass
class Case:
    """A store that holds some files, and the way to put other bytes at an entry's place."""

    store: Workspace | ObjectStore
    put: Callable[[str, bytes | None], None]


def workspace_case(folder: Path, files: Tree) -> Case:
    write(folder / "data", files)

    def put(path: str, data: bytes | None) -> None:
        place = folder / "data" / path
        place.unlink() if data is None else place.write_bytes(data)

    return Case(Workspace(os.fspath(folder)), put)


def object_case(connection: Connection, files: Tree, name: str) -> Case:
    """Return a store with the objects of some files in it."""
    filesystem = connection.filesystem

    def put_object(digest: Digest, data: bytes | None, of_listing: bool = False) -> None:
        place = connection.locate(digest, of_listing)
        if data is None:
            filesystem.rm_file(place)
            return
        filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(place, data)

    def put(path: str, data: bytes | None) -> None:
        put_object(Digest.from_hex(Algorithm.MD5, md5(files[path])), data)

    for path in files:
        put(path, files[path])
    out = folder_out(files)
    assert out.digest
    put_object(out.digest, listing(files), of_listing=True)
    return Case(ObjectStore(name, lambda: connection, lambda _: True), put)


def cache_case(folder: Path, files: Tree) -> Case:
    connection = Connection(LocalFileSystem(), os.fspath(folder / "cache"), local=True)
    return object_case(connection, files, "cache")


def remote_case(folder: Path, files: Tree) -> Case:
    connection = Connection(MemoryFileSystem(), f"/{folder.name}", local=False)
    return object_case(connection, files, "remote:far")


CASES = {"workspace": workspace_case, "cache": cache_case, "remote": remote_case}

every = pytest.mark.parametrize("kind", CASES)


@every
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("jobs", [None, 1, 3])
def test_a_store_observes_its_entries_in_order(
    kind: str, cold: bool, jobs: int | None, tmp_path: Path
) -> None:
    """Each row gives the digest and size of its bytes; any rows may be asked for; they count."""
    manifest = manifest_of(FILES)
    store = CASES[kind](tmp_path, FILES).store
    expected = [(hashlib.md5(FILES[path]).digest(), len(FILES[path])) for path in sorted(FILES)]
    for rows in ([0, 1, 2, 3], [1, 3], [2], []):
        meter = Meter()
        seen = in_order(
            store.observe(
                manifest, np.array(rows, np.int64), Algorithm.MD5, jobs=jobs, cold=cold, meter=meter
            )
        )
        assert [expected[row] for row in rows] == [(each.digest, each.size) for each in seen]
        assert all(each.stable and each.error is None for each in seen)
        assert (len(rows), sum(expected[row][1] for row in rows)) == (meter.files, meter.bytes)


@every
def test_a_store_shows_other_bytes_as_they_are(kind: str, tmp_path: Path) -> None:
    """Damage is an observation with another digest; absence is an error that says so."""
    case = CASES[kind](tmp_path, FILES)
    case.put("a", b"alphA")
    case.put("sub/c", None)
    seen = in_order(
        case.store.observe(manifest_of(FILES), rows_of(manifest_of(FILES)), Algorithm.MD5)
    )
    assert [hashlib.md5(b"alphA").digest(), None] == [seen[0].digest, seen[2].digest]
    assert isinstance(seen[2].error, FileNotFoundError)
    assert [None, None] == [seen[1].error, seen[3].error]


@every
def test_a_store_keeps_the_order_of_many(kind: str, tmp_path: Path) -> None:
    """Hundreds of entries come in the order of their rows, whatever finishes first."""
    files = {f"{row:04}": b"%d" % row * (row % 40) for row in range(300)}
    manifest = manifest_of(files)
    store = CASES[kind](tmp_path, files).store
    observations = in_order(store.observe(manifest, rows_of(manifest), Algorithm.MD5, jobs=4))
    assert [each.value for each in map(_digest, sorted(files.items()))] == [
        each.digest for each in observations
    ]


def _digest(item: tuple[str, bytes]) -> Digest:
    return Digest.from_hex(Algorithm.MD5, md5(item[1]))


@every
def test_a_store_is_left_as_it_was(kind: str, tmp_path: Path) -> None:
    """Observing, looking for extras, reading listings and explaining write nothing."""
    manifest = manifest_of(FILES)
    store = CASES[kind](tmp_path, FILES).store
    before = faults.snapshot(tmp_path)
    in_order(store.observe(manifest, rows_of(manifest), Algorithm.MD5, cold=True))
    list(store.extras(manifest))
    [observe(cold=True) for _, observe in store.listings(manifest)]
    store.explain("data/a", manifest[0].digest, None)
    assert before == faults.snapshot(tmp_path)


@every
def test_a_store_left_early_leaves_no_thread(kind: str, tmp_path: Path) -> None:
    """Closing the observations ends their threads."""
    files = {f"{row:04}": b"%d" % row for row in range(200)}
    manifest = manifest_of(files)
    store = CASES[kind](tmp_path, files).store
    observations = store.observe(manifest, rows_of(manifest), Algorithm.MD5, jobs=2)
    next(observations)
    observations.close()
    assert [] == [each.name for each in threading.enumerate() if "dvc-integrity" in each.name]


# ----------------------------------------------------------------- the workspace


def extras(root: Path, manifest: Manifest, **options: object) -> list[str]:
    """Return the paths of extras; none may come with an error."""
    found = list(Workspace(os.fspath(root), **options).extras(manifest))
    assert all(error is None for _, error in found)
    return sorted(path for path, _ in found)


def test_the_workspace_has_every_output_and_may_change(tmp_path: Path) -> None:
    """It holds every output, under the name ``workspace``, and is not immutable."""
    store = Workspace(os.fspath(tmp_path))
    assert ("workspace", False) == (store.name, store.immutable)
    assert store.holds(Out("x", cached=False, push=False, remote="elsewhere"))
    assert [] == list(store.listings(manifest_of(FILES)))


def test_a_place_is_absolute_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are joined to the absolute root, in the file system's bytes, wherever one is."""
    monkeypatch.chdir(tmp_path)
    store = Workspace(".")
    monkeypatch.chdir("/")
    assert os.fsencode(tmp_path) + b"/data/\xff" == store.locate("data/\udcff")
    assert os.fsencode(tmp_path) + b"/data/\xff" == store.locate(b"data/\xff")


def test_a_pickled_workspace_leaves_its_knowledge_of_dvc_behind(tmp_path: Path) -> None:
    """A worker gets the root alone: neither hints nor ``.dvcignore`` travel."""
    store = Workspace(
        os.fspath(tmp_path),
        hints=lambda *_: Hint(detail="known"),  # a lambda cannot be pickled
        ignored=lambda *_: True,
    )
    again = pickle.loads(pickle.dumps(store))
    assert store.root == again.root
    assert Hint() == again.explain("data/a", None, None)
    assert 300 > len(pickle.dumps(store)) - len(store.root)


def test_what_is_not_listed_is_extra(tmp_path: Path) -> None:
    """Files, links to files, dangling links, loops and FIFOs in a tracked folder are extras."""
    write(tmp_path / "data", FILES)
    write(tmp_path, {"beside": b"", "data-2/x": b""})
    write(tmp_path / "data", {"new": b"", "sub/new": b"", "fresh/deep/new": b"", "aa": b""})
    (tmp_path / "data/link").symlink_to("a")
    (tmp_path / "data/dangling").symlink_to("nowhere")
    (tmp_path / "data/loop").symlink_to("loop")
    os.mkfifo(tmp_path / "data/fifo")
    odd = os.fsdecode(b"data/\xff\n")
    (tmp_path / odd).write_bytes(b"")
    expected = ["aa", "dangling", "fifo", "fresh/deep/new", "link", "loop", "new", "sub/new"]
    assert [*(f"data/{path}" for path in expected), odd] == extras(tmp_path, manifest_of(FILES))


def test_links_to_folders_are_extra_and_empty_folders_are_not(tmp_path: Path) -> None:
    """DVC does not look behind such a link, so nobody vouches for what a loader finds there."""
    write(tmp_path / "data", FILES)
    write(tmp_path / "elsewhere", {"x": b""})
    (tmp_path / "data/empty/deeper").mkdir(parents=True)
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/up").symlink_to("..")
    assert ["data/link", "data/up"] == extras(tmp_path, manifest_of(FILES))


def test_a_listed_folder_that_became_a_link_is_extra(tmp_path: Path) -> None:
    """Its files can be read through the link, but DVC takes them for deleted."""
    write(tmp_path / "data", FILES)
    (tmp_path / "data/sub").rename(tmp_path / "elsewhere")
    (tmp_path / "data/sub").symlink_to("../elsewhere")
    assert ["data/sub"] == extras(tmp_path, manifest_of(FILES))
    hint = Workspace(os.fspath(tmp_path)).explain("data/sub", None, None)
    assert "link to the folder '../elsewhere', which DVC does not follow" in hint.detail


def test_what_dvcignore_leaves_out_is_no_extra(tmp_path: Path) -> None:
    """``ignored`` is asked with the path relative to the root, for unlisted files alone."""
    write(tmp_path / "data", FILES | {"x.tmp": b"", "sub/y.tmp": b"", "z": b""})
    asked = []

    def ignored(rev: str, path: str) -> bool:
        asked.append(path)
        assert rev == manifest_of(FILES).rev
        return path.endswith(".tmp")

    assert ["data/z"] == extras(tmp_path, manifest_of(FILES), ignored=ignored)
    assert ["data/sub/y.tmp", "data/x.tmp", "data/z"] == sorted(asked)


def test_a_folder_that_is_gone_has_no_extras(tmp_path: Path) -> None:
    """A missing folder says nothing here: its files are missing one by one."""
    assert [] == extras(tmp_path, manifest_of(FILES))
    (tmp_path / "data").symlink_to("nowhere")
    assert [] == extras(tmp_path, manifest_of(FILES))


def test_a_file_in_place_of_a_tracked_folder_is_extra(tmp_path: Path) -> None:
    """Whatever lies where a folder was committed is not what was committed."""
    (tmp_path / "data").write_bytes(b"")
    assert ["data"] == extras(tmp_path, manifest_of(FILES))


def test_a_tracked_folder_may_be_a_link(tmp_path: Path) -> None:
    """The tracked folder itself may lie elsewhere: what is in there counts."""
    write(tmp_path / "elsewhere", FILES | {"new": b""})
    (tmp_path / "data").symlink_to("elsewhere")
    assert ["data/new"] == extras(tmp_path, manifest_of(FILES))


def test_a_folder_that_cannot_be_listed_comes_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EACCES or EIO on one folder is told with its path, and the others are still searched."""
    write(tmp_path / "data", FILES | {"new": b"", "sub/new": b""})
    scandir = os.scandir

    def failing(place: bytes) -> Iterator[os.DirEntry[bytes]]:
        if place.endswith(b"/sub"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return scandir(place)

    monkeypatch.setattr(stores.workspace.os, "scandir", failing)
    store = Workspace(os.fspath(tmp_path), ignored=lambda _, path: path == "data/sub")
    found = dict(store.extras(manifest_of(FILES)))
    monkeypatch.undo()
    assert {"data/new", "data/sub"} == set(found)
    error = found["data/sub"]
    assert error is not None
    assert errno.EIO == error.errno


def test_only_chosen_folders_are_searched_and_each_file_comes_once(tmp_path: Path) -> None:
    """A part of a folder has extras of its own; a part inside a part does not tell them twice."""
    write(tmp_path / "data", FILES | {"new": b"", "sub/new": b"", "sub/deep/new": b""})
    chosen = manifest_of(FILES, only=("sub/deep",))
    assert ["data/sub/deep/new"] == extras(tmp_path, chosen)
    nested = manifest_of(FILES, only=("sub", "sub/deep"))
    assert ["data/sub/deep/new", "data/sub/new"] == extras(tmp_path, nested)


names = st.sampled_from(["a", "b", "c", "é", "sub/a", "sub/b", "sub/deep/a", "x/y/z", "Z", "%"])


@law
@given(st.sets(names), st.sets(names))
def test_extras_are_the_difference_of_two_sets(listed: set[str], present: set[str]) -> None:
    """Exactly the files that lie there and are not listed are extra."""
    manifest = manifest_of(dict.fromkeys(listed, b""))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data", dict.fromkeys(present, b""))
        assert sorted(f"data/{path}" for path in present - listed) == extras(root, manifest)


def test_paths_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes only find candidates: if all were equal, the paths themselves would still decide."""
    write(tmp_path / "data", FILES | {"new": b"", "sub/new": b""})
    for fixed in (0, -5, 2**62):
        monkeypatch.setattr(stores.workspace, "hash", lambda _, value=fixed: value, raising=False)
        assert ["data/new", "data/sub/new"] == extras(tmp_path, manifest_of(FILES))


def test_hints_explain_a_difference(tmp_path: Path) -> None:
    """The hint that the workspace was given is asked with path and digests, and passed on."""
    asked = []

    def hints(path: str, expected: Digest | None, found: Digest | None) -> Hint:
        asked.append((path, expected, found))
        return Hint(written=True, adopted=True, detail="known")

    store = Workspace(os.fspath(tmp_path), hints=hints)
    digest = Digest(Algorithm.MD5, bytes(16))
    assert Hint(True, True, "known") == store.explain("data/a", digest, None)
    assert [("data/a", digest, None)] == asked
    assert Hint() == Workspace(os.fspath(tmp_path)).explain("data/a", digest, digest)


def test_a_link_is_explained(tmp_path: Path) -> None:
    """A link that leads nowhere, in a circle or to a folder is told with its target, harmlessly."""
    odd = os.fsdecode(b"gone\x1b[31m\xff")
    (tmp_path / "folder").mkdir()
    store = Workspace(os.fspath(tmp_path), hints=lambda *_: Hint(True, True, "other"))
    for name, target, words in (
        ("dangling", odd, r"link to 'gone\x1b[31m\udcff', which cannot be read"),
        ("loop", "loop", "link to 'loop', which cannot be read"),
        ("link", "folder", "link to the folder 'folder', which DVC does not follow"),
    ):
        (tmp_path / name).symlink_to(target)
        hint = store.explain(name, None, None)
        assert words in hint.detail
        assert (True, True) == (hint.written, hint.adopted)
    assert Hint(True, True, "other") == store.explain("folder", None, None)


# ----------------------------------------------------------------- object stores

objects = pytest.mark.parametrize("kind", ["cache", "remote"])


@objects
def test_objects_never_change(kind: str, tmp_path: Path) -> None:
    """A store of objects is immutable: a difference there was written by nobody."""
    store = CASES[kind](tmp_path, FILES).store
    assert store.immutable
    assert Hint(written=False) == store.explain("data/a", None, None)
    assert [] == list(store.extras(manifest_of(FILES)))


@objects
def test_an_object_is_read_in_chunks(kind: str, tmp_path: Path) -> None:
    """``read`` gives the bytes of an object or of a listing; the two have different names."""
    big = {"big": b"0123456789abcdef" * 200_000}
    store = CASES[kind](tmp_path, big).store
    chunks = list(store.stream(Digest.from_hex(Algorithm.MD5, md5(big["big"]))))
    assert big["big"] == b"".join(chunks)
    assert stores.connection.CHUNK_BYTES >= max(map(len, chunks))
    out = folder_out(big)
    assert out.digest
    assert listing(big) == b"".join(store.stream(out.digest, listing=True))
    with pytest.raises(FileNotFoundError):
        list(store.stream(out.digest))


@objects
def test_listings_are_observed_as_objects(kind: str, tmp_path: Path) -> None:
    """The listing of each folder that the store is to have comes with what its bytes hash to."""
    store = CASES[kind](tmp_path, FILES).store
    manifest = manifest_of(FILES)
    ((out, observe),) = store.listings(manifest)
    seen = observe()
    assert manifest.outs == (out,)
    assert out.digest
    assert (out.digest.value, len(listing(FILES)), None) == (seen.digest, seen.size, seen.error)
    store._has = lambda _: False
    assert [] == list(store.listings(manifest))


def test_a_store_is_opened_when_it_is_needed_and_once(tmp_path: Path) -> None:
    """Making a store, asking its name and whether it holds an output connects to nothing."""
    case = remote_case(tmp_path, FILES)
    calls = []

    def connect() -> Connection:
        calls.append(1)
        return case.store._connected()

    store = ObjectStore("remote:far", connect, lambda out: out.cached)
    assert [True, False] == [store.holds(Out("x")), store.holds(Out("x", cached=False))]
    assert ("remote:far", []) == (store.name, calls)
    manifest = manifest_of(FILES)
    for _ in range(3):
        in_order(store.observe(manifest, rows_of(manifest), Algorithm.MD5))
        [observe() for _, observe in store.listings(manifest)]
    assert [1] == calls


class Failing(MemoryFileSystem):
    """A remote on which every object fails to open, with ``error``."""

    error: Exception
    cachable = False

    def open(self, *_: object, **__: object) -> object:
        """Fail, whatever is asked for."""
        raise self.error


def failing(error: Exception) -> ObjectStore:
    filesystem = Failing()
    filesystem.error = error
    connection = Connection(filesystem, "/nowhere", local=False)
    return ObjectStore("remote:far", lambda: connection, lambda _: True)


def test_an_object_that_cannot_be_read_is_a_value() -> None:
    """An OSError of the remote is an observation, for every object of its own."""
    manifest = manifest_of(FILES)
    store = failing(PermissionError(errno.EACCES, "Forbidden"))
    seen = in_order(store.observe(manifest, rows_of(manifest), Algorithm.MD5))
    assert [errno.EACCES] * 4 == [each.error and each.error.errno for each in seen]
    ((_, observe),) = store.listings(manifest)
    listed = observe()
    assert Observation(None, 0, None, None, listed.error) == listed


def test_a_remote_that_fails_in_its_own_way_gives_unreadable_objects() -> None:
    """Any other exception is EIO of that object, with what the remote said, harmlessly."""
    manifest = manifest_of(FILES)
    store = failing(LookupError("token \x1b[31m expired"))
    seen = in_order(store.observe(manifest, rows_of(manifest), Algorithm.MD5))
    seen += [observe() for _, observe in store.listings(manifest)]
    assert {errno.EIO} == {each.error and each.error.errno for each in seen}
    assert all(r"token \x1b[31m expired" in str(each.error) for each in seen)
    assert [] == [each.name for each in threading.enumerate() if "dvc-integrity" in each.name]


def test_a_store_that_cannot_be_opened_is_a_store_error() -> None:
    """What ``connect`` raises comes through as it is."""

    def connect() -> Connection:
        raise StoreError("The remote:far cannot be used")

    store = ObjectStore("remote:far", connect, lambda _: True)
    manifest = manifest_of(FILES)
    with pytest.raises(StoreError, match="cannot be used"):
        in_order(store.observe(manifest, rows_of(manifest), Algorithm.MD5))
    with pytest.raises(StoreError, match="cannot be used"):
        [observe() for _, observe in store.listings(manifest)]


def test_a_special_file_in_the_cache_never_blocks(tmp_path: Path) -> None:
    """A FIFO or a folder where an object should be is an error at once, for listings too."""
    case = cache_case(tmp_path, FILES)
    manifest = manifest_of(FILES)
    connection = case.store._connected()
    out = manifest.outs[0]
    digest = manifest[0].digest
    assert out.digest
    assert digest
    for place in (connection.locate(digest, False), connection.locate(out.digest, True)):
        os.unlink(place)
        os.mkfifo(place)
    (seen, *_) = in_order(case.store.observe(manifest, rows_of(manifest), Algorithm.MD5))
    assert isinstance(seen.error, OSError)
    ((_, observe),) = case.store.listings(manifest)
    listed = observe()
    assert isinstance(listed.error, OSError)


# ----------------------------------------------------------------- looking, listing, taking in


@every
def test_what_lies_there_is_told_without_reading(kind: str, tmp_path: Path) -> None:
    """A size for what is there, ``FileNotFoundError`` for what is not, in order."""
    case = CASES[kind](tmp_path, FILES)
    manifest = manifest_of(FILES)
    case.put("sub/c", None)
    found = case.store.stat(manifest, [2, 0, 1])
    assert [None, len(FILES["a"]), 0] == [each.size for each in found]
    assert [FileNotFoundError, None, None] == [each.error and type(each.error) for each in found]


@every
def test_an_entry_is_streamed(kind: str, tmp_path: Path) -> None:
    """The bytes come in pieces; what is not there raises."""
    case = CASES[kind](tmp_path, FILES)
    manifest = manifest_of(FILES)
    contents = [b"".join(case.store.chunks(manifest, row)) for row in range(4)]
    assert [FILES[path] for path in sorted(FILES)] == contents
    case.put("a", None)
    with pytest.raises(FileNotFoundError):
        list(case.store.chunks(manifest, 0))


@objects
def test_a_store_lists_its_objects(kind: str, tmp_path: Path) -> None:
    """Objects of both layouts and listings come with their sizes; other files are passed over."""
    case = CASES[kind](tmp_path, FILES)
    connection = case.store._connected()
    old = Digest.from_hex(Algorithm.MD5_DOS2UNIX, md5(b"old"))
    for place in (connection.locate(old), f"{connection.base}/files/md5/ab/left.tmp"):
        connection.filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
        connection.filesystem.pipe_file(place, b"old")
    expected = {
        (Digest.from_hex(Algorithm.MD5, md5(data)), False, len(data)) for data in FILES.values()
    }
    out = folder_out(FILES)
    assert out.digest
    expected |= {(out.digest, True, len(listing(FILES))), (old, False, 3)}
    found = [(each.digest, each.listing, each.size) for each in case.store.objects()]
    assert expected == set(found)
    assert len(expected) == len(found)


NEW = b"new bytes" * 1000
NEW_DIGEST = Digest.from_hex(Algorithm.MD5, md5(NEW))


def stored(case: Case, digest: Digest = NEW_DIGEST) -> bytes:
    return b"".join(case.store.stream(digest))


def everything(case: Case) -> set[str]:
    connection = case.store._connected()
    return set(connection.filesystem.find(connection.base))


@objects
def test_an_object_is_taken_in(kind: str, tmp_path: Path) -> None:
    """It lies there under its digest, and nothing else was left; local ones are protected."""
    case = CASES[kind](tmp_path, FILES)
    before = everything(case)
    case.store.put(NEW_DIGEST, lambda: [NEW[:10], NEW[10:]], quarantine=str(tmp_path / "q"))
    assert NEW == stored(case)
    connection = case.store._connected()
    assert {connection.locate(NEW_DIGEST)} == {
        each if connection.local else f"/{each.lstrip('/')}" for each in everything(case) - before
    }
    assert not (tmp_path / "q").exists()
    if connection.local:
        assert 0o444 == os.stat(connection.locate(NEW_DIGEST)).st_mode & 0o777


@objects
def test_a_bad_object_goes_to_quarantine(kind: str, tmp_path: Path) -> None:
    """The good one takes its place, and the bad bytes are kept with a note."""
    case = CASES[kind](tmp_path, FILES)
    case.put("a", b"alphA")
    digest = Digest.from_hex(Algorithm.MD5, md5(FILES["a"]))
    case.store.put(digest, lambda: [FILES["a"]], quarantine=str(tmp_path / "q"))
    assert FILES["a"] == stored(case, digest)
    (kept,) = (tmp_path / "q").iterdir()
    assert b"alphA" == (kept / "bytes").read_bytes()
    note = json.loads((kept / "note.json").read_text())
    assert (str(digest), md5(b"alphA")) == (note["expected"], note["found"])


@objects
def test_wrong_bytes_are_not_taken_in(kind: str, tmp_path: Path) -> None:
    """A source that gives other bytes changes nothing, and loses nothing."""
    case = CASES[kind](tmp_path, FILES)
    case.put("a", b"alphA")
    before = everything(case)
    digest = Digest.from_hex(Algorithm.MD5, md5(FILES["a"]))
    for wanted in (digest, NEW_DIGEST):
        with pytest.raises(SourceError, match=wanted.hex):
            case.store.put(wanted, lambda: [b"alpHa"], quarantine=str(tmp_path / "q"))
    assert b"alphA" == stored(case, digest)
    assert before == everything(case)
    assert not (tmp_path / "q").exists()


@objects
def test_a_good_object_is_left_alone(kind: str, tmp_path: Path) -> None:
    """Nothing is asked of the source, and nothing is written."""
    case = CASES[kind](tmp_path, FILES)
    digest = Digest.from_hex(Algorithm.MD5, md5(FILES["a"]))
    connection = case.store._connected()
    before = connection.filesystem.info(connection.locate(digest))

    def never() -> list[bytes]:
        pytest.fail("the source was asked")

    case.store.put(digest, never, quarantine=str(tmp_path / "q"))
    assert before == connection.filesystem.info(connection.locate(digest))


def test_a_store_that_is_read_only_takes_nothing_in(tmp_path: Path) -> None:
    """It says so, and names itself."""
    connection = Connection(MemoryFileSystem(), f"/{tmp_path.name}", local=False, writable=False)
    store = ObjectStore("remote:web", lambda: connection, lambda _: True)
    with pytest.raises(StoreError, match="remote:web can be read only"):
        store.put(NEW_DIGEST, lambda: [NEW], quarantine=str(tmp_path / "q"))


class Flaky(MemoryFileSystem):
    """A remote of which the first reads of each open file fail, after some bytes."""

    cachable = False

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__()
        self.failures = failures

    def open(self, path: str, mode: str = "rb", **options: object) -> Any:
        """Open a file that ends with the next failure after 1,000 bytes."""
        file = super().open(path, mode, **options)
        return Ending(file, self.failures) if mode == "rb" else file


class Ending:
    """A file of which 1,000 bytes come, and then a failure, while there is one."""

    def __init__(self, file: Any, failures: list[Exception]) -> None:
        self._file, self._failures, self._given = file, failures, False

    def read(self, size: int) -> Any:
        """Give 1,000 bytes, then fail."""
        if not self._failures:
            return self._file.read(size)
        if self._given:
            raise self._failures.pop(0)
        self._given = True
        return self._file.read(1000)

    def fail(self, _: int) -> bytes:
        """Give nothing at all."""
        raise self._failures.pop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def flaky(tmp_path: Path, failures: list[Exception]) -> ObjectStore:
    connection = Connection(Flaky(failures), f"/{tmp_path.name}", local=False)
    connection.filesystem.pipe_file(connection.locate(NEW_DIGEST), NEW)
    return ObjectStore("remote:far", lambda: connection, lambda _: True)


class OverloadedError(Exception):
    """What a service says when it is asked too much."""

    status = 503


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), TimeoutError("too slow"), OverloadedError("slow down")]
)
def test_a_read_that_is_cut_off_goes_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures that pass are tried again from where the read stopped; every byte comes once."""
    pauses: list[float] = []
    monkeypatch.setattr(stores.transport.time, "sleep", pauses.append)
    store = flaky(tmp_path, [error] * 7)
    assert NEW == b"".join(store.stream(NEW_DIGEST))
    assert 7 == len(pauses)


@pytest.mark.parametrize(
    ("error", "tries"), [(ConnectionResetError("reset"), 5), (PermissionError("forbidden"), 1)]
)
def test_a_failure_that_stays_is_an_error(
    error: Exception, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused for good is not tried again, and nothing is tried for ever."""
    monkeypatch.setattr(stores.transport.time, "sleep", lambda _: None)
    monkeypatch.setattr(Ending, "read", Ending.fail)
    store = flaky(tmp_path, failures := [error] * 1000)
    with pytest.raises(type(error)):
        list(store.stream(NEW_DIGEST))
    assert tries == 1000 - len(failures)

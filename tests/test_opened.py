"""Large files that are read by blocks: only MD5 calls one damaged, and reading goes on after it."""

from __future__ import annotations

import logging
import os
import pickle
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from projects import listing, md5

import dvc_integrity as di
from dvc_integrity import reader as reading
from dvc_integrity.blocks import BLOCK_BYTES, BLOCK_DIGEST_BYTES, BlockRecords, Blocks
from dvc_integrity.incidents import Incidents, TooManyIncidents
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.report import Status
from dvc_integrity.restore import Restorer
from dvc_integrity.stores import Connection, ObjectStore, Workspace

COUNT = 17
CONTENT = random.Random(0).randbytes(COUNT * BLOCK_BYTES - 5)
PATH = "data/big"


def manifest_of(names: list[str]) -> Manifest:
    builder = ManifestBuilder("0" * 40, ["data"])
    builder.add_out(Out("data", directory=True, defined_in="data.dvc"))
    builder.add_listing(deque([listing(dict.fromkeys(names, CONTENT))]), di.Algorithm.MD5)
    return builder.build()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with one large file in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / PATH).write_bytes(CONTENT)
    return tmp_path


@pytest.fixture
def records(root: Path) -> BlockRecords:
    return BlockRecords(os.fspath(root / "blocks"))


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that grows with each read of a whole file by MD5."""
    reads: list[object] = []
    observe = Workspace.observe

    def note(store: Workspace, *arguments: object, **options: object) -> object:
        reads.append(arguments)
        return observe(store, *arguments, **options)

    monkeypatch.setattr(Workspace, "observe", note)
    return reads


def reader_of(root: Path, records: BlockRecords, **options: object) -> di.Reader:
    return di.Reader(manifest_of(["big"]), Workspace(os.fspath(root), blocks=records), **options)


def restorer_of(root: Path, content: bytes) -> Restorer:
    """Return what restores from a store with one object."""
    place = root / "store" / "files/md5" / md5(CONTENT)[:2] / md5(CONTENT)[2:]
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    connection = Connection(None, os.fspath(root / "store"), local=True)
    source = ObjectStore("cache", lambda: connection, lambda _: True)
    return Restorer(Workspace(os.fspath(root)), [source], os.fspath(root / "scratch"))


def read_all(reader: di.Reader, path: str = PATH) -> bytes:
    with reader.open(path) as file:
        return file.read()


def digest_of(content: bytes) -> di.Digest:
    return di.Digest.from_hex(di.Algorithm.MD5, md5(content))


def spoil_digest(good: Blocks) -> Blocks:
    """Return a record that is whole in itself, and has wrong digests for blocks 3 and 16."""
    digests = bytearray(good.digests)
    for block in (3, 16):
        digests[block * BLOCK_DIGEST_BYTES] ^= 1
    return Blocks(good.digest, good.size, bytes(digests))


def spoil_size(good: Blocks) -> Blocks:
    """Return a record that is whole in itself, and about a longer file."""
    return Blocks(good.digest, good.size + BLOCK_BYTES, good.digests + bytes(BLOCK_DIGEST_BYTES))


# ----------------------------------------------------------------- the record is wrong


@pytest.mark.parametrize("spoil", [spoil_digest, spoil_size])
def test_a_wrong_record_never_makes_a_good_file_bad(
    spoil: Callable[[Blocks], Blocks],
    root: Path,
    records: BlockRecords,
    whole: list[object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MD5 decides: reading goes on, the record is written anew, the file is read once for it."""
    assert CONTENT == read_all(reader_of(root, records))
    good = records.find(digest_of(CONTENT))
    assert good is not None
    records.keep(spoil(good))
    whole.clear()
    caplog.clear()
    reader = reader_of(root, records, incidents=Incidents(os.fspath(root / "log"), budget=0))
    assert CONTENT == read_all(reader) == read_all(reader)
    assert (good, 1) == (records.find(digest_of(CONTENT)), len(whole))
    assert (spoil is spoil_digest) == ("was wrong, its MD5 is good" in caplog.text)
    assert 0 == reader.incidents.count()  # type: ignore[union-attr]  # it has some


def test_a_wrong_record_that_cannot_be_replaced_costs_one_read(
    root: Path, records: BlockRecords, whole: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be written the right digests stay in memory, and travel with the reader."""
    assert CONTENT == read_all(reader_of(root, records))
    good = records.find(digest_of(CONTENT))
    assert good is not None
    records.keep(spoil_digest(good))
    monkeypatch.setattr(BlockRecords, "keep", lambda *_: None)
    whole.clear()
    reader = reader_of(root, records)
    assert CONTENT == read_all(reader)
    assert CONTENT == read_all(pickle.loads(pickle.dumps(reader)))
    assert 1 == len(whole)


def test_a_wrong_record_and_a_damaged_file(root: Path, records: BlockRecords) -> None:
    """Both are bad: the file is called damaged, because its MD5 is."""
    read_all(reader_of(root, records))
    good = records.find(digest_of(CONTENT))
    assert good is not None
    records.keep(spoil_digest(good))
    faults.flip_bit(root / PATH, 5 * BLOCK_BYTES)
    with pytest.raises(di.CorruptDataError) as caught:
        read_all(reader_of(root, records))
    assert digest_of((root / PATH).read_bytes()) == caught.value.finding.found  # type: ignore[union-attr]  # it has one


# ----------------------------------------------------------------- the file is bad


def test_damage_is_judged_by_md5_once_and_named_in_full(
    root: Path, records: BlockRecords, whole: list[object]
) -> None:
    """The error has the digest that was found and all ranges; further bad blocks cost no MD5.

    Good blocks still come, and the budget counts each bad block that was met.
    """
    read_all(reader_of(root, records))
    faults.flip_bit(root / PATH, 2 * BLOCK_BYTES)
    faults.flip_bit(root / PATH, 3 * BLOCK_BYTES + 9)
    faults.flip_bit(root / PATH, 16 * BLOCK_BYTES)
    whole.clear()
    incidents = Incidents(os.fspath(root / "log"), budget=2)
    reader = reader_of(root, records, incidents=incidents)
    bad = []
    with reader.open(PATH) as file:
        for block in [*range(COUNT), 3, 2]:
            file.seek(block * BLOCK_BYTES)
            try:
                assert CONTENT[block * BLOCK_BYTES :][:8] == file.read(8)
            except TooManyIncidents:
                bad.append(-block)
            except di.CorruptDataError as error:
                bad.append(block)
                finding = error.finding
    assert [2, 3, -16, -3, -2] == bad
    assert finding is not None
    assert Status.MODIFIED is finding.status
    assert digest_of((root / PATH).read_bytes()) == finding.found
    assert (
        (2 * BLOCK_BYTES, 4 * BLOCK_BYTES),
        (16 * BLOCK_BYTES, len(CONTENT)),
    ) == finding.ranges
    assert (1, 3) == (len(whole), incidents.count())


def test_repaired_the_same_reader_reads_on(root: Path, records: BlockRecords) -> None:
    """Neither a verdict nor an open descriptor of the bad file outlives the repair."""
    read_all(reader_of(root, records))
    faults.flip_bit(root / PATH, 2 * BLOCK_BYTES)
    reader = reader_of(root, records)
    with pytest.raises(di.CorruptDataError):
        read_all(reader)
    (root / "data/new").write_bytes(CONTENT)
    (root / "data/new").replace(root / PATH)
    assert CONTENT == read_all(reader)


FAULTS: dict[str, Callable[[Path], None]] = {
    "flip": lambda path: faults.flip_bit(path, 9 * BLOCK_BYTES),
    "cut": lambda path: faults.truncate(path, 16 * BLOCK_BYTES + 3),
    "small": lambda path: faults.truncate(path, 100),
    "longer": faults.extend,
    "gone": faults.delete,
    "link": lambda path: faults.replace_by_link(path, "/etc/hostname"),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_restored_file_is_read_on(
    fault: str, known: bool, root: Path, records: BlockRecords
) -> None:
    """With blocks on record and without: good bytes come, the bad ones are kept, once."""
    if known:
        read_all(reader_of(root, records))
    FAULTS[fault](root / PATH)
    incidents = Incidents(os.fspath(root / "log"))
    restorer = restorer_of(root, CONTENT)
    reader = reader_of(root, records, restorer=restorer, incidents=incidents)
    assert CONTENT == read_all(reader) == read_all(reader)
    assert CONTENT == (root / PATH).read_bytes()
    kept = list((root / "scratch/quarantine").glob("*"))
    assert (0 if fault == "gone" else 1, 1) == (len(kept), incidents.count())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_goes_bad_while_it_is_open(
    fault: str, root: Path, records: BlockRecords
) -> None:
    """A file object in use hands out committed bytes, restored ones where they are needed."""
    reader = reader_of(root, records, restorer=restorer_of(root, CONTENT))
    with reader.open(PATH) as file:
        assert CONTENT[:10] == file.read(10)
        FAULTS[fault](root / PATH)
        file.seek(0)
        assert CONTENT == file.read()


def test_what_cannot_be_restored_raises_each_time(root: Path, records: BlockRecords) -> None:
    """The finding tells what was tried, and the ranges."""
    read_all(reader_of(root, records))
    faults.flip_bit(root / PATH, 9 * BLOCK_BYTES)
    reader = reader_of(root, records, restorer=restorer_of(root, CONTENT[:-1]))
    for _ in range(2):
        with pytest.raises(di.CorruptDataError, match="cache: damaged too") as caught:
            read_all(reader)
        assert ((9 * BLOCK_BYTES, 10 * BLOCK_BYTES),) == caught.value.finding.ranges  # type: ignore[union-attr]  # it has one


def test_a_block_that_is_good_when_all_is_read_is_transient(
    root: Path,
    records: BlockRecords,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two wrong reads of a block and a good MD5: the bytes come, with a word and no count."""
    read_all(reader_of(root, records))
    caplog.set_level(logging.WARNING)
    original, left = reading.ProvenFile.read_at, [1]

    def differ_once(file: reading.ProvenFile, offset: int, view: memoryview) -> int:
        if left:
            left.pop()
            raise file._differs(0, BLOCK_BYTES)
        return original(file, offset, view)

    monkeypatch.setattr(reading.ProvenFile, "read_at", differ_once)
    incidents = Incidents(os.fspath(root / "log"), budget=0)
    assert CONTENT == read_all(reader_of(root, records, incidents=incidents))
    assert "transient" in caplog.text
    assert 0 == incidents.count()


def test_blocks_that_never_agree_with_a_good_file_end(
    root: Path, records: BlockRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loop without an end: the file is unstable, which is not ``corrupt``."""
    monkeypatch.setattr(
        reading.ProvenFile,
        "read_at",
        lambda file, *_: (_ for _ in ()).throw(file._differs(0, BLOCK_BYTES)),
    )
    with pytest.raises(di.CorruptDataError) as caught:
        read_all(reader_of(root, records))
    assert Status.UNSTABLE is caught.value.finding.status  # type: ignore[union-attr]  # it has one


def test_only_so_many_large_files_stay_open(
    root: Path, records: BlockRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand large files need no thousand descriptors; a file object in use still reads."""
    monkeypatch.setattr(reading, "MOST_OPEN", 3)
    names = ["big", *map(str, range(6))]
    for name in names[1:]:
        os.link(root / PATH, root / "data" / name)
    reader = di.Reader(manifest_of(names), Workspace(os.fspath(root), blocks=records))
    before = len(os.listdir("/proc/self/fd"))
    with reader.open(PATH) as first:
        for name in names[1:]:
            assert CONTENT[:9] == reader.open(f"data/{name}").read(9)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
        assert CONTENT == first.read()

"""Digests of blocks make reading faster and never a verdict wrong.

Most tests make blocks of 1 KiB, and call files large from 2 KiB on, so that every edge is reached
with small files. A few use the real sizes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from observing import in_order
from projects import Tree, listing, md5

import dvc_integrity as di
from dvc_integrity import blocks, hashing
from dvc_integrity.blocks import BlockRecords, Blocks, BlockUse, BlockwiseFiles
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.hashing import LARGE_BYTES, LargeFile, Meter, hash_files
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.observation import Observation, Observations
from dvc_integrity.report import Evidence, Finding, Status, Verdict
from dvc_integrity.stores import Connection, ObjectStore, Workspace

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA = "0123456789abcdef0123456789abcdef01234567"
MIB = 1 << 20

BLOCK, PIECE, LARGE = 1 << 10, 1 << 8, 1 << 11
"""The small sizes: of a block, of a piece, and from which on a file is large."""

HEADER = struct.Struct("<24s16s16sQQ")
"""Kind, algorithm, digest, size, bytes of a block: what a record starts with."""

NOBODY = 65534

JSON = dict[str, Any]
Ranges = tuple[tuple[int, int], ...]


@contextlib.contextmanager
def small_sizes() -> Iterator[None]:
    """Let a few KiB be a large file of many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "LARGE_BYTES", LARGE)
        patch.setattr(blocks, "BLOCK_BYTES", BLOCK)
        patch.setattr(blocks, "PIECE_BYTES", PIECE)
        patch.setattr(blocks, "STRETCH_BLOCKS", 2)
        yield


@pytest.fixture
def small() -> Iterator[None]:
    """Let a few KiB be a large file of many blocks."""
    with small_sizes():
        yield


@functools.cache
def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no two blocks are alike."""
    return np.random.default_rng(seed).bytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest.from_hex(Algorithm.MD5, md5(data))


def blocks_of(data: bytes, block: int = BLOCK) -> Blocks:
    """Return what must be recorded of ``data``."""
    cut = [data[at : at + block] for at in range(0, len(data), block)]
    return Blocks(digest_of(data), len(data), b"".join(blake3(each).digest() for each in cut))


def ranges_of(old: bytes, new: bytes, block: int = BLOCK) -> Ranges:
    """Return where two contents differ, block by block, the plain way."""
    size = max(len(old), len(new))
    ranges: list[list[int]] = []
    for start in range(0, size, block):
        if old[start : start + block] == new[start : start + block]:
            continue
        end = min(start + block, size)
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = end
        else:
            ranges.append([start, end])
    return tuple((start, end) for start, end in ranges)


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if "dvc-integrity" in each.name]


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


class Kept(BlockRecords):
    """Records in memory, for tests that are not about the disk."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.records: dict[Digest, Blocks] = {}

    def find(self, digest: Digest, size: int | None = None) -> Blocks | None:
        """Return the record of a digest and a size."""
        found = self.records.get(digest)
        return found if found and size in (None, found.size) else None

    def keep(self, blocks: Blocks) -> None:
        """Take a record."""
        self.records[blocks.digest] = blocks


KINDS = ["sizes", "no sizes", "cache", "linked"]
"""The places where files lie: in the workspace with committed sizes and without, in a cache, and
in the workspace as hard links of a file elsewhere."""


class Scene:
    """Files in a store, the manifest that they were committed with, and records beside them."""

    def __init__(self, root: Path, files: Tree, kind: str = "sizes") -> None:
        self.root = root
        self.files = files
        self.kind = kind
        self.folder = root / "records"
        self.fresh()
        builder = ManifestBuilder(SHA, ["data"])
        if kind == "no sizes":
            data = listing(files)
            builder.add_out(Out("data", directory=True, digest=digest_of(data)))
            builder.add_listing(deque([data]), Algorithm.MD5)
        else:
            for name in sorted(files):
                digest, size = digest_of(files[name]), len(files[name])
                builder.add_out(Out(f"data/{name}", digest=digest, size=size))
                builder.add_entry(f"data/{name}", digest, size)
        self.manifest: Manifest = builder.build()
        (root / "elsewhere").mkdir()
        for name, data in files.items():
            place = self.place(name)
            place.parent.mkdir(parents=True, exist_ok=True)
            if kind == "linked":
                (root / "elsewhere" / name).write_bytes(data)
                place.hardlink_to(root / "elsewhere" / name)
            else:
                place.write_bytes(data)

    def fresh(self) -> None:
        """Open the store anew, as another run does."""
        self.records = BlockRecords(os.fspath(self.folder))
        self.store: Workspace | ObjectStore = Workspace(os.fspath(self.root), blocks=self.records)
        if self.kind == "cache":
            self.store = ObjectStore(
                "cache",
                lambda: self._connection,
                lambda _: True,
                blocks=self.records,
            )

    @property
    def _connection(self) -> Connection:
        return Connection(None, os.fspath(self.root / "cache"), local=True)

    def place(self, name: str) -> Path:
        """Return where the bytes of a file lie."""
        if self.kind == "cache":
            return Path(self._connection.locate(digest_of(self.files[name])))
        return self.root / "data" / name

    def record(self, name: str) -> Path:
        """Return where the record of a file lies."""
        return Path(self.records.path(digest_of(self.files[name])))

    @property
    def damaged(self) -> Status:
        """What a difference is called in this store."""
        return Status.CORRUPT if self.kind == "cache" else Status.MODIFIED

    def verify(self, **options: Any) -> di.Report:
        """Hold the store to the manifest; nothing of the work may stay."""
        before = descriptors()
        report = di.verify(self.manifest, self.store, **options)
        assert before == descriptors()
        assert [] == threads()
        assert [] == list(self.root.rglob("*.tmp"))
        return report


def counted(report: di.Report) -> JSON:
    """Return what a report's JSON says of the digests that were computed, and check the sum."""
    document = json.loads(json.dumps(report.to_json()))["coverage"]["rehashed"]
    told: JSON = document["digests"]
    assert document["files"] == sum(each["files"] for each in told.values())
    assert document["bytes"] == sum(each["bytes"] for each in told.values())
    return told


def by(**digests: tuple[int, int]) -> JSON:
    """Return counts of files and bytes by digest, as the JSON has them."""
    return {name: {"files": files, "bytes": size} for name, (files, size) in digests.items()}


def assert_good(report: di.Report) -> None:
    """Hold that everything is clean and there is nothing to tell."""
    assert (Verdict.CLEAN, ()) == (report.verdict, report.findings)


def assert_damaged(
    scene: Scene, report: di.Report, name: str, new: bytes, ranges: Ranges | None = None
) -> None:
    """Hold that one file is damaged, with the MD5, size and ranges of what lies there."""
    old = scene.files[name]
    (finding,) = report.findings
    assert Verdict.DAMAGED is report.verdict
    assert (
        Finding(
            path=f"data/{name}",
            out="data" if scene.kind == "no sizes" else f"data/{name}",
            status=scene.damaged,
            expected=digest_of(old),
            found=digest_of(new),
            size=len(new),
            ranges=ranges_of(old, new) if ranges is None else ranges,
        )
        == finding
    )


# ----------------------------------------------------------------- records


@st.composite
def records(draw: st.DrawFn) -> Blocks:
    """Draw a record of any digest and size, with blocks of the real size."""
    digest = Digest(draw(st.sampled_from(Algorithm)), draw(st.binary(min_size=16, max_size=16)))
    size = draw(st.integers(0, 40 * MIB) | st.integers(0, 40).map(lambda n: n * MIB))
    count = -(-size // MIB)
    return Blocks(digest, size, draw(st.binary(min_size=32 * count, max_size=32 * count)))


@law
@given(records())
def test_a_record_comes_back_from_its_bytes(record: Blocks) -> None:
    """Digest, size and digests of blocks survive; the layout is the documented one."""
    data = record.to_bytes()
    assert record == Blocks.from_bytes(data)
    kind, algorithm, digest, size, block = HEADER.unpack_from(data)
    assert (b"dvc-integrity/blocks/1", record.digest.value) == (kind.rstrip(b"\0"), digest)
    assert (record.digest.algorithm.value.encode(), record.size, MIB) == (
        algorithm.rstrip(b"\0"),
        size,
        block,
    )
    assert HEADER.size + len(record.digests) + 32 == len(data)


def test_any_damaged_bit_of_a_record_is_seen() -> None:
    """A record with any one bit flipped, or cut at any length, or longer, is none."""
    data = blocks_of(noise(3 * MIB + 5), MIB).to_bytes()
    for at, bit in product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        with pytest.raises(ValueError, match="own digest"):
            Blocks.from_bytes(bytes(damaged))
    for size in range(len(data)):
        with pytest.raises(ValueError, match="own digest"):
            Blocks.from_bytes(data[:size])
    for more in (b"\0", data[-1:], data[-32:], data):
        with pytest.raises(ValueError, match="own digest"):
            Blocks.from_bytes(data + more)


def signed(
    record: Blocks,
    kind: bytes = b"dvc-integrity/blocks/1",
    algorithm: bytes = b"md5",
    size: int | None = None,
    block: int = BLOCK,
    digests: bytes | None = None,
) -> bytes:
    """Return a record whose own digest holds, whatever is in it."""
    size = record.size if size is None else size
    body = HEADER.pack(kind, algorithm, record.digest.value, size, block)
    body += record.digests if digests is None else digests
    return body + blake3(body).digest()


OLD = noise(10 * BLOCK + 100)
"""Eleven blocks, the last one short."""

OTHER = noise(10 * BLOCK + 100, 1)

WHOLE = blocks_of(OLD)

FOREIGN: dict[str, bytes] = {
    "another kind": signed(WHOLE, kind=b"dvc-integrity/blocks/2"),
    "another algorithm": signed(WHOLE, algorithm=b"md5-dos2unix"),
    "an unknown algorithm": signed(WHOLE, algorithm=b"sha1"),
    "an algorithm that is no text": signed(WHOLE, algorithm=b"\xff\xfe"),
    "another size": signed(WHOLE, size=len(OLD) + 1),
    "a smaller size": signed(WHOLE, size=len(OLD) - 1),
    "an immense size": signed(WHOLE, size=(1 << 64) - 1),
    "no size": signed(WHOLE, size=0),
    "blocks of another size": signed(WHOLE, block=2 * BLOCK),
    "blocks of no size": signed(WHOLE, block=0),
    "too few blocks": signed(WHOLE, digests=WHOLE.digests[:-32]),
    "too many blocks": signed(WHOLE, digests=WHOLE.digests + WHOLE.digests[:32]),
    "half a block": signed(WHOLE, digests=WHOLE.digests[:-16]),
    "no blocks": signed(WHOLE, digests=b""),
    "a header alone": HEADER.pack(b"dvc-integrity/blocks/1", b"md5", bytes(16), 0, BLOCK),
}
"""Things whose own digest holds, or that have none, and that say nothing about ``OLD``."""


def put(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


def flipped_at(at: int) -> Callable[[Path], None]:
    return lambda place: faults.flip_bit(place, at)


def a_folder(place: Path) -> None:
    place.unlink()
    (place / "inner").mkdir(parents=True)


def a_fifo(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def a_loop(place: Path) -> None:
    place.unlink()
    place.symlink_to(place.name)


def immense(place: Path) -> None:
    with place.open("r+b") as file:
        file.truncate(100_000_000)


HURT: dict[str, Callable[[Path], None]] = {
    **{f"bit of byte {at}": flipped_at(at) for at in (0, 24, 40, 56, 63, 64, 71)},
    **{f"bit of block {block}": flipped_at(72 + 32 * block + 7) for block in range(11)},
    "first bit of the tail": flipped_at(72 + 32 * 11),
    "last bit of the tail": flipped_at(72 + 32 * 12 - 1),
    **{
        f"cut to {size}": functools.partial(faults.truncate, size=size)
        for size in (0, 1, 31, 32, 71, 72, 103, 104, 105, 72 + 32 * 11, 72 + 32 * 12 - 1)
    },
    "extended": faults.extend,
    "zeros": lambda place: place.write_bytes(bytes(place.stat().st_size)),
    "a folder": a_folder,
    "a FIFO": a_fifo,
    "a dangling link": lambda place: faults.replace_by_link(place, "nowhere"),
    "a link to itself": a_loop,
    "a link to a device": lambda place: faults.replace_by_link(place, "/dev/zero"),
    "100 MB": immense,
    "gone": faults.delete,
    **{
        name: functools.partial(lambda place, data: place.write_bytes(data), data=data)
        for name, data in FOREIGN.items()
    },
    "of another file": lambda place: place.write_bytes(blocks_of(OTHER).to_bytes()),
}
"""What can become of a record."""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("hurt", HURT)
def test_a_damaged_record_is_as_good_as_none(hurt: str, tmp_path: Path) -> None:
    """It is not found; good and bad files are told apart all the same; then it is whole again."""
    scene = Scene(tmp_path, {"a": OLD})
    assert_good(scene.verify())
    record = scene.record("a")
    whole = record.read_bytes()
    assert WHOLE.to_bytes() == whole
    HURT[hurt](record)
    assert scene.records.find(digest_of(OLD), len(OLD)) is None

    faults.flip_bit(scene.place("a"), 5 * BLOCK)
    assert_damaged(scene, scene.verify(), "a", scene.place("a").read_bytes(), ranges=())
    assert scene.records.find(digest_of(OLD), len(OLD)) is None

    scene.place("a").write_bytes(OLD)
    report = scene.verify()
    assert_good(report)
    assert by(md5=(1, len(OLD))) == counted(report)
    if record.is_dir():  # what somebody put there stays
        assert (record / "inner").is_dir()
        return
    assert (False, whole) == (record.is_symlink(), record.read_bytes())
    assert by(blocks=(1, len(OLD))) == counted(scene.verify())


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_record_that_may_not_be_read_is_as_good_as_none() -> None:
    """EACCES on a record: the verdict is right, and the record is replaced by one that serves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene = Scene(folder, {"a": OLD})
        assert_good(scene.verify())
        record = scene.record("a")
        whole = record.read_bytes()
        record.chmod(0)
        for place in (folder, *folder.rglob("*")):
            if place != record:
                os.chown(place, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            assert scene.records.find(digest_of(OLD)) is None
            assert by(md5=(1, len(OLD))) == counted(scene.verify())
            assert whole == record.read_bytes()
        finally:
            os.seteuid(0)


@pytest.mark.usefixtures("small")
def test_a_record_that_is_a_link_never_leads_into_data(tmp_path: Path) -> None:
    """The record is written in place of the link; what the link points to stays as it is."""
    scene = Scene(tmp_path, {"a": OLD, "b": OTHER})
    record = scene.record("a")
    record.parent.mkdir(parents=True)
    record.symlink_to(scene.place("b"))
    assert_good(scene.verify())
    assert OTHER == scene.place("b").read_bytes()
    assert (False, WHOLE.to_bytes()) == (record.is_symlink(), record.read_bytes())


@pytest.mark.usefixtures("small")
def test_a_record_speaks_for_its_digest_and_size_alone(tmp_path: Path) -> None:
    """Found with its size and without; never for another size, digest or algorithm."""
    kept = BlockRecords(os.fspath(tmp_path / "records"))
    assert kept.find(digest_of(OLD)) is None
    kept.keep(WHOLE)
    assert WHOLE == kept.find(digest_of(OLD)) == kept.find(digest_of(OLD), len(OLD))
    for size in (0, 1, len(OLD) - 1, len(OLD) + 1):
        assert kept.find(digest_of(OLD), size) is None
    assert kept.find(digest_of(OTHER)) is None
    assert kept.find(Digest(Algorithm.MD5_DOS2UNIX, digest_of(OLD).value)) is None
    for digest in (digest_of(OTHER), Digest(Algorithm.MD5_DOS2UNIX, digest_of(OLD).value)):
        put(Path(kept.path(digest)), WHOLE.to_bytes())
        assert kept.find(digest) is None


def test_a_record_that_vanishes_while_it_is_looked_for_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be deleted at any time, also between two looks at it."""
    kept = BlockRecords(os.fspath(tmp_path / "records"))
    kept.keep(blocks_of(OLD, MIB))
    place, look = Path(kept.path(digest_of(OLD))), os.path.exists

    def exists(path: str) -> bool:
        found = look(path)
        place.unlink(missing_ok=True)
        return found

    monkeypatch.setattr("dvc_integrity.blocks.os.path.exists", exists)
    stat = os.stat

    def gone(path: Any, **options: Any) -> os.stat_result:
        result = stat(path, **options)
        place.unlink(missing_ok=True)
        return result

    monkeypatch.setattr("dvc_integrity.blocks.os.stat", gone)
    assert kept.find(digest_of(OLD)) is None


# ----------------------------------------------------------------- forged records


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [[0], [5], [10], [0, 10], range(11)], ids=str)
def test_a_forged_record_never_makes_a_good_file_bad(
    kind: str, wrong: Sequence[int], tmp_path: Path
) -> None:
    """Wrong blocks in a record that holds its own digest: MD5 decides, and the record is mended.

    Both reads showed the same bytes, so that nothing was transient.
    """
    scene = Scene(tmp_path, {"a": OLD}, kind)
    digests = bytearray(WHOLE.digests)
    for block in wrong:
        digests[32 * block] ^= 1
    put(scene.record("a"), Blocks(WHOLE.digest, WHOLE.size, bytes(digests)).to_bytes())
    assert scene.records.find(digest_of(OLD), len(OLD)) is not None
    report = scene.verify()
    assert_good(report)
    assert by(md5=(1, len(OLD))) == counted(report)
    assert WHOLE.to_bytes() == scene.record("a").read_bytes()
    assert by(blocks=(1, len(OLD))) == counted(scene.verify())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_record_among_others_is_mended(kind: str, tmp_path: Path) -> None:
    """The second read is of some files of many, and each is held to its own digest."""
    files = {str(number): noise(LARGE + 99 * number, number) for number in range(8)}
    scene = Scene(tmp_path, files, kind)
    assert_good(scene.verify())
    whole = faults.snapshot(scene.folder)
    for name in ("3", "6"):
        right = blocks_of(files[name])
        forged = Blocks(right.digest, right.size, bytes(32) + right.digests[32:])
        scene.record(name).write_bytes(forged.to_bytes())
    assert_good(scene.verify())
    assert [state[2] for state in whole.values()] == [
        state[2] for state in faults.snapshot(scene.folder).values()
    ]


@pytest.mark.usefixtures("small")
def test_a_forged_record_of_another_size_is_mended(tmp_path: Path) -> None:
    """It speaks for no file of the right size; a good read puts the right one in its place."""
    scene = Scene(tmp_path, {"a": OLD})
    forged = Blocks(digest_of(OLD), 3 * BLOCK, WHOLE.digests[:96])
    put(scene.record("a"), forged.to_bytes())
    assert by(md5=(1, len(OLD))) == counted(scene.verify())
    assert WHOLE.to_bytes() == scene.record("a").read_bytes()


@pytest.mark.usefixtures("small")
def test_a_forged_record_that_cannot_be_mended_changes_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good file is good each time, and a bad one bad, though the record stays wrong."""
    scene = Scene(tmp_path, {"a": OLD})
    forged = Blocks(WHOLE.digest, WHOLE.size, bytes(32) + WHOLE.digests[32:]).to_bytes()
    put(scene.record("a"), forged)

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(blocks, "replacement", refused)
    for _ in range(2):
        assert_good(scene.verify())
    faults.flip_bit(scene.place("a"), 3 * BLOCK)
    (finding,) = scene.verify().findings
    assert (Status.MODIFIED, digest_of(scene.place("a").read_bytes())) == (
        finding.status,
        finding.found,
    )
    assert forged == scene.record("a").read_bytes()


# ----------------------------------------------------------------- damage


def flipped(*offsets: int) -> bytes:
    """Return ``OLD`` with a bit flipped at each of the offsets."""
    data = bytearray(OLD)
    for at in offsets:
        data[at] ^= 4
    return bytes(data)


SILENT = {
    **{
        f"bit at {at}": flipped(at)
        for at in (
            *(0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 5 * BLOCK + 17),
            *(9 * BLOCK, 10 * BLOCK - 1, 10 * BLOCK, 10 * BLOCK + 50, len(OLD) - 1),
        )
    },
    "two ranges": flipped(BLOCK, 7 * BLOCK + 3),
    "two ranges apart by a block": flipped(3 * BLOCK, 5 * BLOCK),
    "two blocks side by side": flipped(4 * BLOCK - 1, 4 * BLOCK),
    "both ends": flipped(0, len(OLD) - 1),
    "every second block": flipped(*range(0, len(OLD), 2 * BLOCK)),
    "every block": flipped(*range(0, len(OLD), BLOCK)),
    "two blocks in each other's place": OLD[BLOCK : 2 * BLOCK] + OLD[:BLOCK] + OLD[2 * BLOCK :],
    "other bytes": OTHER,
    "zeros": bytes(len(OLD)),
    "one block everywhere": OLD[:BLOCK] * 10 + OLD[:100],
}
"""Other bytes of the same length."""

RESIZED = {
    **{
        f"cut to {size}": OLD[:size]
        for size in (
            *(len(OLD) - 1, 10 * BLOCK + 1, 10 * BLOCK, 10 * BLOCK - 1, 5 * BLOCK + 1, 5 * BLOCK),
            *(5 * BLOCK - 1, LARGE + 1, LARGE),
        )
    },
    **{
        f"longer by {more}": OLD + noise(more, 2)
        for more in (1, BLOCK - 101, BLOCK - 100, BLOCK - 99, 3 * BLOCK, 30 * BLOCK)
    },
    "without its first byte": OLD[1:],
    "shifted by one": b"x" + OLD,
    "twice": OLD * 2,
    "other and longer": noise(14 * BLOCK, 3),
}
"""Other bytes of another length that is still large."""


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jobs", [1, 3])
def test_damage_after_blocks_were_recorded_is_found_and_placed(
    kind: str, jobs: int, tmp_path: Path
) -> None:
    """Verdict, MD5, size and ranges are those of the bytes that lie there, with times kept.

    Coverage counts the damaged file under ``md5``, the good ones under ``blocks``.
    """
    files = {"a": OLD, "b": OTHER, "c": noise(4 * BLOCK, 4), "little": b"little"}
    scene = Scene(tmp_path, files, kind)
    assert_good(scene.verify(jobs=jobs))
    good = len(files["b"]) + len(files["c"])
    assert by(blocks=(3, len(OLD) + good), md5=(1, 6)) == counted(scene.verify(jobs=jobs))
    records = faults.snapshot(scene.folder)
    place = scene.place("a")
    before = place.stat()
    for name, new in {**SILENT, **RESIZED}.items():
        assert new != OLD, name
        with faults.changed(place):
            place.write_bytes(new)
        os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
        report = scene.verify(jobs=jobs)
        assert_damaged(scene, report, "a", new)
        assert by(blocks=(2, good), md5=(2, 6 + len(new))) == counted(report), name
        place.write_bytes(OLD)
        assert records == faults.snapshot(scene.folder), name
    assert by(blocks=(3, len(OLD) + good), md5=(1, 6)) == counted(scene.verify(jobs=jobs))


@law
@given(st.data())
def test_any_changed_bytes_are_found_and_placed(data: st.DataObject) -> None:
    """Any size, any set of changed bytes, any number of threads: the ranges are exact."""
    size = data.draw(st.integers(LARGE, 20 * BLOCK))
    old = noise(20 * BLOCK, 5)[:size]
    new = bytearray(old)
    for at in data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=8)):
        new[at] ^= data.draw(st.integers(1, 255))
    with small_sizes(), tempfile.TemporaryDirectory() as name:
        scene = Scene(Path(name), {"a": old})
        scene.records.keep(blocks_of(old))
        assert by(blocks=(1, size)) == counted(scene.verify())
        scene.place("a").write_bytes(new)
        report = scene.verify(jobs=data.draw(st.integers(1, 5)))
        assert_damaged(scene, report, "a", bytes(new))


@law
@given(st.binary(max_size=6 * BLOCK), st.binary(max_size=6 * BLOCK), st.integers(0, 6 * BLOCK))
@example(b"", b"x", 0)
@example(b"x" * BLOCK, b"", 0)
@example(b"x" * BLOCK, b"x" * 2 * BLOCK, 0)
def test_ranges_are_where_two_contents_differ(old: bytes, new: bytes, common: int) -> None:
    """For contents of any two lengths, with any common part."""
    new = old[:common] + new
    with small_sizes():
        assert ranges_of(old, new) == blocks_of(old).differing(blocks_of(new).digests, len(new))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, LARGE - 1])
def test_a_large_file_that_became_small_is_damaged(kind: str, size: int, tmp_path: Path) -> None:
    """What is left is read whole; no blocks of it are taken, so that no range is told."""
    scene = Scene(tmp_path, {"a": OLD}, kind)
    assert_good(scene.verify())
    faults.truncate(scene.place("a"), size)
    assert_damaged(scene, scene.verify(), "a", OLD[:size], ranges=())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_more_is_missing(kind: str, tmp_path: Path) -> None:
    """Gone, or a folder in its place: told as without blocks."""
    scene = Scene(tmp_path, {"a": OLD}, kind)
    assert_good(scene.verify())
    faults.delete(scene.place("a"))
    assert [Status.MISSING] == [each.status for each in scene.verify().findings]
    scene.place("a").mkdir()
    assert [scene.damaged] == [each.status for each in scene.verify().findings]


@pytest.mark.usefixtures("small")
def test_a_copy_of_a_good_file_places_the_damage_of_another(tmp_path: Path) -> None:
    """Two files of one content share a record, also one that was taken in the same run."""
    scene = Scene(tmp_path, {"a": OLD, "b": OLD})
    scene.place("a").write_bytes(flipped(0))
    report = scene.verify()
    assert_damaged(scene, report, "a", flipped(0))
    assert WHOLE.to_bytes() == scene.record("a").read_bytes()
    assert by(blocks=(1, len(OLD)), md5=(1, len(OLD))) == counted(scene.verify())


@pytest.mark.usefixtures("small")
def test_a_lost_execute_bit_is_seen_by_blocks_too(tmp_path: Path) -> None:
    """The bytes are good by their blocks; the bit that DVC records is gone, and that is told."""
    builder = ManifestBuilder(SHA)
    builder.add_out(Out("run", digest=digest_of(OLD), size=len(OLD)))
    builder.add_entry("run", digest_of(OLD), len(OLD), True)
    store = Workspace(os.fspath(tmp_path), blocks=BlockRecords(os.fspath(tmp_path / "records")))
    place = tmp_path / "run"
    place.write_bytes(OLD)
    place.chmod(0o755)
    for told in ({"md5"}, {"blocks"}):
        report = di.verify(builder.build(), store)
        assert_good(report)
        assert told == set(counted(report))
    place.chmod(0o644)
    (finding,) = di.verify(builder.build(), store).findings
    assert (Status.MODIFIED, digest_of(OLD), ()) == (
        finding.status,
        finding.found,
        finding.ranges,
    )
    assert "executable" in finding.detail


@pytest.mark.usefixtures("small")
def test_blocks_are_for_md5_alone(tmp_path: Path) -> None:
    """Beside files of DVC 2's hash, which has no records, others are recorded and checked."""
    builder = ManifestBuilder(SHA)
    files = {name: noise(LARGE + number, number) for number, name in enumerate("abcdef")}
    for number, (name, data) in enumerate(files.items()):
        algorithm = Algorithm.MD5_DOS2UNIX if number % 2 == 0 else Algorithm.MD5
        digest = Digest(algorithm, hashing.hash_buffers([data], algorithm)[0].value)
        builder.add_out(Out(name, digest=digest, size=len(data)))
        builder.add_entry(name, digest, len(data))
        (tmp_path / name).write_bytes(data)
    store = Workspace(os.fspath(tmp_path), blocks=BlockRecords(os.fspath(tmp_path / "records")))
    for told in ("md5", "blocks"):
        report = di.verify(builder.build(), store)
        assert_good(report)
        assert {"md5-dos2unix", told} == set(counted(report))
    (tmp_path / "d").write_bytes(files["f"])
    (finding,) = di.verify(builder.build(), store).findings
    expected = ranges_of(files["d"], files["f"])
    assert ("d", expected) == (finding.path, finding.ranges)


@pytest.mark.usefixtures("small")
def test_a_wrong_committed_size_is_damage_by_blocks_too(tmp_path: Path) -> None:
    """The MD5 and the blocks of the bytes are right; the size in the commit is another."""
    builder = ManifestBuilder(SHA)
    builder.add_out(Out("a", digest=digest_of(OLD), size=len(OLD) + 1))
    builder.add_entry("a", digest_of(OLD), len(OLD) + 1)
    store = Workspace(os.fspath(tmp_path), blocks=BlockRecords(os.fspath(tmp_path / "records")))
    (tmp_path / "a").write_bytes(OLD)
    for _ in range(2):
        assert Verdict.DAMAGED is di.verify(builder.build(), store).verdict


# ----------------------------------------------------------------- sizes and counts

EDGES = sorted(
    {
        *(LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1),
        *(17 * MIB - 1, 17 * MIB, 17 * MIB + 1),
        *(LARGE_BYTES + (1 << 17) - 1, LARGE_BYTES + (1 << 17), LARGE_BYTES + (1 << 17) + 1),
    }
)
"""Around the real edges of large files, blocks and pieces."""


def test_files_around_every_real_edge_are_held(tmp_path: Path) -> None:
    """Below 16 MiB no block is looked at, from there on all are; MD5 and blocks are the plain ones.

    A flipped last bit is found in each of them.
    """
    longest = noise(EDGES[-1], 6)
    scene = Scene(tmp_path, {str(size): longest[:size] for size in EDGES})
    report = scene.verify()
    assert_good(report)
    assert by(md5=(len(EDGES), sum(EDGES))) == counted(report)
    large = EDGES[1:]
    assert len(large) == sum(place.is_file() for place in scene.folder.rglob("*"))
    for size in large:
        kept = scene.records.find(digest_of(longest[:size]), size)
        assert blocks_of(longest[:size], MIB) == kept
    report = scene.verify()
    assert_good(report)
    assert by(md5=(1, EDGES[0]), blocks=(len(large), sum(large))) == counted(report)
    for size in EDGES:
        faults.flip_bit(scene.place(str(size)), size - 1, 7)
    report = scene.verify()
    assert {str(size): size for size in EDGES} == {
        os.path.basename(each.path): each.size for each in report.findings
    }
    for each in report.findings:
        last = (each.size - 1) // MIB * MIB
        assert (((last, each.size),) if each.size >= LARGE_BYTES else ()) == each.ranges


@law
@given(st.integers(0, 12 * BLOCK) | st.integers(0, 48).map(lambda n: n * PIECE), st.integers(1, 5))
def test_a_large_file_of_any_size_is_hashed_as_hashlib_does(size: int, jobs: int) -> None:
    """First whole, then by its blocks: MD5, size and record are the plain ones."""
    data, kept = noise(12 * BLOCK, 7)[:size], Kept()
    with small_sizes(), tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        for use in (BlockUse.CHECK, BlockUse.CHECK, BlockUse.RECORD):
            by_blocks = use is BlockUse.CHECK and bool(kept.records)
            way = BlockwiseFiles(kept, lambda _: digest_of(data), use)
            (seen,) = in_order(hash_files([file.name], jobs=jobs, large=way))
            assert (hashlib.md5(data).digest(), size) == (seen.digest, seen.size)
            assert (True, None) == (seen.stable, seen.error)
            assert by_blocks == seen.by_blocks
            if size >= LARGE:
                assert blocks_of(data) == kept.records[digest_of(data)]
                recorded = use is BlockUse.RECORD
                assert (blocks_of(data).digests if recorded else None) == seen.blocks
            else:
                assert ({}, None) == (kept.records, seen.blocks)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_any_number_of_large_files_is_hashed_as_hashlib_does(jobs: int, tmp_path: Path) -> None:
    """1 to 40 files of unlike sizes, side by side: each has its own MD5, and the meter counts."""
    contents = [noise(LARGE + 997 * (number * 7 % 41) + number, 8) for number in range(40)]
    paths = [os.fspath(tmp_path / str(number)) for number in range(40)]
    for path, data in zip(paths, contents, strict=True):
        Path(path).write_bytes(data)
    expected = [digest_of(data) for data in contents]
    for number in range(1, 41):
        kept = Kept()
        for by_blocks in (False, True):
            meter = Meter()
            way = BlockwiseFiles(kept, expected.__getitem__, BlockUse.CHECK)
            batches = hash_files(paths[:number], jobs=jobs, large=way, meter=meter)
            seen = in_order(batches)
            assert [each.value for each in expected[:number]] == [each.digest for each in seen]
            assert list(map(len, contents[:number])) == [each.size for each in seen]
            assert {by_blocks} == {each.by_blocks for each in seen}
            assert (number, sum(map(len, contents[:number]))) == (meter.files, meter.bytes)
        assert {digest_of(data): blocks_of(data) for data in contents[:number]} == kept.records


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_files_with_and_without_records_side_by_side(jobs: int, tmp_path: Path) -> None:
    """Large, small, known, unknown, damaged and lost ones in one run: each has its own verdict."""
    files = {f"{number:02}": noise(LARGE - 300 + 211 * number, number) for number in range(30)}
    scene = Scene(tmp_path, files)
    for number in range(0, 30, 2):
        scene.records.keep(blocks_of(files[f"{number:02}"]))
    damaged = {name: files[name][:-1] + b"?" for name in ("05", "06", "15", "16")}
    for name, data in damaged.items():
        with faults.changed(scene.place(name)):
            scene.place(name).write_bytes(data)
    for name in ("07", "08"):
        faults.delete(scene.place(name))
    report = scene.verify(jobs=jobs)
    found = {os.path.basename(each.path): each for each in report.findings}
    assert {*damaged, "07", "08"} == set(found)
    for name, data in damaged.items():
        known = int(name) % 2 == 0
        assert (digest_of(data), ranges_of(files[name], data) if known else ()) == (
            found[name].found,
            found[name].ranges,
        )
    assert 2 == report.coverage.files[Evidence.UNREAD]
    assert 28 == report.coverage.files[Evidence.REHASHED]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("cold", [False, True])
def test_a_cold_read_drops_pages_of_large_files(
    cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``cold`` and only then, in both ways of reading; a second read is always cold."""
    scene, dropped = Scene(tmp_path, {"a": OLD}), []
    monkeypatch.setattr(blocks, "drop_cached_pages", dropped.append)
    for _ in range(2):  # recording, checking
        scene.verify(cold=cold)
        assert cold == len(dropped)
        dropped.clear()
    faults.flip_bit(scene.place("a"))
    scene.verify(cold=cold)
    assert 1 + cold == len(dropped)


# ----------------------------------------------------------------- reads that go wrong

Preadv = Callable[[int, list[memoryview], int], int]


class Reads:
    """Stands before ``os.preadv``: counts the reads of files and lets a test meddle with them."""

    def __init__(self, meddle: Callable[[int, int, Preadv, Any], int]) -> None:
        self._really: Preadv = os.preadv
        self._meddle = meddle
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        """Read, or do what the test wants instead."""
        with self._lock:
            self.count += 1
            number = self.count
        arguments = (descriptor, buffers, offset)
        return self._meddle(number, offset, self._really, arguments)


def meddle(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[int, int, Preadv, Any], int]
) -> Reads:
    reads = Reads(change)
    monkeypatch.setattr("dvc_integrity.blocks.os.preadv", reads)
    return reads


recorded_or_not = pytest.mark.parametrize("recorded", [False, True], ids=["first time", "checked"])
"""Without a record, and so whole; with one, and so by blocks."""


def scene_of(tmp_path: Path, recorded: bool, kind: str = "sizes") -> Scene:
    scene = Scene(tmp_path, {"a": OLD}, kind)
    if recorded:
        scene.records.keep(WHOLE)
    return scene


def assert_record_is_right(scene: Scene) -> None:
    """Hold that what is on record of ``a``, if anything, is right."""
    assert scene.records.find(digest_of(OLD)) in (None, WHOLE)


@pytest.mark.usefixtures("small")
@recorded_or_not
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 5 * BLOCK, 10 * BLOCK])
def test_other_bytes_once_are_transient(
    kind: str, recorded: bool, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that was flipped on the way, in one read: the file is good, and it is told."""
    scene, done = scene_of(tmp_path, recorded, kind), []

    def flip(_: int, offset: int, really: Preadv, arguments: Any) -> int:
        size = really(*arguments)
        if offset == place and not done:
            done.append(offset)
            arguments[1][0][3] ^= 1
        return size

    meddle(monkeypatch, flip)
    report = scene.verify()
    (finding,) = report.findings
    assert (Verdict.CLEAN, Status.OK, True, digest_of(OLD), ()) == (
        report.verdict,
        finding.status,
        finding.transient,
        finding.found,
        finding.ranges,
    )
    gave = "other blocks" if recorded else str(digest_of(flipped_on_the_way(place)))
    assert f"a first read gave {gave}, a second one" in finding.detail
    assert by(md5=(1, len(OLD))) == counted(report)
    assert WHOLE.to_bytes() == scene.record("a").read_bytes()


def flipped_on_the_way(place: int) -> bytes:
    data = bytearray(OLD)
    data[place + 3] ^= 1
    return bytes(data)


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_short_read_is_read_on(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give fewer bytes than were asked for: the rest is asked for again."""
    scene = scene_of(tmp_path, recorded)

    def a_few(_: int, __: int, really: Preadv, arguments: Any) -> int:
        descriptor, (buffer,), offset = arguments
        return really(descriptor, [buffer[:37]], offset)

    reads = meddle(monkeypatch, a_few)
    assert_good(scene.verify())
    assert len(OLD) // 37 < reads.count
    assert WHOLE == scene.records.find(digest_of(OLD))


@pytest.mark.usefixtures("small")
@recorded_or_not
@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("place", [0, 4 * BLOCK, 10 * BLOCK])
def test_an_error_in_the_midst_that_stays_is_unreadable(
    place: int, jobs: int, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO of one place each time: neither good nor bad, and the record stays as it is."""
    scene = scene_of(tmp_path, recorded)

    def fail(_: int, offset: int, really: Preadv, arguments: Any) -> int:
        if offset == place:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(*arguments)

    meddle(monkeypatch, fail)
    report = scene.verify(jobs=jobs)
    (finding,) = report.findings
    assert (Verdict.INCOMPLETE, Status.UNREADABLE, os.strerror(errno.EIO), None, ()) == (
        report.verdict,
        finding.status,
        finding.detail,
        finding.found,
        finding.ranges,
    )
    assert (0, 1) == (
        report.coverage.files[Evidence.REHASHED],
        report.coverage.files[Evidence.UNREAD],
    )
    assert (WHOLE if recorded else None) == scene.records.find(digest_of(OLD))


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_an_error_in_the_midst_that_goes_away_is_transient(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO once, then the committed bytes: good, and told with its reason."""
    scene, done = scene_of(tmp_path, recorded), []

    def fail(_: int, offset: int, really: Preadv, arguments: Any) -> int:
        if offset == 6 * BLOCK and not done:
            done.append(offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(*arguments)

    meddle(monkeypatch, fail)
    report = scene.verify()
    (finding,) = report.findings
    assert (Verdict.CLEAN, True) == (report.verdict, finding.transient)
    assert os.strerror(errno.EIO) in finding.detail
    assert WHOLE == scene.records.find(digest_of(OLD))


def replaced(place: Path) -> None:
    (place.parent / "new").write_bytes(OTHER)
    os.replace(place.parent / "new", place)


def written(place: Path) -> None:
    """Write the first byte anew, and put the time back."""
    state = place.stat()
    with place.open("r+b") as file:
        file.write(bytes([OLD[0] ^ 1]))
    os.utime(place, ns=(state.st_atime_ns, state.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], None], Status]] = {
    "truncated": (lambda place: os.truncate(place, 3 * BLOCK), Status.MODIFIED),
    "emptied": (lambda place: os.truncate(place, 0), Status.MODIFIED),
    "extended": (faults.extend, Status.MODIFIED),
    "written, times kept": (written, Status.MODIFIED),
    "replaced": (replaced, Status.MODIFIED),
    "deleted": (faults.delete, Status.MISSING),
}
"""What can happen to a file while it is read, and what it is then."""


@pytest.mark.usefixtures("small")
@recorded_or_not
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", [2, 6, 11])
def test_a_change_while_a_file_is_read_is_never_good(
    change: str, when: int, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the bytes that were read are the committed ones, what lies there is judged."""
    scene = scene_of(tmp_path, recorded)
    act, status = CHANGES[change]

    def meanwhile(number: int, _: int, really: Preadv, arguments: Any) -> int:
        size = really(*arguments)
        if number == when:
            act(scene.place("a"))
        return size

    meddle(monkeypatch, meanwhile)
    report = scene.verify(jobs=1)
    (finding,) = report.findings
    assert (Verdict.DAMAGED, status) == (report.verdict, finding.status)
    if status is Status.MODIFIED:
        assert digest_of(scene.place("a").read_bytes()) == finding.found
    assert (WHOLE if recorded else None) == scene.records.find(digest_of(OLD))


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_file_that_is_written_in_both_reads_is_unstable(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are good in both reads, and yet nothing is proved; no record is made of them."""
    scene = scene_of(tmp_path, recorded)

    def meanwhile(_: int, offset: int, really: Preadv, arguments: Any) -> int:
        size = really(*arguments)
        if offset == 3 * BLOCK:
            os.utime(scene.place("a"), ns=(1, scene.place("a").stat().st_mtime_ns + 1))
        return size

    meddle(monkeypatch, meanwhile)
    report = scene.verify()
    (finding,) = report.findings
    assert (Verdict.INCOMPLETE, Status.UNSTABLE) == (report.verdict, finding.status)
    assert (WHOLE if recorded else None) == scene.records.find(digest_of(OLD))


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_file_that_was_touched_in_one_read_is_good(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second read decides, and hardware is not blamed."""
    scene, done = scene_of(tmp_path, recorded), []

    def meanwhile(_: int, __: int, really: Preadv, arguments: Any) -> int:
        size = really(*arguments)
        if not done:
            done.append(1)
            os.utime(scene.place("a"))
        return size

    meddle(monkeypatch, meanwhile)
    report = scene.verify()
    assert_good(report)
    assert by(md5=(1, len(OLD))) == counted(report)
    assert WHOLE == scene.records.find(digest_of(OLD))


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_file_that_changed_before_it_was_opened_is_judged_as_it_is(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its size and the reading: longer, shorter, gone, each as it lies."""
    really = blocks.open_file
    for new in (OLD + b"x", OLD[:-1], OLD[: 3 * BLOCK], b"", None):
        folder = tmp_path / ("gone" if new is None else str(len(new)))
        folder.mkdir()
        scene = scene_of(folder, recorded)
        place = scene.place("a")

        def meanwhile(path: bytes, place: Path = place, new: bytes | None = new) -> Any:
            if place.exists():
                place.unlink() if new is None else place.write_bytes(new)
            return really(path)

        monkeypatch.setattr(blocks, "open_file", meanwhile)
        report = scene.verify()
        (finding,) = report.findings
        expected = Status.MISSING if new is None else Status.MODIFIED
        assert (Verdict.DAMAGED, expected) == (report.verdict, finding.status)
        assert (None if new is None else digest_of(new)) == finding.found
        assert_record_is_right(scene)


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_bytes_appended_before_it_was_opened_are_never_passed_over(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a file of whole blocks are the recorded ones, and yet more lies behind them."""
    old = OLD[: 10 * BLOCK]
    scene = Scene(tmp_path, {"a": old})
    if recorded:
        scene.records.keep(blocks_of(old))
    really, place = blocks.open_file, scene.place("a")

    def meanwhile(path: bytes) -> Any:
        if place.stat().st_size == len(old):
            faults.extend(place)
        return really(path)

    monkeypatch.setattr(blocks, "open_file", meanwhile)
    report = scene.verify()
    expected = ((10 * BLOCK, 10 * BLOCK + 1),) if recorded else ()
    assert_damaged(scene, report, "a", old + b"\0", ranges=expected)


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_descriptor_that_tells_no_state_is_unreadable(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``fstat`` fails after the read, nothing is known of the file; nothing is kept."""
    scene = scene_of(tmp_path, recorded)

    def fail(_: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(blocks, "file_state", fail)
    report = scene.verify()
    assert [Status.UNREADABLE] == [each.status for each in report.findings]
    assert (WHOLE if recorded else None) == scene.records.find(digest_of(OLD))


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_file_whose_pages_cannot_be_dropped_leaks_nothing(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that refuses ``posix_fadvise``: unreadable, and its descriptor is closed."""
    scene = scene_of(tmp_path, recorded)

    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(blocks, "drop_cached_pages", fail)
    report = scene.verify(cold=True)
    assert [Status.UNREADABLE] == [each.status for each in report.findings]


@pytest.mark.usefixtures("small")
def test_only_a_stable_file_with_its_md5_is_recorded(tmp_path: Path) -> None:
    """Bytes that are not the committed ones leave no record, under neither digest."""
    scene = Scene(tmp_path, {"a": OLD})
    scene.place("a").write_bytes(OTHER)
    assert Verdict.DAMAGED is scene.verify().verdict
    assert [] == [place for place in tmp_path.rglob("records/**/*") if place.is_file()]


@pytest.mark.usefixtures("small")
def test_a_large_file_that_grows_with_every_read_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read to the size that it had, is not stable, and leaves no record."""
    scene = Scene(tmp_path, {"a": OLD})
    fill, reads = blocks._fill, []

    def fill_and_grow(descriptor: int, buffer: memoryview, offset: int) -> memoryview:
        reads.append(offset)
        assert len(reads) < 1000, "it is read on and on"
        faults.extend(scene.place("a"), bytes(len(buffer)))
        return fill(descriptor, buffer, offset)

    monkeypatch.setattr(blocks, "_fill", fill_and_grow)
    assert [Status.UNSTABLE] == [each.status for each in scene.verify().findings]
    assert not scene.folder.exists()


def settled(seen: Observation) -> dict[Digest, Blocks]:
    kept = Kept()
    BlockwiseFiles(kept, lambda _: digest_of(OLD), BlockUse.CHECK)._settle(0, seen, keep=kept.keep)
    return kept.records


@pytest.mark.usefixtures("small")
def test_what_is_kept_follows_from_what_was_seen(tmp_path: Path) -> None:
    """A record needs the digest, a stable file and the blocks: not one of them may lack."""
    place = tmp_path / "a"
    place.write_bytes(OLD)
    way = BlockwiseFiles(Kept(), lambda _: digest_of(OTHER), BlockUse.RECORD)
    (seen,) = in_order(hash_files([os.fspath(place)], large=way))
    assert {digest_of(OLD): WHOLE} == settled(seen)
    assert {} == settled(seen._replace(digest=digest_of(OTHER).value))
    assert {} == settled(seen._replace(digest=None))
    assert {} == settled(seen._replace(after=seen.after._replace(mtime_ns=0)))
    assert {} == settled(seen._replace(after=None))
    assert {} == settled(seen._replace(blocks=None))


# ----------------------------------------------------------------- few descriptors


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spare", [3, 8])
def test_few_descriptors_are_enough_for_large_files(
    spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More large files than descriptors: they wait for one another, and all are read and good."""
    resource = pytest.importorskip("resource")
    files = {f"{number:02}": noise(LARGE + number, number) for number in range(60)}
    scene = Scene(tmp_path, files)
    monkeypatch.setattr(blocks, "MOST_WAITS", 2000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + spare, hard))
    try:
        reports = [di.verify(scene.manifest, scene.store, jobs=2) for _ in range(2)]
        for name in ("07", "30"):
            faults.flip_bit(scene.place(name))
        reports.append(di.verify(scene.manifest, scene.store, jobs=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for report in reports[:2]:
        assert_good(report)
    assert ["data/07", "data/30"] == [each.path for each in reports[2].findings]


@pytest.mark.usefixtures("small")
def test_descriptors_are_left_for_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where few files may be open, fewer are read side by side, and each gets its record."""
    resource = pytest.importorskip("resource")
    files = {f"{number:03}": noise(LARGE + number, number) for number in range(150)}
    scene = Scene(tmp_path, files)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * max(map(int, descriptors())) + 12
    monkeypatch.setattr(hashing.Chains, "MOST", 100)
    really, most, before = blocks.open_file, [0], len(descriptors())

    def count(path: bytes) -> Any:
        most.append(len(descriptors()) - before)
        return really(path)

    monkeypatch.setattr(blocks, "open_file", count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    try:
        report = di.verify(scene.manifest, scene.store, jobs=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_good(report)
    assert [] == caplog.records
    assert 8 < max(most) <= enough // 2 + 4  # and those that look, and a record
    assert 150 == sum(place.is_file() for place in scene.folder.rglob("*"))


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_descriptor_that_never_comes_is_unreadable(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for others to close theirs has an end, and the reason is told."""
    scene = scene_of(tmp_path, recorded)

    def full(_: bytes) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(blocks, "open_file", full)
    monkeypatch.setattr(blocks, "MOST_WAITS", 3)
    (finding,) = scene.verify().findings
    assert (Status.UNREADABLE, os.strerror(errno.EMFILE)) == (finding.status, finding.detail)


# ----------------------------------------------------------------- records that cannot be written


def refuse_by_file(scene: Scene, _: pytest.MonkeyPatch) -> None:
    scene.folder.write_bytes(b"a file where a folder should be")


def refuse_by_full_disk(_: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blocks, "replacement", full)


def refuse_by_fsync(_: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("dvc_integrity.durable.os.fsync", full)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("refuse", [refuse_by_file, refuse_by_full_disk, refuse_by_fsync])
@pytest.mark.parametrize("jobs", [1, 4])
def test_records_that_cannot_be_written_cost_time_only(
    refuse: Callable[[Scene, pytest.MonkeyPatch], None],
    jobs: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The verdict stands, good or bad; one warning names the folder, however many files."""
    files = {str(number): noise(LARGE + number, number) for number in range(6)}
    scene = Scene(tmp_path, files)
    refuse(scene, monkeypatch)
    caplog.set_level(logging.WARNING)
    report = scene.verify(jobs=jobs)
    assert_good(report)
    assert by(md5=(6, sum(map(len, files.values())))) == counted(report)
    (warning,) = caplog.records
    assert ("WARNING", True) == (warning.levelname, os.fspath(scene.folder) in warning.message)
    faults.flip_bit(scene.place("0"))
    report = scene.verify(jobs=jobs)
    assert_damaged(scene, report, "0", scene.place("0").read_bytes(), ranges=())
    assert 1 == len(caplog.records)


@pytest.mark.usefixtures("small")
def test_without_blocks_no_record_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``blocks=False`` insists on MD5: no look at the records, and no trace in their folder."""
    scene = Scene(tmp_path, {"a": OLD, "b": OTHER})
    report = scene.verify(blocks=False)
    assert_good(report)
    assert by(md5=(2, len(OLD) + len(OTHER))) == counted(report)
    assert not scene.folder.exists()
    # A record that takes other bytes for the committed ones: the one way to be misled.
    put(
        scene.record("a"),
        Blocks(digest_of(OLD), len(OTHER), blocks_of(OTHER).digests).to_bytes(),
    )
    before = faults.snapshot(scene.folder)
    for name in ("find", "keep"):
        monkeypatch.setattr(BlockRecords, name, lambda *_: pytest.fail("a record was touched"))
    scene.place("a").write_bytes(OTHER)
    report = scene.verify(blocks=False)
    assert_damaged(scene, report, "a", OTHER, ranges=())
    assert by(md5=(2, 2 * len(OTHER))) == counted(report)
    assert before == faults.snapshot(scene.folder)


@pytest.mark.usefixtures("small")
def test_a_store_without_records_is_read_whole(tmp_path: Path) -> None:
    """Nothing is known of blocks, nothing is kept, and the verdicts are the same."""
    scene = Scene(tmp_path, {"a": OLD})
    store = Workspace(os.fspath(tmp_path))
    for _ in range(2):
        report = di.verify(scene.manifest, store)
        assert_good(report)
        assert by(md5=(1, len(OLD))) == counted(report)
    scene.place("a").write_bytes(OTHER)
    assert_damaged(scene, di.verify(scene.manifest, store), "a", OTHER, ranges=())
    assert not scene.folder.exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_records_changes(kind: str, tmp_path: Path) -> None:
    """Good and bad, recorded and checked: every byte, mode and time elsewhere is as before."""
    (tmp_path / "project").mkdir()
    scene = Scene(tmp_path / "project", {"a": OLD, "b": OTHER}, kind)
    (tmp_path / "moved").mkdir()
    scene.folder = tmp_path / "moved" / "records"
    scene.fresh()
    before = faults.snapshot(tmp_path / "project")
    for _ in range(2):
        assert_good(scene.verify())
    assert before == faults.snapshot(tmp_path / "project")
    faults.flip_bit(scene.place("a"))
    before, kept = faults.snapshot(tmp_path / "project"), faults.snapshot(scene.folder)
    assert not scene.verify().ok
    assert (before, kept) == (
        faults.snapshot(tmp_path / "project"),
        faults.snapshot(scene.folder),
    )


# ----------------------------------------------------------------- interruptions and bounds


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_a_closed_iterator_ends_the_work(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stops listening stops the reading: no thread, descriptor or temporary file is left.

    The other files are not read to their end.
    """
    paths, sizes = [], [1 << 40, 1 << 40, 1 << 40, LARGE]
    for number, size in enumerate(sizes):
        path = tmp_path / str(number)
        with path.open("wb") as file:
            file.truncate(size)
        paths.append(os.fspath(path))
    digests = [Digest(Algorithm.MD5, bytes([number] * 16)) for number in range(4)]
    kept = Kept()
    if recorded:
        for digest, size in zip(digests, sizes, strict=True):
            known = Blocks(digest, size, b"")
            object.__setattr__(known, "digests", Endless(-(-size // BLOCK) * 32))
            kept.records[digest] = known
        monkeypatch.setattr(blocks, "_Checked", Shallow)
        monkeypatch.setattr(blocks, "STRETCH_BLOCKS", 1 << 40)  # it ends within a stretch too
    before = descriptors()
    way = BlockwiseFiles(kept, digests.__getitem__, BlockUse.CHECK)
    files = [LargeFile(at, os.fsencode(path), sizes[at]) for at, path in enumerate(paths)]
    timer = threading.Timer(
        0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]
    )
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(way.observe(files, threads=4, cold=False, meter=None))
    timer.join()
    sys.last_value = None
    assert ([], before) == (threads(), descriptors())


class Endless:
    """Stands for the digests of more blocks than a test wants to hold."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class Shallow(blocks._Checked):
    """A file of a terabyte, of which only the digests of the first blocks are kept."""

    def __init__(self, file: LargeFile, expected: Blocks, cold: bool) -> None:
        super().__init__(file, Blocks(expected.digest, 0, b""), cold)
        self._left = -(-expected.size // BLOCK)


SIZES_OF_SPARSE_FILES = {"record": 1 << 38, "check": 1 << 34}

INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import dvc_integrity as di
from blake3 import blake3
from dvc_integrity.blocks import BlockRecords, Blocks
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.hashing import Meter
from dvc_integrity.manifest import ManifestBuilder, Out
from dvc_integrity.stores import Workspace

root, size, recorded = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "check"
records = BlockRecords(str(root / "records"))
builder = ManifestBuilder("0" * 40)
for number in range(4):
    with (root / str(number)).open("wb") as file:
        file.truncate(size)
    digest = Digest(Algorithm.MD5, bytes([number]) * 16)
    builder.add_out(Out(str(number), digest=digest, size=size))
    builder.add_entry(str(number), digest, size)
    if recorded:
        records.keep(Blocks(digest, size, blake3(bytes(1 << 20)).digest() * (size >> 20)))
meter, sent = Meter(), []

def interrupt():
    while meter.bytes < 64 << 20:
        time.sleep(0.01)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

before = sorted(os.listdir("/proc/self/fd"))
waiting = threading.Thread(target=interrupt)
waiting.start()
try:
    di.verify(builder.build(), Workspace(str(root), blocks=records), jobs=2, meter=meter)
except KeyboardInterrupt:
    took = time.monotonic() - sent[0]
    waiting.join()
    assert took < 5, took  # a piece each; also where other programs keep the machine busy
    assert [threading.main_thread()] == threading.enumerate(), threading.enumerate()
    assert before == sorted(os.listdir("/proc/self/fd"))
    assert not [*root.rglob("*.tmp")]
    assert recorded or not (root / "records").exists()
    assert meter.bytes < size
    print("interrupted", end="")
"""


@pytest.mark.parametrize("mode", SIZES_OF_SPARSE_FILES)
def test_ctrl_c_ends_the_reading_of_large_files(mode: str, tmp_path: Path) -> None:
    """SIGINT in the midst of four files, which take long, ends at once and leaves nothing."""
    size = str(SIZES_OF_SPARSE_FILES[mode])
    command = [sys.executable, "-c", INTERRUPTED, os.fspath(tmp_path), size, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ("interrupted", "") == (done.stdout, done.stderr)
    assert 0 == done.returncode


@pytest.mark.usefixtures("small")
@recorded_or_not
def test_an_unforeseen_error_comes_through(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no OSError is no finding: it ends the run, and no thread or descriptor is left."""
    scene = scene_of(tmp_path, recorded)
    before = descriptors()

    def fail(*_: object) -> int:
        raise LookupError("unforeseen")

    meddle(monkeypatch, fail)
    with pytest.raises(LookupError, match="unforeseen"):
        di.verify(scene.manifest, scene.store, jobs=3)
    sys.last_value = None
    assert ([], before) == (threads(), descriptors())


MEASURED = """
import resource, sys
from pathlib import Path
import dvc_integrity as di
from dvc_integrity.blocks import BlockRecords
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.manifest import ManifestBuilder, Out
from dvc_integrity.stores import Workspace

root, size, digest = Path(sys.argv[1]), 64 << 20, Digest.from_hex(Algorithm.MD5, sys.argv[2])
builder = ManifestBuilder("0" * 40)
with (root / "00").open("wb") as file:
    file.truncate(size)
for number in range(64):
    if number:
        (root / f"{number:02}").hardlink_to(root / "00")  # one copy in the page cache
    builder.add_out(Out(f"{number:02}", digest=digest, size=size))
    builder.add_entry(f"{number:02}", digest, size)
store = Workspace(str(root), blocks=BlockRecords(str(root / "records")))
manifest = builder.build()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for way in ("md5", "blocks"):
    report = di.verify(manifest, store, jobs=4)
    assert report.ok
    assert {way: (64, 64 * size)} == report.coverage.digests
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, end="")
"""

MOST_KIB = 64 << 10
"""Memory that reading large files may take: many times what its buffers are, less than one file."""


def test_memory_does_not_grow_with_large_files(tmp_path: Path) -> None:
    """64 files of 64 MiB on 4 threads, whole and by blocks, take a few MiB."""
    zeros = hashlib.md5()
    for _ in range(64):
        zeros.update(bytes(MIB))
    command = [sys.executable, "-c", MEASURED, os.fspath(tmp_path), zeros.hexdigest()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (0, "") == (done.returncode, done.stderr)
    assert int(done.stdout) < MOST_KIB
    shutil.rmtree(tmp_path)


def test_observations_of_one_batch_tell_the_same_way(tmp_path: Path) -> None:
    """A batch is by blocks as a whole, so that coverage counts none of it under MD5."""
    with small_sizes():
        files = {str(number): noise(LARGE + number, number) for number in range(8)}
        scene = Scene(tmp_path, files)
        for number in range(0, 8, 2):
            scene.records.keep(blocks_of(files[str(number)]))
        faults.delete(scene.place("4"))
        rows = scene.manifest.rows(Algorithm.MD5)
        batches: list[Observations] = list(
            scene.store.observe(scene.manifest, rows, Algorithm.MD5, jobs=2, blocks=BlockUse.CHECK)
        )
    by_blocks = [
        int(position) for batch in batches if batch.by_blocks for position in batch.positions
    ]
    assert [0, 2, 6] == sorted(by_blocks)
    assert {False} == {each.by_blocks for batch in batches if not batch.by_blocks for each in batch}

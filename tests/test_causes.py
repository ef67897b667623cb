"""Hints on the cause of a difference: from DVC's records, and never in the way."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import faults
import pytest
from dvc.repo import Repo
from projects import Project, md5

import dvc_integrity as di
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.report import Hint

FOLDER = {"data/a.bin": b"alpha", "data/b.bin": b"bravo"}
EXPECTED = Digest.from_hex(Algorithm.MD5, md5(b"alpha"))
OTHER = Digest.from_hex(Algorithm.MD5, md5(b"other"))


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project that tracks a folder, committed and clean."""
    project.add("data", FOLDER)
    project.commit("data")
    return project


def database() -> Path:
    """Return DVC's own state database of the project around the current folder."""
    repo = Repo()
    place = Path(repo.site_cache_dir) / "hashes" / "local" / "cache.db"
    repo.close()
    return place


def explain(path: str = "data/a.bin", found: Digest | None = OTHER) -> Hint:
    """Return the hint on a file that is not what was committed."""
    return di.Repository().workspace.explain(path, EXPECTED, found)


@pytest.mark.usefixtures("tracked")
def test_the_database_is_the_one_that_dvc_uses() -> None:
    """Its place is computed here without a trace; DVC's own answer is the measure."""
    workspace = di.Repository().workspace
    assert database() == Path(workspace._hints._state.path)
    assert database().exists()


def test_a_file_that_nothing_wrote_is_told_from_one_that_was_written(tracked: Project) -> None:
    """The record of inode, size and modification time decides."""
    faults.flip_bit(tracked.root / "data/a.bin")
    assert explain().written is False
    os.utime(tracked.root / "data/a.bin")
    assert explain().written is True


@pytest.mark.usefixtures("tracked")
def test_without_a_record_nothing_is_claimed() -> None:
    """A clone on another machine has no records."""
    database().unlink()
    assert explain().written is None


def test_without_a_record_a_link_to_the_cache_tells(tracked: Project) -> None:
    """Nobody writes to a cache object, so a difference in one is corruption."""
    cached = tracked.root / ".dvc/cache/files/md5" / EXPECTED.hex[:2] / EXPECTED.hex[2:]
    database().unlink()
    faults.delete(tracked.root / "data/a.bin")
    os.link(cached, tracked.root / "data/a.bin")
    assert explain().written is False


@pytest.mark.parametrize("value", ["[1]", "{}", "no json", '{"hash_info": {"md5": 1}}', "null"])
@pytest.mark.usefixtures("tracked")
def test_a_damaged_record_explains_nothing(value: str) -> None:
    """A hint must never end a verification."""
    with sqlite3.connect(database()) as opened:
        opened.execute("UPDATE Cache SET value = ?", (value,))
    opened.close()
    assert explain().written is None


@pytest.mark.usefixtures("tracked")
def test_a_damaged_database_explains_nothing() -> None:
    """The same for a file that is no database."""
    place = database()
    shutil.rmtree(place.parent)
    place.parent.mkdir()
    place.write_bytes(b"no database at all" * 100)
    assert explain().written is None


def test_a_file_that_vanished_meanwhile_explains_nothing(tracked: Project) -> None:
    """It may be deleted between the second read and the question."""
    faults.delete(tracked.root / "data/a.bin")
    assert Hint() == explain()


def test_a_change_that_dvc_recorded_is_adopted(tracked: Project) -> None:
    """``dvc add`` of other bytes: the work tree's metadata has them, the commit does not."""
    tracked.add("data", FOLDER | {"data/a.bin": b"other"})
    hint = explain()
    assert (True, "'data.dvc' in the work tree already records this change") == (
        hint.adopted,
        hint.detail,
    )
    assert not explain(found=Digest.from_hex(Algorithm.MD5, md5(b"third"))).adopted


def test_a_listing_that_cannot_be_had_proves_no_adoption(tracked: Project) -> None:
    """A missing file is not recorded as missing just because nothing can be read."""
    tracked.write_outs("data.dvc", {"md5": "0" * 32 + ".dir", "hash": "md5", "path": "data"})
    faults.delete(tracked.root / "data/a.bin")
    assert not explain(found=None).adopted

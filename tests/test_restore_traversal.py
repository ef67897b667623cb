"""No restored path leaves the project, whatever lies or is put on the way to it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faults import snapshot
from projects import md5, object_path, plant, raw_listing

import dvc_integrity as di
from dvc_integrity.durable import exchange

if TYPE_CHECKING:
    from projects import Project

FILES = {f"data/sub/{number}": b"%d good" % number * 500 for number in range(40)}


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a folder below a tracked one."""
    project.add("data", FILES)
    project.commit("data")
    return project


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder that nothing may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "0").write_bytes(b"precious")
    return folder


def restore(project: Project) -> di.Restoration:
    repository = di.Repository(project.root)
    report = di.verify(repository.manifest(), repository.workspace)
    return di.restore(
        report, repository.workspace, [repository.cache, *repository.remotes], modified=True
    ).apply()


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "dvc_integrity", *arguments], cwd=project.root,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_a_link_on_the_way_is_not_followed(tracked: Project, outside: Path) -> None:
    """The message names it and the way out; when it is gone all comes back."""
    (tracked.root / "data/sub").rename(tracked.root / "aside")
    (tracked.root / "data/sub").symlink_to(outside)
    before = snapshot(outside)
    done = command(tracked, "restore", "--modified")
    assert 1 == done.returncode
    assert "data/sub" in done.stdout
    assert before == snapshot(outside)
    (tracked.root / "data/sub").unlink()
    assert 0 == command(tracked, "restore").returncode


def test_a_folder_that_turns_into_a_link_meanwhile(tracked: Project, outside: Path) -> None:
    """Another program exchanges folder and link all the time."""
    folder, link = tracked.root / "data/sub", tracked.root / "link"
    link.symlink_to(outside)
    before = snapshot(outside)
    done, swaps = threading.Event(), itertools.count()

    def swap() -> None:
        above = os.open(folder.parent, os.O_RDONLY)
        try:
            while not done.is_set():
                exchange(os.fspath(link), above, folder.name)
                exchange(os.fspath(link), above, folder.name)
                next(swaps)
        finally:
            os.close(above)

    for _ in range(5):
        for path in FILES:
            place = tracked.root / path
            place.unlink(missing_ok=True)
            place.write_bytes(b"bad")
        done.clear()
        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            restore(tracked)
        finally:
            done.set()
            swapping.join()
        assert before == snapshot(outside)
    assert next(swaps) > 0
    assert restore(tracked).ok


def test_a_file_that_is_a_link_to_outside(tracked: Project, outside: Path) -> None:
    """The link is replaced by the file; what it led to stays as it is."""
    place = tracked.root / "data/sub/0"
    place.unlink()
    place.symlink_to(outside / "0")
    before = snapshot(outside)
    assert restore(tracked).ok
    assert not place.is_symlink()
    assert FILES["data/sub/0"] == place.read_bytes()
    assert before == snapshot(outside)


EVIL = [["../up"], ["/abs"], ["a/../../up"], ["a\0b"], ["twice", "twice"]]


@pytest.mark.parametrize("relpaths", EVIL, ids=lambda paths: repr(paths[0]))
def test_a_listing_that_leads_out_is_refused(
    project: Project, relpaths: list[str], tmp_path: Path
) -> None:
    """It hashes to what was committed, and is not believed for that."""
    data = b"evil"
    plant(project.cache, data)
    entries = [{"md5": md5(data), "relpath": path} for path in relpaths]
    oid = plant(project.cache, raw_listing(entries), ".dir")
    project.write_outs("data.dvc", {"md5": oid, "path": "data", "hash": "md5", "nfiles": 1})
    project.commit("data")
    before = snapshot(tmp_path)
    done = command(project, "restore", "--json")
    assert 3 == done.returncode
    assert "ManifestError" == json.loads(done.stdout)["error"]
    assert before == snapshot(tmp_path)
    assert not Path("/abs").exists()


def test_a_cache_that_is_a_link_is_healed_where_it_lies(tracked: Project, tmp_path: Path) -> None:
    """A shared cache is often reached through one."""
    (tracked.root / ".dvc/cache").rename(tmp_path / "cache")
    (tracked.root / ".dvc/cache").symlink_to(tmp_path / "cache")
    place = object_path(tmp_path / "cache", md5(FILES["data/sub/0"]))
    place.chmod(0o644)
    place.write_bytes(b"bad")
    assert 0 == command(tracked, "restore", "--store", "cache").returncode
    assert FILES["data/sub/0"] == place.read_bytes()


def test_an_object_of_dvc_2_is_healed_in_its_own_layout(project: Project, tmp_path: Path) -> None:
    """Its hash has no kind, and its object no `files/md5` above it."""
    data = b"a\nb\n"
    oid = plant(project.cache, data, legacy=True)
    remote = tmp_path / "remote"
    plant(remote, data, legacy=True)
    project.dvc("remote", "add", "-d", "disk", os.fspath(remote))
    project.write_outs("old.dvc", {"md5": oid, "path": "old", "size": len(data)})
    project.commit("data")
    cached = object_path(project.cache, oid, legacy=True)
    cached.chmod(0o644)
    cached.write_bytes(b"bad")
    assert 0 == command(project, "restore").returncode
    assert (data, data) == ((project.root / "old").read_bytes(), cached.read_bytes())
    assert not (project.cache / "files").exists()


def test_folders_of_a_shared_cache_are_for_the_group(project: Project, tmp_path: Path) -> None:
    """As DVC makes them: for the group, which what is in them belongs to as well."""
    cache = tmp_path / "shared"
    project.dvc("cache", "dir", os.fspath(cache))
    project.dvc("config", "cache.shared", "group")
    project.add("data", FILES)
    project.commit("data")
    place = object_path(cache, md5(FILES["data/sub/0"]))
    as_made = stat.S_IMODE(place.parent.stat().st_mode)
    for path in place.parent.iterdir():
        path.unlink()
    place.parent.rmdir()
    assert 0 == command(project, "restore", "--all-places").returncode
    assert as_made == stat.S_IMODE(place.parent.stat().st_mode)
    assert stat.S_ISGID & place.parent.stat().st_mode
    assert 0o444 == stat.S_IMODE(place.stat().st_mode)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a folder on another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_quarantine_on_another_file_system(tracked: Project, memory: Path) -> None:
    """`.dvc/tmp` is a link there: all comes back, is kept, and nothing is left beside the files."""
    temporary = tracked.root / ".dvc/tmp"
    shutil.move(temporary, memory / "tmp")
    temporary.symlink_to(memory / "tmp")
    for path in FILES:
        place = tracked.root / path
        place.unlink()
        place.write_bytes(b"bad " + path.encode())
    assert restore(tracked).ok
    assert set(FILES) == {
        os.path.relpath(path, tracked.root)
        for path in (tracked.root / "data").rglob("*")
        if path.is_file()
    }
    kept = {path.read_bytes() for path in memory.glob("tmp/integrity/quarantine/*/bytes")}
    assert {b"bad " + path.encode() for path in FILES} == kept


def test_what_cannot_be_kept_there_keeps_nothing_else_back(tracked: Project, memory: Path) -> None:
    """A special file cannot be copied to the other file system: it stays; the rest comes back."""
    shutil.move(tracked.root / ".dvc/tmp", memory / "tmp")
    (tracked.root / ".dvc/tmp").symlink_to(memory / "tmp")
    special, missing = tracked.root / "data/sub/0", tracked.root / "data/sub/1"
    special.unlink()
    os.mkfifo(special)
    done = command(tracked, "restore", "--modified")
    assert 1 == done.returncode
    assert "data/sub/0" in done.stdout
    assert "move it aside" in done.stdout
    assert stat.S_ISFIFO(special.lstat().st_mode)
    missing.unlink()
    command(tracked, "restore")
    assert FILES["data/sub/1"] == missing.read_bytes()
    special.unlink()
    assert 0 == command(tracked, "restore").returncode
    assert len(FILES) == len(list((tracked.root / "data/sub").iterdir()))

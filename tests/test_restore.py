"""Bad files come back proven, their bytes are kept, and nothing is lost on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import pytest

import dvc_integrity as di
from dvc_integrity.restore import Restorer, copying

if TYPE_CHECKING:
    from projects import Project

GOOD = b"what was committed " * 500
PATH = "data/a.bin"


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a folder that is also on a local remote."""
    project.dvc("remote", "add", "-d", "disk", os.fspath(project.top.parent / "remote"))
    project.add("data", {PATH: GOOD, "data/b.bin": b"another"})
    project.commit("data")
    project.dvc("push")
    return project


def restorer_of(project: Project) -> tuple[Restorer, di.Manifest]:
    repository = di.Repository(project.root)
    manifest = repository.manifest("data")
    return Restorer(
        repository.workspace.detached(), repository.sources(), repository.scratch
    ), manifest


def own_copy(place: Path) -> None:
    """Cut a file off from the cache object that it may be a link to."""
    data = place.read_bytes()
    place.unlink()
    place.write_bytes(data)


def kept(project: Project) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the bytes and the note of everything in the quarantine."""
    folders = sorted((project.root / ".dvc/tmp/integrity/quarantine").glob("*"))
    return [
        ((folder / "bytes").read_bytes(), json.loads((folder / "note.json").read_text()))
        for folder in folders
    ]


def verdict(project: Project) -> di.Verdict:
    repository = di.Repository(project.root)
    return di.verify(repository.manifest("data"), repository.workspace).verdict


@pytest.mark.parametrize(
    "damage",
    [faults.flip_bit, faults.truncate, faults.extend, faults.zero_page],
    ids=lambda damage: damage.__name__,
)
def test_a_bad_file_comes_back_and_is_kept(tracked: Project, damage: Any) -> None:
    """The committed bytes lie there, with the file's mode; the quarantine has the bad ones."""
    place = tracked.root / PATH
    own_copy(place)
    place.chmod(0o640)
    damage(place)
    bad = place.read_bytes()
    restorer, manifest = restorer_of(tracked)
    assert (GOOD, "cache") == restorer.bring_back(manifest, manifest.find(PATH))
    assert GOOD == place.read_bytes()
    assert 0o640 == stat.S_IMODE(place.stat().st_mode)
    ((bytes_kept, note),) = kept(tracked)
    assert bad == bytes_kept
    assert (str(place), len(bad)) == (note["path"], note["size"])
    assert f"md5:{hashlib.md5(GOOD).hexdigest()}" == note["expected"]
    assert hashlib.md5(bad).hexdigest() == note["found"]
    assert di.Verdict.CLEAN is verdict(tracked)


def test_a_missing_file_comes_back(tracked: Project) -> None:
    """There is nothing to keep then."""
    (tracked.root / PATH).unlink()
    restorer, manifest = restorer_of(tracked)
    restorer.bring_back(manifest, manifest.find(PATH))
    assert (GOOD, []) == ((tracked.root / PATH).read_bytes(), kept(tracked))


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_bad_cache_object_behind_a_link_is_healed_once(tracked: Project, link: str) -> None:
    """The object is good and protected again, the file a link to it, the bytes are kept."""
    tracked.dvc("config", "cache.type", link)
    tracked.dvc("checkout", "--relink")
    place = tracked.root / PATH
    digest = hashlib.md5(GOOD).hexdigest()
    cached = tracked.cache / "files/md5" / digest[:2] / digest[2:]
    faults.flip_bit(cached)
    bad = place.read_bytes()
    assert bad != GOOD
    restorer, manifest = restorer_of(tracked)
    assert (GOOD, "remote:disk") == restorer.bring_back(manifest, manifest.find(PATH))
    assert (GOOD, GOOD) == (place.read_bytes(), cached.read_bytes())
    assert (0o444, link == "symlink") == (stat.S_IMODE(cached.stat().st_mode), place.is_symlink())
    assert place.samefile(cached)
    ((bytes_kept, note),) = kept(tracked)
    assert (bad, str(cached)) == (bytes_kept, note["path"])


def test_a_folder_in_the_way_is_moved_whole(tracked: Project) -> None:
    """What lies where a file was committed is somebody's work: it goes to the quarantine."""
    place = tracked.root / PATH
    place.unlink()
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "work").write_bytes(b"mine")
    restorer, manifest = restorer_of(tracked)
    restorer.bring_back(manifest, manifest.find(PATH))
    assert GOOD == place.read_bytes()
    (folder,) = (tracked.root / ".dvc/tmp/integrity/quarantine").iterdir()
    assert b"mine" == (folder / "bytes" / "deep" / "work").read_bytes()


def test_without_a_good_copy_the_file_stays(tracked: Project) -> None:
    """The message names each place and what is wrong there; nothing is written."""
    place = tracked.root / PATH
    own_copy(place)
    faults.flip_bit(place)
    digest = hashlib.md5(GOOD).hexdigest()
    faults.flip_bit(tracked.cache / "files/md5" / digest[:2] / digest[2:])
    (tracked.top.parent / "remote/files/md5" / digest[:2] / digest[2:]).unlink()
    bad = place.read_bytes()
    restorer, manifest = restorer_of(tracked)
    with pytest.raises(di.RestoreError, match=r"cache: damaged too; remote:disk: absent"):
        restorer.bring_back(manifest, manifest.find(PATH))
    assert (bad, []) == (place.read_bytes(), kept(tracked))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_fails_leaves_the_file_as_it_was(
    tracked: Project, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at any step is a RestoreError; the bad bytes lie there, and no temporary file."""
    place = tracked.root / PATH
    own_copy(place)
    faults.flip_bit(place)
    bad, names = place.read_bytes(), sorted(os.listdir(place.parent))
    restorer, manifest = restorer_of(tracked)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(di.RestoreError, match="No space left"):
        restorer.bring_back(manifest, manifest.find(PATH))
    monkeypatch.undo()
    assert (bad, names) == (place.read_bytes(), sorted(os.listdir(place.parent)))
    restorer.bring_back(manifest, manifest.find(PATH))
    assert GOOD == place.read_bytes()


def test_what_was_written_is_read_back(tracked: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps other bytes than it was given is found out before the name is given."""
    place = tracked.root / PATH
    own_copy(place)
    faults.flip_bit(place)
    bad = place.read_bytes()
    restorer, manifest = restorer_of(tracked)
    fsync = os.fsync

    def lying(descriptor: int) -> None:
        fsync(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with open(f"/proc/self/fd/{descriptor}", "r+b", buffering=0) as file:
                file.write(b"?")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lying)
        with pytest.raises(di.RestoreError, match="reads back"):
            restorer.bring_back(manifest, manifest.find(PATH))
    assert bad == place.read_bytes()


def bring_back(restorer: Restorer, manifest: di.Manifest, row: int, results: Any) -> None:
    results.put(restorer.bring_back(manifest, row))


def test_several_processes_restore_once_and_no_reader_sees_half(tracked: Project) -> None:
    """Six processes meet one bad file: one restoration, and readers see old or new bytes whole."""
    place = tracked.root / PATH
    own_copy(place)
    faults.flip_bit(place)
    bad = place.read_bytes()
    restorer, manifest = restorer_of(tracked)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    seen, done = set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(place.read_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    row = manifest.find(PATH)
    processes = [
        context.Process(target=bring_back, args=(restorer, manifest, row, results))
        for _ in range(6)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    done.set()
    watcher.join()
    assert sorted([(GOOD, "cache")] + [(GOOD, "workspace")] * 5) == sorted(found)
    assert [bad] == [data for data, _ in kept(tracked)]
    assert seen <= {bad, GOOD}


def test_what_another_program_renames_into_place_survives(project: Project) -> None:
    """It writes files all the time while they are restored; each ends in place or is kept."""
    count = 60
    project.add("data", {f"data/{number}": b"%d good" % number * 300 for number in range(count)})
    project.commit("data")
    for number in range(count):
        place = project.root / f"data/{number}"
        place.unlink()
        place.write_bytes(b"bad %d" % number)
    repository = di.Repository(project.root)
    report = di.verify(repository.manifest(), repository.workspace)
    plan = di.restore(report, repository.workspace, [repository.cache], modified=True)
    last: dict[int, bytes] = {}
    done = threading.Event()

    def write() -> None:
        turn = 0
        while not done.is_set():
            number, data = turn * 7 % count, b"turn %d" % turn
            (project.root / "new").write_bytes(data)
            os.replace(project.root / "new", project.root / f"data/{number}")
            last[number] = data
            turn += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        outcomes = plan.apply().outcomes
    finally:
        done.set()
        writer.join()
    aside = {data for data, _ in kept(project)}
    lost = [
        number
        for number, data in last.items()
        if data != (project.root / f"data/{number}").read_bytes() and data not in aside
    ]
    assert [] == lost
    assert last
    assert any("meanwhile" in each.detail or "written since" in each.detail for each in outcomes)


def lose(project: Project, data: bytes) -> None:
    """Delete an object everywhere."""
    digest = hashlib.md5(data).hexdigest()
    for store in (project.cache, project.top.parent / "remote"):
        (store / "files/md5" / digest[:2] / digest[2:]).unlink(missing_ok=True)


def restored(project: Project, **choice: Any) -> di.Restoration:
    repository = di.Repository(project.root)
    report = di.verify(repository.manifest("data"), repository.workspace)
    sources = [repository.cache, *repository.remotes]
    return di.restore(report, repository.workspace, sources, **choice).apply()


@pytest.mark.parametrize("twin_is_good", [True, False])
def test_another_file_of_the_same_bytes_serves(project: Project, twin_is_good: bool) -> None:
    """Where no store has the object any more; it is hashed before it is believed."""
    project.add("data", {PATH: GOOD, "data/twin": GOOD})
    project.commit("data")
    lose(project, GOOD)
    (project.root / PATH).unlink()
    if not twin_is_good:
        own_copy(project.root / "data/twin")
        faults.flip_bit(project.root / "data/twin")
    done = restored(project, modified=True)
    assert twin_is_good == done.ok
    assert twin_is_good == (project.root / PATH).exists()
    if twin_is_good:
        assert GOOD == (project.root / PATH).read_bytes()
        assert {"workspace:data/twin"} == {
            each.source for each in done.outcomes if each.path == PATH
        }


def test_an_edit_stays_while_its_object_comes_back(tracked: Project) -> None:
    """The file is somebody's, its object in the cache is nobody's."""
    place = tracked.root / PATH
    place.unlink()
    place.write_bytes(b"an edit")
    digest = hashlib.md5(GOOD).hexdigest()
    cached = tracked.cache / "files/md5" / digest[:2] / digest[2:]
    cached.unlink()
    done = restored(tracked)
    assert not done.ok
    assert (b"an edit", GOOD) == (place.read_bytes(), cached.read_bytes())


@pytest.mark.parametrize("cold", [False, True])
def test_what_was_missing_is_read_back_when_that_is_asked_for(
    tracked: Project, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hashed as it is written in any case; a disk that keeps other bytes is asked first."""
    (tracked.root / PATH).unlink()
    repository = di.Repository(tracked.root)
    report = di.verify(repository.manifest("data"), repository.workspace)
    plan = di.restore(report, repository.workspace, [repository.cache])
    fsync = os.fsync

    def lying(descriptor: int) -> None:
        fsync(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with open(f"/proc/self/fd/{descriptor}", "r+b", buffering=0) as file:
                file.write(b"?")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lying)
        done = plan.apply(cold=cold)
    assert cold == (not done.ok)
    assert cold == (not (tracked.root / PATH).exists())


@pytest.mark.parametrize("remote_is_good", [True, False])
def test_a_large_file_is_hashed_as_it_is_written(
    tracked: Project, remote_is_good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never whole in memory; a source that gives other bytes is followed by the next."""
    monkeypatch.setattr(copying, "LARGE_BYTES", 1)
    (tracked.root / PATH).unlink()
    digest = hashlib.md5(GOOD).hexdigest()
    copies = [tracked.cache, *([] if remote_is_good else [tracked.top.parent / "remote"])]
    for store in copies:
        faults.flip_bit(store / "files/md5" / digest[:2] / digest[2:])
    done = restored(tracked)
    assert remote_is_good == done.ok
    assert remote_is_good == (tracked.root / PATH).exists()
    if remote_is_good:
        assert GOOD == (tracked.root / PATH).read_bytes()
        assert {"remote:disk"} == {each.source for each in done.outcomes}


@pytest.mark.parametrize("size", [len(GOOD), 3])
def test_a_file_that_is_written_while_its_copy_is_made_stays(
    tracked: Project, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not what was judged any more."""
    place = tracked.root / PATH
    own_copy(place)
    faults.flip_bit(place)
    mine = b"m" * size
    copies = copying.Copier.copies

    def late(copier: copying.Copier, works: Any) -> Any:
        place.write_bytes(mine)
        return copies(copier, works)

    monkeypatch.setattr(copying.Copier, "copies", late)
    done = restored(tracked, modified=True)
    assert mine == place.read_bytes()
    (outcome,) = [each for each in done.outcomes if each.place == "workspace"]
    assert "meanwhile" in outcome.detail
    assert [] == kept(tracked)

"""``status`` and ``restore``, end to end: what is damaged becomes good, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faults
import pytest
from dvc.repo import Repo
from projects import Project, listing, md5, object_path

import dvc_integrity as di
import dvc_integrity.cli

FILES = {"data/a.bin": b"alpha" * 999, "data/b.bin": b"bravo" * 999, "data/sub/c.bin": b"c" * 5000}
LISTING = listing({path.removeprefix("data/"): data for path, data in FILES.items()})
PATH = "data/a.bin"

DAMAGES = {
    "flip": faults.flip_bit,
    "zero": faults.zero_page,
    "truncate": faults.truncate,
    "delete": faults.delete,
}


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a folder that is also on a local remote."""
    project.dvc("remote", "add", "-d", "disk", os.fspath(project.top.parent / "remote"))
    project.add("data", FILES)
    project.commit("data")
    project.dvc("push")
    return project


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the command line here: its status and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dvc-integrity", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            dvc_integrity.cli.main()
        return ended.value.code, capsys.readouterr().out

    return call


def remote(project: Project) -> Path:
    return project.top.parent / "remote"


def cached(project: Project, path: str = PATH) -> Path:
    return object_path(project.cache, md5(FILES[path]))


def link_as(project: Project, link: str) -> None:
    project.dvc("config", "cache.type", link)
    project.dvc("checkout", "--relink")


def assert_all_is_well(project: Project) -> None:
    """Assert that every byte is the committed one, and that DVC agrees."""
    for path, data in FILES.items():
        assert data == (project.root / path).read_bytes()
        assert data == cached(project, path).read_bytes()
    assert LISTING == object_path(project.cache, f"{md5(LISTING)}.dir").read_bytes()
    with Repo(os.fspath(project.root)) as repo:
        assert {} == repo.status()
        status = repo.data_status()
        assert {} == {**status["committed"], **status["uncommitted"]}
        assert [] == [*repo.checkout()["modified"], *repo.checkout()["added"]]
    assert [] == os.listdir(project.root / ".dvc/tmp/integrity/staging")


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_the_workspace_is_undone(
    tracked: Project, run: Any, damage: str, link: str
) -> None:
    """Whatever the link type, a damaged file is good again, and DVC finds all well."""
    link_as(tracked, link)
    place = tracked.root / PATH
    DAMAGES[damage](place if damage == "delete" else Path(os.path.realpath(place)))
    assert 1 == run("status", "-q")[0]
    assert 0 == run("restore", "--modified", "-q")[0]
    assert_all_is_well(tracked)
    assert 0 == run("status", "--all-places", "-q")[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_the_cache_is_healed(tracked: Project, run: Any, damage: str) -> None:
    """``--store cache`` makes the object good and protected again."""
    DAMAGES[damage](cached(tracked))
    assert 0 == run("restore", "--store", "cache", "-q")[0]
    assert 0o444 == cached(tracked).stat().st_mode & 0o777
    assert_all_is_well(tracked)


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_files_that_share_a_bad_object_are_linked_again(
    tracked: Project, run: Any, link: str
) -> None:
    """Healing the cache leaves no hard link to the bad bytes in the work tree."""
    link_as(tracked, link)
    faults.flip_bit(cached(tracked))
    assert 0 == run("restore", "--store", "cache", "-q")[0]
    assert (tracked.root / PATH).samefile(cached(tracked))
    assert_all_is_well(tracked)


def test_folders_of_a_shared_cache_are_the_groups(tracked: Project, run: Any) -> None:
    """``cache.shared = group`` gives folders that are made the mode that DVC gives them."""
    tracked.dvc("config", "cache.shared", "group")
    cached(tracked).unlink()
    cached(tracked).parent.rmdir()
    assert 0 == run("restore", "--store", "cache", "-q")[0]
    assert 0o2775 == cached(tracked).parent.stat().st_mode & 0o7777


def test_a_cache_that_takes_nothing_does_not_stop_the_work_tree(tracked: Project, run: Any) -> None:
    """Where the cache cannot be healed, the file gets a proven copy of its own all the same."""
    digest = md5(FILES[PATH])
    (tracked.root / PATH).unlink()
    cached(tracked).unlink()
    cached(tracked).parent.rmdir()
    cached(tracked).parent.write_bytes(b"in the way of the folder")
    status, out = run("restore", "--json")
    results = {each["place"]: each["result"] for each in json.loads(out)["outcomes"]}
    assert (1, {"cache": "failed", "workspace": "restored"}) == (status, results)
    assert digest == md5((tracked.root / PATH).read_bytes())


def test_two_restores_at_once_restore_once(tracked: Project) -> None:
    """The second waits for the first, then finds all good; both succeed, one thing is kept."""
    (tracked.root / PATH).unlink()
    (tracked.root / PATH).write_bytes(b"an edit")
    command = [sys.executable, "-m", "dvc_integrity", "restore", "--modified", "-q"]
    both = [subprocess.Popen(command, cwd=tracked.root) for _ in range(2)]
    assert [0, 0] == [each.wait(timeout=60) for each in both]
    assert 1 == len(list((tracked.root / ".dvc/tmp/integrity/quarantine").iterdir()))
    assert_all_is_well(tracked)


def test_a_tampered_listing_is_healed(tracked: Project, run: Any) -> None:
    """A folder's listing in the cache is an object like any other."""
    faults.flip_bit(object_path(tracked.cache, f"{md5(LISTING)}.dir"))
    assert 0 == run("restore", "--store", "cache", "-q")[0]
    assert_all_is_well(tracked)


def test_push_heals_a_remote_and_all_places_show_it(tracked: Project, run: Any) -> None:
    """A bad and an absent object of a local remote are put from proven copies."""
    bad = object_path(remote(tracked), md5(FILES[PATH]))
    gone = object_path(remote(tracked), md5(FILES["data/b.bin"]))
    faults.flip_bit(bad)
    faults.delete(gone)
    status, out = run("status", "--all-places", "--json")
    states = {
        item["path"]: {copy["store"]: copy["state"] for copy in item["copies"]}
        for item in json.loads(out)["items"]
    }
    good = {"workspace": "good", "cache": "good"}
    expected = {
        PATH: {**good, "remote:disk": "bad"},
        "data/b.bin": {**good, "remote:disk": "absent"},
    }
    assert (1, expected) == (status, states)
    assert 0 == run("restore", "--all-places", "--push", "-q")[0]
    assert [FILES[PATH], FILES["data/b.bin"]] == [bad.read_bytes(), gone.read_bytes()]
    assert 0 == run("status", "--all-places", "-q")[0]


def test_a_bad_copy_is_passed_over_for_the_next_source(tracked: Project, run: Any) -> None:
    """Sources are tried in order until one is proven; the cache is healed from the last."""
    other = tracked.top.parent / "other"
    tracked.dvc("remote", "add", "another", os.fspath(other))
    tracked.dvc("push", "-r", "another")
    (tracked.root / PATH).unlink()
    faults.flip_bit(cached(tracked))
    faults.truncate(object_path(remote(tracked), md5(FILES[PATH])))
    status, out = run("restore", "--json")
    outcomes = {each["place"]: each for each in json.loads(out)["outcomes"]}
    assert (0, "remote:another") == (status, outcomes["workspace"]["source"])
    assert_all_is_well(tracked)


def test_without_a_good_copy_nothing_changes(tracked: Project, run: Any) -> None:
    """What has no good copy anywhere is named, with exit status 1; the bytes stay."""
    for place in (cached(tracked), object_path(remote(tracked), md5(FILES[PATH]))):
        faults.flip_bit(place)
    if not (tracked.root / PATH).samefile(cached(tracked)):
        faults.flip_bit(tracked.root / PATH)
    before = (tracked.root / PATH).read_bytes()
    status, out = run("restore", "--modified")
    assert 1 == status
    assert PATH in out
    assert before == (tracked.root / PATH).read_bytes()


def test_an_edit_is_left_alone_unless_asked_for(tracked: Project, run: Any) -> None:
    """``modified`` needs the flag, and is kept in quarantine; ``extra`` is never touched."""
    place, extra = tracked.root / PATH, tracked.root / "data" / "mine"
    place.unlink()
    place.write_bytes(b"my edit")
    extra.write_bytes(b"mine")
    assert 1 == run("restore", "-q")[0]
    assert b"my edit" == place.read_bytes()
    assert 0 == run("restore", "--modified", "-q")[0]
    assert (FILES[PATH], b"mine") == (place.read_bytes(), extra.read_bytes())
    (kept,) = (tracked.root / ".dvc/tmp/integrity/quarantine").glob("*/bytes")
    assert b"my edit" == kept.read_bytes()


def test_a_dry_run_changes_nothing(tracked: Project, run: Any) -> None:
    """The plan is shown, and every byte, mode and time is what it was."""
    (tracked.root / PATH).unlink()
    faults.flip_bit(cached(tracked, "data/b.bin"))
    before = faults.snapshot(tracked.root / "data"), faults.snapshot(tracked.cache)
    status, out = run("restore", "--modified", "--dry-run", "--json")
    assert (1, "dvc-integrity/plan/1") == (status, json.loads(out)["schema"])
    assert PATH in {step["path"] for step in json.loads(out)["steps"]}
    assert before == (faults.snapshot(tracked.root / "data"), faults.snapshot(tracked.cache))
    assert not (tracked.root / ".dvc/tmp/integrity/quarantine").exists()


def test_no_restored_path_leaves_the_repository(tracked: Project, run: Any) -> None:
    """A folder that was replaced by a link is refused; nothing is written behind the link."""
    outside = tracked.top.parent / "outside"
    outside.mkdir()
    (tracked.root / "data/sub/c.bin").unlink()
    (tracked.root / "data/sub").rmdir()
    (tracked.root / "data/sub").symlink_to(outside)
    status, out = run("restore", "--modified")
    assert 1 == status
    assert "a link to" in out
    assert [] == os.listdir(outside)
    assert (tracked.root / "data/sub").is_symlink()


def test_a_lost_executable_bit_comes_back(project: Project, run: Any) -> None:
    """``--modified`` sets it, touches no byte, and never on an object of the cache."""
    project.write({"tool": b"#!/bin/sh\n"})
    (project.root / "tool").chmod(0o755)
    project.dvc("add", "tool")
    project.commit("tool")
    place = project.root / "tool"
    place.chmod(0o644)
    inode = place.stat().st_ino
    assert 0 == run("restore", "--modified", "-q")[0]
    assert (0o744, inode) == (place.stat().st_mode & 0o777, place.stat().st_ino)


def test_the_quarantine_is_listed_and_purged_by_age(tracked: Project, run: Any) -> None:
    """Only entries beyond the age go, whole; what a kept link points to and other files stay."""
    target = tracked.top.parent / "target"
    target.write_bytes(b"not ours")
    (tracked.root / PATH).unlink()
    (tracked.root / PATH).symlink_to(target)
    assert 0 == run("restore", "--modified", "-q")[0]
    folder = tracked.root / ".dvc/tmp/integrity/quarantine"
    (new,) = folder.iterdir()
    old = folder / "20200101T000000-0123abcd"
    old.mkdir()
    (old / "bytes").symlink_to(target)
    (folder / "mine").mkdir()
    entries = json.loads(run("restore", "--list-quarantine", "--json")[1])["entries"]
    assert [os.fspath(old), os.fspath(new)] == [each["place"] for each in entries]
    assert 2 == run("restore", "--purge-quarantine")[0]
    assert 0 == run("restore", "--purge-quarantine", "--older-than", "30d", "--yes")[0]
    assert {new, folder / "mine"} == set(folder.iterdir())
    assert b"not ours" == target.read_bytes()


def test_a_dry_run_purges_nothing(tracked: Project, run: Any) -> None:
    """``--dry-run`` shows what would be deleted; list and purge exclude each other."""
    faults.flip_bit(tracked.root / PATH)
    assert 0 == run("restore", "--modified", "-q")[0]
    folder = tracked.root / ".dvc/tmp/integrity/quarantine"
    purge = ("restore", "--purge-quarantine", "--older-than", "0h", "--yes")
    assert 0 == run(*purge, "--dry-run")[0]
    assert 2 == run(*purge, "--list-quarantine")[0]
    assert 1 == len(list(folder.iterdir()))
    assert 0 == run(*purge)[0]
    assert [] == list(folder.iterdir())


def test_nothing_is_pushed_to_a_remote_that_dvc_does_not_push_to(
    tracked: Project, run: Any, tmp_path: Path
) -> None:
    """A second remote stays empty, and that is no damage; the default one is mended."""
    public = tmp_path / "public"
    public.mkdir()
    tracked.dvc("remote", "add", "public", str(public))
    assert 0 == run("status", "--all-places", "-q")[0]
    faults.flip_bit(cached(tracked))
    assert 0 == run("restore", "--all-places", "--push", "-q")[0]
    assert [] == list(public.rglob("*"))


def test_copies_may_be_taken_from_a_remote_alone(tracked: Project, run: Any) -> None:
    """``--from`` names the places that serve; the cache is neither asked nor healed then."""
    faults.delete(tracked.root / PATH)
    faults.delete(cached(tracked))
    status, out = run("restore", "--from", "remote:disk", "-q")
    assert 0 == status, out
    assert not cached(tracked).exists()
    assert 0 == run("verify", "-q")[0]


def test_damage_that_stays_is_told(tracked: Project, run: Any) -> None:
    """A remote's bad object that nothing was to heal is no success."""
    faults.flip_bit(object_path(remote(tracked), md5(FILES[PATH])))
    assert 1 == run("restore", "--all-places", "-q")[0]
    assert 0 == run("restore", "--all-places", "--push", "-q")[0]
    assert 0 == run("verify", "--store", "remote", "-q")[0]


def test_an_edit_after_the_verification_stays(tracked: Project) -> None:
    """What was judged corrupt and has been written since is somebody's edit now."""
    repository = di.Repository(tracked.root)
    faults.flip_bit(tracked.root / PATH)
    report = di.verify(repository.manifest("data"), repository.workspace)
    plan = di.restore(report, repository.workspace, [repository.cache])
    (tracked.root / PATH).write_bytes(b"an edit")
    done = plan.apply()
    assert not done.ok
    assert b"an edit" == (tracked.root / PATH).read_bytes()
    assert "verify again" in done.outcomes[-1].detail


def test_a_bad_listing_is_not_called_good(tracked: Project, run: Any) -> None:
    """Where a listing is damaged everywhere, nothing is told to be well."""
    oid = md5(LISTING) + ".dir"
    for store in (tracked.cache, remote(tracked)):
        faults.flip_bit(object_path(store, oid))
    assert 0 != run("restore", "--store", "cache", "-q")[0]
    assert 0 != run("restore", "--from", "remote:disk", "-q")[0]
    assert 0 != run("status", "-q")[0]

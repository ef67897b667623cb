"""What is replaced is kept, whoever else writes there, and whatever a kill left half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from projects import md5

from dvc_integrity import quarantine as module
from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.durable import folder_below
from dvc_integrity.quarantine import Name, Quarantine, identity, purge

OLD, NEW, OTHER = b"old bytes", b"proven bytes", b"what somebody else wrote"
DIGEST = Digest.from_hex(Algorithm.MD5, md5(NEW))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a file in it."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_bytes(OLD)
    return folder / "file"


@pytest.fixture(params=["one disk", "two disks", "no exchange"])
def kept_in(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return the folder of a quarantine: near, on another file system, where nothing exchanges."""
    if request.param == "no exchange":
        monkeypatch.setattr(module, "exchange", refuse)
    if request.param != "two disks":
        yield tmp_path / "quarantine"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        assert os.stat(folder).st_dev != tmp_path.stat().st_dev
        yield Path(folder, "quarantine")


def bind(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.fspath(place.relative_to(Path.cwd())))


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def proven(kept_in: Path) -> str:
    """Stage the proven file beside the quarantine."""
    staged = kept_in.parent / "staged"
    staged.write_bytes(NEW)
    return os.fspath(staged)


def replace(place: Path, kept_in: Path, **more: Any) -> str | None:
    with folder_below(os.fspath(place.parent), "") as folder:
        name = Name(folder, place.name, os.fspath(place))
        return Quarantine(os.fspath(kept_in)).replace(
            proven(kept_in), name, DIGEST, {"store": "workspace"}, **more
        )


def files(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder by their paths, notes aside."""
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != "note.json"
    }


def assert_settled(place: Path, kept_in: Path, *old: bytes) -> None:
    """Nothing is half done, and exactly these bytes are kept."""
    assert not Quarantine(os.fspath(kept_in)).unsettled()
    assert sorted(old) == sorted(files(kept_in).values()) if kept_in.exists() else not old
    assert [place.name] == os.listdir(place.parent)
    assert not (kept_in.parent / "staged").exists()


def test_a_bad_file_goes_to_the_quarantine(here: Path, kept_in: Path) -> None:
    """The proven one has its name; the note says what is known."""
    place = replace(here, kept_in)
    assert NEW == here.read_bytes()
    assert_settled(here, kept_in, OLD)
    assert place
    note = json.loads(Path(place, "note.json").read_text())
    assert (os.fspath(here), str(DIGEST), "workspace") == (
        note["path"],
        note["expected"],
        note["store"],
    )
    (kept,) = Quarantine(os.fspath(kept_in)).entries()
    assert (place, len(OLD)) == (kept.place, kept.size)


def test_where_nothing_lies_nothing_is_kept(here: Path, kept_in: Path) -> None:
    """The file appears."""
    here.unlink()
    assert replace(here, kept_in, as_judged=()) is None
    assert NEW == here.read_bytes()
    assert_settled(here, kept_in)


def test_bytes_that_others_hold_are_copied(here: Path, kept_in: Path) -> None:
    """Who writes to the file under its other name does not change the evidence."""
    other = here.parent.parent / "other"
    os.link(here, other)
    replace(here, kept_in)
    other.write_bytes(OTHER)
    assert_settled(here, kept_in, OLD)


def test_what_a_link_leads_to_is_kept_and_stays(here: Path, kept_in: Path) -> None:
    """The link is replaced itself; the note says where it led."""
    target = here.parent.parent / "target"
    target.write_bytes(OTHER)
    here.unlink()
    here.symlink_to("../target")
    place = replace(here, kept_in)
    assert not here.is_symlink()
    assert (NEW, OTHER) == (here.read_bytes(), target.read_bytes())
    assert_settled(here, kept_in, OTHER)
    assert place
    assert "../target" == json.loads(Path(place, "note.json").read_text())["link"]


def test_a_link_that_leads_nowhere(here: Path, kept_in: Path) -> None:
    """There are no bytes to keep; the note has the link."""
    here.unlink()
    here.symlink_to("nowhere")
    place = replace(here, kept_in, as_judged=())
    assert NEW == here.read_bytes()
    assert place
    assert "nowhere" == json.loads(Path(place, "note.json").read_text())["link"]
    assert_settled(here, kept_in)


def test_a_folder_goes_whole(here: Path, kept_in: Path) -> None:
    """With what is in it."""
    here.unlink()
    (here / "deep").mkdir(parents=True)
    (here / "deep" / "work").write_bytes(OTHER)
    replace(here, kept_in)
    assert NEW == here.read_bytes()
    assert_settled(here, kept_in, OTHER)


@pytest.mark.parametrize("judged", [(), (1, 2, 3, 4)])
def test_another_file_than_was_judged_stays(
    here: Path, kept_in: Path, judged: tuple[int, ...]
) -> None:
    """Somebody put it there since."""
    with pytest.raises(FileExistsError, match="meanwhile"):
        replace(here, kept_in, as_judged=judged)
    assert OLD == here.read_bytes()
    assert [] == Quarantine(os.fspath(kept_in)).entries()


def test_the_file_that_was_judged_is_replaced(here: Path, kept_in: Path) -> None:
    """It is the same by inode, size and time."""
    replace(here, kept_in, as_judged=identity(here.stat()))
    assert NEW == here.read_bytes()


SPECIAL = {"fifo": os.mkfifo, "socket": bind}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
def test_a_special_file_is_kept_or_stays(here: Path, kept_in: Path, make: Any) -> None:
    """It cannot be copied to another file system: it is refused, and lies there as before."""
    here.unlink()
    make(here)
    before = here.lstat().st_ino
    if kept_in.parent != here.parent.parent:  # another file system
        with pytest.raises(OSError, match="move it aside"):
            replace(here, kept_in)
        assert before == here.lstat().st_ino
        assert_settled(here, kept_in)
        return
    place = replace(here, kept_in)
    assert NEW == here.read_bytes()
    assert place
    assert before == Path(place, "bytes").lstat().st_ino


def test_a_folder_that_cannot_be_copied_whole_stays(here: Path, kept_in: Path) -> None:
    """A folder with a special file in it goes by a rename only."""
    here.unlink()
    here.mkdir()
    os.mkfifo(here / "fifo")
    (here / "work").write_bytes(OTHER)
    if kept_in.parent != here.parent.parent:
        with pytest.raises(OSError, match="move it aside"):
            replace(here, kept_in)
        assert {"fifo", "work"} == set(os.listdir(here))
        assert [] == Quarantine(os.fspath(kept_in)).entries()
        return
    place = replace(here, kept_in)
    assert place
    assert {"fifo", "work"} == set(os.listdir(Path(place, "bytes")))


def test_a_file_that_its_device_does_not_give_is_kept_or_stays(
    here: Path, kept_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one disk its name moves; to another one it would have to be read."""

    def unreadable(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "_copy", unreadable)
    if kept_in.parent != here.parent.parent:
        with pytest.raises(OSError, match="Input/output error"):
            replace(here, kept_in)
        assert OLD == here.read_bytes()
        assert_settled(here, kept_in)
        return
    replace(here, kept_in)
    assert NEW == here.read_bytes()
    assert_settled(here, kept_in, OLD)


def test_a_file_that_appears_in_the_last_moment_is_given_back(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody renames over the bad file between the last look and the exchange."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(OTHER)
    exchange, calls = module.exchange, []

    def late(*arguments: Any, **more: Any) -> None:
        if not calls:
            os.replace(theirs, here)
        calls.append(arguments)
        exchange(*arguments, **more)

    monkeypatch.setattr(module, "exchange", late)
    with pytest.raises(FileExistsError, match="meanwhile"):
        replace(here, tmp_path / "quarantine")
    assert OTHER == here.read_bytes()
    assert 2 == len(calls)
    assert_settled(here, tmp_path / "quarantine")


def test_a_file_that_appears_where_none_was_stays(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is given only if nothing has it."""
    here.unlink()
    rename_new = module.rename_new

    def late(*arguments: Any, **more: Any) -> None:
        here.write_bytes(OTHER)
        rename_new(*arguments, **more)

    monkeypatch.setattr(module, "rename_new", late)
    with pytest.raises(FileExistsError, match="meanwhile"):
        replace(here, tmp_path / "quarantine")
    assert OTHER == here.read_bytes()


def test_what_several_names_share_is_kept_once(here: Path, tmp_path: Path) -> None:
    """One quarantine remembers what it took in."""
    other = here.parent / "other"
    os.link(here, other)
    quarantine = Quarantine(os.fspath(tmp_path / "quarantine"))
    places = set()
    with folder_below(os.fspath(here.parent), "") as folder:
        for name in ("file", "other"):
            staged = proven(tmp_path / "quarantine")
            places.add(quarantine.replace(staged, Name(folder, name, name), DIGEST, {}))
    assert 1 == len(places)
    assert [OLD] == list(files(tmp_path / "quarantine").values())
    assert (NEW, NEW) == (here.read_bytes(), other.read_bytes())


# ----------------------------------------------------------------- after a kill


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Return the folder of a replacement that was cut short, with its note."""
    place = tmp_path / "quarantine" / "20260101T000000-0123abcd"
    place.mkdir(parents=True)
    (place / "note.json").write_text(json.dumps({"expected": str(DIGEST)}))
    return place


def settle(cut: Path) -> None:
    quarantine = Quarantine(os.fspath(cut.parent))
    assert quarantine.unsettled()
    quarantine.settle()
    assert not quarantine.unsettled()


def test_a_proven_copy_that_was_coming_in_goes(cut: Path) -> None:
    """The exchange had not happened: nothing was taken in."""
    (cut / "moving").write_bytes(NEW)
    settle(cut)
    assert not cut.exists()


def test_bytes_that_were_going_out_stay(cut: Path) -> None:
    """The exchange had happened."""
    (cut / "moving").write_bytes(OLD)
    settle(cut)
    assert {"bytes": OLD} == files(cut)


def test_a_copy_without_a_note_goes(cut: Path) -> None:
    """The note is written before the exchange."""
    (cut / "note.json").unlink()
    (cut / "moving").write_bytes(NEW)
    settle(cut)
    assert not cut.exists()


@pytest.mark.parametrize("data", [NEW, OLD], ids=["proven", "old"])
def test_a_file_beside_a_name_is_found(cut: Path, tmp_path: Path, data: bytes) -> None:
    """On another file system it lay there; the proven one goes, the old one is kept."""
    hidden = tmp_path / ".0123456789abcdef.dvc-integrity.tmp"
    hidden.write_bytes(data)
    (cut / "beside").symlink_to(hidden)
    settle(cut)
    assert not hidden.exists()
    assert ([OLD] if data == OLD else []) == list(files(tmp_path).values())


def test_a_link_to_anything_else_is_not_followed(cut: Path, tmp_path: Path) -> None:
    """Only a hidden file of this program's own is taken for one."""
    precious = tmp_path / "precious"
    precious.write_bytes(OTHER)
    (cut / "beside").symlink_to(precious)
    settle(cut)
    assert OTHER == precious.read_bytes()


def test_half_a_copy_beside_a_name_goes(cut: Path, tmp_path: Path) -> None:
    """It was coming in, and is no evidence of anything."""
    hidden = tmp_path / ".0123456789abcdef.dvc-integrity.tmp"
    hidden.with_name(f"{hidden.name}.part").write_bytes(NEW[:3])
    (cut / "moving").write_bytes(NEW)
    (cut / "beside").symlink_to(hidden)
    settle(cut)
    assert {} == files(tmp_path)


def test_what_cannot_be_settled_keeps_nothing_else_back(
    cut: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told and stays as it is; the next one is settled."""
    (cut / "moving").write_bytes(OLD)
    os.link(cut / "moving", cut.parent.parent / "other")
    another = cut.parent / "20260102T000000-0123abcd"
    shutil.copytree(cut, another)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy", full)
        Quarantine(os.fspath(cut.parent)).settle()
    assert os.fspath(cut) in caplog.text
    assert {"moving": OLD} == files(cut)
    assert {"bytes": OLD} == files(another)


def test_half_a_copy_is_made_anew(cut: Path) -> None:
    """A file that others hold was being copied."""
    (cut / "moving").write_bytes(OLD)
    os.link(cut / "moving", cut.parent.parent / "other")
    (cut / "bytes.part").write_bytes(OLD[:3])
    settle(cut)
    assert {"bytes": OLD} == files(cut)


# ----------------------------------------------------------------- listing, keeping, purging


def test_what_a_damaged_note_cannot_tell_is_kept(cut: Path) -> None:
    """It may be the only copy of what was going out."""
    (cut / "note.json").write_bytes(b"{")
    (cut / "moving").write_bytes(OLD)
    settle(cut)
    assert {"bytes": OLD} == files(cut)


def test_an_entry_whose_bytes_somebody_renamed_stays(cut: Path) -> None:
    """It is settled, and nobody's to remove."""
    (cut / "mine").write_bytes(OLD)
    Quarantine(os.fspath(cut.parent)).settle()
    assert {"mine": OLD} == files(cut)


def test_other_files_in_the_quarantine_are_passed_over(cut: Path) -> None:
    """They are neither listed nor settled."""
    (cut / "bytes").write_bytes(OLD)
    (cut.parent / "notes.txt").write_bytes(b"mine")
    (cut.parent / "mine").mkdir()
    (cut.parent / "20269999T000000-0123abcd").mkdir()
    quarantine = Quarantine(os.fspath(cut.parent))
    quarantine.settle()
    assert [os.fspath(cut)] == [each.place for each in quarantine.entries()]
    assert b"mine" == (cut.parent / "notes.txt").read_bytes()


def test_a_damaged_note_hides_nothing(cut: Path) -> None:
    """What is kept is listed without it."""
    (cut / "bytes").write_bytes(OLD)
    (cut / "note.json").write_bytes(b"{")
    (kept,) = Quarantine(os.fspath(cut.parent)).entries()
    assert ({}, len(OLD)) == (dict(kept.note), kept.size)


def test_a_file_of_its_own_is_moved_in(tmp_path: Path) -> None:
    """With a note."""
    downloaded = tmp_path / "downloaded"
    downloaded.write_bytes(OLD)
    place = Quarantine(os.fspath(tmp_path / "quarantine")).keep(
        os.fspath(downloaded), {"object": "bucket/key"}
    )
    assert not downloaded.exists()
    assert OLD == Path(place, "bytes").read_bytes()
    assert "bucket/key" == json.loads(Path(place, "note.json").read_text())["object"]


def test_purging_follows_no_link(cut: Path, tmp_path: Path) -> None:
    """A folder that was kept may hold links to outside."""
    precious = tmp_path / "precious"
    precious.write_bytes(OTHER)
    (cut / "bytes").mkdir()
    (cut / "bytes" / "link").symlink_to(precious)
    (kept,) = Quarantine(os.fspath(cut.parent)).entries()
    purge(kept)
    assert not cut.exists()
    assert OTHER == precious.read_bytes()


def test_the_mode_of_what_is_kept_opens_nothing(here: Path, tmp_path: Path) -> None:
    """A private file stays private in the quarantine."""
    here.chmod(0o600)
    place = replace(here, tmp_path / "quarantine")
    assert place
    assert 0o600 == stat.S_IMODE(Path(place, "bytes").stat().st_mode)

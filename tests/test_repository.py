"""``Repository`` reads the committed expectation out of every form that DVC writes.

Each expected value is computed here from the bytes that the test wrote, never by DVC or by
the package. Where no DVC of today writes a form any more, or none writes it without a cloud,
the metadata is written by hand as that version wrote it.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dvc.output
import faults
import pytest
from projects import (
    Project,
    Tree,
    git,
    inside,
    listing,
    md5,
    new_project,
    object_path,
    plant,
    raw_listing,
)

import dvc_integrity as di

FOLDER = {"data/a.bin": b"alpha", "data/b.bin": b"bravo", "data/sub/c.bin": b"charlie"}
FILE = {"one.txt": b"one\n"}
BOTH = FOLDER | FILE


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project that tracks a folder and a file, committed and clean."""
    project.add("data", FOLDER)
    project.add("one.txt", FILE)
    project.commit("data")
    return project


def read(*targets: str, **options: object) -> di.Manifest:
    """Read the manifest of the project around the current folder."""
    return di.Repository().manifest(*targets, **options)


def attempt(*targets: str, **options: object) -> tuple[dict[str, str | None] | None, str]:
    """Return what the manifest says, or None and the message of the refusal.

    For metadata where either is a right answer, and a traceback or a wrong manifest is not.
    """
    try:
        return found(read(*targets, **options)), ""
    except di.IntegrityError as error:
        message = str(error)
    assert one_line(message).isprintable()
    return None, message


def one_line(message: str) -> str:
    """Return a message without the line breaks that it may have."""
    return message.replace("\n", " ")


def hashes(files: Tree, algorithm: str = "md5") -> dict[str, str]:
    """Return what a manifest of these files must say."""
    return {path: f"{algorithm}:{md5(data)}" for path, data in files.items()}


def found(manifest: di.Manifest) -> dict[str, str | None]:
    """Return what a manifest says."""
    return {entry.path: entry.digest and str(entry.digest) for entry in manifest}


def out_of(manifest: di.Manifest, path: str) -> di.Out:
    """Return the only out of a manifest with this path."""
    (out,) = [out for out in manifest.outs if out.path == path]
    return out


def below(folder: str, files: Tree) -> dict[str, bytes]:
    """Return paths relative to a folder, for a listing."""
    return {os.path.relpath(path, folder): data for path, data in files.items()}


# ----------------------------------------------------------------- tracked by a .dvc file


def test_a_file_comes_with_its_hash_and_size(project: Project) -> None:
    """`dvc add` of a file gives one entry: its path, MD5 and size."""
    project.add("one.txt", FILE)
    sha = project.commit()
    manifest = read()
    digest = di.Digest.parse(hashes(FILE)["one.txt"])
    assert [di.Entry("one.txt", digest, 4, False, "one.txt")] == list(manifest)
    assert sha == manifest.rev
    expected = di.Out(path="one.txt", digest=digest, size=4, defined_in="one.txt.dvc")
    assert (expected,) == manifest.outs


def test_a_folder_comes_file_by_file(project: Project) -> None:
    """`dvc add` of a folder gives an entry for each file; sizes are recorded for the sum only."""
    project.add("data", FOLDER)
    project.commit()
    manifest = read()
    assert hashes(FOLDER) == found(manifest)
    assert {None} == {entry.size for entry in manifest}
    assert {"data"} == {entry.out for entry in manifest}
    oid = md5(listing(below("data", FOLDER)))
    expected = di.Out(
        path="data",
        directory=True,
        digest=di.Digest.parse(f"md5:{oid}"),
        size=17,
        defined_in="data.dvc",
    )
    assert (expected,) == manifest.outs


def test_entries_ascend_by_the_bytes_of_their_paths(project: Project) -> None:
    """The order is that of the bytes, whatever separates folder and file names."""
    names = ["data-2", "data.txt", "data/z", "data/a/b", "data/a-b", "data0", "B", "é"]
    project.write({name: name.encode() for name in names})
    project.dvc("add", "--quiet", "data-2", "data.txt", "data", "data0", "B", "é")
    project.commit()
    assert sorted(names, key=os.fsencode) == [entry.path for entry in read()]


def test_an_executable_bit_is_reported_where_dvc_records_it(project: Project) -> None:
    """DVC records `isexec` for a single file, and for no file of a folder."""
    project.write({"run.sh": b"#!/bin/sh\n", "data/run.sh": b"#!/bin/sh\n", "plain": b""})
    for path in ("run.sh", "data/run.sh"):
        (project.root / path).chmod(0o755)
    project.dvc("add", "--quiet", "run.sh", "data", "plain")
    project.commit()
    expected = {"run.sh": True, "data/run.sh": False, "plain": False}
    assert expected == {entry.path: entry.executable for entry in read()}


def test_an_empty_folder_is_an_out_without_entries(project: Project) -> None:
    """An empty folder is tracked in full: no file is listed, every file in it is extra."""
    (project.root / "empty").mkdir()
    project.dvc("add", "--quiet", "empty")
    project.commit()
    manifest = read()
    assert 0 == len(manifest)
    assert [("empty", None)] == [(out.path, out.unverifiable) for out in manifest.outs]
    assert ("empty",) == manifest.trees


def test_a_dvc_file_may_have_another_name_and_several_outs(project: Project) -> None:
    """Outs are those in the file, below its `wdir`, whatever the file is called."""
    project.write_yaml(
        "meta/custom.dvc",
        {
            "wdir": "../files",
            "outs": [
                {"md5": md5(b"1"), "size": 1, "hash": "md5", "path": "first"},
                {"md5": md5(b"2"), "size": 1, "hash": "md5", "path": "second"},
            ],
        },
    )
    project.commit()
    expected = hashes({"files/first": b"1", "files/second": b"2"})
    assert expected == found(read())
    assert expected == found(read("meta/custom.dvc"))
    assert {"meta/custom.dvc"} == {out.defined_in for out in read().outs}


def test_a_partial_add_is_the_new_listing(tracked: Project) -> None:
    """`dvc add data/new` commits a listing with the new file and the old bytes of the others."""
    tracked.write({"data/d.bin": b"delta", "data/a.bin": b"changed, not added"})
    tracked.dvc("add", "--quiet", "data/d.bin")
    tracked.commit()
    assert hashes({**BOTH, "data/d.bin": b"delta"}) == found(read())


def test_a_link_inside_a_folder_stands_for_the_bytes_it_leads_to(project: Project) -> None:
    """DVC follows a link to a file and hashes the target; it skips a link to a folder."""
    project.write({"elsewhere/t": b"target", "data/x": b"x"})
    (project.root / "data" / "link").symlink_to("../elsewhere/t")
    (project.root / "data" / "folder").symlink_to("../elsewhere")
    project.dvc("add", "--quiet", "data")
    project.commit()
    assert hashes({"data/link": b"target", "data/x": b"x"}) == found(read())


def test_ignored_files_are_not_listed(project: Project) -> None:
    """What `.dvcignore` names is no part of the folder."""
    project.write({".dvcignore": b"*.tmp\n"})
    project.add("data", {"data/keep": b"keep", "data/drop.tmp": b"drop"})
    project.commit()
    assert hashes({"data/keep": b"keep"}) == found(read())


def test_metadata_inside_a_tracked_folder_is_data(project: Project) -> None:
    """DVC does not look for `.dvc` files in what it tracks: there they are bytes like others."""
    project.add("data", {"data/a.bin": b"alpha"})
    files = {"data/a.bin": b"alpha", "data/x.dvc": b"outs: [", "data/deep/dvc.yaml": b"stages: ["}
    project.add("data", files)
    project.commit()
    assert hashes(files) == found(read()) == found(read(rev="workspace"))


def test_the_dvcignore_of_the_revision_counts(tracked: Project) -> None:
    """A `.dvcignore` of the work tree hides no committed out."""
    tracked.write({".dvcignore": b"one.txt.dvc\ndata\n"})
    assert hashes(BOTH) == found(read(rev="HEAD"))


# ------------------------------------------------------------------------ made by stages


def test_outs_of_stages_are_listed_when_asked_for(tracked: Project) -> None:
    """Without targets only source outs count; `all_outs` and targets reach the others."""
    tracked.dvc("stage", "add", "-qn", "copy", "-d", "one.txt", "-o", "two.txt",
                "cp one.txt two.txt")  # fmt: skip
    tracked.dvc("repro", "--quiet")
    tracked.commit()
    made = {"two.txt": b"one\n"}
    assert hashes(BOTH) == found(read())
    assert hashes(BOTH | made) == found(read(all_outs=True))
    assert hashes(made) == found(read("two.txt"))
    expected = di.Out(
        path="two.txt",
        digest=di.Digest.parse(hashes(made)["two.txt"]),
        source=False,
        stage="copy",
        size=4,
        defined_in="dvc.lock",
    )
    assert (expected,) == read("two.txt").outs


def test_a_folder_made_by_a_stage_comes_file_by_file(project: Project) -> None:
    """A stage's folder is read from its listing like any other."""
    project.run_stages(
        {"make": {"cmd": "mkdir o && printf 1 >o/a && printf 2 >o/b", "outs": ["o"]}}
    )
    project.commit()
    assert hashes({"o/a": b"1", "o/b": b"2"}) == found(read("o"))


def test_foreach_stages_are_named_by_their_item(project: Project) -> None:
    """Every instance of a `foreach` stage is an out of its own."""
    each = {"foreach": ["x", "y"], "do": {"cmd": "printf ${item} >${item}.txt",
                                          "outs": ["${item}.txt"]}}  # fmt: skip
    project.run_stages({"each": each})
    project.commit()
    manifest = read(all_outs=True)
    assert hashes({"x.txt": b"x", "y.txt": b"y"}) == found(manifest)
    assert ["each@x", "each@y"] == [out.stage for out in manifest.outs]


def test_matrix_stages_are_named_by_their_combination(project: Project) -> None:
    """Every instance of a `matrix` stage is an out of its own."""
    cell = {
        "matrix": {"m": ["x", "y"], "n": [1, 2]},
        "cmd": "printf ${item.m}${item.n} >${item.m}${item.n}.txt",
        "outs": ["${item.m}${item.n}.txt"],
    }
    project.run_stages({"cell": cell})
    project.commit()
    manifest = read(all_outs=True)
    expected = {f"{m}{n}.txt": f"{m}{n}".encode() for m in "xy" for n in (1, 2)}
    assert hashes(expected) == found(manifest)
    assert [f"cell@{m}-{n}" for m in "xy" for n in (1, 2)] == [out.stage for out in manifest.outs]


def test_templates_resolve_with_the_parameters_of_the_revision(project: Project) -> None:
    """A path made of a parameter is the one of that commit, whatever the work tree says."""
    project.write({"params.yaml": b"dir: first\n"})
    stage = {"cmd": "mkdir ${dir} && printf ${dir} >${dir}/o", "outs": ["${dir}/o"]}
    project.run_stages({"make": stage})
    project.commit()
    project.write({"params.yaml": b"dir: second\n"})
    project.dvc("repro", "--quiet")
    project.commit()
    project.write({"params.yaml": b"dir: third\n"})
    assert hashes({"first/o": b"first"}) == found(read(rev="HEAD~1", all_outs=True))
    assert hashes({"second/o": b"second"}) == found(read(all_outs=True))
    assert {"third/o": None} == found(read(rev="workspace", all_outs=True))


def test_outs_lie_below_the_working_folder_of_their_stage(project: Project) -> None:
    """Lock entries are relative to `wdir`, the manifest to the DVC root."""
    (project.root / "deep" / "er").mkdir(parents=True)
    project.run_stages({"make": {"wdir": "deep/er", "cmd": "printf 1 >../o", "outs": ["../o"]}})
    project.commit()
    assert hashes({"deep/o": b"1"}) == found(read(all_outs=True))


def test_every_dvc_yaml_below_the_root_counts(project: Project) -> None:
    """Pipelines in sub-folders take part, each with a lock file of its own."""
    for folder in ("left", "right/inner"):
        (project.root / folder).mkdir(parents=True)
        project.run_stages({"make": {"cmd": f"printf {folder} >o", "outs": ["o"]}}, folder)
    project.commit()
    manifest = read(all_outs=True)
    assert hashes({"left/o": b"left", "right/inner/o": b"right/inner"}) == found(manifest)
    assert ["left/dvc.lock", "right/inner/dvc.lock"] == [out.defined_in for out in manifest.outs]
    assert ["left/dvc.yaml:make", "right/inner/dvc.yaml:make"] == [
        out.stage for out in manifest.outs
    ]


def test_outs_that_git_holds_are_held_to_their_hash(project: Project) -> None:
    """`cache: false` outs, metrics and plots have a hash in the lock like all others."""
    command = "; ".join(f"printf {name} >{name}" for name in "abcde")
    project.run_stages(
        {
            "make": {
                "cmd": command,
                "outs": ["a", {"b": {"cache": False}}],
                "metrics": [{"c": {"cache": False}}],
                "plots": ["d", {"e": {"cache": False, "x": "epoch"}}],
            }
        }
    )
    project.commit()
    manifest = read(all_outs=True)
    assert hashes({name: name.encode() for name in "abcde"}) == found(manifest)
    assert {"a": True, "b": False, "c": False, "d": True, "e": False} == {
        out.path: out.cached for out in manifest.outs
    }


def test_a_folder_that_git_holds_never_fails_the_reading(project: Project) -> None:
    """DVC stores the listing of a `cache: false` folder nowhere: a reason, not an error."""
    project.run_stages(
        {"make": {"cmd": "mkdir o && printf 1 >o/a", "outs": [{"o": {"cache": False}}]}}
    )
    project.commit()
    manifest = read(all_outs=True)
    out = out_of(manifest, "o")
    assert (True, False) == (out.directory, out.cached)
    if out.unverifiable:
        assert {"o": None} == found(manifest)
    else:
        assert hashes({"o/a": b"1"}) == found(manifest)


def test_top_level_metrics_plots_and_artifacts_are_no_outs(tracked: Project) -> None:
    """Sections of `dvc.yaml` that only point at files declare no output."""
    tracked.write_yaml(
        "dvc.yaml",
        {
            "metrics": ["m.json"],
            "plots": ["p.csv"],
            "params": ["params.yaml"],
            "artifacts": {"model": {"path": "one.txt", "type": "model"}},
        },
    )
    tracked.write({"m.json": b"{}", "p.csv": b"x\n", "params.yaml": b"{}\n"})
    tracked.commit()
    assert hashes(BOTH) == found(read(all_outs=True))


def test_orphan_lock_entries_are_ignored(project: Project) -> None:
    """A lock entry of a stage that is gone from `dvc.yaml` is no expectation."""
    stages = {name: {"cmd": f"printf {name} >{name}.txt", "outs": [f"{name}.txt"]} for name in "xy"}
    project.run_stages(stages)
    del stages["x"]
    project.write_yaml("dvc.yaml", {"stages": stages})
    project.commit()
    assert b"x.txt" in (project.root / "dvc.lock").read_bytes()
    assert hashes({"y.txt": b"y"}) == found(read(all_outs=True))


@pytest.mark.parametrize("outs", [["o.txt"], ["o.txt", "old.txt"]], ids=["stage", "out"])
def test_what_was_never_run_is_unverifiable(project: Project, outs: list[str]) -> None:
    """A stage without a lock entry, or an out added to it since, has no hash to hold to."""
    if "old.txt" in outs:
        project.run_stages({"make": {"cmd": "printf 1 >old.txt", "outs": ["old.txt"]}})
    project.write_yaml("dvc.yaml", {"stages": {"make": {"cmd": "exit 1", "outs": outs}}})
    project.commit()
    manifest = read(all_outs=True)
    expected = {"o.txt": None} | (hashes({"old.txt": b"1"}) if "old.txt" in outs else {})
    assert expected == found(manifest)
    out = out_of(manifest, "o.txt")
    assert out.digest is None
    assert out.unverifiable


def test_a_frozen_stage_is_held_to_its_lock(project: Project) -> None:
    """Freezing stops reproduction, not verification."""
    project.run_stages({"make": {"cmd": "printf 1 >o", "outs": ["o"]}})
    project.dvc("freeze", "--quiet", "make")
    project.commit()
    assert hashes({"o": b"1"}) == found(read(all_outs=True))


def test_push_and_remote_are_told(project: Project, tmp_path: Path) -> None:
    """`push: false` and `remote:` of an out come with it, from `.dvc` files and stages."""
    project.dvc("remote", "add", "-q", "cold", str(tmp_path / "cold"))
    options = {"push": False, "remote": "cold"}
    project.run_stages({"make": {"cmd": "printf 1 >o", "outs": [{"o": options}]}})
    project.write_outs("f.dvc", {"md5": md5(b"f"), "hash": "md5", "path": "f", **options})
    project.commit()
    expected = [("f", False, "cold"), ("o", False, "cold")]
    assert expected == [(out.path, out.push, out.remote) for out in read(all_outs=True).outs]


def test_dataset_dependencies_do_no_harm(
    project: Project, make_project: Callable[..., Project]
) -> None:
    """A `ds://` dependency has no bytes of its own; the stage's outs are read as ever."""
    other = make_project("other")
    other.add("d", {"d/a": b"1"})
    other.commit()
    source = ["--dvc", str(other.root), "--path", "d"]
    project.dvc("dataset", "add", "-q", "numbers", *source)
    datasets = (project.root / "dvc.yaml").read_bytes()
    stage = b"stages:\n  make:\n    cmd: printf 1 >o\n    deps: [ds://numbers]\n    outs: [o]\n"
    project.write({"dvc.yaml": datasets + stage})
    project.dvc("repro", "--quiet")
    project.commit()
    assert hashes({"o": b"1"}) == found(read(all_outs=True))


# ------------------------------------------------------------------------ imported from afar


@pytest.fixture
def other(make_project: Callable[..., Project]) -> Project:
    """Return a second repository to import from."""
    made = make_project("other")
    made.add("data", FOLDER)
    made.write({"in-git.txt": b"git\n"})
    made.commit()
    return made


def test_imports_from_a_repository_are_sources(project: Project, other: Project) -> None:
    """`dvc import` of a folder, of a file inside one, and of a file that Git holds."""
    url = str(other.root)
    project.dvc("import", "-q", url, "data")
    project.dvc("import", "-q", url, "data/a.bin", "-o", "a.bin")
    project.dvc("import", "-q", url, "in-git.txt")
    project.commit()
    manifest = read()
    assert hashes({**FOLDER, "a.bin": b"alpha", "in-git.txt": b"git\n"}) == found(manifest)
    assert {True} == {out.source for out in manifest.outs}
    assert {None} == {out.stage for out in manifest.outs}


def test_imports_from_a_url_are_sources(project: Project, tmp_path: Path) -> None:
    """`dvc import-url` of a local file and a local folder."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "f").write_bytes(b"far")
    project.dvc("import-url", "-q", str(tmp_path / "far"), "folder")
    project.dvc("import-url", "-q", str(tmp_path / "far" / "f"), "file")
    project.commit()
    assert hashes({"file": b"far", "folder/f": b"far"}) == found(read())
    assert hashes({"folder/f": b"far"}) == found(read("folder.dvc"))


def test_imports_without_download_are_unverifiable(
    project: Project, other: Project, tmp_path: Path
) -> None:
    """`--no-download` commits no hash of the out: listed, without a digest, with a reason."""
    (tmp_path / "far").write_bytes(b"far")
    project.dvc("import", "-q", "--no-download", str(other.root), "data")
    project.dvc("import-url", "-q", "--no-download", str(tmp_path / "far"), "file")
    project.add("one.txt", FILE)
    project.commit()
    manifest = read()
    assert {"data": None, "file": None, **hashes(FILE)} == found(manifest)
    assert [True, True, False] == [bool(out.unverifiable) for out in manifest.outs]


def test_an_unverifiable_folder_sorts_with_files_of_like_names(project: Project) -> None:
    """A digest-less entry for `data` goes along with `data-2` and `data.txt`."""
    project.write_outs("x.dvc", {"hash": "md5", "path": "data"})
    project.write_outs(
        "y.dvc", {"hash": "md5", "path": "data-3", "md5": md5(b"[3]") + ".dir", "nfiles": 1}
    )
    files = {"data-2": b"2", "data-3.txt": b"3", "data.txt": b"txt"}
    project.write(files)
    project.dvc("add", "--quiet", *files)
    project.commit()
    assert {**hashes(files), "data": None, "data-3": None} == found(read())


def test_data_that_went_straight_to_the_remote_is_read_from_there(
    project: Project, tmp_path: Path
) -> None:
    """`--to-remote` leaves the listing on the remote only."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "f").write_bytes(b"far")
    project.dvc("remote", "add", "-qd", "store", str(tmp_path / "store"))
    project.dvc("import-url", "-q", "--to-remote", str(tmp_path / "far"), "imported")
    project.dvc("add", "-q", "--to-remote", str(tmp_path / "far"), "-o", "added")
    project.commit()
    assert hashes({"imported/f": b"far", "added/f": b"far"}) == found(read())


# ------------------------------------------------------------------------ other metadata


def test_dvc2_file_is_held_to_its_text_hash(project: Project) -> None:
    """Without a `hash:` key the digest is `md5-dos2unix`: CRLF counts as LF."""
    project.write_outs("t.txt.dvc", {"md5": md5(b"a\nb\n"), "size": 6, "path": "t.txt"})
    path = object_path(project.cache, md5(b"a\nb\n"), legacy=True)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a\r\nb\r\n")
    project.dvc("checkout", "--quiet")
    assert b"a\r\nb\r\n" == (project.root / "t.txt").read_bytes(), "DVC reads the form so"
    project.commit()
    assert hashes({"t.txt": b"a\nb\n"}, "md5-dos2unix") == found(read())
    assert "md5-dos2unix" == out_of(read(), "t.txt").digest.algorithm.value


def test_dvc2_folder_is_read_from_the_old_cache_layout(project: Project) -> None:
    """A DVC 2 listing lies at `.dvc/cache/xx/…`, and its digests are `md5-dos2unix` too."""
    files = {"a.txt": b"a\n", "b/c.bin": b"\x00\r\n"}
    oid = plant(project.cache, listing(files), ".dir", legacy=True)
    project.write_outs("d.dvc", {"md5": oid, "size": 6, "nfiles": 2, "path": "d"})
    project.commit()
    assert {"d/a.txt": f"md5-dos2unix:{md5(files['a.txt'])}",
            "d/b/c.bin": f"md5-dos2unix:{md5(files['b/c.bin'])}"} == found(read())  # fmt: skip


def test_dvc2_lock_is_held_to_its_text_hash(project: Project) -> None:
    """A `dvc.lock` entry without `hash:` is of DVC 2 as well, file and folder."""
    oid = plant(project.cache, listing({"a": b"a\n"}), ".dir", legacy=True)
    outs = [{"path": "d", "md5": oid, "size": 3, "nfiles": 1}, {"path": "o", "md5": md5(b"o\n")}]
    project.write_yaml("dvc.yaml", {"stages": {"make": {"cmd": "exit 1", "outs": ["d", "o"]}}})
    lock = {"schema": "2.0", "stages": {"make": {"cmd": "exit 1", "outs": outs}}}
    project.write_yaml("dvc.lock", lock)
    project.commit()
    expected = hashes({"d/a": b"a\n", "o": b"o\n"}, "md5-dos2unix")
    assert expected == found(read(all_outs=True))


def test_dvc2_listing_is_found_on_a_remote_of_the_old_layout(
    project: Project, tmp_path: Path
) -> None:
    """What DVC 2 pushed lies at `xx/…` on the remote."""
    project.dvc("remote", "add", "-qd", "store", str(tmp_path / "store"))
    oid = plant(tmp_path / "store", listing({"a": b"a\n"}), ".dir", legacy=True)
    project.write_outs("d.dvc", {"md5": oid, "size": 2, "nfiles": 1, "path": "d"})
    project.commit()
    assert hashes({"d/a": b"a\n"}, "md5-dos2unix") == found(read())


def test_a_files_list_gives_each_file_with_its_size(project: Project) -> None:
    """Version-aware remotes leave no listing: the files are in the metadata."""
    cloud = {"store": {"etag": "0123456789", "version_id": "v1"}}
    files = [
        {"relpath": path, "md5": md5(data), "size": len(data), "cloud": cloud}
        for path, data in below("data", FOLDER).items()
    ]
    files[0]["isexec"] = True
    project.write_outs("data.dvc", {"path": "data", "hash": "md5", "files": files})
    project.commit()
    manifest = read()
    assert hashes(FOLDER) == found(manifest)
    assert {path: len(data) for path, data in FOLDER.items()} == {
        entry.path: entry.size for entry in manifest
    }
    assert [True, False, False] == [entry.executable for entry in manifest]
    assert [(True, None)] == [(out.directory, out.unverifiable) for out in manifest.outs]
    assert {"store": {os.fsencode(path): "v1" for path in FOLDER}} == manifest.versions


def test_a_files_list_of_dvc_2_has_hashes_of_its_kind(project: Project) -> None:
    """Without `hash: md5` the hashes of the list are those of text with its line ends unified."""
    data = {"data/a.txt": b"a\r\nb\r\n"}
    files = [{"relpath": "a.txt", "md5": md5(b"a\nb\n"), "size": 6}]
    project.write_outs("data.dvc", {"path": "data", "files": files})
    project.write(data)
    project.commit()
    manifest = read()
    assert hashes({"data/a.txt": b"a\nb\n"}, "md5-dos2unix") == found(manifest)
    assert di.Verdict.CLEAN is di.verify(manifest, di.Repository().workspace).verdict


def test_a_files_list_with_only_etags_is_unverifiable(project: Project) -> None:
    """An ETag is no content hash; the file beside it that has one stays verifiable."""
    cloud = {"store": {"etag": "0123456789", "version_id": "v1"}}
    files = [
        {"relpath": "a.bin", "size": 5, "cloud": cloud},
        {"relpath": "b.bin", "size": 5, "md5": md5(b"bravo"), "cloud": cloud},
    ]
    project.write_outs("data.dvc", {"path": "data", "hash": "md5", "files": files})
    project.write_outs("one.dvc", {"path": "one", "hash": "md5", "size": 3, "cloud": cloud})
    project.commit()
    manifest = read()
    expected = {"data/a.bin": None, **hashes({"data/b.bin": b"bravo"}), "one": None}
    assert expected == found(manifest)
    assert all(out.unverifiable for out in manifest.outs)


@pytest.mark.parametrize("relpath", ["../up", "/abs", "a//b", "./a", "", ".", "a/../../b", "a\0b"])
def test_a_files_list_with_an_unsafe_path_is_refused(project: Project, relpath: str) -> None:
    """Paths in a `files:` list are as untrusted as those in a listing."""
    files = [{"relpath": relpath, "size": 1, "md5": md5(b"1")}]
    project.write_outs("data.dvc", {"path": "data", "hash": "md5", "files": files})
    project.commit()
    with pytest.raises(di.ManifestError, match=r"data"):
        read()


EXTERNAL = [
    "/outside/of/it.bin",
    "../beside.bin",
    "../tree/beside.bin",
    "/tree/beside.bin",
    "s3://bucket/key",
    "gs://bucket/key",
    "azure://container/key",
    "hdfs://user@host/key",
    "ssh://user@host/key",
    "http://localhost/key",
    "remote://nowhere/key",
    "weird://key",
]


@pytest.mark.parametrize("field", ["md5", "etag"])
@pytest.mark.parametrize("path", EXTERNAL)
def test_external_outs_are_unverifiable(project: Project, path: str, field: str) -> None:
    """Old versions tracked files outside of the project: told, and the rest is read."""
    project.add("one.txt", FILE)
    project.write_outs("external.dvc", {field: md5(b"x"), "path": path})
    project.commit()
    manifest = read()
    (external,) = [out for out in manifest.outs if out.path != "one.txt"]
    assert external.unverifiable
    assert external.external
    assert [] == [entry for entry in manifest if entry.out == external.path]
    assert hashes(FILE) == {k: v for k, v in found(manifest).items() if v}


def test_external_outs_of_stages_are_unverifiable(project: Project) -> None:
    """The same for an out of a stage, in `dvc.yaml` and `dvc.lock`."""
    outs = ["s3://bucket/key", "o"]
    project.write_yaml("dvc.yaml", {"stages": {"make": {"cmd": "exit 1", "outs": outs}}})
    locked = [
        {"path": outs[0], "etag": "0123456789"},
        {"path": "o", "md5": md5(b"o"), "hash": "md5"},
    ]
    lock = {"schema": "2.0", "stages": {"make": {"cmd": "exit 1", "outs": locked}}}
    project.write_yaml("dvc.lock", lock)
    project.commit()
    manifest = read(all_outs=True)
    assert hashes({"o": b"o"}) == {k: v for k, v in found(manifest).items() if v}
    assert [True, False] == sorted((bool(out.unverifiable) for out in manifest.outs), reverse=True)


def test_a_database_import_without_rows_is_unverifiable(project: Project) -> None:
    """`dvc import-db --no-download` commits a query and no hash."""
    project.write_yaml(
        "rows.csv.dvc",
        {
            "frozen": True,
            "deps": [{"db": {"connection": "here", "query": "select 1", "file_format": "csv"}}],
            "outs": [{"hash": "md5", "path": "rows.csv"}],
        },
    )
    project.commit()
    manifest = read()
    assert {"rows.csv": None} == found(manifest)
    assert out_of(manifest, "rows.csv").unverifiable


# --------------------------------------------------------------- where the repository lies


@pytest.mark.parametrize("subdir", ["sub", "two/levels"])
def test_a_project_in_a_sub_folder_of_git(tmp_path: Path, subdir: str) -> None:
    """With `dvc init --subdir` paths are relative to the DVC root, at every revision."""
    project = new_project(tmp_path / "mono", subdir)
    project.add("data", FOLDER)
    sha = project.commit()
    project.add("one.txt", FILE)
    project.commit()
    repository = di.Repository(project.root)
    assert str(project.root) == di.Repository(project.root / "data" / "sub").root
    assert str(project.root) == repository.root
    with inside(project.root):
        assert hashes(BOTH) == found(repository.manifest())
        assert hashes(FOLDER) == found(repository.manifest("data", rev=sha))
    with inside(project.top), pytest.raises(di.RepositoryError):
        di.Repository()


def test_projects_side_by_side_in_one_git_repository(tmp_path: Path) -> None:
    """Each DVC project of a monorepo has its own outs only, the outermost one included."""
    top = new_project(tmp_path / "mono")
    top.add("top.txt", {"top.txt": b"top"})
    for name in ("left", "right"):
        (top.top / name).mkdir()
        inner = Project(top.top, top.top / name)
        inner.dvc("init", "--quiet", "--subdir")
        inner.add("o.txt", {"o.txt": name.encode()})
    top.commit()
    assert hashes({"top.txt": b"top"}) == found(di.Repository(top.root).manifest())
    for name in ("left", "right"):
        manifest = di.Repository(top.root / name).manifest()
        assert hashes({"o.txt": name.encode()}) == found(manifest)


def test_a_worktree_has_a_head_of_its_own(tracked: Project, tmp_path: Path) -> None:
    """In a Git worktree `HEAD` is the worktree's commit."""
    first = tracked.git("rev-parse", "HEAD")
    tracked.dvc("cache", "dir", "-q", str(tracked.cache))
    shared = tracked.commit("share the cache")
    tracked.git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    tracked.add("new.txt", {"new.txt": b"new"})
    ahead = tracked.commit()
    with inside(tmp_path / "side"):
        repository = di.Repository()
        assert str(tmp_path / "side") == repository.root
        assert [shared, first, ahead] == [repository.resolve(r) for r in ("HEAD", "HEAD~1", "main")]
        assert hashes(BOTH) == found(repository.manifest())
        assert hashes({**BOTH, "new.txt": b"new"}) == found(repository.manifest(rev="main"))


def test_a_worktree_of_a_project_in_a_sub_folder(tmp_path: Path) -> None:
    """Both at once: a Git worktree, and the DVC root below its top."""
    project = new_project(tmp_path / "mono", "sub")
    project.add("one.txt", FILE)
    project.commit()
    project.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "side"))
    repository = di.Repository(tmp_path / "side" / "sub")
    assert str(tmp_path / "side" / "sub") == repository.root
    with inside(tmp_path / "side" / "sub"):
        assert hashes(FILE) == found(repository.manifest())


@pytest.fixture
def superproject(tracked: Project, make_project: Callable[..., Project]) -> Project:
    """Return a DVC project with `tracked` as its submodule `inner`."""
    made = make_project("super")
    made.add("outer.txt", {"outer.txt": b"outer"})
    made.git("submodule", "--quiet", "add", str(tracked.root), "inner")
    made.commit()
    return made


def test_a_submodule_is_a_repository_of_its_own(superproject: Project) -> None:
    """Inside a submodule its own commits and outs count, not the superproject's."""
    inner = superproject.root / "inner"
    with inside(inner):
        repository = di.Repository()
        assert str(inner) == repository.root
        assert git(inner, "rev-parse", "HEAD") == repository.resolve("HEAD")
        assert hashes(FILE) == found(repository.manifest("one.txt"))


def test_a_superproject_has_nothing_of_its_submodule(superproject: Project) -> None:
    """The outs of a submodule are no outs of the project around it."""
    with inside(superproject.root):
        assert hashes({"outer.txt": b"outer"}) == found(read())
        assert hashes({"outer.txt": b"outer"}) == found(read(rev="workspace"))


def test_a_shallow_clone_knows_its_head_only(tracked: Project, tmp_path: Path) -> None:
    """With `--depth 1` HEAD is read, an older commit is a clear error."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.add("one.txt", {"one.txt": b"two\n"})
    tracked.commit()
    git(tmp_path, "clone", "--quiet", "--depth", "1", tracked.root.as_uri(), "clone")
    with inside(tmp_path / "clone"):
        assert hashes({"one.txt": b"two\n"}) == found(read("one.txt"))
        for rev in ("HEAD~1", old):
            with pytest.raises(di.RepositoryError, match=rev):
                read("one.txt", rev=rev)
    gc.collect()  # what Git left open would warn here, and a warning is an error


@pytest.mark.parametrize("how", ["--no-local", "--shared"])
def test_a_packed_clone_reads_as_the_original(tracked: Project, tmp_path: Path, how: str) -> None:
    """Objects in packs or borrowed, packed refs and a remote branch resolve all the same."""
    sha = tracked.commit("tip")
    tracked.git("gc", "--quiet")
    git(tmp_path, "clone", "--quiet", how, str(tracked.root), "clone")
    git(tmp_path / "clone", "pack-refs", "--all")
    with inside(tmp_path / "clone"):
        assert [sha, sha] == [di.Repository().resolve(rev) for rev in ("HEAD", "origin/main")]
        assert hashes(FILE) == found(read("one.txt", rev="origin/main"))


def test_a_clone_without_all_blobs_is_never_read_as_empty(tracked: Project, tmp_path: Path) -> None:
    """In a partial clone (`--filter`) metadata may be absent: an error, or all of it."""
    tracked.git("config", "uploadpack.allowFilter", "true")
    tracked.add("one.txt", {"one.txt": b"two\n"})
    tracked.commit()
    url = tracked.root.as_uri()
    git(tmp_path, "clone", "--quiet", "--filter=blob:none", url, "clone")
    with inside(tmp_path / "clone"):
        assert hashes({"one.txt": b"two\n"}) == found(read("one.txt"))
        said, message = attempt("one.txt", rev="HEAD~1")
        assert message or hashes(FILE) == said


def test_a_sparse_work_tree_hides_nothing(tracked: Project) -> None:
    """What a sparse checkout leaves out of the work tree is committed all the same."""
    tracked.add("deep/in/two.txt", {"deep/in/two.txt": b"two"})
    tracked.commit()
    tracked.git("sparse-checkout", "set", "--no-cone", "/.dvc", "/one.txt.dvc")
    assert not (tracked.root / "data.dvc").exists()
    assert hashes({**BOTH, "deep/in/two.txt": b"two"}) == found(read())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_repository_of_another_user_is_read_or_clearly_refused(tracked: Project) -> None:
    """In a container the checkout often belongs to someone else: never a traceback."""
    for path in [tracked.root, tracked.root / ".git"]:
        os.chown(path, 12345, 12345)
    said, message = attempt()
    assert "safe.directory" in message or hashes(BOTH) == said


def test_a_sha256_repository_is_read_or_clearly_refused(tmp_path: Path) -> None:
    """Git can name objects by SHA-256; where DVC cannot read that, the message says so."""
    git(tmp_path, "init", "--quiet", "--object-format=sha256", "modern")
    project = Project(tmp_path / "modern", tmp_path / "modern")
    (project.root / ".dvc").mkdir()
    project.write({".dvc/config": b""})
    project.write_outs("o.dvc", {"md5": md5(b"o"), "hash": "md5", "path": "o"})
    project.commit()
    with inside(project.root):
        said, message = attempt()
    assert "sha256" in message or hashes({"o": b"o"}) == said


def test_a_detached_head_is_read(tracked: Project) -> None:
    """HEAD need not be on a branch."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.add("one.txt", {"one.txt": b"two\n"})
    tracked.commit()
    tracked.git("checkout", "--quiet", "--detach", old)
    assert old == read().rev
    assert hashes(FILE) == found(read("one.txt"))


def test_a_link_to_the_project_is_followed(
    tracked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened through a symbolic link, the project and its targets are found all the same."""
    (tmp_path / "link").symlink_to(tracked.root)
    repository = di.Repository(tmp_path / "link")
    assert hashes(FILE) == found(repository.manifest(str(tmp_path / "link" / "one.txt")))
    assert hashes(FILE) == found(repository.manifest(str(tracked.root / "one.txt")))
    monkeypatch.chdir(tmp_path / "link" / "data")
    assert hashes({"data/a.bin": b"alpha"}) == found(read("a.bin"))


# ------------------------------------------------------------------------------ revisions


def test_revisions_resolve_as_in_git(tracked: Project) -> None:
    """Branches, light and annotated tags, short and full SHAs, and ancestors."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.git("tag", "light")
    tracked.git("tag", "--annotate", "-m", "x", "annotated")
    tracked.git("branch", "side/branch")
    new = tracked.commit()
    repository = di.Repository()
    names = ["light", "annotated", "side/branch", "refs/heads/side/branch", old, old[:8], "HEAD~1",
             "HEAD^", "main~1", "annotated^{commit}"]  # fmt: skip
    assert dict.fromkeys(names, old) == {name: repository.resolve(name) for name in names}
    assert [new] * 2 == [repository.resolve(name) for name in ("HEAD", "main")]
    assert old == repository.manifest(rev="annotated").rev


@pytest.mark.parametrize(
    "rev",
    ["no-such", "", " ", "HEAD~99", "0" * 40, "f" * 7, "-n", "--all", "a b", "a\0b", "..",
     "HEAD:one.txt.dvc", "HEAD^{tree}", "no-such^{commit}", "\x1b[31m", "\udcff", "HEAD\n"],
)  # fmt: skip
def test_what_is_no_commit_is_a_clear_error(tracked: Project, rev: str) -> None:
    """An unknown name, a folder or a file of Git is no revision; the message is printable."""
    assert tracked.root.is_dir()
    repository = di.Repository()
    for call in (repository.resolve, lambda rev: repository.manifest(rev=rev)):
        with pytest.raises(di.RepositoryError) as caught:
            call(rev)
        assert one_line(str(caught.value)).isprintable()


def test_the_message_names_the_unknown_revision(tracked: Project) -> None:
    """An unknown revision is quoted in the message."""
    assert tracked.root.is_dir()
    with pytest.raises(di.RepositoryError, match="no-such-rev"):
        di.Repository().resolve("no-such-rev")


def test_a_blob_is_no_revision(tracked: Project) -> None:
    """The SHA of a file is refused like any other non-commit."""
    blob = tracked.git("rev-parse", "HEAD:one.txt.dvc")
    with pytest.raises(di.RepositoryError):
        di.Repository().resolve(blob)


def test_an_experiment_is_a_revision(tracked: Project) -> None:
    """A saved experiment can be named like a branch."""
    tracked.run_stages({"make": {"cmd": "printf 1 >o", "outs": ["o"]}})
    tracked.commit()
    tracked.run_stages({"make": {"cmd": "printf 2 >o", "outs": ["o"]}})
    tracked.dvc("exp", "save", "--quiet", "--name", "try-two")
    assert hashes({"o": b"2"}) == found(read("o", rev="try-two"))
    tracked.git("checkout", "--quiet", "--", ".")
    assert hashes({"o": b"1"}) == found(read("o"))


def test_one_repository_sees_what_happens_meanwhile(tracked: Project) -> None:
    """A long-lived object follows new commits, and never keeps what the work tree said once."""
    repository = di.Repository()
    assert hashes(BOTH) == found(repository.manifest())
    assert hashes(BOTH) == found(repository.manifest(rev="workspace"))
    changed = {**FOLDER, "one.txt": b"two\n"}
    tracked.add("one.txt", changed)
    assert hashes(changed) == found(repository.manifest(rev="workspace"))
    assert hashes(BOTH) == found(repository.manifest())
    sha = tracked.commit()
    assert sha == repository.resolve("HEAD")
    assert hashes(changed) == found(repository.manifest())
    tracked.git("gc", "--quiet")
    new = tracked.commit("after gc")
    assert new == repository.manifest().rev


def test_the_gitignore_of_the_work_tree_hides_nothing(tracked: Project) -> None:
    """A committed `.dvc` file counts, also where the work tree ignores it now."""
    tracked.write({".gitignore": b"*.dvc\n"})
    assert hashes(BOTH) == found(read())


def test_the_baseline_of_an_experiment_is_the_default(
    tracked: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DVC_EXP_BASELINE_REV` stands before HEAD where no revision is named."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.add("one.txt", {"one.txt": b"two\n"})
    new = tracked.commit()
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", old)
    assert [old, new] == [read().rev, read(rev="HEAD").rev]
    assert hashes(FILE) == found(read("one.txt"))


def test_an_adopted_change_leaves_the_expectation_alone(tracked: Project) -> None:
    """A `.dvc` file rewritten in the work tree, staged or not, changes nothing at HEAD."""
    before = read()
    tracked.write({"data/a.bin": b"drift"})
    tracked.add("one.txt", {"one.txt": b"drift"})
    tracked.dvc("add", "--quiet", "data")
    assert before.digest == read().digest
    tracked.git("add", "--all")
    assert before.digest == read().digest
    assert hashes(BOTH) == found(read())


def test_uncommitted_metadata_is_no_expectation(tracked: Project) -> None:
    """A new `.dvc` file does not count before its commit, a removed one until its commit."""
    tracked.add("new.txt", {"new.txt": b"new"})
    (tracked.root / "one.txt.dvc").unlink()
    assert hashes(BOTH) == found(read())


def test_the_workspace_can_be_the_revision(tracked: Project) -> None:
    """`workspace` is HEAD's manifest on a clean tree, and other after `dvc add` of new data."""
    clean = read(rev="workspace")
    assert "workspace" == clean.rev
    assert read().digest == clean.digest
    assert found(read()) == found(clean)
    tracked.write({"data/a.bin": b"drift"})
    assert clean.digest == read(rev="workspace").digest, "the bytes themselves do not count"
    tracked.dvc("add", "--quiet", "data")
    adopted = read(rev="workspace")
    assert hashes({**BOTH, "data/a.bin": b"drift"}) == found(adopted)
    assert read().digest != adopted.digest


def test_the_workspace_needs_no_commit(tmp_path: Path) -> None:
    """Before the first commit the metadata of the work tree can be read."""
    git(tmp_path, "init", "--quiet", "young")
    young = Project(tmp_path / "young", tmp_path / "young")
    young.dvc("init", "--quiet")
    young.add("one.txt", FILE)
    assert hashes(FILE) == found(di.Repository(young.root).manifest(rev="workspace"))


def test_outs_of_stages_follow_the_workspace_too(project: Project) -> None:
    """`workspace` reads `dvc.yaml` and `dvc.lock` of the work tree."""
    project.run_stages({"make": {"cmd": "printf 1 >o", "outs": ["o"]}})
    assert {} == found(read(all_outs=True))
    assert hashes({"o": b"1"}) == found(read(rev="workspace", all_outs=True))


# -------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("data", FOLDER),
        ("data/", FOLDER),
        ("./data", FOLDER),
        ("data/../data", FOLDER),
        ("data.dvc", FOLDER),
        (".", BOTH),
        ("data/a.bin", {"data/a.bin": b"alpha"}),
        ("data/sub", {"data/sub/c.bin": b"charlie"}),
        ("data/sub/", {"data/sub/c.bin": b"charlie"}),
        ("one.txt", FILE),
        ("one.txt.dvc", FILE),
    ],
)
def test_targets_are_taken_as_dvc_takes_them(tracked: Project, target: str, expected: Tree) -> None:
    """An out, its `.dvc` file, a path inside it, a folder around it; relative or absolute."""
    assert hashes(expected) == found(read(target))
    assert hashes(expected) == found(read(os.path.join(tracked.root, target)))


def test_targets_are_relative_to_the_current_folder(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sub-folder a bare name is a name in it, `..` leads up, and no target means all."""
    project.add("deep/in/data", {"deep/in/data/x": b"x"})
    project.add("one.txt", FILE)
    project.commit()
    monkeypatch.chdir(project.root / "deep")
    assert hashes({"deep/in/data/x": b"x"}) == found(read("in/data"))
    assert hashes({"deep/in/data/x": b"x"}) == found(read("in"))
    assert hashes({"deep/in/data/x": b"x"}) == found(read("in/data.dvc"))
    assert hashes(FILE) == found(read("../one.txt"))
    assert hashes({**FILE, "deep/in/data/x": b"x"}) == found(read())


def test_a_link_into_the_cache_is_a_target_like_any_file(project: Project) -> None:
    """With `cache.type symlink` a tracked file is a link: its own name counts."""
    project.dvc("config", "-q", "cache.type", "symlink")
    project.add("data", FOLDER)
    project.add("one.txt", FILE)
    project.commit()
    assert (project.root / "data" / "a.bin").is_symlink()
    assert hashes({"data/a.bin": b"alpha"}) == found(read("data/a.bin"))
    assert hashes(FILE) == found(read(str(project.root / "one.txt")))


def test_a_stage_is_a_target(project: Project) -> None:
    """A stage's address stands for its outs, as in DVC's own commands."""
    (project.root / "deep").mkdir()
    make = {"cmd": "printf 1 >o; printf 2 >p", "outs": ["o", "p"]}
    project.run_stages({"make": make, "other": {"cmd": "printf 3 >q", "outs": ["q"]}})
    project.run_stages({"make": make}, "deep")
    project.commit()
    assert hashes({"o": b"1", "p": b"2"}) == found(read("make"))
    assert hashes({"deep/o": b"1", "deep/p": b"2"}) == found(read("deep/dvc.yaml:make"))


def test_targets_that_overlap_count_once(tracked: Project) -> None:
    """A file asked for twice is listed once, and the order of targets does not matter."""
    assert tracked.root.is_dir()
    first = read("data", "data/a.bin", "one.txt")
    second = read("one.txt", "one.txt.dvc", "data/sub", "data/a.bin", "data")
    assert hashes(BOTH) == found(first) == found(second)
    assert first.digest == second.digest
    several = read("data/sub", "data/a.bin")
    assert hashes({k: FOLDER[k] for k in ("data/a.bin", "data/sub/c.bin")}) == found(several)


def test_a_manifest_tells_what_it_describes_in_full(tracked: Project) -> None:
    """Extra files can be told in whole folders only, not beside a single file."""
    assert tracked.root.is_dir()
    assert ("data",) == read().trees
    assert ("data/sub",) == read("data/sub").trees
    assert () == read("data/a.bin").trees
    assert () == read("one.txt").trees


def test_a_target_need_not_exist_in_the_work_tree(tracked: Project) -> None:
    """What is missing from the work tree can still be asked for."""
    faults.delete(tracked.root / "one.txt")
    faults.delete(tracked.root / "one.txt.dvc")
    assert hashes(FILE) == found(read("one.txt"))
    assert hashes(FILE) == found(read("one.txt.dvc"))


@pytest.mark.parametrize(
    ("target", "nearest"),
    [
        ("dta", "data"),
        ("dat/", "data"),
        ("one.txr", "one.txt"),
        ("one.tx.dvc", "one.txt"),
        ("data/a.bim", "data/a.bin"),
        ("data/sbu", "data/sub"),
    ],
)
def test_an_uncovered_target_is_an_error_that_names_the_nearest(
    tracked: Project, target: str, nearest: str
) -> None:
    """A typing error is answered with what was probably meant."""
    assert tracked.root.is_dir()
    with pytest.raises(di.RepositoryError) as caught:
        read(target)
    assert target.rstrip("/") in str(caught.value)
    assert f"'{nearest}" in str(caught.value)


@pytest.mark.parametrize(
    "target",
    ["", "/etc/passwd", "..", "../beside", "a\0b", "\x1b[31m", "x\ny", os.fsdecode(b"\xff"),
     "\ud800", "*", ".dvc", ".git/config", "dvc.yaml", "dvc.lock", "a" * 5000],
)  # fmt: skip
def test_strange_targets_are_clear_errors(tracked: Project, target: str) -> None:
    """What can be no out is refused with a printable message."""
    assert tracked.root.is_dir()
    with pytest.raises(di.RepositoryError) as caught:
        read(target)
    assert one_line(str(caught.value)).isprintable()


def test_one_uncovered_target_fails_the_whole_request(tracked: Project) -> None:
    """A good target does not hide a bad one."""
    assert tracked.root.is_dir()
    with pytest.raises(di.RepositoryError, match="nothing-here"):
        read("data", "nothing-here")


def test_a_project_without_outs_has_an_empty_manifest(project: Project) -> None:
    """Nothing tracked is no error of the reader; whoever verifies nothing must say so."""
    assert project.root.is_dir()
    manifest = read(all_outs=True)
    assert (0, ()) == (len(manifest), manifest.outs)


# ------------------------------------------------------------------------------- no repository


def test_a_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    """Git alone is not enough."""
    git(tmp_path, "init", "--quiet")
    with pytest.raises(di.RepositoryError, match="DVC"):
        di.Repository(tmp_path)


def test_a_project_that_lost_its_git_is_refused(tracked: Project, tmp_path: Path) -> None:
    """DVC alone is not enough: nothing was committed."""
    (tracked.root / ".git").rename(tmp_path / "gone")
    with pytest.raises(di.RepositoryError, match="Git"):
        read()


def test_a_project_without_scm_is_refused(tmp_path: Path) -> None:
    """`dvc init --no-scm` leaves no commit to hold anything to."""
    (tmp_path / "bare").mkdir()
    project = Project(tmp_path / "bare", tmp_path / "bare")
    project.dvc("init", "--quiet", "--no-scm")
    project.add("one.txt", FILE)
    with inside(project.root), pytest.raises(di.RepositoryError, match="no_scm"):
        read()


def test_a_project_that_turned_scm_off_is_refused(tracked: Project) -> None:
    """`core.no_scm` beside a Git repository means the same."""
    tracked.dvc("config", "--quiet", "core.no_scm", "true")
    with pytest.raises(di.RepositoryError, match="no_scm"):
        read()


def test_a_repository_without_a_commit_is_refused(tmp_path: Path) -> None:
    """Before the first commit nothing is committed."""
    git(tmp_path, "init", "--quiet", "young")
    young = Project(tmp_path / "young", tmp_path / "young")
    young.dvc("init", "--quiet")
    young.add("one.txt", FILE)
    with inside(young.root), pytest.raises(di.RepositoryError, match="commit"):
        read()
    with inside(young.root), pytest.raises(di.RepositoryError, match="commit"):
        di.Repository().resolve("HEAD")


@pytest.mark.parametrize("name", ["nowhere", "file", "nowhere/at/all"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A missing folder or a file is no repository."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(di.RepositoryError, match=name):
        di.Repository(tmp_path / name)


def test_a_commit_before_dvc_is_a_clear_error(tmp_path: Path) -> None:
    """At a revision that had no DVC project nothing can be expected."""
    git(tmp_path, "init", "--quiet", "late")
    git(tmp_path / "late", "commit", "--quiet", "--allow-empty", "-m", "before DVC")
    late = Project(tmp_path / "late", tmp_path / "late")
    late.dvc("init", "--quiet")
    late.commit()
    with inside(late.root):
        assert 0 == len(read())
        with pytest.raises(di.RepositoryError):
            read(rev="HEAD~1")


# ---------------------------------------------------------------------------- broken metadata

BROKEN = {
    "not YAML": b"stages: [",
    "a merge conflict": b"<<<<<<< HEAD\nstages: {}\n=======\nstages: []\n>>>>>>> side\n",
    "not UTF-8": b"\xff\xfe\x00stages",
    "another document": b"- 1\n- 2\n",
    "a duplicate key": b"stages: {}\nstages: {}\n",
    "an unknown key": b"no_such_key: 1\n",
    "a bare word": b"word\n",
    "a NUL": b"\0",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("name", ["one.txt.dvc", "deep/dvc.yaml", "deep/dvc.lock"])
def test_broken_metadata_at_the_revision_is_named(project: Project, name: str, data: bytes) -> None:
    """Broken at the revision, fine in the work tree: an error that names the file."""
    project.add("one.txt", FILE)
    (project.root / "deep").mkdir()
    project.run_stages({"make": {"cmd": "printf 1 >o", "outs": ["o"]}}, "deep")
    project.commit("good")
    good = (project.root / name).read_bytes()
    project.write({name: data})
    project.commit("broken")
    project.write({name: good})
    with pytest.raises(di.ManifestError) as caught:
        read(all_outs=True)
    assert name in str(caught.value)
    assert hashes({**FILE, "deep/o": b"1"}) == found(read(rev="HEAD~1", all_outs=True))


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("name", ["one.txt.dvc", "deep/dvc.yaml", "deep/dvc.lock"])
def test_broken_metadata_in_the_work_tree_is_harmless(
    project: Project, name: str, data: bytes
) -> None:
    """Fine at the revision, broken in the work tree: read as ever; `workspace` names it."""
    project.add("one.txt", FILE)
    (project.root / "deep").mkdir()
    project.run_stages({"make": {"cmd": "printf 1 >o", "outs": ["o"]}}, "deep")
    project.commit("good")
    project.write({name: data})
    assert hashes({**FILE, "deep/o": b"1"}) == found(read(all_outs=True))
    with pytest.raises(di.ManifestError) as caught:
        read(rev="workspace", all_outs=True)
    assert name in str(caught.value)


def test_a_broken_configuration_is_a_clear_error(tracked: Project) -> None:
    """DVC refuses such a configuration too; the message names what is wrong."""
    tracked.write({".dvc/config": b"['remote \"far\"']\n    url = weird://x\n"})
    with pytest.raises(di.RepositoryError, match="weird"):
        read()


def git_object(project: Project, name: str) -> Path:
    """Return the file of a loose Git object."""
    sha = project.git("rev-parse", name)
    return project.root / ".git" / "objects" / sha[:2] / sha[2:]


CUT = pytest.param(
    faults.truncate,
    marks=pytest.mark.skip(reason="libgit2 1.9 waits for ever there (libgit2/libgit2#7342)"),
    id="cut",
)


@pytest.mark.parametrize("name", ["HEAD:one.txt.dvc", "HEAD^{tree}", "HEAD"])
@pytest.mark.parametrize(
    "fault", [pytest.param(faults.flip_bit, id="flip"), pytest.param(faults.delete, id="gone"), CUT]
)
def test_a_damaged_git_object_is_a_clear_error(
    tracked: Project, name: str, fault: Callable[[Path], None]
) -> None:
    """Where Git's own objects are damaged there is no expectation, and no traceback either."""
    fault(git_object(tracked, name))
    with pytest.raises(di.IntegrityError):
        read()


def test_a_git_object_is_held_to_its_name(tracked: Project) -> None:
    """A blob replaced by a well-formed other one is no commitment: Git's hash is checked."""
    path = git_object(tracked, "HEAD:one.txt.dvc")
    data = zlib.decompress(path.read_bytes()).replace(md5(FILE["one.txt"]).encode(), b"0" * 32)
    with faults.changed(path):
        path.chmod(0o644)
        path.write_bytes(zlib.compress(data))
    with pytest.raises(di.IntegrityError):
        read()


@pytest.mark.parametrize("size", [-1, -5, 2**63, 10**30])
def test_a_size_that_is_none_is_no_traceback(project: Project, size: int) -> None:
    """A size that no file can have is refused, or told as unknown."""
    project.write_outs("o.dvc", {"md5": md5(b"o"), "hash": "md5", "path": "o", "size": size})
    project.commit()
    said, message = attempt()
    assert "o.dvc" in message or hashes({"o": b"o"}) == said
    assert said is None or [None] == [entry.size for entry in read()]


def test_a_link_to_metadata_is_followed_or_refused(tracked: Project) -> None:
    """A `.dvc` file that is a symbolic link in Git is never passed over in silence."""
    tracked.write({"meta/source": (tracked.root / "one.txt.dvc").read_bytes()})
    (tracked.root / "one.txt.dvc").unlink()
    (tracked.root / "one.txt.dvc").symlink_to("meta/source")
    tracked.commit()
    said, message = attempt()
    assert "one.txt.dvc" in message or hashes(BOTH) == said


def test_a_template_without_its_parameter_is_named(project: Project) -> None:
    """A `dvc.yaml` that cannot be resolved at the revision is broken there."""
    project.write_yaml("dvc.yaml", {"stages": {"s": {"cmd": "x", "outs": ["${nothing}.txt"]}}})
    project.commit()
    with pytest.raises(di.ManifestError, match=r"dvc\.yaml"):
        read(all_outs=True)


def test_two_outs_at_one_path_are_refused(project: Project) -> None:
    """One file cannot be held to two hashes."""
    for name, data in (("x.dvc", b"1"), ("y.dvc", b"2")):
        project.write_outs(name, {"md5": md5(data), "hash": "md5", "path": "o"})
    project.commit()
    with pytest.raises(di.ManifestError, match="'o'"):
        read()


def test_an_out_inside_another_is_refused(tracked: Project) -> None:
    """Neither can a file inside a tracked folder that is tracked again."""
    tracked.write_outs("other.dvc", {"md5": md5(b"other"), "hash": "md5", "path": "data/a.bin"})
    tracked.commit()
    with pytest.raises(di.ManifestError, match=r"data"):
        read()


@pytest.mark.parametrize(
    "oid", ["xyz", "../../../../etc/passwd", "ab/../../../one.txt", "g" * 32, "a" * 31, "a" * 64]
)
@pytest.mark.parametrize("suffix", ["", ".dir"])
def test_a_hash_that_is_none_is_refused(project: Project, oid: str, suffix: str) -> None:
    """What stands for the MD5 must be 32 hexadecimal digits: it becomes a path in the cache."""
    project.write_outs("o.dvc", {"md5": oid + suffix, "hash": "md5", "path": "o"})
    project.commit()
    with pytest.raises(di.ManifestError, match=r"o\.dvc"):
        read()


def test_another_hash_than_md5_is_unverifiable_or_refused(project: Project) -> None:
    """A hash that a later DVC may write is never taken for an MD5."""
    project.write_outs("o.dvc", {"md5": md5(b"o"), "hash": "sha256", "path": "o"})
    project.commit()
    said, message = attempt()
    assert "o.dvc" in message or {"o": None} == said


@pytest.mark.parametrize("path", ["a\0b", ".", "", "data/../../up"])
def test_an_out_with_a_strange_path_is_never_a_file_to_read(project: Project, path: str) -> None:
    """Whatever a `.dvc` file claims, no digest is attached to a path outside of the project."""
    project.write_outs("o.dvc", {"md5": md5(b"o"), "hash": "md5", "path": path})
    project.commit()
    said, message = attempt()
    assert message or {} == said


# ----------------------------------------------------------------------------------- listings


@pytest.fixture
def store(tracked: Project, tmp_path: Path) -> Path:
    """Return a local folder that is the default remote of `tracked`, with everything pushed."""
    folder = tmp_path / "store"
    tracked.dvc("remote", "add", "-qd", "store", str(folder))
    tracked.dvc("push", "--quiet")
    tracked.commit("remote")
    return folder


LISTING = md5(listing(below("data", FOLDER))) + ".dir"


def test_a_missing_listing_comes_from_the_default_remote(tracked: Project, store: Path) -> None:
    """Gone from the cache, found on the remote; nothing is written into the cache."""
    faults.delete(object_path(tracked.cache, LISTING))
    before = faults.snapshot(tracked.root), faults.snapshot(store)
    assert hashes(BOTH) == found(read())
    assert before == (faults.snapshot(tracked.root), faults.snapshot(store))


def test_a_missing_listing_comes_from_the_remote_of_its_out(
    project: Project, tmp_path: Path
) -> None:
    """`remote:` of an out is where its listing is looked for."""
    project.dvc("remote", "add", "-qd", "store", str(tmp_path / "store"))
    project.dvc("remote", "add", "-q", "cold", str(tmp_path / "cold"))
    oid = plant(tmp_path / "cold", listing({"a": b"1"}), ".dir")
    project.write_outs("d.dvc", {"md5": oid, "hash": "md5", "path": "d", "remote": "cold"})
    project.commit()
    assert hashes({"d/a": b"1"}) == found(read())


def test_a_remote_with_a_relative_path_is_relative_to_its_config(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC writes such a URL relative to `.dvc`; the current folder plays no part."""
    project.dvc("remote", "add", "-qd", "store", "../store")
    oid = plant(project.root.parent / "store", listing({"a": b"1"}), ".dir")
    project.write_outs("d.dvc", {"md5": oid, "hash": "md5", "path": "d"})
    project.write({"deep/er/x": b""})
    project.commit()
    monkeypatch.chdir(project.root / "deep" / "er")
    assert hashes({"d/a": b"1"}) == found(read())


def test_a_cache_with_a_relative_path_is_relative_to_its_config(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC writes such a folder relative to `.dvc`; the current folder plays no part."""
    project.dvc("cache", "dir", "-q", "../shared")
    project.add("data", FOLDER)
    project.commit()
    monkeypatch.chdir(project.root / "data")
    assert (project.root.parent / "shared").is_dir()
    assert hashes(FOLDER) == found(read())


@pytest.mark.parametrize("level", ["--local", "--global", "--project"])
def test_cache_and_remote_are_those_of_today(project: Project, tmp_path: Path, level: str) -> None:
    """The configuration of this machine counts, also at a revision that knew another one."""
    in_cache = plant(tmp_path / "cache", listing({"c": b"1"}), ".dir")
    on_remote = plant(tmp_path / "store", listing({"r": b"2"}), ".dir")
    project.write_outs("c.dvc", {"md5": in_cache, "hash": "md5", "path": "c"})
    project.write_outs("r.dvc", {"md5": on_remote, "hash": "md5", "path": "r"})
    project.commit()
    project.dvc("config", level, "cache.dir", str(tmp_path / "cache"))
    project.dvc("remote", "add", level, "-qd", "store", str(tmp_path / "store"))
    assert hashes({"c/c": b"1", "r/r": b"2"}) == found(read())


def become_a_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    faults.delete(path)
    path.mkdir()


def become_a_pipe(path: Path) -> None:
    """Put a pipe in the place of a file: whoever opens it to read would wait for a writer."""
    faults.delete(path)
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": faults.flip_bit,
    "a zeroed page": faults.zero_page,
    "a cut": faults.truncate,
    "no bytes": lambda path: faults.truncate(path, 0),
    "more bytes": faults.extend,
    "another listing": lambda path: faults.tear(path, path.read_bytes().replace(b"a", b"b")),
    "missing": faults.delete,
    "a dangling link": lambda path: faults.replace_by_link(path, "nowhere"),
    "a folder": become_a_folder,
    "a pipe": become_a_pipe,
}


@pytest.mark.parametrize("fault", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_listing_in_the_cache_gives_way_to_the_remote(
    tracked: Project, store: Path, fault: Callable[[Path], None]
) -> None:
    """A listing is hashed before it is read; the good copy is used, the bad one left alone."""
    fault(object_path(tracked.cache, LISTING))
    before = faults.snapshot(tracked.root), faults.snapshot(store)
    manifest = read()
    assert hashes(BOTH) == found(manifest)
    assert {None} == {out.unverifiable for out in manifest.outs}
    assert before == (faults.snapshot(tracked.root), faults.snapshot(store))


@pytest.mark.parametrize("fault", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_listing_damaged_everywhere_is_told(
    tracked: Project, store: Path, fault: Callable[[Path], None]
) -> None:
    """One entry without a digest, a reason that names listing and places; other outs go on."""
    for place in (tracked.cache, store):
        fault(object_path(place, LISTING))
    manifest = read()
    assert {"data": None, **hashes(FILE)} == found(manifest)
    out = out_of(manifest, "data")
    assert f"md5:{LISTING[:32]}" == str(out.digest)
    for word in (LISTING[:32], "cache", "store"):
        assert word in out.unverifiable
    assert () == manifest.trees


def test_a_listing_is_not_taken_from_dvcs_memory(tracked: Project) -> None:
    """DVC keeps the expansion of a listing in a database; a missing listing stays missing."""
    tracked.dvc("data", "status", "-q")
    tracked.dvc("status", "-q")
    faults.delete(object_path(tracked.cache, LISTING))
    assert {"data": None, **hashes(FILE)} == found(read())


def test_a_missing_listing_is_told_for_targets_inside_it(tracked: Project) -> None:
    """Whether the path exists cannot be known then: told as unverifiable, not as a typo."""
    faults.delete(object_path(tracked.cache, LISTING))
    manifest = read("data/a.bin")
    assert [None] == [entry.digest for entry in manifest]
    assert out_of(manifest, "data").unverifiable
    assert hashes(FILE) == found(read("one.txt"))


@pytest.mark.parametrize("url", ["gone", "s3://bucket/key", "ssh://localhost/x"])
def test_a_remote_that_cannot_be_used_is_told(tracked: Project, url: str, tmp_path: Path) -> None:
    """A remote that is away, or needs a plugin that is not installed, never fails the reading."""
    config = f"[core]\n    remote = far\n['remote \"far\"']\n    url = {url}\n"
    tracked.write({".dvc/config": config.replace("gone", str(tmp_path / "gone")).encode()})
    tracked.commit()
    faults.delete(object_path(tracked.cache, LISTING))
    manifest = read()
    assert {"data": None, **hashes(FILE)} == found(manifest)
    assert "far" in out_of(manifest, "data").unverifiable


def test_a_default_remote_that_is_not_configured_is_told(tracked: Project) -> None:
    """`core.remote` may name a remote that is gone: a listing in the cache needs none."""
    tracked.write({".dvc/config": b"[core]\n    remote = gone\n"})
    tracked.commit()
    assert hashes(BOTH) == found(read())
    faults.delete(object_path(tracked.cache, LISTING))
    assert "gone" in out_of(read(), "data").unverifiable


def test_an_out_with_an_unknown_remote_is_told(project: Project) -> None:
    """`remote:` may name one that the configuration of this machine lacks."""
    outs = {"hash": "md5", "path": "d", "remote": "unknown", "md5": md5(b"[]") + ".dir"}
    project.add("one.txt", FILE)
    project.write_outs("d.dvc", outs)
    project.commit()
    manifest = read()
    assert {"d": None, **hashes(FILE)} == found(manifest)
    assert "unknown" in out_of(manifest, "d").unverifiable


@pytest.fixture
def commit_listing(project: Project) -> Callable[[bytes], None]:
    """Return a function that commits a folder `data` with any bytes for its listing."""

    def commit(data: bytes) -> None:
        oid = plant(project.cache, data, ".dir")
        project.write_outs("data.dvc", {"md5": oid, "hash": "md5", "path": "data"})
        project.add("one.txt", FILE)
        project.commit()

    return commit


HOSTILE = {
    "absolute": ["/etc/passwd"],
    "up": ["../up"],
    "up and down": ["a/../../b"],
    "dots only": [".."],
    "a dot": ["."],
    "up inside": ["a/../b"],
    "double slash": ["a//b"],
    "dot first": ["./a"],
    "dot within": ["a/./b"],
    "trailing slash": ["a/"],
    "empty": [""],
    "NUL": ["a\0b"],
    "NUL and up": ["a\0/../../b"],
    "twice": ["a", "b", "a"],
    "twice in a row": ["a", "a"],
    "case": ["A.txt", "a.txt"],
    "case beyond ASCII": ["Ä/x", "ä/x"],
    "file and folder": ["a", "a/b"],
    "file and deep folder": ["a", "a-b", "a.b", "a/b/c"],
    "half a pair": ["\ud800"],
    "good, then bad": ["a", "b", "../../c"],
    "control characters": ["\x1b[2J/../x"],
    "line break": ["a\n/../b"],
}


@pytest.mark.parametrize("names", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("spacing", [None, 1], ids=["as DVC writes it", "indented"])
def test_a_hostile_listing_is_refused(
    commit_listing: Callable[[bytes], None], names: list[str], spacing: int | None
) -> None:
    """Its hash is right, its paths are not: an error that names out and path, printable."""
    entries = [{"md5": md5(b"x"), "relpath": name} for name in names]
    commit_listing(raw_listing(entries, spacing))
    with pytest.raises(di.ManifestError) as caught:
        read()
    message = str(caught.value)
    assert "data" in message
    assert one_line(message).isprintable()


def test_the_unsafe_path_is_quoted_with_escapes(commit_listing: Callable[[bytes], None]) -> None:
    """The message shows the path itself, its control characters escaped."""
    commit_listing(raw_listing([{"md5": md5(b"x"), "relpath": "\x1b[2J/../é"}]))
    with pytest.raises(di.ManifestError) as caught:
        read()
    assert "\\x1b[2J/../é" in str(caught.value)


def test_a_hostile_listing_is_refused_for_its_good_files_too(
    commit_listing: Callable[[bytes], None],
) -> None:
    """Asking for a harmless file of it does not make the listing harmless."""
    entries = [{"md5": md5(b"x"), "relpath": name} for name in ("good", "../bad")]
    commit_listing(raw_listing(entries))
    with pytest.raises(di.ManifestError):
        read("data/good")
    assert hashes(FILE) == found(read("one.txt"))


@pytest.mark.parametrize("name", [rb"..\/up", rb"\u002e\u002e/up", rb"a\u002f\u002e\u002e\u002fup"])
def test_an_escaped_path_is_judged_by_what_it_means(
    commit_listing: Callable[[bytes], None], name: bytes
) -> None:
    """JSON can spell `../up` in many ways; all of them are refused."""
    commit_listing(b'[{"md5": "%s", "relpath": "%s"}]' % (md5(b"x").encode(), name))
    with pytest.raises(di.ManifestError, match="data"):
        read()


MANY = [f"{number % 100:02}/é {number:06}" for number in range(30_000)]
"""Enough paths that their listing is longer than any buffer that it may be read through."""


def test_a_long_listing_is_read_to_its_end(commit_listing: Callable[[bytes], None]) -> None:
    """No entry is lost or cut where one piece of the listing ends and the next begins."""
    files = {name: name.encode() for name in MANY}
    commit_listing(listing(files))
    manifest = read("data")
    assert hashes({f"data/{name}": data for name, data in files.items()}) == found(manifest)


@pytest.mark.parametrize(
    "late", ["../up", MANY[0], MANY[0].upper()], ids=["unsafe", "twice", "case"]
)
def test_a_long_listing_is_judged_to_its_end(
    commit_listing: Callable[[bytes], None], late: str
) -> None:
    """What makes a listing unusable may stand at its very end, far from what it clashes with."""
    entries = [{"md5": md5(b"x"), "relpath": name} for name in [*MANY, late]]
    commit_listing(raw_listing(entries))
    with pytest.raises(di.ManifestError, match="data"):
        read()


MALFORMED: dict[str, bytes] = {
    "not JSON": b"hello",
    "empty": b"",
    "cut": b'[{"md5": "' + md5(b"x").encode() + b'", "relpath": "a"}',
    "cut in an entry": b'[{"md5": "' + md5(b"x").encode() + b'", "relp',
    "followed by bytes": listing({"a": b"x"}) + b"x",
    "two lists": listing({"a": b"x"}) * 2,
    "an object": b"{}",
    "a string": b'"a"',
    "null": b"null",
    "a list of strings": b'["a"]',
    "a list of null": b"[null]",
    "not UTF-8": b'[{"md5": "' + md5(b"x").encode() + b'", "relpath": "\xff"}]',
    "no md5": b'[{"relpath": "a"}]',
    "md5 null": b'[{"md5": null, "relpath": "a"}]',
    "md5 a number": b'[{"md5": 1, "relpath": "a"}]',
    "md5 short": b'[{"md5": "abc", "relpath": "a"}]',
    "md5 a path": b'[{"md5": "../../../../../../../etc/passwd0", "relpath": "a"}]',
    "md5 of a folder": b'[{"md5": "' + md5(b"x").encode() + b'.dir", "relpath": "a"}]',
    "no relpath": b'[{"md5": "' + md5(b"x").encode() + b'"}]',
    "relpath null": b'[{"md5": "' + md5(b"x").encode() + b'", "relpath": null}]',
    "relpath a list": b'[{"md5": "' + md5(b"x").encode() + b'", "relpath": ["a"]}]',
    "deep": b"[" * 100_000,
    "good, then bad": b'[{"md5": "' + md5(b"x").encode() + b'", "relpath": "a"}, {"md5": ""}]',
    "trailing comma": b'[{"md5": "' + md5(b"x").encode() + b'", "relpath": "a"}, ]',
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_listing_is_never_read_as_an_empty_one(
    commit_listing: Callable[[bytes], None], data: bytes
) -> None:
    """Its hash is right, its form is not: an error, or a reason; never fewer files."""
    commit_listing(data)
    said, message = attempt()
    assert "'data'" in message or {"data": None, **hashes(FILE)} == said


@pytest.mark.parametrize("spacing", [None, 0, 2], ids=["as DVC writes it", "lines", "indented"])
def test_a_listing_of_any_spacing_and_order_is_read(
    commit_listing: Callable[[bytes], None], spacing: int | None
) -> None:
    """The form is JSON: spacing, order and further keys do not matter."""
    entries = [{"md5": md5(b"x"), "relpath": name} for name in ("b", "a/c", "a-b", "é")]
    entries[1] |= {"size": 1}
    commit_listing(raw_listing(entries, spacing))
    expected = {f"data/{name}": b"x" for name in ("a-b", "a/c", "b", "é")}
    assert hashes(expected | FILE) == found(read())


# -------------------------------------------------------------------------------- file names

NAMES = {
    "spaces": " a  b.txt",
    "unicode": "ünï-日本-🎲.txt",
    "decomposed": "e\u0301.txt",
    "a newline": "a\nb.txt",
    "a carriage return": "a\rb.txt",
    "a tab": "a\tb.txt",
    "an escape sequence": "a\x1b[31mb.txt",
    "delete": "a\x7fb.txt",
    "a right-to-left override": "a\u202eb.txt",
    "a byte order mark": "\ufeffb.txt",
    "a leading dash": "-rf",
    "two dashes": "--all",
    "quotes": "a'b\"c.txt",
    "a backslash": "a\\b.txt",
    "a hash sign": "#a #b.txt",
    "glob characters": "a*b?[c].txt",
    "a template": "${a}.txt",
    "a colon": "a: b.txt",
    "a question mark": "?b.txt",
    "a semicolon": "a;b.txt",
    "percent": "a%0ab.txt",
    "a tilde": "~",
    "a YAML word": "null",
    "dots": "...",
    "two dots first": "..b.txt",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_come_as_they_are(project: Project, name: str) -> None:
    """A name is bytes to the file system: tracked alone, in a folder, and as a folder."""
    files = {name: b"1", f"in/{name}": b"2", f"below/{name}/x": b"3", f"around/{name}/y": b"4"}
    project.write(files)
    project.dvc("add", "--quiet", "--", name, "in", f"below/{name}", f"around/{name}/y")
    project.commit()
    assert hashes(files) == found(read())
    for path, data in files.items():
        assert hashes({path: data}) == found(read(f"./{path}"))


def test_bytes_that_are_not_utf8_come_as_they_are(
    commit_listing: Callable[[bytes], None],
) -> None:
    """DVC 3 cannot add such a name; JSON can hold it, as it escapes the surrogates."""
    name = os.fsdecode(b"a\xff\xfe.bin")
    commit_listing(raw_listing([{"md5": md5(b"x"), "relpath": name}]))
    assert hashes({f"data/{name}": b"x", **FILE}) == found(read())
    assert hashes({f"data/{name}": b"x"}) == found(read(f"data/{name}"))


# ---------------------------------------------------------------------------------- read only


def test_reading_a_manifest_writes_nothing(tracked: Project) -> None:
    """Every byte, mode and time of the work tree, `.git` and `.dvc` is as before."""
    tracked.dvc("stage", "add", "-qn", "copy", "-o", "two.txt", "cp one.txt two.txt")
    tracked.dvc("repro", "--quiet")
    tracked.commit()
    before = faults.snapshot(tracked.root)
    repository = di.Repository()
    for options in ({}, {"all_outs": True}, {"rev": "HEAD~1"}, {"rev": "workspace"}):
        repository.manifest(**options)
    repository.manifest("data/a.bin", "two.txt")
    repository.resolve("main")
    assert before == faults.snapshot(tracked.root)


def test_reading_a_fresh_clone_writes_nothing(tracked: Project, tmp_path: Path) -> None:
    """Where DVC never ran, no folder of its own appears, at a revision or in the workspace."""
    git(tmp_path, "clone", "--quiet", str(tracked.root), "clone")
    before = faults.snapshot(tmp_path / "clone")
    with inside(tmp_path / "clone"):
        for rev in ("HEAD", "workspace"):
            assert {"data": None, **hashes(FILE)} == found(read(rev=rev))
    assert before == faults.snapshot(tmp_path / "clone")


def test_reading_fills_no_site_cache(tracked: Project) -> None:
    """DVC's machine-wide folder is left alone as well."""
    site = Path(os.environ["DVC_SITE_CACHE_DIR"])
    before = faults.snapshot(site)
    assert hashes(BOTH) == found(read())
    assert hashes(FILE) == found(read("one.txt", rev="workspace"))
    assert tracked.root.is_dir()
    assert before == faults.snapshot(site)


HOLD_LOCK = """
import sys
from dvc.repo import Repo
with Repo(".").lock:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_threads_read_without_a_trace(tracked: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads read at once, get the same, and leave DVC in this process as it was."""
    before = dvc.output.get_cloud_fs
    monkeypatch.setattr(dvc.output, "get_cloud_fs", before)  # put back even if this test fails
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: as many ways to interleave as there can be
    try:
        with ThreadPoolExecutor(8) as threads:
            reads = [threads.submit(di.Repository(tracked.root).manifest) for _ in range(24)]
        assert [hashes(BOTH)] * 24 == [found(each.result()) for each in reads]
    finally:
        sys.setswitchinterval(interval)
    assert before is dvc.output.get_cloud_fs


def test_a_lock_held_by_another_process_does_not_matter(tracked: Project) -> None:
    """While another `dvc` command has the repository's lock, manifests are read as ever."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK],
        cwd=tracked.root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert "held\n" == holder.stdout.readline()
        assert hashes(BOTH) == found(read())
        assert hashes(BOTH) == found(read(rev="workspace"))
        holder.stdin.close()
    assert 0 == holder.returncode


IN_STAGE = """
import dvc_integrity as di
manifest = di.Repository().manifest("data")
with open("seen.txt", "w") as file:
    file.write(f"{manifest.rev} {len(manifest)}")
"""


def test_a_stage_can_read_the_manifest_of_its_dependency(tracked: Project) -> None:
    """While DVC runs a stage and holds its dependencies, the stage reads its expectation."""
    tracked.write({"look.py": IN_STAGE.encode()})
    sha = tracked.commit()
    stage = {"cmd": f"{sys.executable} look.py", "deps": ["data"], "outs": ["seen.txt"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(di.__file__)))
        tracked.run_stages({"look": stage})
    assert f"{sha} 3" == (tracked.root / "seen.txt").read_text()


def test_a_manifest_is_the_same_from_a_clone(tracked: Project, store: Path, tmp_path: Path) -> None:
    """The digest depends on the commit alone: not on the folder, the cache or the machine."""
    assert store.is_dir()
    git(tmp_path, "clone", "--quiet", str(tracked.root), "clone")
    expected = read().digest
    with inside(tmp_path / "clone"):
        assert expected == read().digest

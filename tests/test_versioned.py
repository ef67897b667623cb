"""Version-aware remotes on a real S3 server: the committed version of each file is judged."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import servers
from projects import Project, md5, object_path
from servers import CREDENTIALS, PROXY, Bucket, run, served, statuses

from dvc_integrity import Repository

FILES = {
    "data/a": b"first",
    "data/deep/b": b"second file",
    "data/deep/twin": b"first",
    "data/odd #name ü": b"odd",
    "one.bin": b"one of its own",
}

VERSIONING = (
    b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Status>Enabled</Status></VersioningConfiguration>"
)


def states(status: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {
        each["path"]: {copy["store"]: copy["state"] for copy in each["copies"]}
        for each in status["items"]
    }


def push(project: Project, *, expect: int = 0) -> None:
    """Push, and commit the versions that DVC writes down."""
    servers.push(project, expect=expect)
    project.commit("pushed")


def versions(project: Project, file: str = "data.dvc") -> list[str]:
    """Return the ids of the versions that a metadata file names, in its order."""
    return re.findall(r"version_id: (\S+)", (project.root / file).read_text())


def rewrite(project: Project, old: str, new: str, file: str = "data.dvc") -> None:
    """Change a metadata file by hand, and commit that."""
    place = project.root / file
    text = place.read_text()
    assert 1 == len(re.findall(old, text)), text
    place.write_text(re.sub(old, new, text))
    project.commit("by hand")


@pytest.fixture(autouse=True)
def _versioning(bucket: Bucket) -> None:
    """Let the bucket keep versions."""
    bucket.request("PUT", "?versioning", VERSIONING)


@pytest.fixture
def configured(project: Project, bucket: Bucket) -> Callable[..., Project]:
    """Return what tracks the files, with a remote of some kind that nothing is pushed to yet."""

    def configure(kind: str = "version_aware") -> Project:
        project.dvc("remote", "add", "--default", "far", f"s3://{bucket.name}/pre")
        project.dvc("remote", "modify", "far", "endpointurl", bucket.endpoint)
        project.dvc("remote", "modify", "far", kind, "true")
        project.write(FILES)
        project.dvc("add", "--quiet", "data", "one.bin")
        project.commit("files")
        return project

    return configure


@pytest.fixture
def pushed(configured: Callable[..., Project]) -> Project:
    """Push the files to a version-aware remote."""
    made = configured()
    push(made)
    return made


@pytest.mark.parametrize("kind", ["version_aware", "worktree"])
def test_each_file_is_read_in_its_committed_version(
    configured: Callable[..., Project], bucket: Bucket, kind: str
) -> None:
    """What lies under a name now does not count: a newer version, or that it was deleted."""
    push(configured(kind))
    bucket.request("PUT", "pre/data/a", b"newer bytes")
    bucket.request("DELETE", "pre/one.bin")
    before = len(bucket.requests())
    status, report, _ = run("verify", "--store", "remote")
    assert (0, "clean", []) == (status, report["verdict"], report["findings"])
    assert len(FILES) == report["coverage"]["rehashed"]["files"]
    read = [each for each in bucket.requests()[before:] if "GET" in each and "/pre/" in each]
    assert len(FILES) == len(read)
    assert all("versionId=" in each for each in read)


def test_outputs_of_stages_have_versions_in_the_lock(
    configured: Callable[..., Project], bucket: Bucket
) -> None:
    """DVC writes versions of a stage's outputs to `dvc.lock`, of files and folders."""
    project = configured()
    command = "cp one.bin two.bin && mkdir -p out && cp one.bin out/x"
    project.run_stages(
        {"s": {"cmd": command, "deps": ["one.bin"], "outs": ["two.bin", "out"]}},
    )
    push(project)
    (folder, file) = versions(project, "dvc.lock")
    assert 0 == run("verify", "--all", "--store", "remote")[0]
    bucket.request("DELETE", f"pre/out/x?versionId={folder}")
    assert {"out/x": "missing"} == statuses(run("verify", "--all", "--store", "remote")[1])
    bucket.request("DELETE", f"pre/two.bin?versionId={file}")
    expected = {"out/x": "missing", "two.bin": "missing"}
    assert expected == statuses(run("verify", "--all", "--store", "remote")[1])


def test_a_deleted_version_is_missing(pushed: Project, bucket: Bucket) -> None:
    """It is missing although a newer version has the bytes, and although a twin has them."""
    bucket.request("PUT", "pre/data/a", FILES["data/a"])
    bucket.request("DELETE", f"pre/data/a?versionId={versions(pushed)[0]}")
    status, report, _ = run("verify", "--store", "remote:far")
    assert (1, {"data/a": "missing"}) == (status, statuses(report))
    assert "deleted" in report["findings"][0]["detail"]
    status, document, _ = run("status", "--all-places")
    assert 1 == status
    good = {"workspace": "good", "cache": "good"}
    assert {"data/a": {**good, "remote:far": "absent"}} == states(document)


def test_a_version_with_other_bytes_is_corrupt(pushed: Project) -> None:
    """The metadata may name a version of the same file that is not what it says."""
    (old, *_) = versions(pushed)
    pushed.add("data", {"data/a": b"third"})
    push(pushed)
    (new, *_) = versions(pushed)
    assert new != old
    rewrite(pushed, new, old)
    status, report, _ = run("verify", "--store", "remote")
    assert (1, {"data/a": "corrupt"}) == (status, statuses(report))
    (finding,) = report["findings"]
    assert f"md5:{md5(FILES['data/a'])}" == finding["found"]
    assert f"md5:{md5(b'third')}" == finding["expected"]


def test_the_versions_are_those_of_the_revision(pushed: Project, bucket: Bucket) -> None:
    """They come from the commit that is asked for, not from the metadata in the work tree."""
    (old, *_) = versions(pushed)
    pushed.add("data", {"data/a": b"third"})
    push(pushed)
    (new, *_) = versions(pushed)
    bucket.request("DELETE", f"pre/data/a?versionId={old}")
    place = pushed.root / "data.dvc"
    place.write_text(place.read_text().replace(new, old))
    assert 0 == run("verify", "--store", "remote")[0]
    for rev in ("HEAD~1", "workspace"):
        status, report, _ = run("verify", "--store", "remote", "--rev", rev)
        assert (1, {"data/a": "missing"}) == (status, statuses(report))


def test_what_has_no_version_is_missing(pushed: Project) -> None:
    """DVC does not fetch a file that its metadata names no version of for this remote."""
    version = versions(pushed, "one.bin.dvc")[0]
    rewrite(pushed, r"    far:\n.*\n      version_id: .*\n", "    other:\n      version_id: x\n",
            "one.bin.dvc")  # fmt: skip
    pushed.add("data", {"data/new": b"never pushed"})
    pushed.commit("not pushed")
    status, report, _ = run("verify", "--store", "remote")
    expected = {"one.bin": "missing", "data/new": "missing"}
    assert (1, expected) == (status, statuses(report))
    place = pushed.root / "one.bin.dvc"  # so DVC wrote it before it told remotes apart
    text = place.read_text()
    place.write_text(re.sub(r"  cloud:\n    other:\n.*\n", f"  version_id: {version}\n", text))
    pushed.commit("as DVC 2 wrote it")
    assert {"data/new": "missing"} == statuses(run("verify", "--store", "remote")[1])


def test_a_folder_that_was_never_pushed_is_missing(configured: Callable[..., Project]) -> None:
    """Its listing is looked for in the cache alone: no remote of versions has listings."""
    project = configured()
    status, report, _ = run("verify", "--store", "remote")
    assert (1, dict.fromkeys(FILES, "missing")) == (status, statuses(report))
    (oid,) = re.findall(r"md5: (\w+)\.dir", (project.root / "data.dvc").read_text())
    faults.delete(object_path(project.cache, f"{oid}.dir"))
    status, report, _ = run("verify", "--store", "remote", "data")
    assert {"data": "unverifiable"} == statuses(report)
    assert "absent from the remote:far" in report["findings"][0]["detail"]


def test_another_remote_is_not_to_have_what_was_not_pushed_there(
    pushed: Project, bucket: Bucket
) -> None:
    """What DVC pushes to the default remote alone is not kept on a second one."""
    pushed.dvc("remote", "add", "second", f"s3://{bucket.name}/second")
    pushed.dvc("remote", "modify", "second", "endpointurl", bucket.endpoint)
    pushed.dvc("remote", "modify", "second", "version_aware", "true")
    bucket.request("DELETE", f"pre/data/a?versionId={versions(pushed)[0]}")
    _, document, _ = run("status", "--all-places")
    good = {"workspace": "good", "cache": "good"}
    expected = {"data/a": {**good, "remote:far": "absent", "remote:second": "not-kept"}}
    assert expected == states(document)


def test_without_a_content_hash_nothing_can_be_told(pushed: Project) -> None:
    """An etag and a version prove no content."""
    rewrite(pushed, rf"    md5: {md5(FILES['data/deep/b'])}\n", "")
    status, report, _ = run("verify", "--store", "remote")
    assert (3, {"data/deep/b": "unverifiable"}) == (status, statuses(report))


def test_a_bucket_without_versions(configured: Callable[..., Project], bucket: Bucket) -> None:
    """DVC refuses to push there, and what it wrote down before names no version: missing."""
    suspended = VERSIONING.replace(b"Enabled", b"Suspended")
    bucket.request("PUT", "?versioning", suspended)
    push(configured(), expect=255)
    assert FILES["data/a"] == bucket.request("GET", "pre/data/a")
    status, report, _ = run("verify", "--store", "remote")
    assert (1, dict.fromkeys(FILES, "missing")) == (status, statuses(report))


@pytest.mark.parametrize("kind", ["version_aware", "worktree"])
def test_files_and_objects_come_back_from_versions(
    configured: Callable[..., Project], bucket: Bucket, kind: str
) -> None:
    """Lost files, and lost and bad objects of the cache, come back from their own versions.

    What lost its version comes back with a file of the same bytes, by their object in the cache.
    """
    project = configured(kind)
    push(project)
    bucket.request("PUT", "pre/data/deep/b", b"newer bytes")
    for path in ("data/a", "data/deep/twin", "one.bin"):
        faults.delete(project.root / path)
    for path in ("data/a", "one.bin"):
        faults.delete(object_path(project.cache, md5(FILES[path])))
    faults.flip_bit(object_path(project.cache, md5(FILES["data/deep/b"])))
    faults.delete(project.root / "data/deep/b")
    bucket.request("DELETE", f"pre/data/a?versionId={versions(project)[0]}")
    status, document, _ = run("restore")
    assert (0, True) == (status, document["ok"]), document
    sources = {each["source"] for each in document["outcomes"] if each["path"] != "data/a"}
    assert {"remote:far"} == sources
    assert FILES == {path: (project.root / path).read_bytes() for path in FILES}
    assert (0, 0) == (run("verify")[0], run("verify", "--store", "cache")[0])


def test_nothing_is_put_into_versions(pushed: Project, bucket: Bucket) -> None:
    """A new version would have another id than the committed one: `--push` says so."""
    bucket.request("DELETE", f"pre/data/a?versionId={versions(pushed)[0]}")
    before = len(bucket.requests())
    status, document, _ = run("restore", "--all-places", "--push")
    assert (1, False) == (status, document["ok"])
    (outcome,) = document["outcomes"]
    assert ("data/a", "remote:far", "failed") == tuple(
        outcome[name] for name in ("path", "place", "result")
    )
    assert "'dvc push' makes one" in outcome["detail"]
    asked = {each.split()[0] for each in bucket.requests()[before:]}
    assert not asked & {"PUT", "POST", "DELETE"}, asked


def test_a_pickled_reader_takes_the_versions_along(
    pushed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process reads versions without DVC and without the repository."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    reader = Repository().reader("data", source="remote")
    code = """
import pickle, sys
reader = pickle.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(reader.read("data/odd #name \\xfc"))
assert "dvc" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(reader), capture_output=True, check=False
    )
    assert FILES["data/odd #name ü"] == done.stdout, done.stderr.decode()
    assert FILES["data/a"] == reader.read("data/a")
    for path in ("data/a", "data/deep/twin"):
        faults.delete(pushed.root / path)
    faults.delete(object_path(pushed.cache, md5(FILES["data/a"])))
    restoring = Repository().reader("data", on_corrupt="restore")
    assert FILES["data/a"] == pickle.loads(pickle.dumps(restoring)).read("data/a")


@pytest.mark.parametrize(
    ("fault", "times", "outcome"),
    [("cut", "1", {}), ("flip", "1000", {"one.bin": "corrupt"}), ("403", "9", None)],
)
def test_a_faulty_service_of_versions_is_told_from_damage(
    pushed: Project, bucket: Bucket, tmp_path: Path, fault: str, times: str, outcome: Any
) -> None:
    """What passes is read on where it stopped; what stays is damage or an error."""
    asked = f"GET /{bucket.name}/pre/one.bin?versionId="
    with served(PROXY, tmp_path, str(bucket.port), fault, "0", times, asked) as (port, _):
        pushed.dvc("remote", "modify", "far", "endpointurl", f"http://127.0.0.1:{port}")
        status, report, _ = run("verify", "--store", "remote")
    assert ({"one.bin": "unreadable"} if outcome is None else outcome) == statuses(report)
    assert (3 if outcome is None else len(outcome)) == status


def test_a_bad_version_is_diagnosed(pushed: Project) -> None:
    """Its bytes are compared with a good copy."""
    (old, *_) = versions(pushed)
    pushed.add("data", {"data/a": b"fIrst"})
    push(pushed)
    rewrite(pushed, versions(pushed)[0], old)
    _, document, _ = run("diagnose", "data/a", "--store", "remote:far")
    assert ("corrupt", "cache") == (document["status"], document["good_copy"])
    assert 1 == document["damage"]["bits"]


@pytest.mark.parametrize("kind", ["version_aware", "worktree"])
def test_versions_elsewhere_than_on_s3_are_refused(
    project: Project, tmp_path: Path, kind: str
) -> None:
    """Nothing is said about places that DVC cannot have pushed versions to."""
    (tmp_path / "near").mkdir()
    project.dvc("remote", "add", "--default", "near", str(tmp_path / "near"))
    project.dvc("remote", "modify", "near", kind, "true")
    project.add("one.bin", {"one.bin": b"1"})
    project.commit()
    status, document, _ = run("verify", "--store", "remote")
    assert (3, "StoreError") == (status, document["error"])
    assert "on S3 only" in document["message"]


@pytest.mark.usefixtures("pushed")
def test_a_worktree_without_versions_is_refused_as_dvc_does(pushed: Project) -> None:
    """DVC has no remote of that kind."""
    pushed.dvc("remote", "modify", "far", "version_aware", "false")
    pushed.dvc("remote", "modify", "far", "worktree", "true")
    status, document, _ = run("verify", "--store", "remote")
    assert (3, "StoreError") == (status, document["error"])
    assert "worktree remotes require version_aware cloud" in document["message"]


def test_what_dvc_does_not_push_is_left_out(pushed: Project) -> None:
    """An output with `push: false` is not to be there; the others are judged as ever."""
    rewrite(pushed, "  path: data\n", "  path: data\n  push: false\n")
    status, report, _ = run("verify", "--store", "remote")
    assert (0, ["data"], 1) == (status, report["left_out"], report["manifest"]["files"])


@pytest.mark.usefixtures("pushed")
def test_nobody_attests_versions() -> None:
    """A listing tells the newest versions, not the committed ones."""
    status, document, _ = run("verify", "--store", "remote", "--attested")
    assert (3, "StoreError") == (status, document["error"])
    assert "version-aware" in document["message"]

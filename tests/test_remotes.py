"""Remotes on real servers: S3, HTTP and SSH, as DVC's configuration names them."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faults
import fsspec
import pytest
from projects import Project, md5, object_path
from servers import CREDENTIALS, PROXY, RELAY, SSH, WEB, Bucket, push, run, served, statuses

from dvc_integrity.stores import Connection
from dvc_integrity.stores.attested import attested, is_plain_etag

FILES = {f"data/{number:02}": b"%d" % number * (number + 1) for number in range(30)}


def tracked_on(project: Project, url: str, **settings: str) -> Project:
    """Track the files, and configure where they are to be pushed."""
    project.dvc("remote", "add", "--default", "far", url)
    for name, value in settings.items():
        project.dvc("remote", "modify", "far", name, value)
    project.add("data", FILES)
    project.commit("data")
    return project


# ----------------------------------------------------------------- S3


@pytest.fixture
def on_s3(project: Project, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Push everything of a project to S3."""
    tracked_on(project, f"s3://{bucket.name}/pre", endpointurl=bucket.endpoint)
    push(project)
    monkeypatch.chdir(project.root)
    return project


def key(path: str) -> str:
    digest = md5(FILES[path])
    return f"pre/files/md5/{digest[:2]}/{digest[2:]}"


@pytest.mark.usefixtures("on_s3")
def test_objects_on_s3_are_read_and_judged(bucket: Bucket) -> None:
    """Every object is streamed and hashed; other bytes are corrupt, and none are missing."""
    status, report, _ = run("verify", "--store", "remote")
    assert (0, 30) == (status, report["coverage"]["rehashed"]["files"])
    bucket.request("PUT", key("data/03"), b"2222")
    bucket.request("DELETE", key("data/04"))
    status, report, _ = run("verify", "--store", "remote:far")
    assert 1 == status
    assert {"data/03": "corrupt", "data/04": "missing"} == statuses(report)


@pytest.mark.usefixtures("on_s3")
def test_what_s3_attests_takes_one_listing(bucket: Bucket) -> None:
    """Nothing is read: the ETags of all objects come with their listing."""
    before = len(bucket.requests())
    status, report, _ = run("verify", "--store", "remote", "--attested")
    asked = bucket.requests()[before:]
    assert (0, "clean") == (status, report["verdict"])
    assert (30, 0) == tuple(report["coverage"][how]["files"] for how in ("attested", "rehashed"))
    assert not [
        each for each in asked if each.startswith("GET") and "files/md5/" in each.split("?")[0]
    ]
    assert len(asked) <= 2, asked


@pytest.mark.usefixtures("on_s3")
def test_what_s3_attests_tells_damage_from_doubt(bucket: Bucket) -> None:
    """Another size or checksum is damage; a checksum of another kind says nothing."""
    bucket.request("PUT", key("data/03"), b"2222")
    bucket.request("PUT", key("data/04"), b"longer than it was")
    bucket.request("DELETE", key("data/05"))
    bucket.request(
        "PUT",
        key("data/06"),
        FILES["data/06"],
        x_amz_server_side_encryption="aws:kms",
    )
    status, report, _ = run("verify", "--store", "remote", "--attested")
    assert 1 == status
    found = statuses(report)
    assert found.pop("data/06", "unverifiable") == "unverifiable"  # where its ETag is no MD5
    assert {"data/03": "corrupt", "data/04": "corrupt", "data/05": "missing"} == found


@pytest.mark.usefixtures("on_s3")
@pytest.mark.parametrize(
    "options",
    [
        ["--attested"],
        ["--attested", "--store", "cache"],
        ["--attested", "--store", "remote", "--receipt", "r.json"],
    ],
)
def test_nobody_attests_elsewhere(options: list[str]) -> None:
    """Only a remote's service states anything, and a receipt says that bytes were read."""
    status, document, _ = run("verify", *options)
    assert 2 == status
    assert "--attested" in document["message"]


@pytest.mark.parametrize(
    "setting", [("endpointurl", "http://127.0.0.1:1"), ("url", "s3://nowhere-to-be-found/pre")]
)
def test_an_absent_service_is_named(on_s3: Project, setting: tuple[str, str]) -> None:
    """One message about the remote, instead of one about each object."""
    on_s3.dvc("remote", "modify", "far", *setting)
    status, document, _ = run("verify", "--store", "remote")
    assert (3, "StoreError") == (status, document["error"]), document
    assert "remote:far" in document["message"]


def test_s3_gives_good_copies_and_takes_them(on_s3: Project, bucket: Bucket) -> None:
    """A lost file and object come back from S3; with --push S3's own bad objects are mended."""
    for path in ("data/00", "data/01"):
        faults.delete(on_s3.root / path)
        faults.delete(object_path(on_s3.cache, md5(FILES[path])))
    status, document, _ = run("restore")
    assert (0, True) == (status, document["ok"]), document
    assert (0, "clean") == (run("verify")[0], run("verify", "--store", "cache")[1]["verdict"])
    bucket.request("PUT", key("data/03"), b"2222")
    bucket.request("DELETE", key("data/04"))
    status, document, _ = run("status", "--all-places")
    assert 1 == status
    states = {
        each["path"]: [copy["state"] for copy in each["copies"]] for each in document["items"]
    }
    assert {"data/03": ["good", "good", "bad"], "data/04": ["good", "good", "absent"]} == states
    status, document, _ = run("restore", "--all-places", "--push")
    assert (0, True) == (status, document["ok"]), document
    assert FILES["data/03"] == bucket.request("GET", key("data/03"))
    assert (0, "clean") == (
        run("status", "--all-places")[0],
        run("verify", "--store", "remote")[1]["verdict"],
    )
    (kept,) = (on_s3.root / ".dvc/tmp/integrity/quarantine").iterdir()
    assert b"2222" == (kept / "bytes").read_bytes()


ALWAYS = "1000000"

FAULTS = [
    ("stall", "-1", "1", "clean"),  # it comes with the second try
    ("stall", "-1", ALWAYS, "unreadable"),
    ("stall", "5", ALWAYS, "unreadable"),
    ("cut", "5", "1", "clean"),
    ("cut", "0", ALWAYS, "unreadable"),
    ("flip", "0", "1", "transient"),
    ("flip", "0", ALWAYS, "corrupt"),
    ("503", "0", "3", "clean"),
    ("502", "0", "3", "clean"),
    ("503", "0", ALWAYS, "unreadable"),
    ("403", "0", ALWAYS, "unreadable"),
]


@pytest.mark.parametrize(("fault", "after", "times", "outcome"), FAULTS)
def test_a_faulty_service_of_s3_is_told_from_damage(
    on_s3: Project, bucket: Bucket, tmp_path: Path, fault: str, after: str, times: str, outcome: str
) -> None:
    """What passes is tried again; what stays is an error in bounded time, and no damage."""
    path = f"data/{11 if fault in ('stall', 'cut') else 3:02}"
    arguments = [str(bucket.port), fault, after, times, f"GET /{bucket.name}/{key(path)}"]
    with served(PROXY, tmp_path, *arguments) as (port, _):
        on_s3.dvc("remote", "modify", "far", "endpointurl", f"http://127.0.0.1:{port}")
        on_s3.dvc("remote", "modify", "far", "read_timeout", "3" if times == ALWAYS else "5")
        status, report, _ = run("verify", "--store", "remote")
    if outcome == "clean":
        assert (0, []) == (status, report["findings"])
        return
    (finding,) = report["findings"]
    assert path == finding["path"]
    assert {"transient": 0, "corrupt": 1, "unreadable": 3}[outcome] == status
    assert ("ok" if outcome == "transient" else outcome) == finding["status"]
    assert (outcome == "transient") == finding["transient"]
    assert (fault == "stall") == ("stalled" in finding["detail"])


@pytest.mark.parametrize(
    ("fault", "after", "times", "restored"),
    [
        ("cut", "5", "1", True),  # it goes on where it was cut off
        ("cut", "0", ALWAYS, False),
        ("flip", "0", "1", True),  # a second read gives other bytes, the right ones
        ("flip", "0", ALWAYS, False),
        ("stall", "5", "1", True),
        ("503", "0", "2", True),
    ],
)
def test_a_restore_from_a_faulty_service_takes_proven_bytes_or_none(
    on_s3: Project, bucket: Bucket, tmp_path: Path, fault: str, after: str, times: str,
    restored: bool
) -> None:  # fmt: skip
    """What never comes right leaves the file as it is, named as hopeless; nothing bad is stored."""
    path = "data/11"
    place, cached = on_s3.root / path, object_path(on_s3.cache, md5(FILES[path]))
    faults.delete(cached)
    place.unlink()
    place.write_bytes(b"bad")
    arguments = [str(bucket.port), fault, after, times, f"GET /{bucket.name}/{key(path)}"]
    with served(PROXY, tmp_path, *arguments) as (port, _):
        on_s3.dvc("remote", "modify", "far", "endpointurl", f"http://127.0.0.1:{port}")
        on_s3.dvc("remote", "modify", "far", "read_timeout", "5")
        status, document, _ = run("restore", "--modified")
    assert restored == (status == 0)
    assert (FILES[path] if restored else b"bad") == place.read_bytes()
    assert restored == cached.exists()
    if not restored:
        results = {each["result"] for each in document["outcomes"] if each["path"] == path}
        assert {"hopeless"} == results
    staging = on_s3.root / ".dvc/tmp/integrity/staging"
    assert not staging.exists() or [] == os.listdir(staging)


def test_a_remote_that_keeps_other_bytes_than_it_was_given_gets_no_name_for_them(
    on_s3: Project, bucket: Bucket, tmp_path: Path
) -> None:
    """What was put is read back under its temporary name: the bad object stays, and no other."""
    bucket.request("PUT", key("data/03"), b"bad")
    fault = (str(bucket.port), "flip", "0", ALWAYS, f"GET /{bucket.name}/pre/.dvc-integrity")
    with served(PROXY, tmp_path, *fault) as (port, _):
        on_s3.dvc("remote", "modify", "far", "endpointurl", f"http://127.0.0.1:{port}")
        status, document, _ = run("restore", "--all-places", "--push")
    assert 1 == status
    (failed,) = [each for each in document["outcomes"] if each["result"] == "failed"]
    assert ("data/03", True) == (failed["path"], "reads back" in failed["detail"])
    assert b"bad" == bucket.request("GET", key("data/03"))
    assert b".dvc-integrity" not in bucket.request("GET")


def test_ctrl_c_ends_the_wait_for_a_remote(on_s3: Project, bucket: Bucket, tmp_path: Path) -> None:
    """Nothing came for a while, and much less than the remote may take."""
    path = f"GET /{bucket.name}/{key('data/11')}"
    with served(PROXY, tmp_path, str(bucket.port), "stall", "-1", ALWAYS, path) as (port, _):
        on_s3.dvc("remote", "modify", "far", "endpointurl", f"http://127.0.0.1:{port}")
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc_integrity", "verify", "--store", "remote"],
            env={**os.environ, **CREDENTIALS},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while path not in bucket.requests():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert 130 == process.returncode, errors
    assert "Traceback" not in errors


def test_wrong_credentials_of_s3_are_named(on_s3: Project, bucket: Bucket, tmp_path: Path) -> None:
    """Who may do nothing at all learns it once, and of which remote."""
    with served(PROXY, tmp_path, str(bucket.port), "403", "0", ALWAYS, "HTTP") as (port, _):
        on_s3.dvc("remote", "modify", "far", "endpointurl", f"http://127.0.0.1:{port}")
        status, document, _ = run("verify", "--store", "remote")
    assert (3, "StoreError") == (status, document["error"]), document
    assert "remote:far" in document["message"]
    assert "credentials" in document["message"]


HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("about", "stated"),
    [
        ({"ETag": f'"{HEX}"'}, HEX),
        ({"ETag": HEX}, HEX),
        ({"ETag": f'"{HEX}-2"'}, None),  # uploaded in parts
        ({"ETag": f'"{HEX.upper()}"'}, None),
        ({"ETag": ""}, None),
        ({"md5Hash": base64.b64encode(bytes.fromhex(HEX)).decode()}, HEX),
        ({"md5Hash": "not base64"}, None),
        ({"md5Hash": base64.b64encode(b"short").decode()}, None),
        ({"content_settings": {"content_md5": bytearray.fromhex(HEX)}}, HEX),
        ({"content_settings": {"content_md5": None}}, None),
        ({"content_settings": None}, None),
        ({"name": "object", "size": 3}, None),
    ],
)
def test_what_services_state(about: dict[str, Any], stated: str | None) -> None:
    """S3, Cloud Storage and Azure each say it in a way of their own, or not at all."""
    found = attested(about)
    assert stated == (found.hex if found else None)


@pytest.mark.parametrize(
    ("about", "plain"),
    [
        ({}, True),
        ({"ServerSideEncryption": "AES256"}, True),
        ({"ServerSideEncryption": "aws:kms"}, False),
        ({"ServerSideEncryption": "aws:kms:dsse"}, False),
        ({"SSECustomerAlgorithm": "AES256"}, False),
    ],
)
def test_with_some_encryption_an_etag_is_no_md5(about: dict[str, str], plain: bool) -> None:
    """With keys of KMS or of the customer the ETag is of the encrypted bytes."""
    assert plain == is_plain_etag(about)


# ----------------------------------------------------------------- HTTP


def test_objects_over_http_are_read_and_judged(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder behind a web server is a remote that can be read."""
    remote = tmp_path / "web"
    tracked_on(project, str(remote))
    push(project)
    monkeypatch.chdir(project.root)
    with served(WEB, tmp_path, str(remote)) as (port, _):
        project.dvc("remote", "modify", "far", "url", f"http://127.0.0.1:{port}")
        status, report, _ = run("verify", "--store", "remote")
        assert (0, 30) == (status, report["coverage"]["rehashed"]["files"])
        status, document, _ = run("verify", "--store", "remote", "--attested")
        assert (3, "StoreError") == (status, document["error"]), document
        assert "Nobody attests" in document["message"]
        faults.flip_bit(object_path(remote, md5(FILES["data/03"])))
        faults.delete(object_path(remote, md5(FILES["data/04"])))
        status, report, _ = run("verify", "--store", "remote")
        assert 1 == status
        assert {"data/03": "corrupt", "data/04": "missing"} == statuses(report)
    status, document, _ = run("verify", "--store", "remote")
    assert (3, "StoreError") == (status, document["error"]), document


@pytest.mark.parametrize(
    ("fault", "after", "times", "expected"),
    [
        ("cut", 1000, 1, b"content" * 1000),
        ("stall", 1000, 1, b"content" * 1000),
        ("503", 0, 2, b"content" * 1000),
        ("cut", 0, 1_000_000, "ended|disconnected|payload"),
        ("stall", 1000, 1_000_000, "stalled"),
    ],
)
def test_a_faulty_web_server_is_waited_for_in_bounded_time(
    tmp_path: Path, fault: str, after: int, times: int, expected: bytes | str
) -> None:
    """What was cut off or stalls is asked for again from where it stopped, and not for ever."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "object").write_bytes(b"content" * 1000)
    with served(WEB, tmp_path, str(folder)) as (web, _):
        arguments = (str(web), fault, str(after), str(times), "GET /object")
        with served(PROXY, tmp_path, *arguments) as (port, _):
            filesystem = fsspec.filesystem("http", skip_instance_cache=True)
            base = f"http://127.0.0.1:{port}"
            connection = Connection(filesystem, base, local=False, stall_seconds=1)
            pieces = connection.stream(f"{base}/object")
            if isinstance(expected, bytes):
                assert expected == b"".join(pieces)
                return
            began = time.monotonic()
            with pytest.raises(OSError, match=f"(?i){expected}"):
                list(pieces)
            assert time.monotonic() - began < 30


# ----------------------------------------------------------------- SSH


def test_objects_over_ssh_are_read_and_judged(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another machine is a remote."""
    remote = tmp_path / "ssh"
    tracked_on(project, str(remote))
    push(project)
    monkeypatch.chdir(project.root)
    with served(SSH, tmp_path) as (port, _):
        project.dvc("remote", "modify", "far", "url", f"ssh://tester@127.0.0.1:{port}{remote}")
        status, report, _ = run("verify", "--store", "remote")
        assert (0, 30) == (status, report["coverage"]["rehashed"]["files"])
        status, document, _ = run("verify", "--store", "remote", "--attested")
        assert (3, "StoreError") == (status, document["error"]), document
        assert "Nobody attests" in document["message"]
        faults.flip_bit(object_path(remote, md5(FILES["data/03"])))
        faults.delete(object_path(remote, md5(FILES["data/04"])))
        status, report, _ = run("verify", "--store", "remote")
        assert 1 == status
        assert {"data/03": "corrupt", "data/04": "missing"} == statuses(report)
    status, document, _ = run("verify", "--store", "remote")
    assert (3, "StoreError") == (status, document["error"]), document


@pytest.mark.parametrize(("fault", "times"), [("cut", 1), ("stall", 1), ("stall", 1_000_000)])
def test_a_session_of_ssh_that_is_lost_is_opened_anew(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, times: int
) -> None:
    """It was cut off or stalled half way; if it always does, that ends in an error."""
    remote = tmp_path / "ssh"
    tracked_on(project, str(remote))
    push(project)
    monkeypatch.chdir(project.root)
    after = "6000"  # as many bytes as opening a session takes, and a few objects
    with (
        served(SSH, tmp_path) as (ssh, _),
        served(RELAY, tmp_path, str(ssh), fault, after, str(times)) as (port, _),
    ):
        project.dvc("remote", "modify", "far", "url", f"ssh://tester@127.0.0.1:{port}{remote}")
        project.dvc("remote", "modify", "far", "timeout", "3" if times == 1 else "1")
        status, report, _ = run("verify", "--store", "remote")
    if times == 1:
        assert (0, []) == (status, report["findings"])
    else:
        assert 3 == status

"""The command line keeps its contract: statuses, documents, messages, and nothing else changed.

Most claims are checked on the command line's own entry point in this process. Where the claim
is about a process (signals, terminals, permissions, hangs), the installed program runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import pytest
from projects import Project, listing, md5, object_path, plant, raw_listing

import dvc_integrity.cli
from dvc_integrity import console
from dvc_integrity.kernel import kernel_name

PROGRAM = str(Path(sys.executable).with_name("dvc-integrity"))

LIMIT_SECONDS = 30
"""A program that runs longer hangs."""

FOLDER = {"data/a.bin": b"alpha", "data/b.bin": b"bravo", "data/sub/c.bin": b"charlie"}
FILE = {"one.txt": b"one\n"}

REPORT_KEYS = {
    "schema", "verdict", "rev", "store", "targets", "left_out", "manifest", "coverage", "findings",
    "started", "seconds", "versions",
}  # fmt: skip
FINDING_KEYS = {"path", "out", "status", "expected", "found", "size", "transient", "detail"}
REHASHED = {"files": 4, "bytes": 21, "digests": {"md5": {"files": 4, "bytes": 21}}}
EVIDENCE = {"rehashed", "attested", "reused", "unread"}

OSC = "\x1b]0;owned\x07"
"""Sets a terminal's title if it gets there raw; no style of ours looks like it."""

WITHOUT_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
"""Goes before a command so that permissions hold for it although root runs it."""

FEW_DESCRIPTORS = ("sh", "-c", 'ulimit -n 32 && exec "$@"', "sh")
"""Goes before a command that may have 32 files open."""


def works(*command: str) -> bool:
    """Return whether this machine has a program and lets it do its work."""
    if shutil.which(command[0]) is None:
        return False
    return 0 == subprocess.run(command, capture_output=True, check=False).returncode


needs_mounts = pytest.mark.skipif(
    not works("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"),
    reason="a disk of its own takes the right to mount",
)
needs_strace = pytest.mark.skipif(
    not works("strace", "-qq", "-o", os.devnull, "true"),
    reason="errors of the disk are injected with strace",
)


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left behind."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Return the one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def found(self) -> dict[str, str]:
        """Return the statuses in a JSON report by path."""
        return {each["path"]: each["status"] for each in self.document["findings"]}


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in this process."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dvc-integrity", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            dvc_integrity.cli.main()
        said = capsys.readouterr()
        return Outcome(ended.value.code, said.out, said.err)

    return call


def program(*arguments: str, before: tuple[str, ...] = (), **variables: str) -> Outcome:
    """Run the installed program; it must end in time and show no traceback."""
    done = subprocess.run(
        [*before, PROGRAM, *arguments],
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_SECONDS,
        env={**os.environ, **variables},
    )
    out, err = os.fsdecode(done.stdout), os.fsdecode(done.stderr)
    assert "Traceback" not in err, err
    return Outcome(done.returncode, out, err)


def on_terminal(*arguments: str, **variables: str) -> Outcome:
    """Run the installed program with a pseudo terminal each for stdout and stderr."""
    (out, out_end), (err, err_end) = pty.openpty(), pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "300", **variables}
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=out_end,
        stderr=err_end,
        env=environment,
    )
    os.close(out_end)
    os.close(err_end)
    said = {out: b"", err: b""}
    for end, data in _read_terminals([out, err]):
        said[end] += data
    status = process.wait(LIMIT_SECONDS)
    return Outcome(status, os.fsdecode(said[out]), os.fsdecode(said[err]))


def _read_terminals(ends: list[int]) -> Iterator[tuple[int, bytes]]:
    while ends:
        ready, _, _ = select.select(ends, [], [], LIMIT_SECONDS)
        assert ready, "the program hangs"
        for end in ready:
            try:
                data = os.read(end, 1 << 16)
            except OSError:  # EIO: nobody has the other side open any more
                data = b""
            if data:
                yield end, data
            else:
                ends.remove(end)
                os.close(end)


def without_override() -> tuple[str, ...]:
    """Return what goes before a command so that permissions hold for it, also for root."""
    if os.geteuid() != 0:
        return ()
    if not works(*WITHOUT_OVERRIDE, "true"):
        pytest.skip("root reads everything here, and that cannot be taken away")
    return WITHOUT_OVERRIDE


@contextlib.contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    """Give a path other permissions for a while."""
    before = path.stat().st_mode
    path.chmod(bits)
    yield
    path.chmod(before)


@pytest.fixture
def tracked(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project that tracks a folder and a file, committed and clean."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    project.add("data", FOLDER)
    project.add("one.txt", FILE)
    project.commit("data")
    return project


@pytest.fixture
def remote(tracked: Project, tmp_path: Path) -> Path:
    """Return a local folder that is the project's default remote, called ``disk``, and full."""
    folder = tmp_path / "remote"
    tracked.dvc("remote", "add", "--quiet", "--default", "disk", str(folder))
    tracked.dvc("push", "--quiet")
    tracked.commit("remote")
    return folder


FOLDER_LISTING = listing({path.removeprefix("data/"): data for path, data in FOLDER.items()})


def folder_object(store: Path) -> Path:
    """Return where a store keeps the listing of ``data``."""
    return object_path(store, f"{md5(FOLDER_LISTING)}.dir")


def file_object(store: Path, path: str) -> Path:
    """Return where a store keeps the bytes of a file in ``data``."""
    return object_path(store, md5(FOLDER[path]))


def rewrite(path: Path, data: bytes) -> None:
    """Write other bytes as a program does, with a new modification time."""
    with faults.changed(path):
        path.unlink()
        path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def replace_by_fifo(path: Path) -> None:
    """Put a FIFO that nobody writes to in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def commit_listing(project: Project, data: bytes) -> None:
    """Commit a folder ``evil`` whose listing has any bytes, and keep it in the cache."""
    oid = plant(project.cache, data, ".dir")
    project.write_outs("evil.dvc", {"md5": oid, "hash": "md5", "path": "evil"})
    project.write({".gitignore": b"/evil\n/data\n/one.txt\n"})
    project.commit("evil")


# ---------------------------------------------------------------------------- exit status


def test_clean_data_is_status_0(tracked: Project, run: Run) -> None:
    """Every source is read, and the line that says so names the short revision."""
    outcome = run("verify")
    assert (0, "") == (outcome.status, outcome.err)
    head = tracked.git("rev-parse", "HEAD")[:12]
    assert f"clean: workspace at {head}, 4 of 4 files re-hashed (21 B)" in outcome.out


DAMAGE = {
    "corrupt": lambda root: faults.flip_bit(root / "data/a.bin"),
    "modified": lambda root: rewrite(root / "data/a.bin", b"ALPHA"),
    "missing": lambda root: faults.delete(root / "data/a.bin"),
    "extra": lambda root: (root / "data/new.bin").write_bytes(b"new"),
}


@pytest.mark.parametrize("status", DAMAGE)
def test_damage_is_status_1(tracked: Project, run: Run, status: str) -> None:
    """Each kind of damage fails, and the file is named with its kind."""
    DAMAGE[status](tracked.root)
    path = "data/new.bin" if status == "extra" else "data/a.bin"
    outcome = run("verify", "--json")
    assert (1, {path: status}) == (outcome.status, outcome.found)
    assert "damaged" == outcome.document["verdict"]
    plain = run("verify")
    assert 1 == plain.status
    assert [status, path] == plain.out.split()[:2]


def never_run(project: Project) -> None:
    """Commit a stage that was never run: its output has no hash."""
    project.write_yaml("dvc.yaml", {"stages": {"make": {"cmd": "exit 1", "outs": ["made"]}}})
    project.commit("stage")


def test_what_cannot_be_told_is_status_3(tracked: Project, run: Run) -> None:
    """An output without a committed hash makes the verdict incomplete."""
    never_run(tracked)
    outcome = run("verify", "--all", "--json")
    assert (3, {"made": "unverifiable"}) == (outcome.status, outcome.found)
    assert "incomplete" == outcome.document["verdict"]


def test_damage_wins_over_what_cannot_be_told(tracked: Project, run: Run) -> None:
    """Status 1 is told also if other files are unverifiable."""
    never_run(tracked)
    faults.flip_bit(tracked.root / "one.txt")
    outcome = run("verify", "--all", "--json")
    assert (1, "damaged") == (outcome.status, outcome.document["verdict"])


@pytest.mark.usefixtures("project")
def test_nothing_checked_is_status_3(run: Run) -> None:
    """A project that tracks nothing does not pass; the message says how to track."""
    outcome = run("verify")
    assert (3, "") == (outcome.status, outcome.out)
    assert "Nothing was checked" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--nonsense"],
        ["nonsense"],
        ["verify", "--jobs", "0"],
        ["verify", "--jobs", "many"],
        ["verify", "--store", "attic"],
        ["verify", "--store", "remote"],
        ["verify", "--store", "remote:attic"],
        ["verify", "--rev", "attic"],
        ["verify", "attic"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("tracked")
def test_wrong_usage_is_status_2(run: Run, arguments: list[str]) -> None:
    """What was asked for does not exist: one message on stderr, nothing on stdout."""
    outcome = run(*arguments)
    assert (2, "") == (outcome.status, outcome.out)
    assert outcome.err.strip()


@pytest.mark.parametrize("option", ["--rev", "--receipt"])
@pytest.mark.usefixtures("tracked")
def test_an_empty_value_is_wrong_usage(run: Run, option: str) -> None:
    """An unset shell variable never silently means HEAD, or no receipt."""
    assert 2 == run("verify", option, "").status


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["plain", "json"])
def test_the_unforeseen_is_never_told_as_damage(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """An error that nobody thought of is status 3 with a message, in the document too."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of the blue")

    monkeypatch.setattr("dvc_integrity.repository.Repository.manifest", fail)
    outcome = run("verify", *options)
    assert 3 == outcome.status
    assert "out of the blue" in (outcome.document["message"] if options else outcome.err)


def test_help_and_version_are_status_0(run: Run) -> None:
    """Both answer on stdout."""
    assert (0, "") == (run("--help").status, run("--help").err)
    assert run("verify", "--help").out.startswith("Usage: dvc-integrity verify")
    assert f"(MD5 by {kernel_name()})" in run("--version").out
    assert run("--version").out.startswith("dvc-integrity, version ")


def test_help_loads_neither_dvc_nor_numpy() -> None:
    """What makes `--help` fast: nothing heavy is imported for it."""
    script = (
        "import sys\nfrom dvc_integrity.cli import commands\n"
        "commands(['verify', '--help'], standalone_mode=False)\n"
        "print([name for name in ('dvc', 'numpy', 'rich', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert b"[]" == done.stdout.splitlines()[-1]


def test_the_module_is_the_program(tracked: Project) -> None:
    """`python -m dvc_integrity` and `dvc-integrity` end alike, also for a process."""
    faults.flip_bit(tracked.root / "one.txt")
    command = [sys.executable, "-m", "dvc_integrity", "verify", "one.txt"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=LIMIT_SECONDS)
    assert (1, program("verify", "one.txt").status) == (done.returncode, 1)


# ----------------------------------------------------------------------------------- JSON


def test_the_report_has_the_keys_of_the_contract(tracked: Project, run: Run) -> None:
    """Schema, full SHA, store, targets, manifest, coverage by evidence, findings, times."""
    outcome = run("verify", "--json")
    report = outcome.document
    assert "" == outcome.err
    assert set(report) == REPORT_KEYS
    assert "dvc-integrity/report/1" == report["schema"]
    assert ("clean", "workspace", []) == (report["verdict"], report["store"], report["findings"])
    assert tracked.git("rev-parse", "HEAD") == report["rev"]
    assert ["data", "one.txt"] == report["targets"]
    assert {"digest", "files", "bytes"} == set(report["manifest"])
    assert EVIDENCE == set(report["coverage"])
    assert REHASHED == report["coverage"]["rehashed"]
    assert {"files": 0, "bytes": 0} == report["coverage"]["unread"]
    assert {"dvc-integrity", "dvc", "python"} <= set(report["versions"])


def test_a_finding_has_the_keys_of_the_contract(tracked: Project, run: Run) -> None:
    """Path from the DVC root with slashes, its out, both digests, the size that was read."""
    faults.flip_bit(tracked.root / "data/sub/c.bin")
    (finding,) = run("verify", "--json").document["findings"]
    assert set(finding) >= FINDING_KEYS
    found = (tracked.root / "data/sub/c.bin").read_bytes()
    expected = {
        "path": "data/sub/c.bin",
        "out": "data",
        "status": "corrupt",
        "expected": f"md5:{md5(b'charlie')}",
        "found": f"md5:{md5(found)}",
        "size": 7,
        "transient": False,
    }
    assert expected == {key: finding[key] for key in expected}
    assert finding["detail"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["attic"], 2),
        (["--rev", "attic"], 2),
        (["--store", "attic"], 2),
        (["--store", "remote:attic"], 2),
        (["data", "--receipt", "data/r.json"], 2),
        (["evil"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_failure_is_one_document_too(
    tracked: Project, run: Run, arguments: list[str], status: int
) -> None:
    """`--json` prints an error document on stdout, with the exit status in it."""
    commit_listing(tracked, raw_listing([{"md5": md5(b""), "relpath": "../up"}]))
    outcome = run("verify", "--json", *arguments)
    assert (status, "") == (outcome.status, outcome.err)
    assert "dvc-integrity/error/1" == outcome.document["schema"]
    assert status == outcome.document["exit_status"]
    assert outcome.document["message"]


def test_json_is_alone_on_stdout_also_on_a_terminal(tracked: Project) -> None:
    """No progress, no colour, no other line: the document is all there is."""
    faults.flip_bit(tracked.root / "one.txt")
    outcome = on_terminal("verify", "--json")
    assert (1, {"one.txt": "corrupt"}) == (outcome.status, outcome.found)
    assert "" == outcome.err


# -------------------------------------------------------------------------- quiet, verbose


@pytest.mark.usefixtures("tracked")
def test_quiet_is_silent_if_all_is_clean(run: Run) -> None:
    """`-q` says nothing at all on success."""
    assert Outcome(0, "", "") == run("verify", "-q")


def test_quiet_still_names_damage(tracked: Project, run: Run) -> None:
    """`-q` never hides a finding."""
    faults.flip_bit(tracked.root / "one.txt")
    outcome = run("verify", "-q")
    assert (1, "") == (outcome.status, outcome.err)
    assert "one.txt" in outcome.out


def many_findings(project: Project) -> list[str]:
    """Damage a folder in four ways; return each line's status and path, the worst first."""
    names = [f"many/{number:02}" for number in range(24)]
    project.add("many", {name: name.encode() for name in names})
    project.commit("many")
    (project.root / "many" / "zz").write_bytes(b"extra")
    rewrite(project.root / names[0], b"modified")
    for name in names[1:23]:
        faults.delete(project.root / name)
    faults.flip_bit(project.root / names[23])
    missing = [f"missing {name}" for name in names[1:23]]
    return [f"corrupt {names[23]}", *missing, f"modified {names[0]}", "extra many/zz"]


def test_findings_come_worst_first_and_those_hidden_are_counted(tracked: Project, run: Run) -> None:
    """Twenty lines, then how many more there are; `-v` shows all, and the manifest's digest."""
    expected = many_findings(tracked)
    lines = run("verify").out.splitlines()
    assert expected[:20] == [" ".join(line.split()[:2]) for line in lines[:20]]
    assert "… and 5 more not shown" in lines[20]
    verbose = run("verify", "-v").out
    lines = verbose.splitlines()
    assert expected == [" ".join(line.split()[:2]) for line in lines[:25]]
    assert "not shown" not in verbose
    assert f"manifest {run('verify', '--json').document['manifest']['digest']}" in lines
    assert 25 == len(run("verify", "--json").document["findings"])


# -------------------------------------------------------------------------------- receipt


def test_a_receipt_depends_on_manifest_scope_and_verdict_alone(tracked: Project, run: Run) -> None:
    """Two runs, another commit, another folder to start from: the same bytes."""
    receipt = tracked.root / "receipts" / "data.json"
    assert 0 == run("verify", "data", "--receipt", "receipts/data.json").status
    first = receipt.read_bytes()
    receipt.unlink()
    tracked.write({"README": b"no data\n"})
    tracked.commit("unrelated")
    os.chdir("data/sub")
    assert 0 == run("verify", "..", "--receipt", "../../receipts/data.json").status
    assert first == receipt.read_bytes()
    assert {"schema", "manifest", "scope", "verdict"} == set(json.loads(first))
    assert "clean" == json.loads(first)["verdict"]


def test_what_varies_goes_to_dvc_tmp(tracked: Project, run: Run) -> None:
    """The full report lies under `.dvc/tmp/integrity/`, where Git does not see it."""
    report = run("verify", "data", "--json", "--receipt", "receipts/data.json").document
    (path,) = (tracked.root / ".dvc/tmp/integrity/reports").iterdir()
    assert report == json.loads(path.read_bytes())
    assert "?? receipts/" == tracked.git("status", "--short")


def test_a_receipt_tells_of_damage_too(tracked: Project, run: Run) -> None:
    """The receipt of a damaged scope says so; nobody can take it for a clean one."""
    faults.flip_bit(tracked.root / "data/a.bin")
    assert 1 == run("verify", "data", "--receipt", "r.json").status
    assert "damaged" == json.loads((tracked.root / "r.json").read_bytes())["verdict"]


def test_no_receipt_without_a_verdict(tracked: Project, run: Run) -> None:
    """A request that fails leaves an older receipt as it was, and no new one."""
    assert 2 == run("verify", "attic", "--receipt", "r.json").status
    assert not (tracked.root / "r.json").exists()


@pytest.mark.parametrize(
    ("target", "receipt"),
    [
        ("data", "data/r.json"),
        ("data", "data/sub/a.bin"),
        ("data/a.bin", "data/b.bin"),
        ("data/a.bin", "data/a.bin"),
        ("one.txt", "one.txt"),
        ("one.txt", "data/r.json"),
        ("one.txt", "data.dvc"),
        ("one.txt", ".git/HEAD"),
    ],
)
def test_a_receipt_never_lands_on_tracked_data_or_metadata(
    tracked: Project, run: Run, target: str, receipt: str
) -> None:
    """Wrong usage, and every byte of the project is as before."""
    before = faults.snapshot(tracked.root)
    assert 2 == run("verify", target, "--receipt", receipt).status
    assert before == faults.snapshot(tracked.root)


def test_a_receipt_that_is_an_output_of_its_stage_is_written(tracked: Project, run: Run) -> None:
    """The file that the pipeline declares as `cache: false` is no data to protect."""
    stage = {
        "cmd": f"{PROGRAM} verify data --receipt receipts/data.json",
        "deps": ["data"],
        "always_changed": True,
        "outs": [{"receipts/data.json": {"cache": False}}],
    }
    tracked.run_stages({"verify": stage})
    tracked.commit("gate")
    assert 0 == run("verify", "data", "--receipt", "receipts/data.json").status


# ---------------------------------------------------------------------- cold, jobs, store


@pytest.mark.parametrize("options", [["--cold"], ["--jobs", "1"], ["--jobs", "7"]], ids=" ".join)
def test_how_it_reads_changes_nothing_about_the_verdict(
    tracked: Project, run: Run, options: list[str]
) -> None:
    """Past the page cache and with any number of threads, good is good and bad is bad."""
    assert 0 == run("verify", *options).status
    faults.flip_bit(tracked.root / "data/a.bin")
    outcome = run("verify", "--json", *options)
    assert (1, {"data/a.bin": "corrupt"}) == (outcome.status, outcome.found)


@pytest.mark.parametrize("store", ["cache", "remote", "remote:disk"])
@pytest.mark.usefixtures("remote")
def test_a_good_store_is_clean(run: Run, store: str) -> None:
    """The object of every file is read, in the cache and on the default or a named remote."""
    report = run("verify", "--store", store, "--json").document
    name = "cache" if store == "cache" else "remote:disk"
    assert ("clean", name) == (report["verdict"], report["store"])
    assert REHASHED == report["coverage"]["rehashed"]


def store_of(tracked: Project, remote: Path, name: str) -> Path:
    """Return the folder of a store."""
    return tracked.cache if name == "cache" else remote


@pytest.mark.parametrize("store", ["cache", "remote:disk"])
def test_missing_and_corrupt_objects_are_named(
    tracked: Project, remote: Path, run: Run, store: str
) -> None:
    """An object that is gone, and one of mode 0444 with a flipped bit, by the file they are."""
    folder = store_of(tracked, remote, store)
    faults.delete(file_object(folder, "data/a.bin"))
    faults.flip_bit(file_object(folder, "data/b.bin"))
    outcome = run("verify", "--store", store, "--json")
    assert {"data/a.bin": "missing", "data/b.bin": "corrupt"} == outcome.found
    assert 1 == outcome.status
    assert 0 == run("verify").status


@pytest.mark.parametrize("store", ["cache", "remote:disk"])
def test_a_damaged_listing_in_one_store_is_found_with_the_help_of_the_other(
    tracked: Project, remote: Path, run: Run, store: str
) -> None:
    """The listing is a finding of the store that has it damaged; the files are still judged."""
    faults.flip_bit(folder_object(store_of(tracked, remote, store)))
    outcome = run("verify", "--store", store, "--json")
    assert (1, {"data": "corrupt"}) == (outcome.status, outcome.found)
    assert 0 == run("verify").status


@pytest.mark.parametrize(("store", "helps"), [("cache", "dvc fetch"), ("remote", "dvc push")])
def test_the_advice_fits_the_store(
    tracked: Project, remote: Path, run: Run, store: str, helps: str
) -> None:
    """What is gone from the cache is fetched, what is gone from a remote is pushed."""
    faults.delete(file_object(store_of(tracked, remote, store), "data/a.bin"))
    out = run("verify", "--store", store).out
    assert helps in out
    assert "dvc checkout" not in out


@pytest.mark.usefixtures("remote")
def test_a_remote_that_is_not_configured_is_named_with_those_that_are(run: Run) -> None:
    """The message lists the remotes to choose from."""
    err = run("verify", "--store", "remote:disc").err
    assert "'disc'" in err
    assert "disk" in err


# ---------------------------------------------------------------------------- revisions


@pytest.mark.parametrize("rev", ["HEAD~1", "v1", "old", "{sha}", "{short}"])
def test_a_revision_is_held_to_whatever_its_name(tracked: Project, run: Run, rev: str) -> None:
    """A tag, a branch, a relative name, a SHA and a short SHA all give that commit."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.git("tag", "--annotate", "--message=v1", "v1")
    tracked.git("branch", "old")
    tracked.add("one.txt", {"one.txt": b"two\n"})
    tracked.commit("two")
    assert 0 == run("verify").status
    outcome = run("verify", "--json", "--rev", rev.format(sha=old, short=old[:8]))
    assert (1, {"one.txt": "modified"}) == (outcome.status, outcome.found)
    assert old == outcome.document["rev"]


def test_the_work_tree_can_be_the_expectation(tracked: Project, run: Run) -> None:
    """`--rev workspace` holds data to metadata that is not committed yet."""
    tracked.add("one.txt", {"one.txt": b"two\n"})
    assert 1 == run("verify").status
    outcome = run("verify", "--rev", "workspace", "--json")
    assert (0, "workspace") == (outcome.status, outcome.document["rev"])


def test_in_an_experiment_its_baseline_is_the_default(
    tracked: Project, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`$DVC_EXP_BASELINE_REV` stands for HEAD; `--rev` wins over it."""
    old = tracked.git("rev-parse", "HEAD")
    tracked.add("one.txt", {"one.txt": b"two\n"})
    new = tracked.commit("two")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", old)
    outcome = run("verify", "--json")
    assert (1, old) == (outcome.status, outcome.document["rev"])
    assert new == run("verify", "--json", "--rev", "HEAD").document["rev"]


# ------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("data", 3),
        ("data/", 3),
        ("./data/../data", 3),
        ("data/sub", 1),
        ("data/a.bin", 1),
        ("data.dvc", 3),
        ("{root}/data/a.bin", 1),
        (".", 4),
        ("{root}", 4),
    ],
)
def test_a_target_is_an_out_or_what_lies_in_it(
    tracked: Project, run: Run, target: str, files: int
) -> None:
    """Outs, folders and files in them, `.dvc` files and folders of outs, relative or not."""
    outcome = run("verify", "--json", target.format(root=tracked.root))
    assert (0, files) == (outcome.status, outcome.document["coverage"]["rehashed"]["files"])


@pytest.mark.parametrize(
    ("folder", "target", "files"),
    [("data", "a.bin", 1), ("data", "..", 4), ("data/sub", "../b.bin", 1), ("data/sub", ".", 1)],
)
@pytest.mark.usefixtures("tracked")
def test_targets_are_relative_to_the_current_folder(
    run: Run, folder: str, target: str, files: int
) -> None:
    """A nested folder is a fine place to start from."""
    os.chdir(folder)
    outcome = run("verify", "--json", target)
    assert (0, files) == (outcome.status, outcome.document["coverage"]["rehashed"]["files"])


@pytest.mark.usefixtures("tracked")
def test_several_targets_are_judged_together_and_once(run: Run) -> None:
    """Targets that overlap count a file once."""
    report = run("verify", "--json", "data", "data/a.bin", "one.txt").document
    assert REHASHED == report["coverage"]["rehashed"]


def test_only_what_is_asked_for_is_judged(tracked: Project, run: Run) -> None:
    """Damage outside of the targets does not count."""
    faults.flip_bit(tracked.root / "data/a.bin")
    assert 0 == run("verify", "data/b.bin", "data/sub", "one.txt").status


def test_a_project_can_be_entered_through_a_link(
    tracked: Project, run: Run, tmp_path: Path
) -> None:
    """A path that leads into the project by a symbolic link is inside of it."""
    (tmp_path / "link").symlink_to(tracked.root)
    assert 0 == run("verify", f"{tmp_path}/link/data").status
    os.chdir(tmp_path / "link" / "data")
    assert 0 == run("verify", f"{tmp_path}/link/one.txt", "a.bin").status


def test_all_means_the_outputs_of_stages_too(tracked: Project, run: Run) -> None:
    """Without targets the sources are judged; `--all` adds what stages made; so does a name."""
    tracked.run_stages({"make": {"cmd": "printf 1 >made", "outs": ["made"]}})
    tracked.commit("stage")
    faults.flip_bit(tracked.root / "made")
    assert 0 == run("verify").status
    for target in ("--all", "made", "make"):
        outcome = run("verify", "--json", target)
        assert (1, {"made": "corrupt"}) == (outcome.status, outcome.found)


# ------------------------------------------------------------------------------ terminals


def test_a_terminal_gets_a_progress_bar_and_colours(tracked: Project) -> None:
    """The bar goes to stderr and leaves no line behind; findings come in colour on stdout."""
    faults.delete(tracked.root / "one.txt")
    outcome = on_terminal("verify")
    assert 1 == outcome.status
    assert "verify" in outcome.err
    assert "━" in outcome.err
    assert "files" in outcome.err
    assert "\x1b[31mmissing" in outcome.out
    assert "\x1b[1;31mdamaged" in outcome.out


def test_no_color_means_no_colour(tracked: Project) -> None:
    """`NO_COLOR` leaves the words and takes the colours."""
    faults.delete(tracked.root / "one.txt")
    outcome = on_terminal("verify", NO_COLOR="1")
    assert "missing" in outcome.out
    for code in (31, 32, 33, 35, 91, 92):
        assert f"{code}m" not in outcome.out + outcome.err


@pytest.mark.usefixtures("tracked")
def test_quiet_shows_no_bar_on_a_terminal() -> None:
    """`-q` on a terminal is as silent as elsewhere."""
    assert Outcome(0, "", "") == on_terminal("verify", "-q")


def test_elsewhere_progress_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stderr is no terminal, a line now and then tells files, bytes and bytes a second."""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.001)
    said = ""
    deadline = time.monotonic() + LIMIT_SECONDS
    line = "verify: 3 of 7 files, 2.0 kB, "
    with console.show_progress(7, 100, quiet=False) as meter:
        meter.add(3, 2_000)
        while line not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
    assert line in said
    assert "\x1b" not in said


# ------------------------------------------------------------------------- hostile names


NASTY = [f"data/{OSC}", "data/new\nline", "data/tab\tand \\", "data/\u202egnp.exe", "data/ünïcödé"]


@pytest.fixture
def nasty(project: Project) -> Project:
    """Return a project whose tracked names hold control characters, all of them missing."""
    project.add("data", {name: name.encode() for name in NASTY} | {"data/keep": b"keep"})
    project.commit("nasty")
    for name in NASTY:
        faults.delete(project.root / name)
    return project


def assert_harmless(*texts: str) -> None:
    """Assert that no name reached the terminal raw."""
    for text in texts:
        assert OSC not in text
        assert "\u202e" not in text
        assert "\udcff" not in text


@pytest.mark.parametrize("runner", [program, on_terminal], ids=["pipe", "terminal"])
def test_names_never_reach_the_terminal_raw(nasty: Project, runner: Callable[..., Outcome]) -> None:
    """Control characters, line breaks and bytes outside of UTF-8 come out as escapes."""
    Path(os.fsdecode(os.fsencode(nasty.root) + b"/data/bad\xff")).write_bytes(b"extra")
    outcome = runner("verify")
    assert 1 == outcome.status
    assert_harmless(outcome.out, outcome.err)
    for name in (r"\x1b]0;owned\x07", r"new\nline", r"\u202egnp.exe", "ünïcödé", r"bad\udcff"):
        assert f"data/{name}" in outcome.out
    lines = [line for line in outcome.out.splitlines() if "missing" in line or "extra" in line]
    assert len(NASTY) + 1 <= len(lines)


def test_json_carries_names_unharmed(nasty: Project, run: Run) -> None:
    """In the document every name round-trips, bytes outside of UTF-8 as surrogates."""
    Path(os.fsdecode(os.fsencode(nasty.root) + b"/data/bad\xff")).write_bytes(b"extra")
    outcome = run("verify", "--json")
    assert outcome.out.isascii()
    assert {**dict.fromkeys(NASTY, "missing"), "data/bad\udcff": "extra"} == outcome.found


@pytest.mark.usefixtures("nasty")
def test_an_encoding_that_lacks_the_characters_is_no_failure() -> None:
    """A terminal or log of few characters gets escapes instead of a traceback."""
    assert 1 == program("verify", PYTHONIOENCODING="ascii").status


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", OSC],
        ["verify", f"../{OSC}"],
        ["verify", "--rev", OSC],
        ["verify", "--store", OSC],
        ["verify", "--store", f"remote:{OSC}"],
        ["verify", "--receipt", f"one.txt/{OSC}"],
        ["verify", "--receipt", f"data/{OSC}"],
    ],
    ids=lambda value: " ".join(value[1:]).replace(OSC, "OSC"),
)
@pytest.mark.usefixtures("tracked")
def test_messages_never_repeat_arguments_raw(run: Run, arguments: list[str]) -> None:
    """What comes in through a script's argument is escaped in messages too."""
    outcome = run(*arguments)
    assert outcome.status in {2, 3}
    assert_harmless(outcome.out, outcome.err)


@pytest.mark.parametrize("without", [".git", ".dvc"])
def test_messages_never_repeat_the_place_raw(
    make_project: Callable[..., Project], run: Run, without: str
) -> None:
    """The project's own folder has a name that somebody chose."""
    place = make_project(f"nasty{OSC}")
    shutil.rmtree(place.root / without)
    os.chdir(place.root)
    outcome = run("verify")
    assert 2 == outcome.status
    assert_harmless(outcome.out, outcome.err)


def test_messages_never_repeat_broken_metadata_raw(tracked: Project, run: Run) -> None:
    """YAML of a commit is untrusted down to its error message."""
    tracked.write({"dvc.yaml": f'stages: {{"{OSC}\\e]0;owned\\a": nonsense}}\n'.encode()})
    tracked.commit("broken")
    outcome = run("verify")
    assert 3 == outcome.status
    assert_harmless(outcome.out, outcome.err)


# ----------------------------------------------------------------- it changes and locks nothing


@pytest.mark.parametrize("damage", [False, True], ids=["clean", "damaged"])
@pytest.mark.parametrize("store", ["workspace", "cache", "remote"])
def test_verify_changes_nothing(
    tracked: Project, remote: Path, tmp_path: Path, store: str, damage: bool
) -> None:
    """Every byte, mode and time of work tree, Git, DVC, cache and remote is as before."""
    if damage:
        never_run(tracked)
        for folder in (tracked.cache, remote):
            faults.flip_bit(file_object(folder, "data/a.bin"))
            faults.delete(file_object(folder, "data/b.bin"))
        faults.flip_bit(tracked.root / "data/a.bin")
        rewrite(tracked.root / "one.txt", b"new\n")
        (tracked.root / "data/extra").write_bytes(b"")
    places = [tmp_path, Path(os.environ["DVC_SITE_CACHE_DIR"]), Path(os.environ["HOME"])]
    before = [faults.snapshot(place) for place in places]
    outcome = program("verify", "--all", "--store", store)
    assert (1 if damage else 0) == outcome.status
    assert before == [faults.snapshot(place) for place in places]


HOLD_LOCKS = """
import sys
from dvc.repo import Repo
from dvc.rwlock import rwlock
repo = Repo(".")
with repo.lock, rwlock(repo.tmp_dir, repo.fs, "dvc repro", ["data"], ["one.txt"], False):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def locks_held() -> Iterator[None]:
    """Let another process hold DVC's locks as `dvc repro` would."""
    command = [sys.executable, "-c", HOLD_LOCKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert b"held\n" == process.stdout.readline()
        yield
        process.stdin.close()
        assert 0 == process.wait(LIMIT_SECONDS)


@pytest.mark.usefixtures("remote")
def test_verify_takes_no_lock(tracked: Project, run: Run) -> None:
    """It works while DVC's locks are held by another process, for every store."""
    with locks_held():
        with (tracked.root / ".dvc/tmp/lock").open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # they are held indeed
        assert b"one.txt" in (tracked.root / ".dvc/tmp/rwlock").read_bytes()
        for store in ("workspace", "cache", "remote"):
            assert 0 == run("verify", "--store", store).status
        assert 0 == run("verify", "--rev", "workspace", "--receipt", "r.json").status


@pytest.mark.usefixtures("remote")
def test_a_fresh_clone_is_verified_as_it_is(tracked: Project, run: Run, tmp_path: Path) -> None:
    """Without `.dvc/tmp`, cache or state database the remote has the listings; nothing is made."""
    clone = tmp_path / "clone"
    tracked.git("clone", "--quiet", ".", str(clone))
    os.chdir(clone)
    missing = run("verify", "--json")
    assert (1, dict.fromkeys([*FOLDER, *FILE], "missing")) == (missing.status, missing.found)
    Project(clone, clone).write(FOLDER | FILE)
    before = faults.snapshot(clone)
    assert 0 == run("verify").status
    assert 0 == run("verify", "--store", "remote").status
    assert before == faults.snapshot(clone)
    assert not (clone / ".dvc" / "tmp").exists()


# -------------------------------------------------------------- no Git, no DVC, no commit


def test_outside_of_any_project_dvc_init_is_suggested(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No DVC: wrong place, status 2, the command that helps."""
    monkeypatch.chdir(tmp_path)
    outcome = run("verify")
    assert (2, "") == (outcome.status, outcome.out)
    assert "dvc init" in outcome.err


def test_without_git_there_is_no_revision(tracked: Project, run: Run) -> None:
    """A DVC project whose `.git` is gone."""
    shutil.rmtree(tracked.root / ".git")
    outcome = run("verify")
    assert 2 == outcome.status
    assert "git init" in outcome.err


def test_no_scm_has_no_revision_but_a_work_tree(tracked: Project, run: Run) -> None:
    """`core.no_scm`: the message names `--rev workspace`, which works."""
    shutil.rmtree(tracked.root / ".git")
    tracked.dvc("config", "core.no_scm", "true")
    outcome = run("verify")
    assert 2 == outcome.status
    assert "--rev workspace" in outcome.err
    assert 0 == run("verify", "--rev", "workspace").status


def test_before_the_first_commit_there_is_no_revision(tracked: Project, run: Run) -> None:
    """A Git repository without a commit: the message says to commit."""
    shutil.rmtree(tracked.root / ".git")
    tracked.git("init", "--quiet")
    outcome = run("verify")
    assert 2 == outcome.status
    assert "Nothing is committed yet" in outcome.err
    assert "git commit" in outcome.err


def test_a_commit_from_before_dvc_holds_no_project(tracked: Project, run: Run) -> None:
    """A revision without a `.dvc` folder: the message says so."""
    tracked.git("checkout", "--quiet", "--orphan", "bare")
    tracked.git("rm", "-r", "--quiet", "--cached", ".")
    tracked.git("commit", "--quiet", "--allow-empty", "--message", "bare")
    outcome = run("verify")
    assert 2 == outcome.status
    assert "There was no DVC project" in outcome.err


@pytest.mark.usefixtures("tracked")
def test_an_unknown_revision_is_named(run: Run) -> None:
    """The message repeats what was asked for."""
    outcome = run("verify", "--rev", "v99")
    assert 2 == outcome.status
    assert "'v99'" in outcome.err


@pytest.mark.usefixtures("tracked")
def test_a_target_that_no_out_covers_brings_the_nearest(run: Run) -> None:
    """A slip of the pen is answered with what was meant."""
    outcome = run("verify", "dat")
    assert 2 == outcome.status
    assert "Did you mean 'data'?" in outcome.err


def test_a_file_that_the_listing_lacks_is_no_target(tracked: Project, run: Run) -> None:
    """A path inside an out that was never committed; the out is named."""
    (tracked.root / "data/new.bin").write_bytes(b"new")
    outcome = run("verify", "data/new.bin")
    assert 2 == outcome.status
    assert "'data/new.bin'" in outcome.err


@pytest.mark.usefixtures("tracked")
def test_a_target_outside_of_the_project_is_refused(run: Run) -> None:
    """Neither `..` nor an absolute path leads out."""
    for target in ("..", "/etc/passwd"):
        outcome = run("verify", target)
        assert 2 == outcome.status
        assert "outside" in outcome.err


def test_a_deleted_current_folder_is_told(tmp_path: Path) -> None:
    """The folder that the program starts in is gone: a message, no traceback."""
    (tmp_path / "gone").mkdir()
    before = ("sh", "-c", f'cd "{tmp_path}/gone" && rmdir ../gone && exec "$0" "$@"')
    outcome = program("verify", before=before)
    assert 2 == outcome.status
    assert "no longer exists" in outcome.err


# ---------------------------------------------------------------- listings and metadata


LISTING_DAMAGE = {
    "missing": faults.delete,
    "flipped": faults.flip_bit,
    "empty": lambda path: faults.truncate(path, 0),
    "cut": faults.truncate,
    "folder": replace_by_folder,
    "fifo": replace_by_fifo,
}


@pytest.mark.parametrize("damage", LISTING_DAMAGE)
def test_a_listing_that_cannot_be_had_is_status_3(tracked: Project, damage: str) -> None:
    """Without its listing a folder cannot be told; the message names it and what helps."""
    LISTING_DAMAGE[damage](folder_object(tracked.cache))
    outcome = program("verify")
    assert (3, "") == (outcome.status, outcome.err)
    assert f"{md5(FOLDER_LISTING)}.dir" in outcome.out
    assert "dvc fetch data" in outcome.out
    assert "incomplete" in outcome.out


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_listing_is_taken_from_the_remote_if_the_cache_has_no_good_one(
    tracked: Project, remote: Path, run: Run, damage: str
) -> None:
    """One good copy anywhere is enough, and the bad one is left as it is."""
    LISTING_DAMAGE[damage](folder_object(tracked.cache))
    before = faults.snapshot(tracked.cache)
    assert 0 == run("verify").status
    assert before == faults.snapshot(tracked.cache)
    LISTING_DAMAGE[damage](folder_object(remote))
    assert 3 == run("verify").status


HOSTILE = {
    "parent": raw_listing([{"md5": md5(b""), "relpath": "../../escape"}]),
    "absolute": raw_listing([{"md5": md5(b""), "relpath": "/tmp/escape"}]),
    "nul": raw_listing([{"md5": md5(b""), "relpath": "a\0b"}]),
    "twice": raw_listing([{"md5": md5(b""), "relpath": "a"}] * 2),
    "case": raw_listing([{"md5": md5(b""), "relpath": name} for name in ("A", "a")]),
    "empty": raw_listing([{"md5": md5(b""), "relpath": ""}]),
    "number": raw_listing([{"md5": 5, "relpath": "a"}]),
    "no list": b"{}",
    "no JSON": b"\x00\xff" * 100,
}


@pytest.mark.parametrize("form", HOSTILE)
def test_a_hostile_listing_is_refused(
    tracked: Project, tmp_path: Path, run: Run, form: str
) -> None:
    """Its hash is right, its paths or form are not: status 3, nothing written anywhere."""
    commit_listing(tracked, HOSTILE[form])
    before = faults.snapshot(tmp_path)
    outcome = run("verify", "--receipt", "r.json")
    assert (3, "") == (outcome.status, outcome.out)
    assert "'evil'" in outcome.err
    assert "'evil.dvc'" in outcome.err
    assert before == faults.snapshot(tmp_path)


BROKEN = {
    "dvc.yaml": b"stages: [1, 2\n",
    "dvc.lock": b"schema: '2.0'\nstages:\n<<<<<<< HEAD\n  make: 1\n",
    "two.dvc": b"outs: nonsense\n",
    "params.yaml": b"a: [\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_at_the_revision_is_status_3(tracked: Project, run: Run, name: str) -> None:
    """The file is named, with a way out: another revision, which works."""
    stage = b"stages:\n  make:\n    cmd: echo ${a}\n    outs: [made]\n"
    tracked.write({"dvc.yaml": stage, "params.yaml": b"a: 1\n", name: BROKEN[name]})
    tracked.commit("broken")
    outcome = run("verify")
    assert (3, "") == (outcome.status, outcome.out)
    assert name in outcome.err
    assert "--rev" in outcome.err
    assert 0 == run("verify", "--rev", "HEAD~1").status


@pytest.mark.parametrize("name", [*BROKEN, "data.dvc", ".dvcignore"])
def test_metadata_that_is_broken_in_the_work_tree_alone_does_not_matter(
    tracked: Project, run: Run, name: str
) -> None:
    """The expectation comes from Git: what lies in the work tree is no part of it."""
    tracked.write({name: b"\xff: [<<<<<<<\n"})
    assert 0 == run("verify").status
    faults.flip_bit(tracked.root / "data/a.bin")
    faults.delete(tracked.root / "one.txt")
    outcome = run("verify", "--json")
    assert 1 == outcome.status
    assert {"data/a.bin", "one.txt"} == set(outcome.found)


def test_an_uncommitted_dvcignore_hides_nothing(tracked: Project, run: Run) -> None:
    """What is ignored is part of the commit: a line in the work tree makes no file vanish."""
    (tracked.root / "data/new.bin").write_bytes(b"new")
    tracked.write({".dvcignore": b"new.bin\n"})
    outcome = run("verify", "--json")
    assert (1, {"data/new.bin": "extra"}) == (outcome.status, outcome.found)
    assert 0 == run("verify", "--rev", "workspace").status
    tracked.commit("ignored")
    assert 0 == run("verify").status
    (tracked.root / ".dvcignore").unlink()
    assert 0 == run("verify").status


@pytest.mark.parametrize("rev", ["HEAD", "workspace"])
def test_a_link_to_itself_hides_no_metadata(tracked: Project, run: Run, rev: str) -> None:
    """A broken thing beside a `.dvc` file does not make the file vanish."""
    tracked.add("deep/two.txt", {"deep/two.txt": b"two"})
    tracked.commit("two")
    (tracked.root / "deep/loop").symlink_to("loop")
    faults.flip_bit(tracked.root / "deep/two.txt")
    outcome = run("verify", "--rev", rev, "--json")
    assert (1, {"deep/two.txt": "corrupt"}) == (outcome.status, outcome.found)


@pytest.mark.parametrize("place", [".dvcignore", "dvc.yaml", "data.dvc", "deep/x.dvc"])
def test_a_fifo_in_place_of_metadata_never_hangs(tracked: Project, place: str) -> None:
    """The work tree's metadata serves as a hint at most: damage is found all the same."""
    (tracked.root / "deep").mkdir()
    (tracked.root / place).unlink(missing_ok=True)
    os.mkfifo(tracked.root / place)
    faults.delete(tracked.root / "data/a.bin")
    outcome = program("verify", "--json")
    assert (1, {"data/a.bin": "missing"}) == (outcome.status, outcome.found)


def git_object(project: Project, name: str) -> Path:
    """Return where Git keeps an object as a file of its own."""
    sha = project.git("rev-parse", name)
    return project.root / ".git" / "objects" / sha[:2] / sha[2:]


def forge_blob(path: Path) -> None:
    """Let a blob unpack well but to other bytes than its name says."""
    data = zlib.decompress(path.read_bytes())
    with faults.changed(path), faults._writable(path):
        path.write_bytes(zlib.compress(data.replace(b"md5", b"md6")))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("HEAD:data.dvc", faults.delete),
        ("HEAD:data.dvc", faults.flip_bit),
        ("HEAD:data.dvc", forge_blob),
        ("HEAD^{tree}", faults.delete),
        ("HEAD^{tree}", faults.flip_bit),
    ],
)
def test_a_damaged_git_object_is_status_3(
    tracked: Project, name: str, damage: Callable[[Path], None]
) -> None:
    """If Git's own copy of the expectation is damaged, nothing can be told; nothing hangs."""
    damage(git_object(tracked, name))
    outcome = program("verify")
    assert (3, "") == (outcome.status, outcome.out)
    assert "git fsck" in outcome.err


# ------------------------------------------------------------------ things that are no files


def test_a_folder_in_place_of_a_file_and_the_reverse(tracked: Project, run: Run) -> None:
    """A folder where a file was committed, and a file where a folder was."""
    replace_by_folder(tracked.root / "data/a.bin")
    shutil.rmtree(tracked.root / "data/sub")
    (tracked.root / "data/sub").write_bytes(b"file")
    outcome = run("verify", "data", "--json")
    assert 1 == outcome.status
    expected = {"data/a.bin": "modified", "data/sub": "extra", "data/sub/c.bin": "missing"}
    assert expected == outcome.found


def test_an_out_that_changed_its_kind(tracked: Project, run: Run) -> None:
    """The same for whole outs: `data` is a file now, `one.txt` a folder."""
    shutil.rmtree(tracked.root / "data")
    (tracked.root / "data").write_bytes(b"file")
    replace_by_folder(tracked.root / "one.txt")
    outcome = run("verify", "--json")
    assert 1 == outcome.status
    expected = {**dict.fromkeys(FOLDER, "missing"), "one.txt": "modified", "data": "extra"}
    assert expected == outcome.found


def test_a_dangling_link_is_missing_and_says_where_it_leads(tracked: Project, run: Run) -> None:
    """A link without a target has no bytes; the message names the target."""
    faults.replace_by_link(tracked.root / "data/a.bin", "/nowhere/at/all")
    outcome = run("verify", "--json")
    assert (1, {"data/a.bin": "missing"}) == (outcome.status, outcome.found)
    assert "/nowhere/at/all" in outcome.document["findings"][0]["detail"]


def test_a_link_that_leads_to_itself_is_told(tracked: Project, run: Run) -> None:
    """A loop has no bytes either, and ends."""
    faults.replace_by_link(tracked.root / "data/a.bin", "a.bin")
    outcome = run("verify", "--json")
    assert {"data/a.bin"} == set(outcome.found)
    assert outcome.status in {1, 3}


def test_a_link_to_good_bytes_is_good(tracked: Project, run: Run, tmp_path: Path) -> None:
    """Links are followed, as DVC follows them."""
    (tmp_path / "elsewhere").write_bytes(FOLDER["data/a.bin"])
    faults.replace_by_link(tracked.root / "data/a.bin", tmp_path / "elsewhere")
    assert 0 == run("verify").status


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_a_special_file_never_hangs(tracked: Project, kind: str, monkeypatch: Any) -> None:
    """A FIFO, a socket or a device in place of a tracked file, and one beside it."""
    monkeypatch.chdir(tracked.root / "data")
    for name in ("a.bin", "extra"):
        Path(name).unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(name)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(name)
        else:
            Path(name).symlink_to("/dev/zero")
    outcome = program("verify", "--json")
    assert 1 == outcome.status
    assert "extra" == outcome.found["data/extra"]
    assert outcome.found["data/a.bin"] in {"modified", "unreadable"}


# --------------------------------------------------------------- unreadable, full, read-only


def test_an_unreadable_file_is_status_3(tracked: Project) -> None:
    """Permission denied is neither good nor corrupt; the file is named."""
    with mode(tracked.root / "data/a.bin", 0):
        outcome = program("verify", "--json", before=without_override())
    assert (3, {"data/a.bin": "unreadable"}) == (outcome.status, outcome.found)
    assert "Permission denied" in outcome.document["findings"][0]["detail"]


def test_an_unreadable_folder_is_status_3(tracked: Project) -> None:
    """What lies in a closed folder is unreadable, the folder itself too."""
    with mode(tracked.root / "data/sub", 0):
        outcome = program("verify", "--json", before=without_override())
    expected = {"data/sub": "unreadable", "data/sub/c.bin": "unreadable"}
    assert (3, expected) == (outcome.status, outcome.found)


@pytest.mark.parametrize("store", ["cache", "remote"])
def test_an_unreadable_object_is_status_3(tracked: Project, remote: Path, store: str) -> None:
    """The same for an object of a store."""
    with mode(file_object(store_of(tracked, remote, store), "data/a.bin"), 0):
        outcome = program("verify", "--json", "--store", store, before=without_override())
    assert (3, {"data/a.bin": "unreadable"}) == (outcome.status, outcome.found)


@pytest.mark.parametrize(
    "place", [".dvc", ".dvc/config", ".git", ".git/HEAD", ".git/objects", ".dvc/cache"]
)
def test_an_unreadable_project_is_told(tracked: Project, place: str) -> None:
    """Closed metadata is inability with a message that names it, never damage."""
    with mode(tracked.root / place, 0):
        outcome = program("verify", before=without_override())
    assert outcome.status in {2, 3}
    assert str(tracked.root) in outcome.out + outcome.err


@needs_strace
def test_a_disk_that_fails_to_read_is_status_3(tracked: Project, tmp_path: Path) -> None:
    """EIO on one file: the others are judged, that one is unreadable."""
    path = str(tracked.root / "data/b.bin")
    inject = "inject=read,readv,pread64,preadv:error=EIO"
    before = ("strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-P", path, "-e", inject)
    outcome = program("verify", "--json", before=before)
    assert (3, {"data/b.bin": "unreadable"}) == (outcome.status, outcome.found)
    assert 3 == outcome.document["coverage"]["rehashed"]["files"]
    assert "INJECTED" in (tmp_path / "trace").read_text()


def test_few_descriptors_are_enough(project: Project) -> None:
    """Thousands of files and second reads of some are a matter of 32 descriptors."""
    project.add("many", {f"many/{row % 7}/{row:04}": b"%d" % row * 99 for row in range(2000)})
    project.commit("many")
    assert 0 == program("verify", before=FEW_DESCRIPTORS).status
    damaged = [project.root / f"many/{row % 7}/{row:04}" for row in range(3, 2000, 400)]
    for path in damaged:
        faults.flip_bit(path)
    (project.root / "many/0/0000").unlink()
    outcome = program("verify", "--json", before=FEW_DESCRIPTORS)
    expected = {os.path.relpath(path, project.root): "corrupt" for path in damaged}
    assert (1, {"many/0/0000": "missing"} | expected) == (outcome.status, outcome.found)


@needs_mounts
def test_a_full_disk_leaves_the_old_receipt(tracked: Project, run: Run) -> None:
    """No space for the receipt: status 3, its name, the old bytes, and no temporary file."""
    assert 0 == run("verify", "one.txt", "--receipt", "old.json").status
    (tracked.root / "full").mkdir()
    script = (
        "mount -t tmpfs -o size=8k tmpfs full && cp old.json full/r.json && "
        'head -c 4096 /dev/zero >full/filler && "$0" "$@"; status=$?; '
        "cp full/r.json after.json; ls -A full >after; exit $status"
    )
    before = ("unshare", "--mount", "sh", "-c", script)
    outcome = program("verify", "data", "--receipt", "full/r.json", before=before)
    assert 3 == outcome.status
    assert "'full/r.json' could not be written: No space left on device" in outcome.err
    assert (tracked.root / "old.json").read_bytes() == (tracked.root / "after.json").read_bytes()
    assert "filler\nr.json\n" == (tracked.root / "after").read_text()


@needs_mounts
def test_damage_is_told_also_if_the_disk_is_full(tracked: Project) -> None:
    """Damage wins over a receipt that cannot be written, and the document stays one."""
    (tracked.root / "full").mkdir()
    faults.flip_bit(tracked.root / "one.txt")
    script = "mount -t tmpfs -o size=4k tmpfs full; head -c 4096 /dev/zero >full/x; "
    before = ("unshare", "--mount", "sh", "-c", f'{script} exec "$0" "$@"')
    outcome = program("verify", "--json", "--receipt", "full/r.json", before=before)
    assert (1, {"one.txt": "corrupt"}) == (outcome.status, outcome.found)
    assert "full/r.json" in outcome.err


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
@pytest.mark.parametrize("damage", [False, True], ids=["clean", "damaged"])
def test_a_report_that_cannot_be_printed_is_told(
    tracked: Project, damage: bool, options: list[str]
) -> None:
    """A full disk behind stdout: never a success, never a traceback, damage still wins."""
    if damage:
        faults.flip_bit(tracked.root / "one.txt")
    before = ("sh", "-c", 'exec "$0" "$@" >/dev/full')
    outcome = program("verify", *options, before=before)
    assert (1 if damage else 3) == outcome.status
    assert "No space left on device" in outcome.err


@pytest.mark.usefixtures("tracked")
def test_more_threads_than_are_of_use_are_refused() -> None:
    """Twenty thousand threads would end in an error of the system, half way."""
    outcome = program("verify", "--jobs", "20000")
    assert 2 == outcome.status
    assert "256" in outcome.err


@pytest.mark.usefixtures("tracked")
def test_an_unknown_kernel_is_told() -> None:
    """A misspelt variable does not silently measure another kernel."""
    before = ("env", "DVC_INTEGRITY_KERNEL=hashlip")
    outcome = program("verify", before=before)
    assert 0 == outcome.status
    assert "DVC_INTEGRITY_KERNEL=hashlip is ignored" in outcome.err


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_went_away_is_no_traceback(tracked: Project, options: list[str]) -> None:
    """`dvc-integrity verify | head`: the pipe closes, the program ends quietly."""
    faults.flip_bit(tracked.root / "one.txt")
    script = '{ "$0" "$@"; echo $? >status; } | true'
    outcome = program("verify", *options, before=("sh", "-c", script))
    assert "" == outcome.err
    assert "1\n" == (tracked.root / "status").read_text()


@needs_mounts
@pytest.mark.usefixtures("tracked")
def test_a_read_only_project_is_verified() -> None:
    """Reading needs no write permission anywhere; a receipt does, and says so."""
    script = 'mount --bind . . && mount -o remount,ro,bind . && cd . && cd "$PWD" && exec "$0" "$@"'
    before = ("unshare", "--mount", "sh", "-c", script)
    assert 0 == program("verify", before=before).status
    outcome = program("verify", "--receipt", "receipts/r.json", before=before)
    assert 3 == outcome.status
    assert "could not be written: Read-only file system" in outcome.err
    assert not os.path.exists("receipts")


def test_a_folder_without_write_permission_gets_no_receipt(tracked: Project) -> None:
    """The same where permissions forbid it."""
    with mode(tracked.root, 0o555):
        assert 0 == program("verify", before=without_override()).status
        outcome = program("verify", "--receipt", "r.json", before=without_override())
    assert 3 == outcome.status
    assert "'r.json' could not be written: Permission denied" in outcome.err


@pytest.mark.usefixtures("tracked")
def test_a_fifo_in_place_of_the_receipt_never_hangs() -> None:
    """A receipt is a file; a FIFO, a device or the like is refused unread."""
    os.mkfifo("fifo")
    for receipt in ("fifo", "/dev/null"):
        outcome = program("verify", "--receipt", receipt)
        assert 2 == outcome.status
        assert f"'{receipt}'" in outcome.err


def test_a_folder_in_place_of_the_receipt_is_told(tracked: Project, run: Run) -> None:
    """The folder stays, no temporary file is left beside it."""
    (tracked.root / "r.json").mkdir()
    before = set(tracked.root.iterdir())
    outcome = run("verify", "--receipt", "r.json")
    assert 2 == outcome.status
    assert "'r.json'" in outcome.err
    assert before == set(tracked.root.iterdir())


# ------------------------------------------------------------------------------- blocks

MIB = 1 << 20

LARGE = bytes(range(256)) * (17 * MIB // 256) + b"the rest"
"""A file that is read by blocks: 18 of them."""

PLACE = ".dvc/tmp/integrity/blocks"


@pytest.fixture
def large(project: Project) -> Project:
    """Return a project that tracks one large file and a folder with another and a small one."""
    project.add("big", {"big": LARGE})
    project.add("more", {"more/big": LARGE[: 16 * MIB], "more/small": b"small"})
    project.commit("large")
    return project


def hashed(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """Return files and bytes by the digest that was computed."""
    told = outcome.document["coverage"]["rehashed"]["digests"]
    return {name: (each["files"], each["bytes"]) for name, each in told.items()}


def without_records(project: Project) -> faults.Snapshot:
    """Return everything in a project but what lies among the records."""
    everything = faults.snapshot(project.root)
    above = {".dvc/tmp", ".dvc/tmp/integrity"}  # made, or with an entry more
    return {
        path: state
        for path, state in everything.items()
        if path not in above and f"{path}/".partition(f"{PLACE}/")[1] == ""
    }


@pytest.mark.parametrize("store", ["workspace", "cache"])
def test_large_files_are_held_by_their_blocks(large: Project, run: Run, store: str) -> None:
    """First by MD5, then by blocks; the JSON counts which, and a flipped bit is placed.

    Nothing in the project changes but the records.
    """
    arguments = ("verify", "--json", "--store", store)
    before = without_records(large)
    size = len(LARGE) + 16 * MIB
    assert {"md5": (3, size + 5)} == hashed(run(*arguments))
    outcome = run(*arguments)
    assert (0, []) == (outcome.status, outcome.document["findings"])
    assert {"blocks": (2, size), "md5": (1, 5)} == hashed(outcome)
    assert before == without_records(large)
    assert 2 == sum(path.is_file() for path in (large.root / PLACE).rglob("*"))

    here = large.root / "big" if store == "workspace" else object_path(large.cache, md5(LARGE))
    faults.flip_bit(here, 3 * MIB + 1)
    faults.flip_bit(here, len(LARGE) - 1)
    before = faults.snapshot(large.root)
    outcome = run(*arguments)
    (finding,) = outcome.document["findings"]
    assert (1, "big", "corrupt", [[3 * MIB, 4 * MIB], [17 * MIB, len(LARGE)]]) == (
        outcome.status,
        finding["path"],
        finding["status"],
        finding["ranges"],
    )
    assert f"md5:{md5(here.read_bytes())}" == finding["found"]
    assert {"blocks": (1, 16 * MIB), "md5": (2, len(LARGE) + 5)} == hashed(outcome)
    assert before == faults.snapshot(large.root)


def test_no_blocks_means_md5_and_no_records(large: Project, run: Run) -> None:
    """``--no-blocks`` neither writes records nor uses those that are there."""
    everything = {"md5": (3, len(LARGE) + 16 * MIB + 5)}
    assert everything == hashed(run("verify", "--json", "--no-blocks"))
    assert not (large.root / PLACE).exists()
    run("verify")
    before = faults.snapshot(large.root / PLACE)
    assert everything == hashed(run("verify", "--json", "--no-blocks"))
    faults.flip_bit(large.root / "big")
    outcome = run("verify", "--json", "--no-blocks")
    assert (1, []) == (outcome.status, outcome.document["findings"][0]["ranges"])
    assert before == faults.snapshot(large.root / PLACE)


@pytest.mark.parametrize("damage", [False, True], ids=["clean", "damaged"])
def test_records_that_cannot_be_written_change_no_status(large: Project, damage: bool) -> None:
    """No file may be longer than nothing: the verdict stands, and one warning says so."""
    status = 0
    if damage:
        faults.flip_bit(large.root / "more/big")
        status = 1
    before = ("sh", "-c", 'ulimit -f 0 && exec "$@"', "sh")
    outcome = program("verify", "--json", before=before)
    assert status == outcome.status
    assert {"md5": (3, len(LARGE) + 16 * MIB + 5)} == hashed(outcome)
    assert 1 == outcome.err.count("cannot be kept"), outcome.err
    assert [] == [path for path in (large.root / PLACE).rglob("*") if path.is_file()]


def test_records_without_write_permission_change_no_status(large: Project) -> None:
    """A temporary folder that may not be written to costs time only."""
    (large.root / ".dvc/tmp/integrity").mkdir(parents=True)
    with mode(large.root / ".dvc/tmp/integrity", 0o555):
        outcome = program("verify", "--json", before=without_override())
        assert (0, 1) == (outcome.status, outcome.err.count("cannot be kept"))
        assert not (large.root / PLACE).exists()


# ------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def endless(project: Project) -> Project:
    """Return a project that tracks a file of a tebibyte of holes: no read ends in a test."""
    project.write_outs("big.dvc", {"md5": md5(b"other"), "hash": "md5", "path": "big"})
    project.write({".gitignore": b"/big\n", "big": b""})
    os.truncate(project.root / "big", 1 << 40)
    project.commit("big")
    return project


def wait_until_reading(process: subprocess.Popen[bytes], size: int) -> None:
    """Wait until a process has read so many bytes."""
    deadline = time.monotonic() + LIMIT_SECONDS
    counters = Path(f"/proc/{process.pid}/io")
    while time.monotonic() < deadline:
        assert process.poll() is None
        if int(counters.read_text().split()[1]) > size:
            return
    pytest.fail("the program does not read")


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="/proc tells who reads")
@pytest.mark.parametrize("options", [[], ["--json", "--jobs", "2"]], ids=["plain", "json"])
def test_ctrl_c_ends_at_once_and_leaves_nothing(endless: Project, options: list[str]) -> None:
    """Status 130 in the midst of a file: no traceback, no receipt, no temporary file."""
    before = names(endless.root)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [PROGRAM, "verify", "--receipt", "receipts/r.json", *options]
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        wait_until_reading(process, 100 << 20)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (130, b"") == (process.returncode, out)
    assert err.strip().startswith(b"Interrupted")
    assert 1 == len(err.strip().splitlines())
    assert before == names(endless.root)


def names(folder: Path) -> set[Path]:
    """Return every path below a folder."""
    return set(folder.rglob("*"))


# ----------------------------------------------------------- where a receipt may lie


def test_a_receipt_through_a_link_does_not_land_in_data(tracked: Project, run: Run) -> None:
    """The place that the path leads to counts, not its spelling."""
    (tracked.root / "way").symlink_to("data")
    outcome = run("verify", "--receipt", "way/receipt.json")
    assert 2 == outcome.status
    assert not (tracked.root / "data/receipt.json").exists()


def test_a_receipt_does_not_land_in_data_that_is_not_committed_yet(
    tracked: Project, run: Run
) -> None:
    """A folder that was just added is data too."""
    tracked.add("fresh", {"fresh/x": b"x"})
    assert 2 == run("verify", "--receipt", "fresh/receipt.json").status
    assert not (tracked.root / "fresh/receipt.json").exists()


def test_a_receipt_that_is_a_link_stays_one(tracked: Project, run: Run) -> None:
    """What it points to is replaced."""
    (tracked.root / "kept").mkdir()
    (tracked.root / "receipt.json").symlink_to("kept/receipt.json")
    assert 0 == run("verify", "--receipt", "receipt.json").status
    assert (tracked.root / "receipt.json").is_symlink()
    assert "clean" == json.loads((tracked.root / "kept/receipt.json").read_text())["verdict"]


def test_every_receipt_has_a_report_of_its_own(tracked: Project, run: Run) -> None:
    """Also where joined paths would be alike, or too long for a file name."""
    receipts = ["a/b.json", "a-b.json", "/".join(["folder-of-ten"] * 25) + "/r.json"]
    assert [0, 0, 0] == [run("verify", "--receipt", each).status for each in receipts]
    assert 3 == len(list((tracked.root / ".dvc/tmp/integrity/reports").iterdir()))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_changes_no_status(
    tracked: Project, run: Run, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """Clean data is 0 and an unknown target 2, whoever listens."""
    assert tracked.root.exists()
    for arguments, status in ((("verify",), 0), (("verify", "nope"), 2)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)
            assert status == run(*arguments).status
            getattr(sys, stream).close()

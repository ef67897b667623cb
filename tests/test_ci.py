"""What CI uses: formats of the command line, the line of a hash, the Action, the hooks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import faults
import pytest
import yaml
from projects import Project, git
from test_cli import WITHOUT_OVERRIDE, Outcome, Run, program, run, works

from dvc_integrity.manifest import Place
from dvc_integrity.repository import Repository

__all__ = ["run"]

TOP = Path(__file__).parent.parent
PROGRAMS = str(Path(sys.executable).parent)
FOLDER = {"data/a.bin": b"alpha", "data/b.bin": b"bravo"}
FORMATS = ["text", "json", "junit", "sarif", "github", "prometheus"]


@pytest.fixture
def damaged(project: Project) -> Project:
    """Return a project with a committed folder in which a bit flipped."""
    project.add("data", FOLDER)
    project.commit("data")
    faults.flip_bit(project.root / "data/a.bin")
    return project


# the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", ["verify", "status"])
def test_a_file_takes_all_of_the_output(
    damaged: Project, run: Run, command: str, form: str
) -> None:
    """The status is that of a run without it, stdout is empty, folders on the way are made."""
    there = run(command, "--format", form)
    kept = run(command, "--format", form, "--output", "out/of/report")
    assert (1, 1) == (there.status, kept.status)
    assert "" == kept.out
    text = (damaged.root / "out/of/report").read_text()
    assert len(there.out.splitlines()) == len(text.splitlines())
    assert text


@pytest.mark.usefixtures("damaged")
def test_json_is_short_for_the_format(run: Run) -> None:
    """Both give the same document; another format beside it is a mistake."""
    short, long = (run("verify", *each).document for each in (["--json"], ["--format", "json"]))
    varying = {"started", "seconds"}
    assert {name: short[name] for name in short.keys() - varying} == {
        name: long[name] for name in long.keys() - varying
    }
    refused = run("verify", "--json", "--format", "junit")
    assert 2 == refused.status
    assert "'--json' is '--format json'" in refused.out + refused.err


def test_a_failure_is_a_document_where_json_is_wanted(project: Project, run: Run) -> None:
    """Also with the long form, and not where a file takes the output."""
    assert 2 == run("verify", "--format", "json", "none").document["exit_status"]
    assert 2 == run("verify", "--format=json", "--bogus").document["exit_status"]
    kept = run("verify", "--format", "json", "--output", "x.json", "none")
    assert (2, "") == (kept.status, kept.out)
    assert "No DVC output covers" in kept.err
    assert not (project.root / "x.json").exists()


@pytest.mark.parametrize("file", [".", "", "data/report.xml"])
def test_a_place_that_can_take_no_output_is_refused(damaged: Project, run: Run, file: str) -> None:
    """A folder, no name, data that DVC tracks: wrong usage, and nothing is written."""
    refused = run("verify", "--format", "junit", "--output", file)
    assert (2, "") == (refused.status, refused.out)
    assert not (damaged.root / "data/report.xml").exists()


def test_the_receipt_and_the_output_are_two_files(damaged: Project, run: Run) -> None:
    """One would take the place of the other."""
    refused = run("verify", "--format", "json", "--output", "./r.json", "--receipt", "r.json")
    assert 2 == refused.status
    assert "name the same file" in refused.err
    assert not (damaged.root / "r.json").exists()


@pytest.mark.skipif(not works(*WITHOUT_OVERRIDE, "true"), reason="root overrides permissions")
def test_a_place_that_cannot_be_written_is_could_not_tell(project: Project) -> None:
    """Exit status 3 with a message, and 1 where damage was found."""
    project.add("data", FOLDER)
    project.commit("data")
    (project.root / "locked").mkdir(mode=0o555)
    arguments = ("verify", "--format", "junit", "--output", "locked/report.xml")
    refused = program(*arguments, before=WITHOUT_OVERRIDE)
    assert 3 == refused.status
    assert "'locked/report.xml' could not be written" in refused.err
    faults.flip_bit(project.root / "data/a.bin")
    assert 1 == program(*arguments, before=WITHOUT_OVERRIDE).status


def test_the_summary_of_a_step_is_appended(
    damaged: Project, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier step wrote stays; other formats write none; a failure is told."""
    file = damaged.top / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    run("verify", "--format", "junit")
    assert "before\n" == file.read_text()
    told = run("verify", "--format", "github")
    assert 1 == told.status
    assert file.read_text().startswith("before\n### dvc-integrity verify: damaged\n")
    assert told.out.startswith("::error file=data.dvc,line=2,")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(damaged.top))
    assert "GITHUB_STEP_SUMMARY" in run("verify", "--format", "github").err


# the line of a hash --------------------------------------------------------------------------


def line_holding(file: Path, text: str) -> int:
    """Return the only line that holds a text, from 1."""
    (line,) = [n for n, each in enumerate(file.read_text().splitlines(), 1) if text in each]
    return line


def test_the_line_is_that_of_the_output_among_several(project: Project) -> None:
    """Outputs of one ``.dvc`` file are told apart, whatever stands before them."""
    digests = [digit * 32 for digit in "abc"]
    outs = "".join(
        f"- path: 'f{n}'\n  md5: {each}\n  hash: md5\n" for n, each in enumerate(digests)
    )
    project.write({"many.dvc": f"# path: f1\nouts:\n{outs}".encode()})
    sha = project.commit()
    places = Repository().places({"f0", "f1", "f2", "none"}, sha)
    lines = [line_holding(project.root / "many.dvc", each) for each in digests]
    assert {f"f{n}": Place("many.dvc", line) for n, line in enumerate(lines)} == places
    project.write({"many.dvc": b"outs: []\n"})
    assert places == Repository().places({"f0", "f1", "f2"}, sha)
    assert {} == Repository().places({"f0"}, "workspace")


def test_the_line_is_found_in_a_lock(project: Project) -> None:
    """Of stages with the same names of outputs, in sub-folders and with a ``wdir``."""
    stage = {"cmd": "echo one > x && echo two > y", "outs": ["x", "y"], "wdir": "sub"}
    (project.root / "sub").mkdir()
    project.run_stages({"other": {"cmd": "echo three > x", "outs": ["x"]}, "make": stage})
    project.write_yaml(
        "never/dvc.yaml", {"stages": {"late": {"cmd": "true", "outs": ["z"], "deps": ["d"]}}}
    )
    sha = project.commit()
    places = Repository().places({"x", "sub/x", "sub/y", "never/z"}, sha)
    lock = project.root / "dvc.lock"
    digests = {
        path: next(out for out in Repository().outs(sha) if out.path == path).digest
        for path in ("x", "sub/x", "sub/y")
    }
    for path, digest in digests.items():
        assert digest is not None
        assert Place("dvc.lock", line_holding(lock, digest.hex)) == places[path]
    late = line_holding(project.root / "never/dvc.yaml", '"late"')
    assert Place("never/dvc.yaml", late) == places["never/z"]


def test_the_file_is_relative_to_the_git_repository(make_project: object) -> None:
    """Also where the DVC project lies in a sub-folder of it."""
    made = make_project("whole", "inner")  # type: ignore[operator]
    made.add("data", FOLDER)
    sha = made.commit()
    assert {"data": Place("inner/data.dvc", 2)} == Repository(made.root).places({"data"}, sha)


# the Action ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the step of the Action that installs; return the folder that it filled."""
    checkout, site = tmp_path_factory.mktemp("action"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE", "action.yml"):
        shutil.copy(TOP / name, checkout)
    shutil.copytree(
        TOP / "dvc_integrity", checkout / "dvc_integrity",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )  # fmt: skip
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    done = step(0, site, GITHUB_ACTION_PATH=str(checkout), PIP_TARGET=str(site), **offline)
    assert 0 == done.status, done.err
    return site


def step(number: int, folder: Path, **variables: str) -> Outcome:
    """Run a step of the Action as GitHub does, with inputs given as ``with_NAME``."""
    action = yaml.safe_load((TOP / "action.yml").read_text())
    assert "composite" == action["runs"]["using"]
    wanted = action["runs"]["steps"][number]
    inputs = {name: each.get("default", "") for name, each in action["inputs"].items()}
    given = {name: variables.pop(f"with_{name}") for name in inputs if f"with_{name}" in variables}
    inputs |= given
    env = {
        name: inputs[value.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, value in wanted.get("env", {}).items()
    }
    assert "${{" not in wanted["run"]  # an input must never become a part of a script
    assert "bash" == wanted["shell"]
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", wanted["run"]],
        cwd=folder,
        env=os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"} | env | variables,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_action_verifies_with_what_it_installed(damaged: Project, installed: Path) -> None:
    """Damage fails the step, annotates the metadata and writes the summary."""
    file = damaged.top / "summary.md"
    variables = {"PYTHONPATH": str(installed), "GITHUB_STEP_SUMMARY": str(file)}
    done = step(1, damaged.root, **variables)
    assert 1 == done.status, done.err
    assert done.out.startswith("::error file=data.dvc,line=2,")
    assert "damaged" in file.read_text()
    assert (installed / "dvc_integrity/formats/sarif.py").exists()


def test_the_inputs_of_the_action_are_words_not_code(damaged: Project, installed: Path) -> None:
    """A target a line, with spaces; nothing of them is run."""
    damaged.add("my data.txt", {"my data.txt": b"one\n"})
    damaged.commit()
    variables = {"PYTHONPATH": str(installed)}
    clean = step(1, damaged.root, with_targets="my data.txt\n", with_rev="HEAD",
                 with_args="--jobs 1\n--cold", **variables)  # fmt: skip
    assert 0 == clean.status, clean.err
    both = step(1, damaged.root, with_targets="my data.txt\ndata/a.bin\n", **variables)
    assert 1 == both.status
    cached = step(1, damaged.root, with_store="cache", **variables)
    assert 0 == cached.status, cached.err
    evil = step(1, damaged.root, with_targets="$(touch evil)", with_rev="`touch evil`",
                with_args="; touch evil", **variables)  # fmt: skip
    assert 2 == evil.status
    assert not (damaged.root / "evil").exists()


# the hooks -----------------------------------------------------------------------------------


def hooks() -> list[dict[str, object]]:
    """Return the hooks that this repository offers."""
    read: list[dict[str, object]] = yaml.safe_load((TOP / ".pre-commit-hooks.yaml").read_text())
    return read


def try_hook(project: Project, hook: str, tmp_path: Path, *arguments: str) -> Outcome:
    """Run a hook with pre-commit, with the program that is installed here, so without a network."""
    source = tmp_path / "hooks"
    if not source.exists():
        source.mkdir()
        local = [each | {"language": "system"} for each in hooks()]
        (source / ".pre-commit-hooks.yaml").write_text(yaml.safe_dump(local))
        git(source, "init", "--quiet")
        git(source, "add", "--all")
        git(source, "commit", "--quiet", "--message", "hooks")
    done = subprocess.run(
        [f"{PROGRAMS}/pre-commit", "try-repo", str(source), hook, "--verbose", *arguments],
        cwd=project.root,
        env=os.environ
        | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "PRE_COMMIT_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_hook_before_a_commit_holds_data_to_what_is_staged(
    project: Project, tmp_path: Path
) -> None:
    """New data that was added passes; data that differs from its ``.dvc`` file does not."""
    project.add("data", FOLDER)
    project.git("add", "--all")
    passed = try_hook(project, "dvc-integrity-verify", tmp_path)
    assert 0 == passed.status, passed.out
    assert "Passed" in passed.out
    faults.flip_bit(project.root / "data/a.bin")
    failed = try_hook(project, "dvc-integrity-verify", tmp_path)
    assert 1 == failed.status
    assert "corrupt" in failed.out + failed.err
    project.git("rm", "--cached", "--quiet", "data.dvc")
    project.write({"code.py": b"\n"})
    project.git("add", "code.py")
    assert "Skipped" in try_hook(project, "dvc-integrity-verify", tmp_path).out


def test_the_hook_before_a_push_holds_data_to_the_commit(damaged: Project, tmp_path: Path) -> None:
    """It runs whatever changed."""
    stage = ("--hook-stage", "pre-push", "--all-files")
    failed = try_hook(damaged, "dvc-integrity-verify-push", tmp_path, *stage)
    assert 1 == failed.status
    assert "corrupt" in failed.out + failed.err
    (damaged.root / "data/a.bin").unlink()
    damaged.dvc("checkout", "--force")
    passed = try_hook(damaged, "dvc-integrity-verify-push", tmp_path, *stage)
    assert 0 == passed.status, passed.out


@pytest.mark.usefixtures("damaged")
def test_junit_and_sarif_are_read_from_a_real_run(run: Run) -> None:
    """The suite fails, the result points at the file that holds the hash."""
    assert "1" == ET.fromstring(run("verify", "--format", "junit").out).attrib["failures"]
    log = json.loads(run("verify", "--format", "sarif").out)
    (result,) = log["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert ("data.dvc", 2) == (place["artifactLocation"]["uri"], place["region"]["startLine"])


# the how-to ----------------------------------------------------------------------------------


def test_the_how_to_tells_what_works(project: Project, run: Run) -> None:
    """Its commands end well on clean data; inputs and hooks that it names exist."""
    project.add("data", FOLDER)
    project.commit()
    text = (TOP / "docs/howto-ci.md").read_text()
    commands = re.findall(r"^\$ dvc-integrity (.+)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        done = run(*command.split())
        assert 0 == done.status, (command, done)
    workflow, configuration = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    (inputs,) = [each["with"] for each in workflow["jobs"]["data"]["steps"] if "with" in each]
    assert inputs.keys() <= yaml.safe_load((TOP / "action.yml").read_text())["inputs"].keys()
    offered = {each["id"] for each in hooks()}
    assert offered == {each["id"] for each in configuration["repos"][0]["hooks"]}

"""Every test runs as a user who has no configuration, no caches and no network.

Git, dulwich and libgit2 read ``$HOME`` (libgit2 once, when it is loaded), so one empty home
serves the whole run; DVC's own places are fresh for each test.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from matrix import matrix
from projects import Project, new_project
from servers import S3, Bucket, served

GIT_CONFIG = """\
[user]
    name = Tester
    email = tester@example.org
[init]
    defaultBranch = main
[commit]
    gpgSign = false
[protocol "file"]
    allow = always
[advice]
    detachedHead = false
[gc]
    auto = 0
"""

DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
"""


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the run a home folder of its own, and no variable that points elsewhere."""
    home = tmp_path_factory.mktemp("home")
    (home / ".gitconfig").write_text(GIT_CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_", "XDG_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("GIT_TERMINAL_PROMPT", "0")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield


@pytest.fixture(autouse=True)
def _dvc_places(
    _home: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test empty DVC configuration folders and an empty site cache."""
    places = tmp_path_factory.mktemp("dvc")
    for name in ("system", "global", "site"):
        (places / name).mkdir()
    (places / "global" / "config").write_text(DVC_CONFIG)
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(places / "system"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(places / "global"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(places / "site"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what became of every fault in every place, as a Markdown table."""
    if os.environ.get("RESTORE_MATRIX") != "whole":
        return
    reports = itertools.chain(*terminalreporter.stats.values())
    lines = matrix(each for each in reports if isinstance(each, pytest.TestReport))
    terminalreporter.section("fault x place, remote and link type")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return an empty DVC project, the current folder inside it."""
    made = new_project(tmp_path / "project")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Project]:
    """Return a builder of further projects, by name."""

    def make(name: str, subdir: str = ".") -> Project:
        return new_project(tmp_path / name, subdir)

    return make


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Run a server of S3; give its port, and the file that it logs requests to."""
    with served(S3, tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bucket(server: tuple[int, Path], request: pytest.FixtureRequest) -> Bucket:
    """Make a bucket for a test."""
    made = Bucket(*server, name=f"b{abs(hash(request.node.nodeid)) % 10**12:012}")
    made.request("PUT")
    return made

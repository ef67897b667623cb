"""``Repository.reader``: readers by policy, source, budget and schedule, without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import faults
import pytest
from projects import Project

import dvc_integrity as di
from dvc_integrity.incidents import TooManyIncidents

FILES = {f"data/{name}": name.encode() * 50 for name in "abcdefgh"}


@pytest.fixture
def tracked(project: Project) -> Project:
    """Return a project with a few committed files."""
    project.dvc("config", "cache.type", "copy")
    project.add("data", FILES)
    project.commit("data")
    return project


def test_a_bad_file_is_restored(tracked: Project) -> None:
    """``read``, ``read_many`` and ``open`` all give the committed bytes, and leave them there."""
    reader = di.Repository(tracked.root).reader("data", on_corrupt="restore")
    for read in (reader.read, lambda path: reader.open(path).read()):
        faults.flip_bit(tracked.root / "data/a")
        assert FILES["data/a"] == read("data/a") == (tracked.root / "data/a").read_bytes()
    faults.delete(tracked.root / "data/b")
    assert list(FILES.values()) == reader.read_many(FILES)


@pytest.mark.parametrize("policy", ["raise", "substitute"])
def test_no_other_bytes_come_for_a_path(policy: Any, tracked: Project) -> None:
    """Who asks for a path gets that file or an error; the budget counts files and then ends it."""
    reader = di.Repository(tracked.root).reader("data", on_corrupt=policy, error_budget=1)
    for path in ("data/a", "data/b"):
        faults.flip_bit(tracked.root / path)
    for _ in range(2):
        with pytest.raises(di.CorruptDataError) as caught:
            reader.read("data/a")
        assert di.CorruptDataError is type(caught.value)
    with pytest.raises(TooManyIncidents, match="data/b"):
        reader.read("data/b")
    rows = [reader.row(path) for path in ("data/c", "data/a")]
    with pytest.raises(TooManyIncidents):  # the end of the run is no value
        reader.read_each(rows)
    assert [FILES["data/c"]] == reader.read_each(rows[:1])


def test_another_revision_comes_from_the_cache(tracked: Project) -> None:
    """No checkout of it is needed."""
    former = tracked.git("rev-parse", "HEAD")
    tracked.add("data", {"data/a": b"later"})
    tracked.commit("later")
    repository = di.Repository(tracked.root)
    assert b"later" == repository.reader("data").read("data/a")
    reader = repository.reader("data", rev=former, source="cache")
    assert FILES["data/a"] == reader.read("data/a")


def test_a_share_is_skipped_only_in_epochs_that_are_named(tracked: Project) -> None:
    """Without an epoch all is hashed; over two epochs each bad file is caught exactly once."""
    reader = di.Repository(tracked.root).reader("data", check=0.5)
    for path in FILES:
        faults.flip_bit(tracked.root / path)
    rows = range(len(FILES))

    def caught() -> list[int]:
        found = reader.read_each(rows)
        return [row for row in rows if isinstance(found[row], di.CorruptDataError)]

    assert list(rows) == caught()
    reader.epoch = 4
    first = caught()
    reader.epoch = 5
    assert list(rows) == sorted(first + caught())
    assert first


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"on_corrupt": "skip"}, ValueError),
        ({"on_corrupt": "restore", "source": "cache"}, ValueError),
        ({"error_budget": -1}, ValueError),
        ({"check": 0}, ValueError),
        ({"source": "remote:none"}, di.RepositoryError),
        ({"rev": "nowhere"}, di.RepositoryError),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], tracked: Project
) -> None:
    """Before anything is read."""
    with pytest.raises(error):
        di.Repository(tracked.root).reader("data", **options)


def test_pytorch_is_not_needed(tracked: Project) -> None:
    """Neither to make a reader nor to use it."""
    program = (
        "import sys, dvc_integrity as di\n"
        "print(di.Repository('.').reader('data', on_corrupt='restore').read('data/a'))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tracked.root,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("", [str(FILES["data/a"]), "False"]) == (done.stderr, done.stdout.splitlines())

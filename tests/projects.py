"""Real Git and DVC repositories, built by the real commands.

``git`` runs as a program. ``dvc`` runs through ``dvc.cli.main`` in this process, which is the
same code as the program's, without two seconds of imports for every command.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.cli import main as dvc_main

Tree = Mapping[str, bytes]
"""File contents by their path."""


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make ``folder`` the current one for a while."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def git(folder: Path, *arguments: str) -> str:
    """Run git in ``folder``; return what it printed."""
    command = ["git", "-C", os.fspath(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> None:
    """Run a dvc command in ``folder``; it must succeed."""
    with inside(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DVC's own warnings are not what is tested here
        sys.argv, before = ["dvc", *arguments], sys.argv  # DVC looks there for -q and -v
        try:
            status = dvc_main(list(arguments))
        finally:
            sys.argv = before
    assert status == 0, (arguments, status)


def md5(data: bytes) -> str:
    """Return the content hash of ``data`` in 32 hexadecimal digits."""
    return hashlib.md5(data).hexdigest()


def listing(files: Tree) -> bytes:
    """Return the ``.dir`` object that DVC writes for a folder with these files."""
    return raw_listing([{"md5": md5(files[path]), "relpath": path} for path in sorted(files)])


def raw_listing(entries: object, indent: int | None = None) -> bytes:
    """Return any value in the JSON form of a ``.dir`` object."""
    return json.dumps(entries, sort_keys=True, indent=indent).encode()


@dataclass(frozen=True)
class Project:
    """A DVC project in a Git repository.

    ``top`` is the Git work tree, ``root`` the folder with ``.dvc`` in it: the same folder
    unless the project was made with ``dvc init --subdir``.
    """

    top: Path
    root: Path

    @property
    def cache(self) -> Path:
        """Where the objects of the cache lie by default."""
        return self.root / ".dvc" / "cache"

    def git(self, *arguments: str) -> str:
        """Run git at the root; return what it printed."""
        return git(self.root, *arguments)

    def dvc(self, *arguments: str, folder: str = ".") -> None:
        """Run a dvc command at the root or in a folder below."""
        dvc(self.root / folder, *arguments)

    def write(self, files: Tree) -> None:
        """Write files, and the folders that they need."""
        for path, data in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def write_yaml(self, path: str, document: object) -> None:
        """Write a document by hand, in the JSON that is also YAML."""
        self.write({path: json.dumps(document, indent=2).encode()})

    def write_outs(self, path: str, *outs: Mapping[str, object]) -> None:
        """Write a ``.dvc`` file by hand."""
        self.write_yaml(path, {"outs": list(outs)})

    def add(self, target: str, files: Tree) -> None:
        """Write files and track ``target`` with ``dvc add``."""
        self.write(files)
        self.dvc("add", "--", target)

    def run_stages(self, stages: Mapping[str, object], folder: str = ".") -> None:
        """Write a ``dvc.yaml`` and run its stages with ``dvc repro``."""
        self.write_yaml(f"{folder}/dvc.yaml", {"stages": stages})
        self.dvc("repro", "--quiet", folder=folder)

    def commit(self, message: str = "change") -> str:
        """Commit everything; return the full SHA."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")


def object_path(store: Path, oid: str, *, legacy: bool = False) -> Path:
    """Return where a cache or a local remote keeps an object (``legacy``: as DVC 2 did)."""
    folder = store if legacy else store / "files" / "md5"
    return folder / oid[:2] / oid[2:]


def plant(store: Path, data: bytes, suffix: str = "", *, legacy: bool = False) -> str:
    """Put an object where its hash says, read-only as DVC does it; return its name."""
    oid = md5(data) + suffix
    path = object_path(store, oid, legacy=legacy)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)
    return oid


def new_project(top: Path, subdir: str = ".") -> Project:
    """Make a Git repository with an empty DVC project in it, and commit that."""
    made = Project(top, top / subdir)
    made.root.mkdir(parents=True)
    git(top, "init", "--quiet")
    made.dvc("init", "--quiet", *([] if subdir == "." else ["--subdir"]))
    made.commit("init")
    return made

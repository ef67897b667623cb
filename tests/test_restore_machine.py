"""What a project may go through, in any order, and what ``verify`` and ``restore`` owe it.

The oracle is a dictionary of what was committed, and the disk itself, read and hashed here. DVC
does damage of its own, so the disk is read again after each of its commands; only what this
package does is held to the laws.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faults
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from projects import Tree, listing, md5, new_project, object_path

import dvc_integrity as di
from dvc_integrity.cli import commands

SIZE = 5000
"""More than a page, and the same for all contents, so that a size proves nothing."""


class Content(bytes):
    """Bytes that are told in a word."""

    def __repr__(self) -> str:
        return f"<{self[:4].hex()}...>"


CONTENTS = [Content(random.Random(seed).randbytes(SIZE)) for seed in range(6)]
EDITS = [Content(random.Random(seed).randbytes(SIZE)) for seed in range(100, 104)]
OUTS: dict[str, tuple[str, ...]] = {
    "one.bin": ("one.bin",),
    "two.bin": ("two.bin",),
    "data": ("data/a.bin", "data/b.bin", "data/sub/c.bin"),
}
STORES = ("workspace", "cache", "remote")
WRITES = {"os.rename", "os.link", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod"}

contents = st.sampled_from(CONTENTS)
edits = st.sampled_from(EDITS)
numbers = st.integers(0, 1 << 16)
stores = st.sampled_from(STORES)

EXAMPLES = int(os.environ.get("DVC_INTEGRITY_MACHINE", "0"))
"""How many histories to try; by default few, and always the same."""

thorough = settings(max_examples=EXAMPLES or 1, stateful_step_count=40, print_blob=True)
brief = settings(max_examples=12, stateful_step_count=25, derandomize=True, phases=[Phase.generate])


def lying(path: Path) -> bytes | str | None:
    """Return the bytes at a path, links followed; a word for what is no file."""
    if path.is_file():
        return path.read_bytes()
    return "folder" if path.is_dir() else None


def below(*folders: Path) -> dict[Path, bytes]:
    """Return the bytes of every file below some folders."""
    found = {}
    for top in folders:
        for folder, _, names in os.walk(top):
            places = [Path(folder, name) for name in names]
            found |= {place: place.read_bytes() for place in places if place.is_file()}
    return found


def clear(path: Path) -> None:
    """Remove whatever lies at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def swap_with_noise(path: Path) -> None:
    """Put other bytes of the same size into a file, silently."""
    with faults.silently(path):
        path.write_bytes(hashlib.shake_128(path.read_bytes()).digest(path.stat().st_size))


def put_a_folder(path: Path) -> None:
    """Put a folder with a file in the place of a file."""
    faults.delete(path)
    path.mkdir()
    (path / "inside").write_bytes(b"what somebody left")


FAULTS: dict[str, Callable[[Path], None]] = {
    "flip": faults.flip_bit,
    "zero": faults.zero_page,
    "truncate": faults.truncate,
    "extend": faults.extend,
    "noise": swap_with_noise,
    "delete": faults.delete,
    "folder": put_a_folder,
}
kinds = st.sampled_from(sorted(FAULTS))


class Histories(RuleBasedStateMachine):
    """A project, its committed bytes, and what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="machine-"))
        self.remote = self.top / "remote"
        self.committed: dict[str, Tree] = {}
        self.edited: dict[str, bytes] = {}

    def teardown(self) -> None:
        """Remove the project."""
        os.chdir("/")
        shutil.rmtree(self.top)

    @initialize(order=st.permutations(CONTENTS))
    def begin(self, order: list[bytes]) -> None:
        """Make a project with two files and a folder, all pushed."""
        self.project = new_project(self.top / "project")
        os.chdir(self.project.root)
        self.project.dvc("remote", "add", "-d", "disk", os.fspath(self.remote))
        paths = [path for files in OUTS.values() for path in files]
        files = dict(zip(paths, order, strict=False))
        self.project.write(files)
        self.project.dvc("add", *OUTS)
        self.project.commit("data")
        for out, mine in OUTS.items():
            self.committed[out] = {path: files[path] for path in mine}
        self.project.dvc("push")

    # ------------------------------------------------------------- the oracle

    @property
    def root(self) -> Path:
        """The folder that the project lies in."""
        return self.project.root

    @property
    def files(self) -> dict[str, bytes]:
        """What every file must be."""
        return {path: data for files in self.committed.values() for path, data in files.items()}

    def place(self, store: str, path: str) -> Path:
        """Return where the copy of a file, or of the listing of ``OUT/``, is to lie."""
        if store == "workspace":
            return self.root / path
        suffix = ".dir" if path.endswith("/") else ""
        folder = self.project.cache if store == "cache" else self.remote
        return object_path(folder, md5(self.expected(store)[path]) + suffix)

    def expected(self, store: str) -> dict[str, bytes]:
        """Return what a store is to hold, by path; listings end in a slash."""
        if store == "workspace":
            return self.files
        listings = {
            f"{out}/": listing({path.removeprefix(f"{out}/"): data for path, data in files.items()})
            for out, files in self.committed.items()
            if out not in files
        }
        return {**self.files, **listings}

    def bad(self, store: str) -> set[str]:
        """Return the paths that a store does not hold the committed bytes of."""
        return {
            path
            for path, data in self.expected(store).items()
            if lying(self.place(store, path)) != data
        }

    def extras(self) -> set[str]:
        """Return the files in tracked folders that no listing names."""
        found = set()
        for out, files in self.committed.items():
            if out not in files:
                found |= {
                    place.relative_to(self.root).as_posix() for place in below(self.root / out)
                }
        inside_out = {path for path in found if path not in self.files}
        return {
            path
            for path in inside_out
            if not any(path.startswith(f"{file}/") for file in self.files)
        }

    def everything(self) -> dict[Path, bytes]:
        """Return every file that a restore could touch."""
        top = [self.root / out for out in self.committed]
        alone = {path: path.read_bytes() for path in top if path.is_file()}
        return alone | below(*top, self.project.cache, self.remote)

    def kept(self) -> set[bytes]:
        """Return the bytes in the quarantine."""
        return set(below(self.root / ".dvc/tmp/integrity/quarantine").values())

    # ------------------------------------------------------------- what people and DVC do

    def dvc(self, *arguments: str) -> bool:
        """Run DVC; return whether it succeeded. Forget edits that it undid."""
        try:
            self.project.dvc(*arguments)
        except AssertionError:
            return False
        finally:
            self.edited = {
                path: data for path, data in self.edited.items() if lying(self.root / path) == data
            }
        return True

    @rule(out=st.sampled_from([*OUTS, "three.bin", "more"]), data=contents, edit=edits)
    def commit(self, out: str, data: bytes, edit: bytes) -> None:
        """Add an output, or commit what its files are now and a new content for one of them."""
        paths = list(OUTS.get(out, ("more/m.bin", "more/n.bin") if out == "more" else (out,)))
        now = {place.relative_to(self.root).as_posix(): bytes_ for place, bytes_ in below(
            self.root / out).items() if not any(
                place.relative_to(self.root).as_posix().startswith(f"{path}/") for path in paths
        )}  # fmt: skip
        files = {**dict.fromkeys(paths, edit), **now, paths[0]: data}
        clear(self.root / out)
        self.project.write(files)
        if self.dvc("add", out):
            self.project.commit(out)
            self.committed[out] = files
            for path in files:
                self.edited.pop(path, None)
        else:  # damage in the cache can make it fail
            self.project.git("reset", "--quiet", "--hard")
            self.project.git("clean", "-fdq")
            if out in self.committed:
                self.edited |= {p: d for p, d in files.items() if self.files.get(p, d) != d}
                self._drop_untrue_edits()

    def _drop_untrue_edits(self) -> None:
        self.edited = {p: d for p, d in self.edited.items() if lying(self.root / p) == d}

    @rule(number=numbers, data=edits)
    def edit(self, number: int, data: bytes) -> None:
        """Write a file anew, as an editor does."""
        path = self._chosen("workspace", number)
        clear(self.root / path)
        self.project.write({path: data})
        self.edited[path] = data

    @rule(number=numbers)
    def rename(self, number: int) -> None:
        """Give a file of a tracked folder another name."""
        path = self._chosen("workspace", number)
        if (self.root / path).is_file():
            os.rename(self.root / path, self.root / f"{path}.{number}")
            self.edited.pop(path, None)

    @rule(number=numbers, data=edits)
    def extra(self, number: int, data: bytes) -> None:
        """Leave a file in a tracked folder."""
        (self.root / "data").mkdir(exist_ok=True)
        (self.root / "data" / f"extra{number % 3}").write_bytes(data)

    @rule(number=numbers, mode=st.sampled_from([0o444, 0o600, 0o644, 0o755]))
    def chmod(self, number: int, mode: int) -> None:
        """Change the mode of a file of the work tree (or of the object that it links to)."""
        place = self.root / self._chosen("workspace", number)
        if place.is_file():
            place.chmod(mode)

    @rule(store=stores, number=numbers, kind=kinds, poison=st.booleans())
    def damage(self, store: str, number: int, kind: str, poison: bool) -> None:
        """Damage a file, an object or a listing; DVC's records may say that it is well."""
        path = self._chosen(store, number)
        place = self.place(store, path)
        content = lying(place)
        if not isinstance(content, bytes) or not content.strip(b"\0"):
            return
        if kind in ("flip", "zero", "noise", "truncate", "extend"):
            place = Path(os.path.realpath(place))
        if kind == "zero" and not content[: faults.PAGE_BYTES].strip(b"\0"):
            return
        FAULTS[kind](place)
        self._drop_untrue_edits()
        if poison and store == "workspace" and isinstance(lying(place), bytes):
            expected = md5(self.files[path])
            with Repo(os.fspath(self.root)) as repo:
                repo.state.save(
                    os.fspath(self.root / path), repo.cache.local.fs, HashInfo("md5", expected)
                )

    @rule(store=stores, first=numbers, second=numbers)
    def swap(self, store: str, first: int, second: int) -> None:
        """Exchange the bytes of two files of one store."""
        one, two = (self.place(store, self._chosen(store, each)) for each in (first, second))
        if not (one.is_file() and two.is_file()) or one.samefile(two):
            return
        here, there = one.read_bytes(), two.read_bytes()
        if len(here) == len(there) and here != there:
            faults.swap(Path(os.path.realpath(one)), Path(os.path.realpath(two)))
            self._drop_untrue_edits()

    @rule(command=st.sampled_from(["checkout", "checkout -f", "push", "pull", "fetch", "gc -wf"]))
    def run_dvc(self, command: str) -> None:
        """Let DVC do what it does."""
        self.dvc(*command.split())

    @rule(link=st.sampled_from(["copy", "hardlink", "symlink"]))
    def relink(self, link: str) -> None:
        """Change how DVC makes the work tree from the cache."""
        self.dvc("config", "cache.type", link)
        self.dvc("checkout", "--relink")

    def _chosen(self, store: str, number: int) -> str:
        paths = sorted(self.expected(store))
        return paths[number % len(paths)]

    # ------------------------------------------------------------- what is held to the laws

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[di.Repository, Any] | None]:
        """Open the project; it may refuse only where a listing is good nowhere."""
        repository = di.Repository(self.root)
        lost = {path for path in self.bad("cache") & self.bad("remote") if path.endswith("/")}
        try:
            manifest = repository.manifest()
        except di.IntegrityError:
            assert lost
            yield None
        else:
            yield repository, manifest

    @rule(store=stores)
    def verify(self, store: str) -> None:
        """Clean is said only of what is clean, and nothing good is a finding."""
        before = self.everything()
        with self.opened() as opened:
            if opened is not None:
                repository, manifest = opened
                report = di.verify(manifest, repository.store(store))
                self._hold(report, store)
        assert before == self.everything()

    def _hold(self, report: Any, store: str) -> None:
        extras = self.extras() if store == "workspace" else set()
        bad = self.bad(store)
        found = {
            f"{each.path}/" if each.path in self.committed and each.path not in self.files
            else each.path: each.status.value for each in report.findings
        }  # fmt: skip
        assert bad | extras == set(found)
        assert (report.verdict is di.Verdict.CLEAN) == (not found)
        for path, status in found.items():
            if path in extras:
                assert status == "extra"
            elif lying(self.place(store, path)) is None:
                assert status == "missing"
            else:
                assert status in ("corrupt", "modified")
            if store == "workspace" and path in self.edited:
                assert status == "modified"

    @rule(all_places=st.booleans())
    def status(self, all_places: bool) -> None:
        """``status`` ends with 0 only where all is good, in the places that it looks at."""
        with self.opened() as opened:
            if opened is None:
                return
        places = STORES if all_places else ("workspace",)
        wrong = any(map(self.bad, places)) or bool(self.extras())
        arguments = ["status", "-q", *(["--all-places"] if all_places else [])]
        assert int(wrong) == commands(arguments, standalone_mode=False)

    def _restore(
        self, repository: di.Repository, manifest: Any, judged: str, names: tuple[str, ...],
        modified: bool, push: bool, everywhere: bool,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        report = di.verify(manifest, repository.store(judged))
        plan = di.restore(
            report,
            repository.workspace,
            [repository.store(name) for name in names],
            modified=modified,
            push=[store.name for store in repository.remotes] if push else (),
            everywhere=everywhere,
            scratch=repository.scratch,
        )
        return report, plan, plan.apply()

    @rule(
        judged=st.sampled_from(["workspace", "workspace", "cache"]),
        names=st.sampled_from([("cache", "remote"), ("cache", "remote"), ("cache",), ("remote",)]),
        modified=st.booleans(),
        push=st.booleans(),
        everywhere=st.booleans(),
    )
    def restore(
        self, judged: str, names: tuple[str, ...], modified: bool, push: bool, everywhere: bool
    ) -> None:
        """Nothing is lost, what can be restored is, and success is the truth."""
        push = push and "remote" in names
        if judged == "cache" and "cache" not in names:
            names = ("cache", *names)
        with self.opened() as opened:
            if opened is None:
                return
        before, good = self.everything(), self._good()
        extras, mine = self.extras(), dict(self.edited)
        report, plan, done = self._restore(*opened, judged, names, modified, push, everywhere)
        self._hold_nothing_lost(before, good)
        for path in extras:
            assert before[self.root / path] == (self.root / path).read_bytes()
        drift = {each.path for each in report.findings if each.status.value == "modified"}
        if not modified:
            for path, data in mine.items():
                assert data == lying(self.root / path)
            for path in drift if judged == "workspace" else ():
                if self.root / path in before:
                    assert before[self.root / path] == lying(self.root / path)
        self._hold_restored(report, good, names, modified)
        if plan.steps:
            self._hold_no_temporary()
        if done.ok:
            self._hold_success(judged, names, everywhere)
        self._drop_untrue_edits()

    def _good(self) -> dict[str, set[str]]:
        return {store: set(self.expected(store)) - self.bad(store) for store in STORES}

    def _hold_nothing_lost(self, before: dict[Path, bytes], good: dict[str, set[str]]) -> None:
        after, kept = self.everything(), self.kept()
        for store, paths in good.items():
            assert not paths & self.bad(store)
        lost = [
            path for path, data in before.items() if after.get(path) != data and data not in kept
        ]
        assert not lost

    def _hold_restored(
        self, report: Any, good: dict[str, set[str]], names: tuple[str, ...], modified: bool
    ) -> None:
        bad = self.bad(report.store)
        for each in report.findings:
            wanted = each.status.value in ("missing", "corrupt") or (
                each.status.value == "modified" and modified
            )
            if wanted and any(each.path in good[name] for name in names if name != report.store):
                assert each.path not in bad

    def _hold_no_temporary(self) -> None:
        scratch = self.root / ".dvc/tmp/integrity"
        left = below(scratch / "staging")
        everywhere = [*self.everything(), *below(scratch)]
        assert not left
        assert [] == [path for path in everywhere if path.suffix == ".tmp"]

    def _hold_success(self, judged: str, names: tuple[str, ...], everywhere: bool) -> None:
        for store in {judged, *(names if everywhere else ())}:
            assert not self.bad(store)
        if judged == "workspace" and "cache" in names and not self.extras():
            with Repo(os.fspath(self.root)) as repo:
                assert {} == repo.status()

    @rule(modified=st.booleans(), everywhere=st.booleans(), after=st.integers(0, 60))
    def crash(self, modified: bool, everywhere: bool, after: int) -> None:
        """Lose nothing to a kill before any change of the disk."""
        with self.opened() as opened:
            if opened is None:
                return
        before, good = self.everything(), self._good()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads that ended long ago
            child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                die_after(after)
                self._restore(
                    *opened, "workspace", ("cache", "remote"), modified, everywhere, everywhere
                )
            os._exit(0)
        os.waitpid(child, 0)
        self._hold_nothing_lost(before, good)
        self._drop_untrue_edits()


def die_after(changes: int) -> None:
    """Kill this process before it changes the disk once more than so many times."""
    left = changes

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


Histories.TestCase.settings = settings(
    thorough if EXAMPLES else brief,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase

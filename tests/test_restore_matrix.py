"""Every fault in every place: what ``verify`` says, what ``restore`` does, what DVC finds after it.

A cell is a fault, the places that have it, the link type of the cache, the kind of remote, and
how the restore is asked for: for what is damaged, or for all places at once. Faults of one cell
differ from place to place, so that the quarantine shows whose bytes it holds.

Remotes on servers are tested in every pair of fault, places, link type and way of asking.
``RESTORE_MATRIX=whole`` tests them in every cell, and prints a table of what became of each.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
import urllib.parse
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faults
import pytest
from dvc.cli import main as dvc_main
from dvc.repo import Repo
from projects import Project, listing, md5, object_path
from servers import CREDENTIALS, SSH, WEB, Bucket, served

import dvc_integrity.cli

WHOLE = os.environ.get("RESTORE_MATRIX") == "whole"

PAGES = 3 * faults.PAGE_BYTES
FIRST, SECOND, TOOL, FOLDER = "data/a.bin", "data/b.bin", "tool", "data"
FILES = {
    FIRST: b"alpha" * (PAGES // 5) + b"al",
    SECOND: b"bravo" * (PAGES // 5) + b"br",
    "data/sub/c.bin": b"charlie" * 700,
}
LISTING = listing({path.removeprefix("data/"): data for path, data in FILES.items()})
SCRIPT = b"#!/bin/sh\n" * 900

PLACES = ("workspace", "cache", "remote")
LINKS = ("copy", "hardlink", "symlink")
KINDS = ("local", "s3", "http", "ssh")


# ----------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """A kind of damage, and what it is called where it is found.

    ``paths`` are the entries that it damages, ``inject`` gets their places and a number that no
    other place of the cell gets. ``written`` says whether the modification time tells of it,
    ``in_place`` whether the file stays the same inode, so that its hard links have the fault too.
    """

    name: str
    inject: Callable[[list[Path], int], None]
    paths: tuple[str, ...] = (FIRST,)
    places: tuple[str, ...] = PLACES
    status: str = "corrupt"
    written: bool = False
    in_place: bool = True
    harmless: bool = False


def _each(damage: Callable[[Path, int], None]) -> Callable[[list[Path], int], None]:
    def inject(places: list[Path], number: int) -> None:
        for place in places:
            damage(place, number)

    return inject


@_each
def _flip(path: Path, number: int) -> None:
    faults.flip_bit(path, bit=number)


@_each
def _truncate(path: Path, number: int) -> None:
    faults.truncate(path, 5000 + number)


@_each
def _edit(path: Path, number: int) -> None:
    faults.edit(path, b"edit %d" % number)


@_each
def _replace_by_folder(path: Path, number: int) -> None:
    faults.replace_by_folder(path, b"work %d" % number)


FAULTS = (
    Fault("bit flip", _flip),
    Fault("bit flip (executable)", _flip, (TOOL,)),
    Fault("truncated", _truncate, written=True),
    Fault("zeroed page", _each(faults.zero_page)),
    Fault("made writable, edited", _edit, written=True),
    Fault("deleted", _each(lambda path, _: faults.delete(path)), status="missing", in_place=False),
    Fault("two swapped", lambda paths, _: faults.swap(*paths), (FIRST, SECOND)),
    Fault(
        "a folder there",
        _replace_by_folder,
        written=True,
        in_place=False,
    ),
    Fault(
        "executable bit lost",
        _each(lambda path, _: faults.change_mode(path, take=0o111)),
        (TOOL,),
        ("workspace",),
        written=True,
    ),
    Fault(
        "made writable",
        _each(lambda path, _: faults.change_mode(path, add=stat.S_IWUSR)),
        places=("cache", "remote"),
        harmless=True,
    ),
    Fault(
        "tampered listing",
        _each(faults.tamper_listing),
        (FOLDER,),
        ("cache", "remote"),
    ),
)


@dataclass(frozen=True)
class Cell:
    """One case of the matrix."""

    fault: Fault
    places: tuple[str, ...]
    link: str
    kind: str
    everywhere: bool

    def __str__(self) -> str:
        asked = "everywhere" if self.everywhere else "narrow"
        return f"{self.fault.name}-{'+'.join(self.places)}-{self.link}-{self.kind}-{asked}".replace(
            " ", "_"
        )

    @property
    def shares(self) -> bool:
        """Whether the file of the work tree shows the fault of its object in the cache."""
        linked = self.link == "symlink" or (self.link == "hardlink" and self.fault.in_place)
        file = self.fault.paths[0] not in (FOLDER, TOOL)
        return linked and file and "cache" in self.places and "workspace" not in self.places

    @property
    def bad(self) -> set[str]:
        """The places where a reader meets the fault."""
        return {*self.places, "workspace"} if self.shares else set(self.places)

    @property
    def hopeless(self) -> bool:
        """Whether no place has a good copy left."""
        holders = {"cache", "remote"} if self.fault.paths == (FOLDER,) else set(PLACES)
        return self.bad == holders

    @property
    def loses_link(self) -> bool:
        """Whether a good file is a hard link to an object that is not in the cache any more."""
        away = self.link == "hardlink" and not self.fault.in_place and "cache" in self.places
        return away and "workspace" not in self.places

    @property
    def read_only(self) -> bool:
        """Whether the remote is bad and takes nothing."""
        return self.kind == "http" and "remote" in self.places

    def expected(self, place: str) -> dict[str, str]:
        """Return what ``verify`` is to say of a place: statuses by path."""
        if self.fault.paths == (FOLDER,) and place == "workspace" and self.hopeless:
            return {FOLDER: "unverifiable"}
        if place not in self.bad or self.fault.harmless:
            return {}
        status = self.fault.status
        if place == "workspace" and status == "corrupt":
            own = self.link != "copy" and not self.shares  # DVC has no record of such a file
            status = "modified" if own or self.fault.written else "corrupt"
        found = dict.fromkeys(self.fault.paths, status)
        if place == "workspace" and self.fault.name == "a folder there" and not self.shares:
            found[f"{FIRST}/inside"] = "extra"
        return found


def _cells(kinds: tuple[str, ...]) -> Iterator[Cell]:
    """Yield every case that makes sense with some kinds of remotes."""
    for fault, link, kind in itertools.product(FAULTS, LINKS, kinds):
        if TOOL in fault.paths and link != "copy":
            continue  # DVC gives no link to an object an executable bit
        if kind == "s3" and fault.name in ("a folder there", "made writable"):
            continue  # S3 has neither
        for size in (1, 2, 3):
            for places in itertools.combinations(fault.places, size):
                if kind != "local" and "remote" not in places and places != ("workspace", "cache"):
                    continue  # the remote takes no part
                yield Cell(fault, places, link, kind, everywhere=True)
                if "remote" not in places and (WHOLE or size == 1):
                    yield Cell(fault, places, link, kind, everywhere=False)


def _pairs(cells: list[Cell]) -> list[Cell]:
    """Return cells in which each pair of properties occurs that occurs in ``cells``."""

    def pairs(cell: Cell) -> set[Any]:
        parts = (cell.fault.name, cell.places, cell.link, cell.everywhere)
        return set(itertools.combinations(enumerate(parts), 2))

    wanted = set().union(*map(pairs, cells))
    chosen = []
    while wanted:
        best = max(cells, key=lambda cell: len(pairs(cell) & wanted))
        chosen.append(best)
        wanted -= pairs(best)
    return chosen


LOCAL = list(_cells(("local",)))
FAR = [list(_cells((kind,))) for kind in KINDS[1:]]
CELLS = [*LOCAL, *itertools.chain(*(FAR if WHOLE else map(_pairs, FAR)))]


# ----------------------------------------------------------------- a project with one fault


@dataclass
class Site:
    """A project, its cache and its remote, and what lay there while all was well.

    ``mirror`` is the folder of the remote; for S3 one that is brought to the bucket. ``modes`` says
    whether DVC protects objects there.
    """

    project: Project
    mirror: Path
    bucket: Bucket | None = None
    modes: bool = True
    kept: Counter[Any] = field(default_factory=Counter)

    def place(self, store: str, path: str) -> Path:
        """Return where a store has an entry."""
        if store == "workspace":
            return self.project.root / path
        folder = self.project.cache if store == "cache" else self.mirror
        data = SCRIPT if path == TOOL else LISTING if path == FOLDER else FILES[path]
        return object_path(folder, md5(data) + (".dir" if path == FOLDER else ""))

    def damage(self, cell: Cell) -> None:
        """Bring the fault into its places, and note the bytes that are to be kept."""
        if "workspace" in cell.places and cell.link != "copy":
            for path in cell.fault.paths:
                faults.own_copy(self.place("workspace", path))
        for store in cell.places:
            places = [self.place(store, path) for path in cell.fault.paths]
            cell.fault.inject(places, PLACES.index(store))
            if not cell.fault.harmless and cell.fault.name != "executable bit lost":
                self.kept += Counter(_what(place) for place in places if os.path.lexists(place))
        self.upload()

    def upload(self) -> None:
        """Make the bucket what the mirror is."""
        if self.bucket is None:
            return
        here = _objects(self.mirror)
        for key in self.keys() - set(here):
            self.bucket.request("DELETE", f"pre/{key}")
        for key, data in here.items():
            self.bucket.request("PUT", f"pre/{key}", data)

    def keys(self) -> set[str]:
        """Return the keys in the bucket, below its prefix."""
        assert self.bucket
        space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
        found = ET.fromstring(self.bucket.request("GET", "?list-type=2"))
        names = [each.text or "" for each in found.iter(f"{space}Key")]
        return {urllib.parse.unquote(name).removeprefix("pre/") for name in names}

    def remote(self) -> dict[str, Any]:
        """Return what the remote holds: bytes by name, with modes where it has them."""
        if self.bucket is None:
            found = _shape(self.mirror)
            return found if self.modes else {name: what for name, (_, what) in found.items()}
        return {key: self.bucket.request("GET", f"pre/{key}") for key in self.keys()}

    def shape(self) -> dict[str, dict[str, Any]]:
        """Return bytes, modes and links of all that is data."""
        return {
            "workspace": _shape(self.project.root / "data")
            | (
                {TOOL: _looks(self.project.root / TOOL)}
                if (self.project.root / TOOL).exists()
                else {}
            ),
            "cache": _shape(self.project.cache),
            "remote": self.remote(),
            "linked": {
                path: self.place("workspace", path).samefile(self.place("cache", path))
                for path in FILES
                if self.place("workspace", path).exists() and self.place("cache", path).exists()
            },
        }

    def untouched(self, cell: Cell) -> dict[str, Any]:
        """Return everything of the files that have no fault, times and inodes too."""
        others = [path for path in [*FILES, TOOL, FOLDER] if path not in cell.fault.paths]
        stores = ("workspace", "cache") if self.bucket else PLACES
        places = [self.place(store, path) for store in stores for path in others]
        return {
            os.fspath(place): (_looks(place), place.lstat().st_mtime_ns, place.lstat().st_ino)
            for place in places
            if place.exists() and not place.is_dir()
        }

    def names(self) -> set[str]:
        """Return every name in the project and the remote but what the quarantine keeps."""
        ours = self.project.root / ".dvc/tmp/integrity"
        found = {
            os.fspath(path)
            for root in (self.project.root, self.mirror)
            for path in root.rglob("*")
            if not path.is_relative_to(ours / "quarantine")
        }
        known = (ours, ours / "staging", ours / "restore.lock")
        return found - {os.fspath(path) for path in known}

    def quarantine(self) -> Counter[Any]:
        """Return what was set aside."""
        folder = self.project.root / ".dvc/tmp/integrity/quarantine"
        return Counter(
            _what(each / "bytes") for each in (folder.iterdir() if folder.exists() else ())
        )


def _what(path: Path) -> Any:
    """Return the bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return tuple(sorted((each.name, each.read_bytes()) for each in path.iterdir()))
    return path.read_bytes()


def _looks(path: Path) -> tuple[int, bytes | str | None]:
    return stat.S_IMODE(path.lstat().st_mode), faults.content(path)


def _shape(root: Path) -> dict[str, Any]:
    return {
        os.path.relpath(path, root): _looks(path)
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }


def _objects(root: Path) -> dict[str, bytes]:
    return {
        os.path.relpath(path, root): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder below which remotes of HTTP lie."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, served_folder: Path) -> Iterator[int]:
    """Run a web server."""
    with served(WEB, tmp_path_factory.mktemp("web"), os.fspath(served_folder)) as (port, _):
        yield port


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a server of SSH."""
    with served(SSH, tmp_path_factory.mktemp("ssh")) as (port, _):
        yield port


@pytest.fixture
def site(
    cell: Cell,
    project: Project,
    tmp_path: Path,
    served_folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    """Return a project in which all is well, pushed to a remote of the cell's kind."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    mirror = tmp_path / "remote" if cell.kind != "http" else served_folder / md5(str(cell).encode())
    project.dvc("remote", "add", "--default", "far", os.fspath(mirror))
    project.dvc("config", "cache.type", cell.link)
    project.add(FOLDER, FILES)
    if TOOL in cell.fault.paths:
        project.write({TOOL: SCRIPT})
        (project.root / TOOL).chmod(0o744)
        project.dvc("add", TOOL)
    project.dvc("push")
    made = Site(project, mirror, modes=cell.kind != "ssh")
    if cell.kind == "s3":
        port, log = request.getfixturevalue("server")
        made.bucket = Bucket(port, log, name=f"b{md5(str(cell).encode())}")
        made.bucket.request("PUT")
        made.upload()
        project.dvc("remote", "modify", "far", "url", f"s3://{made.bucket.name}/pre")
        project.dvc("remote", "modify", "far", "endpointurl", made.bucket.endpoint)
    if cell.kind == "http":
        port = request.getfixturevalue("web")
        project.dvc("remote", "modify", "far", "url", f"http://127.0.0.1:{port}/{mirror.name}")
    if cell.kind == "ssh":
        port = request.getfixturevalue("ssh")
        project.dvc("remote", "modify", "far", "url", f"ssh://tester@127.0.0.1:{port}{mirror}")
    project.commit("data")
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the command line here: its status and its document."""

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["dvc-integrity", *arguments, "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            dvc_integrity.cli.main()
        status = ended.value.code
        assert isinstance(status, int)
        return status, json.loads(capsys.readouterr().out)

    return call


# ----------------------------------------------------------------- what holds in every cell


def how(cell: Cell) -> tuple[str, ...]:
    """Return the options that ask for what is damaged, or for everything."""
    if cell.everywhere:
        return ("--modified", "--all-places", *(() if cell.kind == "http" else ("--push",)))
    if cell.bad == {"cache"}:
        return ("--store", "cache")
    return ("--modified",)


def found_by_verify(run: Any) -> dict[str, dict[str, str]]:
    """Return what is not ok, by place and path; exit statuses must fit."""
    found = {}
    for place in PLACES:
        status, report = run("verify", "--store", place)
        worst_first = [(each["path"], each["status"]) for each in report["findings"]]
        found[place] = dict(reversed(worst_first))
        damaged = bool({*found[place].values()} - {"unverifiable"})
        doubtful = bool(found[place]) and not damaged
        assert (3 if doubtful else int(damaged)) == status, report
        verdict = "incomplete" if doubtful else "damaged" if damaged else "clean"
        assert verdict == report["verdict"]
    return found


def found_by_status(run: Any) -> dict[str, set[str]]:
    """Return the paths whose copy is not good, by place."""
    _, document = run("status", "--all-places")
    found: dict[str, set[str]] = {place: set() for place in PLACES}
    for item in document["items"]:
        for copy in item["copies"]:
            if copy["state"] != "good" or (copy["store"] == "workspace" and item["status"] != "ok"):
                found[copy["store"].partition(":")[0]].add(item["path"])
    return found


def dvc_finds(root: Path, *, cloud: bool) -> dict[str, Any]:
    """Return what DVC itself sees to be done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DVC's own warnings are not what is tested here
        with Repo(os.fspath(root)) as repo:
            seen = {"status": repo.status()}
            if cloud:
                seen["status -c"] = repo.status(cloud=True)
            data = repo.data_status(not_in_remote=cloud, remote_refresh=cloud)
            seen |= {name: data[name] for name in ("not_in_cache", "committed", "uncommitted")}
            seen["not_in_remote"] = data["not_in_remote"] if cloud else []
            checked_out = repo.checkout()
            seen |= {name: checked_out[name] for name in ("modified", "added", "deleted")}
    return {name: what for name, what in seen.items() if what}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_fault(cell: Cell, site: Site, run: Any, record_property: Any) -> None:
    """It is attributed to its places alone, and undone where a good copy is left."""
    well, names = site.shape(), site.names()
    site.damage(cell)
    others = site.untouched(cell)
    broken = site.shape()
    if cell.loses_link:
        well["linked"][FIRST] = False
    column = f"{cell.kind}, {cell.link}"
    record_property("matrix", [f"{cell.fault.name}", " + ".join(cell.places), column])

    wrong = {place: cell.expected(place) for place in PLACES}
    assert wrong == found_by_verify(run)
    seen = {place: set(found) - {f"{FIRST}/inside"} for place, found in wrong.items()}
    seen["workspace"] -= {FOLDER}  # a listing is no file of the work tree
    assert seen == found_by_status(run)
    assert broken == site.shape(), "what only reads has changed something"

    status, document = run("restore", *how(cell))
    assert others == site.untouched(cell)
    if cell.fault.harmless:
        assert_nothing_to_do(status, document)
        assert broken == site.shape()
        record_property("result", "no damage, left")
        return
    if cell.hopeless:
        assert_hopeless(cell, status, document)
        assert (broken, Counter()) == (site.shape(), site.quarantine())
        record_property("result", "hopeless, named")
        return
    if cell.read_only:
        assert_told(cell, status, document)
        well["remote"] = broken["remote"]
        record_property("result", "told, rest restored" if len(cell.bad) > 1 else "told")
    else:
        assert (0, True, []) == (status, document["ok"], document["hopeless"]), document
        record_property("result", "restored")
    assert_well(cell, site, run, well, names)


def assert_nothing_to_do(status: int, document: dict[str, Any]) -> None:
    changed = [each for each in document["outcomes"] if each["result"] != "good"]
    assert (0, [], []) == (status, changed, document["hopeless"]), document


def assert_hopeless(cell: Cell, status: int, document: dict[str, Any]) -> None:
    """Assert that the document names what cannot be restored, and nothing else."""
    named = {each["path"] for each in document["hopeless"]}
    tried = {each["path"] for each in document["outcomes"] if each["result"] == "hopeless"}
    assert (1, set(cell.fault.paths)) == (status, named | tried), document
    assert not [each for each in document["outcomes"] if each["result"] == "restored"]


def assert_told(cell: Cell, status: int, document: dict[str, Any]) -> None:
    """Assert that the fault of a remote that takes nothing is told."""
    told = {each["path"] for each in document["untouched"] if each["status"] != "extra"}
    assert (1, set(cell.fault.paths)) == (status, told), document


def assert_well(
    cell: Cell, site: Site, run: Any, well: dict[str, dict[str, Any]], names: set[str]
) -> None:
    """Assert that all is as it was, that all who look agree, and that nothing more happens."""
    assert well == site.shape()
    kept = site.kept
    if cell.read_only:
        kept = kept - Counter(
            _what(site.place("remote", path))
            for path in cell.fault.paths
            if site.place("remote", path).exists()
        )
        names = {name for name in names if not name.startswith(os.fspath(site.mirror))} | {
            os.fspath(path) for path in site.mirror.rglob("*")
        }
    assert kept == site.quarantine()
    if site.bucket is None:
        assert names == site.names()
    wrong = {
        place: cell.expected(place) if cell.read_only and place == "remote" else {}
        for place in PLACES
    }
    assert wrong == found_by_verify(run)
    assert {place: set(found) for place, found in wrong.items()} == found_by_status(run)
    assert {} == dvc_finds(site.project.root, cloud=cell.kind == "local")
    assert well == site.shape()
    before = faults.snapshot(site.project.root / "data"), faults.snapshot(site.project.cache)
    status, document = run("restore", *how(cell))
    if not cell.read_only:
        assert_nothing_to_do(status, document)
    assert before == (
        faults.snapshot(site.project.root / "data"),
        faults.snapshot(site.project.cache),
    )
    assert (well, kept) == (site.shape(), site.quarantine())


@pytest.mark.xfail(
    strict=True, reason="a good file is not linked again to an object that is made anew"
)
@pytest.mark.parametrize(
    "cell", [cell for cell in LOCAL if cell.loses_link and cell.fault.name == "deleted"], ids=str
)
def test_a_good_file_is_a_link_again_to_an_object_that_was_away(
    cell: Cell, site: Site, run: Any
) -> None:
    """With hard links the file and its object are one inode afterwards, as ``cache.type`` says."""
    site.damage(cell)
    assert 0 == run("restore", *how(cell))[0]
    assert site.place("workspace", FIRST).samefile(site.place("cache", FIRST))


# ----------------------------------------------------------------- what DVC itself does


PAGE = Path(__file__).parent.parent / "docs" / "explanation-dvc.md"
OWN = [
    cell
    for cell in LOCAL
    if len(cell.places) == 1 and cell.everywhere and cell.link != "symlink"
    if WHOLE or cell.fault.name in ("made writable, edited", "tampered listing")
]


def told(fault: str, place: str, link: str, command: str) -> str:
    """Return what the page tells of a command."""
    for line in PAGE.read_text().splitlines():
        row = [each.strip() for each in line.strip("|").split("|")]
        if row[:2] == [fault, place] and link in row[2].split(", "):
            return row[3 + ("status", "pull", "push").index(command)]
    pytest.fail(f"the page has no row for {fault}, {place}, {link}")


def words(said: str, status: int, cell: Cell, *shapes: dict[str, dict[str, Any]]) -> str:
    """Return in the words of the page what a command said and changed."""
    told = ("up to date", "modified:", "not in cache:")
    first = next((each.strip(":") for each in told if each in said), "done")
    well, broken, after = shapes
    changed = [place for place in PLACES if broken[place] != after[place]]
    effects = [
        "heals"
        if after[place] == well[place]
        else "deletes from"
        if place in cell.places
        else "damages"
        for place in changed
    ]
    return ", ".join(
        ["fails" if status else first, *map(" ".join, zip(effects, changed, strict=True))]
    )


@pytest.mark.parametrize("command", ["status", "pull", "push"])
@pytest.mark.parametrize("cell", OWN, ids=str)
def test_the_page_tells_what_dvc_itself_does(
    cell: Cell,
    site: Site,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every cell of the page is what the command says and does."""
    well = site.shape()
    site.damage(cell)
    broken = site.shape()
    monkeypatch.setattr(sys, "argv", ["dvc", command])
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DVC's own warnings are not what is tested here
        status = dvc_main([command])
    seen = words(capsys.readouterr().out, status, cell, well, broken, site.shape())
    assert told(cell.fault.name, cell.places[0], cell.link, command) == seen

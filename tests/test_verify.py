"""A store is held to a manifest: every difference is found, named, and nothing else is."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faults
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from observing import in_order
from projects import Tree, inside, listing, md5

import dvc_integrity as di
from dvc_integrity.hashing import Meter
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.observation import FileState, Observation, Observations
from dvc_integrity.report import Evidence, Finding, Hint, ManifestSummary, Status, Verdict
from dvc_integrity.stores import Connection, ObjectStore, Workspace

law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {"a": b"alpha", "b": b"bravo", "c.bin": bytes(9000) + b"c", "sub/d": b"delta" * 100}


def digest_of(data: bytes, algorithm: di.Algorithm = di.Algorithm.MD5) -> di.Digest:
    return di.Digest.from_hex(algorithm, md5(data))


def manifest_of(files: Tree, only: tuple[str, ...] = ()) -> Manifest:
    """Return the manifest of a tracked folder ``data``."""
    builder = ManifestBuilder(SHA, ["data"])
    add_folder(builder, "data", files, only)
    return builder.build()


def add_folder(
    builder: ManifestBuilder, path: str, files: Tree, only: tuple[str, ...] = (), **facts: Any
) -> None:
    digest = digest_of(listing(files))
    builder.add_out(Out(path, directory=True, digest=digest, defined_in=f"{path}.dvc", **facts))
    builder.add_listing(deque([listing(files)]), di.Algorithm.MD5, only=only)


def add_file(
    builder: ManifestBuilder,
    path: str,
    digest: di.Digest | None,
    executable: bool = False,
    **facts: Any,
) -> None:
    builder.add_out(Out(path, digest=digest, **facts))
    builder.add_entry(path, digest, None, executable)


def write(folder: Path, files: Tree) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with a clean folder ``data`` in it."""
    write(tmp_path / "data", FILES)
    return tmp_path


def hold(root: Path, files: Tree = FILES, **options: Any) -> di.Report:
    """Verify the folder ``data`` below ``root``."""
    return di.verify(manifest_of(files), Workspace(os.fspath(root)), **options)


def statuses(report: di.Report) -> dict[str, str]:
    """Return what a report says of each file; none may be told twice."""
    assert not [
        path for path, count in Counter(f.path for f in report.findings).items() if count > 1
    ]
    return {finding.path: finding.status.value for finding in report.findings}


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if "dvc-integrity" in each.name]


# ----------------------------------------------------------------- clean data


def test_clean_data_is_clean(root: Path) -> None:
    """Good bytes give a clean report: no finding, and every file and byte was really read."""
    report = hold(root)
    assert (Verdict.CLEAN, True, ()) == (report.verdict, report.ok, report.findings)
    assert 4 == report.coverage.files[Evidence.REHASHED] == sum(report.coverage.files.values())
    size = sum(map(len, FILES.values()))
    assert size == report.coverage.bytes[Evidence.REHASHED] == sum(report.coverage.bytes.values())


def test_a_report_says_what_it_is_about(root: Path) -> None:
    """Revision, store, targets, manifest, start and versions are those of this run."""
    before = datetime.now(timezone.utc)
    report = hold(root)
    assert (SHA, "workspace", ("data",)) == (report.rev, report.store, report.targets)
    assert ManifestSummary(manifest_of(FILES).digest, 4, None) == report.manifest
    assert before <= report.started <= datetime.now(timezone.utc)
    assert 0 <= report.seconds
    assert version("dvc-integrity") == report.versions["dvc-integrity"]
    assert {"dvc-integrity", "dvc", "python"} <= set(report.versions)


def test_verification_changes_nothing(root: Path) -> None:
    """Not a byte, mode or time differs after clean and damaged folders were verified."""
    before = faults.snapshot(root)
    hold(root, cold=True)
    assert before == faults.snapshot(root)
    faults.flip_bit(root / "data/a")
    faults.delete(root / "data/b")
    (root / "data/extra").write_bytes(b"x")
    before = faults.snapshot(root)
    assert not hold(root).ok
    assert before == faults.snapshot(root)


# ----------------------------------------------------------------- damage

Fault = Callable[[Path, bytes], None]


def tear(path: Path, data: bytes) -> None:
    faults.tear(path, bytes(byte ^ 0xFF for byte in data) * 2)


def link_elsewhere(path: Path, data: bytes) -> None:
    elsewhere = Path(os.fspath(path).partition("/data/")[0]) / "elsewhere"
    elsewhere.write_bytes(data + b"!")
    faults.replace_by_link(path, elsewhere)


def become_folder(path: Path, _: bytes) -> None:
    path.unlink()
    path.mkdir()


def become_fifo(path: Path, _: bytes) -> None:
    path.unlink()
    os.mkfifo(path)


FAULTS: dict[str, tuple[str, Fault]] = {
    "bit flip": ("modified", lambda path, _: faults.flip_bit(path)),
    "first bit": ("modified", lambda path, _: faults.flip_bit(path, 0, 7)),
    "last bit": ("modified", lambda path, data: faults.flip_bit(path, len(data) - 1)),
    "zero page": ("modified", lambda path, _: faults.zero_page(path)),
    "torn write": ("modified", tear),
    "truncated": ("modified", lambda path, _: faults.truncate(path)),
    "emptied": ("modified", lambda path, _: faults.truncate(path, 0)),
    "extended": ("modified", lambda path, _: faults.extend(path)),
    "a link to other bytes": ("modified", link_elsewhere),
    "a folder": ("modified", become_folder),
    "a FIFO": ("modified", become_fifo),
    "deleted": ("missing", lambda path, _: faults.delete(path)),
    "a dangling link": ("missing", lambda path, _: faults.replace_by_link(path, "nowhere")),
}
"""What can happen to one file, and the word for it where DVC keeps no record."""

ON_ANYTHING = {
    "extended",
    "a link to other bytes",
    "a folder",
    "a FIFO",
    "deleted",
    "a dangling link",
}
"""Faults that also change an empty file."""

components = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=4
).filter(lambda text: text not in (".", ".."))
contents = st.one_of(
    st.binary(max_size=40), st.binary(min_size=1, max_size=4).map(lambda data: data * 3000)
)


@st.composite
def trees(draw: st.DrawFn, minimum: int = 1) -> dict[str, bytes]:
    """Draw files with their contents: names of every kind, two folders, no conflicts."""
    leaves = draw(
        st.lists(components, min_size=minimum, max_size=6, unique_by=lambda name: name.casefold())
    )
    return {
        f"{draw(st.sampled_from(['', 'folder/', 'folder/inner/']))}{leaf}": draw(contents)
        for leaf in leaves
    }


@law
@given(trees())
def test_any_clean_folder_is_clean(files: dict[str, bytes]) -> None:
    """Whatever the names and contents, untouched files give no finding."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "data", files)
        report = hold(Path(name), files)
        assert (True, ()) == (report.ok, report.findings)


@settings(law, max_examples=150)
@given(trees(), st.sampled_from(sorted(FAULTS)), st.data())
def test_any_single_fault_is_found(
    files: dict[str, bytes], fault: str, data: st.DataObject
) -> None:
    """Any fault on any file of any folder is damage, and names exactly that file."""
    path = data.draw(st.sampled_from(sorted(files)))
    assume(files[path] or fault in ON_ANYTHING)
    assume(files[path][:4096].strip(b"\0") or fault != "zero page")
    assume(len(files[path]) > 1 or fault != "torn write")
    status, damage = FAULTS[fault]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data", files)
        damage(root / "data" / path, files[path])
        report = hold(root, files)
    assert {f"data/{path}": status} == statuses(report)
    assert Verdict.DAMAGED is report.verdict
    assert len(files) == sum(report.coverage.files.values())


@law
@given(trees(), st.data())
def test_any_changed_byte_is_found(files: dict[str, bytes], data: st.DataObject) -> None:
    """One byte of any file set to any other value is found; what was found is told."""
    path = data.draw(st.sampled_from(sorted(files)))
    old = files[path]
    assume(old)
    place = data.draw(st.integers(0, len(old) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != old[place]))
    new = old[:place] + bytes([value]) + old[place + 1 :]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "data", files)
        with faults.changed(root / "data" / path), faults.silently(root / "data" / path):
            (root / "data" / path).write_bytes(new)
        (finding,) = hold(root, files).findings
    assert (
        Finding(
            path=f"data/{path}",
            out="data",
            status=Status.MODIFIED,
            expected=digest_of(old),
            found=digest_of(new),
            size=len(new),
            detail=finding.detail,
        )
        == finding
    )


def test_two_swapped_files_are_both_found(root: Path) -> None:
    """Two good files in each other's place are two damaged ones."""
    faults.swap(root / "data/a", root / "data/b")
    report = hold(root)
    assert {"data/a": "modified", "data/b": "modified"} == statuses(report)
    assert [digest_of(b"bravo"), digest_of(b"alpha")] == [each.found for each in report.findings]


def test_checking_goes_on_past_damage(root: Path) -> None:
    """Every kind of trouble at once: each file has its own finding, the worst come first."""
    faults.flip_bit(root / "data/a")
    faults.delete(root / "data/b")
    become_folder(root / "data/c.bin", b"")
    (root / "data/sub/new").write_bytes(b"x")
    (root / "data/sub/anew").write_bytes(b"x")
    report = hold(root)
    assert [
        ("data/b", "missing"),
        ("data/a", "modified"),
        ("data/c.bin", "modified"),
        ("data/sub/anew", "extra"),
        ("data/sub/new", "extra"),
    ] == [(each.path, each.status.value) for each in report.findings]
    assert {"data"} == {each.out for each in report.findings}
    assert 2 == report.coverage.files[Evidence.REHASHED] == report.coverage.files[Evidence.UNREAD]


def test_a_missing_folder_is_all_its_files(root: Path) -> None:
    """A tracked folder that is gone is missing file by file."""
    shutil.rmtree(root / "data")
    report = hold(root)
    assert dict.fromkeys((f"data/{path}" for path in FILES), "missing") == statuses(report)
    assert Verdict.DAMAGED is report.verdict


def test_a_file_in_place_of_a_folder_is_extra_and_its_files_missing(root: Path) -> None:
    """Where a folder was committed and a file lies, both sides of that are told."""
    shutil.rmtree(root / "data/sub")
    (root / "data/sub").write_bytes(b"")
    assert {"data/sub": "extra", "data/sub/d": "missing"} == statuses(hold(root))


def test_a_folder_behind_a_link_is_not_what_was_committed(root: Path) -> None:
    """Good bytes behind a link to a folder do not count as the committed ones: DVC sees none."""
    os.rename(root / "data/sub", root / "moved")
    (root / "data/sub").symlink_to("../moved")
    assert {"data/sub": "extra"} == statuses(hold(root))


def test_a_folder_in_place_of_a_file_is_modified_and_its_files_extra(root: Path) -> None:
    """Where a file was committed and a folder lies, both sides of that are told."""
    become_folder(root / "data/a", b"")
    (root / "data/a/inner").write_bytes(b"x")
    report = hold(root)
    assert {"data/a": "modified", "data/a/inner": "extra"} == statuses(report)
    assert "folder" in next(each.detail for each in report.findings if each.path == "data/a")


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket"])
def test_what_is_no_file_is_not_what_was_committed(kind: str, root: Path) -> None:
    """A folder, FIFO or socket in a file's place is damage, not something that cannot be told."""
    place = root / "data/a"
    place.unlink()
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener, inside(root / "data"):
            listener.bind("a")
    else:
        os.mkfifo(place) if kind == "fifo" else place.mkdir()
    assert {"data/a": "modified"} == statuses(hold(root))


def test_files_added_to_a_tracked_folder_are_extra(root: Path) -> None:
    """A file that nobody committed is damage, and DVC's view of it is asked for."""
    (root / "data/new").write_bytes(b"x")
    asked = []

    def hints(path: str, expected: di.Digest | None, found: di.Digest | None) -> Hint:
        asked.append((path, expected, found))
        return Hint(adopted=True, detail="adopted")

    report = di.verify(manifest_of(FILES), Workspace(os.fspath(root), hints=hints))
    expected = Finding("data/new", "data", Status.EXTRA, adopted=True, detail="adopted")
    assert (expected,) == report.findings
    assert [("data/new", None, None)] == asked
    (finding,) = hold(root).findings
    assert "committed listing" in finding.detail


def test_what_dvcignore_leaves_out_is_not_judged(root: Path) -> None:
    """Unlisted files that ``.dvcignore`` names leave the data clean."""
    (root / "data/x.tmp").write_bytes(b"x")
    store = Workspace(os.fspath(root), ignored=lambda _, path: path.endswith(".tmp"))
    assert di.verify(manifest_of(FILES), store).ok


def test_a_part_is_judged_alone(root: Path) -> None:
    """Damage outside of the chosen part is not seen, damage inside is."""
    part = manifest_of(FILES, only=("sub",))
    faults.flip_bit(root / "data/a")
    (root / "data/new").write_bytes(b"x")
    assert di.verify(part, Workspace(os.fspath(root))).ok
    faults.flip_bit(root / "data/sub/d")
    (root / "data/sub/new").write_bytes(b"x")
    report = di.verify(part, Workspace(os.fspath(root)))
    assert {"data/sub/d": "modified", "data/sub/new": "extra"} == statuses(report)


def test_thousands_of_damaged_files_are_all_found(tmp_path: Path) -> None:
    """More damage than one batch of second reads holds is found to the last file."""
    files = {f"{row:04}": b"%d" % row for row in range(2100)}
    write(tmp_path / "data", dict.fromkeys(files, b"other"))
    write(tmp_path / "data", {"0007": b"7", "2099": b"2099"})
    report = hold(tmp_path, files)
    expected = [f"data/{path}" for path in files if path not in ("0007", "2099")]
    assert expected == [each.path for each in report.findings]
    assert {digest_of(b"other")} == {each.found for each in report.findings}


def test_a_folder_of_a_hundred_thousand_files_is_held(tmp_path: Path) -> None:
    """One flat folder of that many: each is read, and one bad, one lost and one new are found."""
    files = {f"{row:06}": b"%d" % row for row in range(100_000)}
    folder = tmp_path / "data"
    folder.mkdir()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    faults.flip_bit(folder / "050000")
    (folder / "099999").unlink()
    (folder / "new").write_bytes(b"new")
    report = hold(tmp_path, files)
    expected = {"data/050000": "modified", "data/099999": "missing", "data/new": "extra"}
    assert expected == statuses(report)
    assert 99_999 == report.coverage.files[Evidence.REHASHED]
    shutil.rmtree(folder)  # pytest would keep it for three runs


def test_both_algorithms_live_in_one_manifest(tmp_path: Path) -> None:
    """Each file is held to the algorithm that its metadata names."""
    builder = ManifestBuilder(SHA)
    old, new = di.Algorithm.MD5_DOS2UNIX, di.Algorithm.MD5
    add_file(builder, "old.txt", digest_of(b"a\nb\n", old))
    add_file(builder, "older.txt", digest_of(b"a\nb\n", old))
    add_file(builder, "new.txt", digest_of(b"a\nb\n", new))
    add_file(builder, "newer.txt", digest_of(b"a\nb\n", new))
    write(tmp_path, {"old.txt": b"a\r\nb\r\n", "older.txt": b"a\nb\n"})
    write(tmp_path, {"new.txt": b"a\r\nb\r\n", "newer.txt": b"a\nb\n"})
    report = di.verify(builder.build(), Workspace(os.fspath(tmp_path)))
    assert {"new.txt": "modified"} == statuses(report)
    assert digest_of(b"a\r\nb\r\n", new) == report.findings[0].found
    assert 4 == report.coverage.files[Evidence.REHASHED]


def test_an_executable_bit_that_dvc_records_is_part_of_the_file(tmp_path: Path) -> None:
    """A file that lost it is modified though its bytes are good; one that gained it is good."""
    builder = ManifestBuilder(SHA)
    for name, executable in (("kept", True), ("lost", True), ("gained", False)):
        add_file(builder, name, digest_of(b"x"), executable)
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).chmod(0o644 if name == "lost" else 0o755)
    report = di.verify(builder.build(), Workspace(os.fspath(tmp_path)))
    assert {"lost": "modified"} == statuses(report)


def test_the_cause_decides_between_corrupt_and_modified(root: Path) -> None:
    """A difference is ``corrupt`` if DVC's record says that nothing wrote the file."""
    faults.flip_bit(root / "data/a")
    for written, status in ((False, "corrupt"), (True, "modified"), (None, "modified")):
        store = Workspace(os.fspath(root), hints=lambda *_, w=written: Hint(w, detail="why"))
        report = di.verify(manifest_of(FILES), store)
        assert {"data/a": status} == statuses(report)
        assert "why" == report.findings[0].detail


# ----------------------------------------------------------------- what cannot be told


class Doctored(Workspace):
    """A workspace whose reads show what a test wants, by round (first or second) and path."""

    def __init__(
        self, root: Path, script: Mapping[tuple[int, str], Callable[[Observation], Observation]]
    ) -> None:
        super().__init__(os.fspath(root))
        self._script = script
        self.asked: list[tuple[list[str], bool]] = []

    def observe(self, manifest: Manifest, rows: Any, *args: Any, **options: Any) -> Iterator[Any]:
        """Read, then doctor what was seen."""
        paths = [os.fsdecode(manifest.path(row)) for row in rows.tolist()]
        observations = in_order(super().observe(manifest, rows, *args, **options))
        for position, (path, seen) in enumerate(zip(paths, observations, strict=True)):
            reading = 1 + sum(path in asked for asked, _ in self.asked)
            change = self._script.get((reading, path), lambda seen: seen)
            yield Observations.of([position], [change(seen)])
        self.asked.append((paths, options.get("cold", False)))


def other_bytes(seen: Observation) -> Observation:
    return seen._replace(digest=b"X" * 16)


def changing(seen: Observation) -> Observation:
    assert seen.after
    return seen._replace(after=FileState(*seen.after[:-1], 0))


def failing(number: int) -> Callable[[Observation], Observation]:
    error = OSError(number, os.strerror(number))
    return lambda _: Observation(None, 0, None, None, error)


def doctored(root: Path, *script: tuple[int, Callable[[Observation], Observation]]) -> di.Report:
    """Verify with the n-th reads of ``data/a`` doctored."""
    store = Doctored(root, {(reading, "data/a"): change for reading, change in script})
    return di.verify(manifest_of(FILES), store)


def test_a_mismatch_that_a_second_read_does_not_show_is_transient(root: Path) -> None:
    """Other bytes once and the committed ones then: the data are clean, and it is told."""
    report = doctored(root, (1, other_bytes))
    (finding,) = report.findings
    assert (True, Status.OK, True, "data/a") == (
        report.ok,
        finding.status,
        finding.transient,
        finding.path,
    )
    assert 4 == report.coverage.files[Evidence.REHASHED] == sum(report.coverage.files.values())


def test_a_mismatch_that_both_reads_show_is_damage(root: Path) -> None:
    """Other bytes twice are damage, with the digest that the second read gave."""
    report = doctored(root, (1, other_bytes), (2, lambda seen: seen._replace(digest=b"Y" * 16)))
    assert {"data/a": "modified"} == statuses(report)
    assert b"Y" * 16 == report.findings[0].found.value


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_read_that_fails_once_is_transient_and_clean(number: int, root: Path) -> None:
    """A read that failed and then gave the committed bytes: clean, read, and told."""
    report = doctored(root, (1, failing(number)))
    (finding,) = report.findings
    assert (Verdict.CLEAN, Status.OK, True) == (report.verdict, finding.status, finding.transient)
    assert 4 == report.coverage.files[Evidence.REHASHED] == sum(report.coverage.files.values())


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ELOOP])
def test_what_cannot_be_read_leaves_the_report_incomplete(number: int, root: Path) -> None:
    """A file that fails twice is unreadable; the others are judged, and nothing is clean."""
    report = doctored(root, (1, failing(number)), (2, failing(number)))
    assert {"data/a": "unreadable"} == statuses(report)
    assert os.strerror(number) == report.findings[0].detail
    assert Verdict.INCOMPLETE is report.verdict
    assert (3, 1) == (
        report.coverage.files[Evidence.REHASHED],
        report.coverage.files[Evidence.UNREAD],
    )


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOENT, "missing"), (errno.EIO, "unreadable")]
)
def test_a_digest_of_zeros_is_not_that_of_an_unread_file(
    number: int, status: str, tmp_path: Path
) -> None:
    """A committed hash of nothing but zeros does not fit where there is no digest at all."""
    builder = ManifestBuilder(SHA)
    add_file(builder, "data/a", di.Digest(di.Algorithm.MD5, bytes(16)))
    write(tmp_path, {"data/a": b""})
    script = {(reading, "data/a"): failing(number) for reading in (1, 2)}
    report = di.verify(builder.build(), Doctored(tmp_path, script))
    assert {"data/a": status} == statuses(report)


def test_a_file_that_keeps_changing_leaves_the_report_incomplete(root: Path) -> None:
    """A file that was written during both reads is unstable, though its bytes were good."""
    report = doctored(root, (1, changing), (2, changing))
    assert {"data/a": "unstable"} == statuses(report)
    assert Verdict.INCOMPLETE is report.verdict
    assert doctored(root, (1, changing)).ok


def test_damage_wins_over_what_cannot_be_told(root: Path) -> None:
    """One damaged file beside one unreadable makes the whole damaged."""
    faults.flip_bit(root / "data/b")
    report = doctored(root, (1, failing(errno.EIO)), (2, failing(errno.EIO)))
    assert {"data/a": "unreadable", "data/b": "modified"} == statuses(report)
    assert Verdict.DAMAGED is report.verdict


def test_a_folder_that_cannot_be_listed_leaves_the_report_incomplete(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether extras lie in it cannot be told; the finding names the folder and the reason."""

    def scandir(_: bytes) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("dvc_integrity.stores.workspace.os.scandir", scandir)
    report = hold(root)
    monkeypatch.undo()
    assert {"data": "unreadable"} == statuses(report)
    assert os.strerror(errno.EACCES) in report.findings[0].detail
    assert Verdict.INCOMPLETE is report.verdict


def test_suspects_alone_are_read_again_and_past_the_cache(root: Path) -> None:
    """Second reads are cold and only of what was not good; what is missing is not asked twice."""
    faults.flip_bit(root / "data/a")
    faults.delete(root / "data/b")
    store = Doctored(root, {})
    di.verify(manifest_of(FILES), store)
    asked = [(paths, cold) for paths, cold in store.asked if paths]
    everything = ["data/a", "data/b", "data/c.bin", "data/sub/d"]
    assert [(everything, False), (["data/a"], True)] == asked
    di.verify(manifest_of(FILES), store, cold=True)
    assert (everything, True) in store.asked


def test_files_without_a_committed_hash_leave_the_report_incomplete(root: Path) -> None:
    """An entry without a digest is unverifiable, for the reason of its output, and not read."""
    builder = ManifestBuilder(SHA)
    add_folder(builder, "data", FILES)
    add_file(builder, "import", None, unverifiable="imported without being downloaded")
    report = di.verify(builder.build(), Workspace(os.fspath(root)))
    expected = Finding(
        "import", "import", Status.UNVERIFIABLE, detail="imported without being downloaded"
    )
    assert (expected,) == report.findings
    assert Verdict.INCOMPLETE is report.verdict
    assert 1 == report.coverage.files[Evidence.UNREAD]


def test_outputs_elsewhere_leave_the_report_incomplete(root: Path) -> None:
    """An external output is unverifiable under its own name, counts as unread, and is not read."""
    builder = ManifestBuilder(SHA)
    add_folder(builder, "data", FILES)
    builder.add_out(Out("s3://bucket/key", unverifiable="it lies outside", external=True))
    report = di.verify(builder.build(), Workspace(os.fspath(root)))
    expected = Finding(
        "s3://bucket/key", "s3://bucket/key", Status.UNVERIFIABLE, detail="it lies outside"
    )
    assert (Verdict.INCOMPLETE, (expected,)) == (report.verdict, report.findings)
    assert (4, 1) == (
        report.coverage.files[Evidence.REHASHED],
        report.coverage.files[Evidence.UNREAD],
    )
    alone = ManifestBuilder(SHA)
    alone.add_out(Out("/far", unverifiable="it lies outside", external=True))
    assert Verdict.INCOMPLETE is di.verify(alone.build(), Workspace(os.fspath(root))).verdict


# ----------------------------------------------------------------- nothing to verify


def test_nothing_checked_is_a_failure(root: Path) -> None:
    """A manifest without files, or an empty tracked folder, is refused with words that help."""
    empty = ManifestBuilder(SHA, ["none"])
    add_folder(empty, "none", {})
    for manifest in (empty.build(), ManifestBuilder(SHA, ["\x1b[31m"]).build()):
        with pytest.raises(di.NothingToVerify, match="Nothing was checked") as caught:
            di.verify(manifest, Workspace(os.fspath(root)))
        assert SHA in str(caught.value)
        assert str(caught.value).isprintable()


def test_what_lies_in_a_folder_that_was_committed_empty_is_extra(root: Path) -> None:
    """No committed file is no reason to pass over files that nobody committed."""
    report = hold(root, {})
    assert dict.fromkeys((f"data/{path}" for path in FILES), "extra") == statuses(report)
    assert Verdict.DAMAGED is report.verdict


def test_a_store_that_is_to_have_no_file_is_a_failure() -> None:
    """Outputs that are not kept in a store cannot be verified there: said, not passed over."""

    def connect() -> Connection:
        raise AssertionError("a store without files was opened")

    store = ObjectStore("remote:far", connect, lambda _: False)
    with pytest.raises(di.NothingToVerify, match="remote:far is not to hold any file"):
        di.verify(manifest_of(FILES), store)


# ----------------------------------------------------------------- object stores


class Objects:
    """A cache or a remote with the objects of ``FILES`` in it, and ways to damage them."""

    def __init__(self, filesystem: Any, base: str, local: bool) -> None:
        self.connection = Connection(filesystem, base, local)
        self.store = ObjectStore(
            "cache" if local else "remote:far", lambda: self.connection, lambda out: out.cached
        )
        for data in FILES.values():
            self.put(digest_of(data), data)
        self.listing = digest_of(listing(FILES))
        self.put(self.listing, listing(FILES), of_listing=True)

    def place(self, digest: di.Digest, of_listing: bool = False) -> str:
        """Return where an object lies."""
        return self.connection.locate(digest, of_listing)

    def put(self, digest: di.Digest, data: bytes, of_listing: bool = False) -> None:
        """Put bytes under a digest, whether they fit or not."""
        place = self.place(digest, of_listing)
        self.connection.filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
        self.connection.filesystem.pipe_file(place, data)

    def remove(self, digest: di.Digest, of_listing: bool = False) -> None:
        """Take an object away."""
        self.connection.filesystem.rm_file(self.place(digest, of_listing))


@pytest.fixture(params=["cache", "remote"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """Return a local cache or a remote that is no local folder."""
    if request.param == "cache":
        return Objects(LocalFileSystem(), os.fspath(tmp_path / "cache"), local=True)
    return Objects(MemoryFileSystem(), f"/{tmp_path.name}", local=False)


def test_good_objects_are_clean(objects: Objects) -> None:
    """All objects were read and are what their names say; a listing is no file and not counted."""
    report = di.verify(manifest_of(FILES), objects.store)
    assert (Verdict.CLEAN, ()) == (report.verdict, report.findings)
    assert objects.store.name == report.store
    assert 4 == report.coverage.files[Evidence.REHASHED] == sum(report.coverage.files.values())


def test_a_bad_object_is_corrupt(objects: Objects) -> None:
    """Nobody writes to an object, so a difference is corruption; the file's path is named."""
    objects.put(digest_of(b"alpha"), b"alphA")
    report = di.verify(manifest_of(FILES), objects.store)
    (finding,) = report.findings
    assert (
        Finding(
            path="data/a",
            out="data",
            status=Status.CORRUPT,
            expected=digest_of(b"alpha"),
            found=digest_of(b"alphA"),
            size=5,
            detail=finding.detail,
        )
        == finding
    )


def test_an_absent_object_is_missing(objects: Objects) -> None:
    """An object that the store is to have and does not is missing."""
    objects.remove(digest_of(b"alpha"))
    assert {"data/a": "missing"} == statuses(di.verify(manifest_of(FILES), objects.store))


def test_a_folder_in_an_objects_place_is_no_clean_object(objects: Objects) -> None:
    """Something else under an object's name is never passed over."""
    objects.remove(digest_of(b"alpha"))
    objects.connection.filesystem.makedirs(objects.place(digest_of(b"alpha")) + "/x")
    assert Verdict.CLEAN is not di.verify(manifest_of(FILES), objects.store).verdict


@pytest.mark.parametrize(("data", "status"), [(b"[]", "corrupt"), (None, "missing")])
def test_the_listing_itself_is_judged(data: bytes | None, status: str, objects: Objects) -> None:
    """A listing that is damaged or gone is damage of the folder, told under the folder's name."""
    if data is None:
        objects.remove(objects.listing, of_listing=True)
    else:
        objects.put(objects.listing, data, of_listing=True)
    report = di.verify(manifest_of(FILES), objects.store)
    assert {"data": status} == statuses(report)
    (finding,) = report.findings
    assert "listing" in finding.detail
    assert objects.listing == finding.expected
    assert (digest_of(data) if data else None) == finding.found


def test_a_listing_is_read_twice_before_it_is_called_corrupt(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first read of a listing that goes wrong, and a good second one, are a transient error."""
    observe, colds = objects.store._observe_object, []

    def flaky(digest: di.Digest, **options: bool) -> Observation:
        seen = observe(digest, **options)
        if not options.get("listing"):
            return seen
        colds.append(options.get("cold", False))
        return seen._replace(digest=b"?" * 16) if len(colds) == 1 else seen

    monkeypatch.setattr(objects.store, "_observe_object", flaky)
    report = di.verify(manifest_of(FILES), objects.store)
    assert Verdict.CLEAN is report.verdict
    assert [("data", True)] == [(each.path, each.transient) for each in report.findings]
    assert [False, True] == colds


def test_only_what_a_store_is_to_have_is_judged(objects: Objects) -> None:
    """Outputs that are not cached are left out of the cache's report, and of its coverage."""
    builder = ManifestBuilder(SHA)
    add_folder(builder, "data", FILES)
    add_file(builder, "metrics.json", digest_of(b"{}"), cached=False)
    report = di.verify(builder.build(), objects.store)
    assert (Verdict.CLEAN, 4) == (report.verdict, report.coverage.files[Evidence.REHASHED])


def test_one_file_behind_several_names_is_told_for_each(objects: Objects) -> None:
    """A bad object that several files share is damage of every one of them."""
    builder = ManifestBuilder(SHA)
    add_file(builder, "one", digest_of(b"alpha"))
    add_file(builder, "two", digest_of(b"alpha"))
    objects.put(digest_of(b"alpha"), b"?")
    report = di.verify(builder.build(), objects.store)
    assert {"one": "corrupt", "two": "corrupt"} == statuses(report)


class Broken(MemoryFileSystem):
    """A remote that fails with ``error``."""

    error: Exception
    cachable = False

    def open(self, *_: object, **__: object) -> object:
        """Fail, whatever is asked for."""
        raise self.error


@pytest.mark.parametrize("number", [errno.EACCES, errno.ETIMEDOUT, errno.EIO])
def test_a_remote_that_refuses_leaves_the_report_incomplete(number: int) -> None:
    """Objects that a remote does not hand out are unreadable, neither good nor corrupt."""
    filesystem = Broken()
    filesystem.error = OSError(number, os.strerror(number))
    store = ObjectStore("remote:far", lambda: Connection(filesystem, "/x", False), lambda _: True)
    report = di.verify(manifest_of(FILES), store)
    assert {"unreadable"} == set(statuses(report).values())
    assert Verdict.INCOMPLETE is report.verdict


def test_objects_that_fail_in_their_own_way_are_unreadable() -> None:
    """Checking goes on past an object whose remote raises what no OSError is."""
    filesystem = Broken()
    filesystem.error = LookupError("the token has expired")
    store = ObjectStore("remote:far", lambda: Connection(filesystem, "/x", False), lambda _: True)
    report = di.verify(manifest_of(FILES), store)
    assert Verdict.INCOMPLETE is report.verdict
    assert {Status.UNREADABLE} == {each.status for each in report.findings}
    assert all("expired" in each.detail for each in report.findings)
    assert [] == threads()


def test_a_store_that_cannot_be_opened_is_an_exception() -> None:
    """Inability is an exception: it names the store, and no thread is left."""

    def connect() -> Connection:
        raise di.StoreError("The remote:far cannot be used: no route")

    with pytest.raises(di.StoreError, match=r"remote:far.*no route"):
        di.verify(manifest_of(FILES), ObjectStore("remote:far", connect, lambda _: True))
    assert [] == threads()


def test_a_size_that_differs_is_drift_though_the_hash_is_blind_to_it(tmp_path: Path) -> None:
    """DVC 2's hash takes CRLF and LF for one; the committed size tells them apart."""
    dos, unix = b"a\r\nb\r\n", b"a\nb\n"
    digest = di.Digest(di.Algorithm.MD5_DOS2UNIX, hashlib.md5(unix).digest())
    builder = ManifestBuilder(SHA)
    builder.add_out(Out("text", digest=digest, size=len(dos)))
    builder.add_entry("text", digest, len(dos))
    store = Workspace(os.fspath(tmp_path))
    for data, verdict in ((dos, Verdict.CLEAN), (unix, Verdict.DAMAGED)):
        (tmp_path / "text").write_bytes(data)
        assert verdict is di.verify(builder.build(), store).verdict


def test_a_report_on_a_store_is_about_what_it_is_to_have(objects: Objects) -> None:
    """What is left out is named, and is in neither the manifest's digest nor its files."""
    builder = ManifestBuilder(SHA)
    add_folder(builder, "data", FILES)
    add_file(builder, "metrics.json", digest_of(b"{}"), cached=False)
    report = di.verify(builder.build(), objects.store)
    whole = di.verify(manifest_of(FILES), objects.store)
    assert (("metrics.json",), ()) == (report.left_out, whole.left_out)
    assert whole.manifest == report.manifest


# ----------------------------------------------------------------- the work itself


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_the_number_of_threads_does_not_change_the_report(jobs: int, root: Path) -> None:
    """Any ``jobs`` gives the same findings and coverage."""
    faults.flip_bit(root / "data/a")
    faults.delete(root / "data/b")
    expected, got = hold(root), hold(root, jobs=jobs)
    assert (expected.findings, expected.coverage) == (got.findings, got.coverage)


def test_a_meter_counts_every_file_once(root: Path) -> None:
    """Progress counts each file, also the missing ones, and never the second reads."""
    faults.flip_bit(root / "data/a")
    faults.delete(root / "data/b")
    meter = Meter()
    hold(root, meter=meter)
    assert (4, sum(map(len, FILES.values())) - len(b"bravo")) == (meter.files, meter.bytes)


def test_an_interrupt_leaves_no_thread(root: Path) -> None:
    """Ctrl-C in the middle comes through, and the reading ends."""

    def interrupted(*_: object) -> Hint:
        raise KeyboardInterrupt

    faults.flip_bit(root / "data/a")
    with pytest.raises(KeyboardInterrupt):
        di.verify(manifest_of(FILES), Workspace(os.fspath(root), hints=interrupted))
    sys.last_value = None
    assert [] == threads()

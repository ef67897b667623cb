"""Damage for tests, as disks, networks and people make it.

Every fault asserts that the bytes really changed: a test whose damage was a no-op proves
nothing. A *silent* fault keeps size, mode, modification time and inode, as a flipped bit on a
disk does.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 4096

Snapshot = dict[str, tuple[int, int, bytes | str | None]]
"""By path relative to the root: mode, mtime in ns, and bytes, link target or (folder) None."""


def content(path: Path) -> bytes | str | None:
    """Return what is at ``path``: a file's bytes, a link's target, None for nothing else."""
    if path.is_symlink():
        return os.readlink(path)
    if path.is_file():
        return path.read_bytes()
    return None


@contextlib.contextmanager
def changed(*paths: Path) -> Iterator[None]:
    """Assert that the block changes what is at each of ``paths``."""
    before = [content(path) for path in paths]
    yield
    for path, old in zip(paths, before, strict=True):
        assert old != content(path), f"the fault did not change {path}"


@contextlib.contextmanager
def silently(path: Path) -> Iterator[None]:
    """Let the block write to a file, also a read-only one; put mode and times back."""
    state = path.stat()
    path.chmod(state.st_mode | stat.S_IWUSR)
    yield
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _outside(state) == _outside(path.stat())


def flip_bit(path: Path, offset: int | None = None, bit: int = 0) -> None:
    """Flip one bit, by default in the middle byte; silent."""
    position = path.stat().st_size // 2 if offset is None else offset
    with changed(path), silently(path), path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


def zero_page(path: Path, page: int = 0) -> None:
    """Zero a page of 4 KiB (or what the file has of it); silent."""
    start = page * PAGE_BYTES
    length = min(PAGE_BYTES, path.stat().st_size - start)
    with changed(path), silently(path), path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(length))


def tear(path: Path, new: bytes) -> None:
    """Leave a write of ``new`` half done: its first half is there, then the old bytes.

    The size stays the old one, as when the second half never reached the disk; silent.
    """
    half = new[: len(new) // 2]
    assert len(half) <= path.stat().st_size
    with changed(path), silently(path), path.open("r+b") as file:
        file.write(half)


def truncate(path: Path, size: int | None = None) -> None:
    """Cut a file, by default to half its size."""
    with changed(path), _writable(path):
        os.truncate(path, path.stat().st_size // 2 if size is None else size)


def extend(path: Path, data: bytes = b"\0") -> None:
    """Append bytes."""
    with changed(path), _writable(path), path.open("ab") as file:
        file.write(data)


def swap(first: Path, second: Path) -> None:
    """Exchange the bytes of two files of one size; silent."""
    one, two = first.read_bytes(), second.read_bytes()
    assert len(one) == len(two)
    with changed(first, second):
        _overwrite(first, two)
        _overwrite(second, one)


def replace_by_link(path: Path, target: Path | str) -> None:
    """Put a symbolic link in the place of a file."""
    with changed(path):
        path.unlink()
        path.symlink_to(target)


def delete(path: Path) -> None:
    """Remove a file."""
    with changed(path):
        path.unlink()


def replace_by_folder(path: Path, inside: bytes = b"somebody's work") -> None:
    """Put a folder with a file in it in the place of a file."""
    with changed(path):
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(inside)


def edit(path: Path, data: bytes) -> None:
    """Make a file writable and overwrite its beginning, as an editor does through a link."""
    with changed(path):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
        with path.open("r+b") as file:
            file.write(data)


def change_mode(path: Path, *, add: int = 0, take: int = 0) -> None:
    """Give and take permissions; the bytes stay."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod((before | add) & ~take)
    assert before != stat.S_IMODE(path.stat().st_mode), f"the fault did not change {path}"


def own_copy(path: Path) -> None:
    """Cut a file off from the cache object that it is a link to, as programs do that write anew."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def tamper_listing(path: Path, turns: int = 1) -> None:
    """Let the files of a ``.dir`` object change places: it still parses; silent."""
    entries = json.loads(path.read_bytes())
    digests = [entry["md5"] for entry in entries]
    for position, entry in enumerate(entries):
        entry["md5"] = digests[(position + turns) % len(digests)]
    with changed(path):
        _overwrite(path, json.dumps(entries, sort_keys=True).encode())


def snapshot(root: Path) -> Snapshot:
    """Return everything below ``root`` and the root itself, links not followed."""
    return {os.path.relpath(path, root): _state(path) for path in [root, *_everything(root)]}


def _everything(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _everything(path)


def _state(path: Path) -> tuple[int, int, bytes | str | None]:
    state = path.lstat()
    return state.st_mode, state.st_mtime_ns, content(path)


def _overwrite(path: Path, data: bytes) -> None:
    with silently(path), path.open("r+b") as file:
        file.write(data)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    mode = path.stat().st_mode
    path.chmod(mode | stat.S_IWUSR)
    yield
    path.chmod(mode)


def _outside(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_size, state.st_mode, state.st_mtime_ns, state.st_ino

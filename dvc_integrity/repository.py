"""The only module that knows DVC: a Git revision to a manifest, its configuration to stores.

The expectation is read from the metadata at a commit, through a read-only view of Git's
objects. DVC's own ``Repo`` on the work tree is never opened: it would take part in locks, make
folders and open DVC's state database. A listing is hashed before it is parsed.

Sources for DVC's formats are named where they are used; they refer to DVC 3.67.
"""

from __future__ import annotations

import difflib
import getpass
import hashlib
import json
import os
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, BinaryIO
from urllib.parse import quote

from dvc.config import Config
from dvc.dirs import site_cache_dir
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.fs import GitFileSystem, LocalFileSystem, get_cloud_fs, localfs
from dvc.ignore import DvcIgnoreFilter
from dvc.repo import Repo
from dvc.scm import SCM, NoSCM, SCMError, resolve_rev
from dvc.version import version_tuple
from dvc_data.hashfile.state import _checksum as state_token
from fsspec.spec import AbstractFileSystem
from scmrepo.fs import GitFileSystem as GitObjects

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import (
    IntegrityError,
    ManifestError,
    RepositoryError,
    StoreError,
    printable,
)
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out
from dvc_integrity.stores import Connection, Hint, ObjectStore, Workspace

__all__ = ["WORKSPACE", "Repository", "default_rev"]

WORKSPACE = "workspace"
"""The revision that stands for the metadata as it lies in the work tree."""

BASELINE_VARIABLE = "DVC_EXP_BASELINE_REV"
"""Set by DVC inside an experiment: the commit that the experiment started from."""


def default_rev() -> str:
    """Return the revision to hold data to when none is given."""
    return os.environ.get(BASELINE_VARIABLE) or "HEAD"


class Repository:
    """A DVC project in a Git repository, read-only.

    Parameters
    ----------
    path
        A folder inside the project; targets are relative to it.

    Attributes
    ----------
    root
        Absolute path of the DVC root.

    Raises
    ------
    RepositoryError
        If there is no DVC project, or it is not in a Git repository.
    """

    def __init__(self, path: str | os.PathLike[str] = ".") -> None:
        try:
            self._base = os.path.realpath(path)
            self.root: str = Repo.find_root(self._base)
            self._config = Config(os.path.join(self.root, Repo.DVC_DIR))
            self._scm = SCM(self.root, no_scm=self._config["core"].get("no_scm", False))
        except FileNotFoundError as error:
            raise RepositoryError(
                "The current folder no longer exists; change into another."
            ) from error
        except NotDvcRepoError as error:
            raise RepositoryError(
                f"'{printable(os.fspath(path))}' is not in a DVC project: {error}. Change into "
                f"one, or make one with 'dvc init'."
            ) from error
        except SCMError as error:
            raise RepositoryError(
                f"'{printable(self.root)}' is not in a Git repository: {error}. The hashes to hold "
                f"data to come from Git commits; make a repository with 'git init' and commit."
            ) from error
        except (DvcException, OSError) as error:
            raise RepositoryError(
                f"The DVC project in '{printable(os.fspath(path))}' cannot be opened: "
                f"{_reason(error)}. Mend what it names; 'dvc config --list' then works again."
            ) from error

    @cached_property
    def workspace(self) -> Workspace:
        """The files of the work tree."""
        return Workspace(self.root, hints=_Causes(self), ignored=self._is_ignored)

    @cached_property
    def cache(self) -> ObjectStore:
        """The cache that the project is configured to use."""
        settings = {"url": self._config["cache"].get("dir") or self._default_cache}
        return ObjectStore("cache", partial(self._connect, "cache", settings), _is_in_cache)

    @cached_property
    def remotes(self) -> tuple[ObjectStore, ...]:
        """Every remote that is configured; the default one first."""
        names = sorted(self._config["remote"], key=lambda name: (name != self._default, name))
        return tuple(map(self.remote, names))

    def remote(self, name: str | None = None) -> ObjectStore:
        """Return a remote by its name, or the default one.

        Raises
        ------
        RepositoryError
            If there is no such remote.
        """
        name = name or self._default
        if not name or name not in self._config["remote"]:
            known = ", ".join(sorted(self._config["remote"])) or "none"
            raise RepositoryError(
                f"There is no remote '{name}'; configured: {known}."
                if name
                else f"No default remote is configured (configured: {known}). Name one as "
                f"'remote:NAME', or choose a default with 'dvc remote default NAME'."
            )
        connect = partial(self._connect, f"remote:{name}", {"name": name})
        return ObjectStore(f"remote:{name}", connect, partial(_is_on_remote, name))

    def resolve(self, rev: str) -> str:
        """Return the full SHA of a revision (a branch, tag, SHA, ``HEAD~1``, experiment, …).

        Raises
        ------
        RepositoryError
            If it does not exist, nothing is committed yet, or the project does without Git.
        """
        if isinstance(self._scm, NoSCM):
            raise RepositoryError(
                f"The project in '{printable(self.root)}' does without Git (core.no_scm), so there "
                f"is no revision to hold data to. '--rev workspace' uses the metadata as it lies "
                f"there."
            )
        if not rev.strip():
            raise RepositoryError("The revision is empty. Name one, or leave it out for HEAD.")
        try:
            return str(resolve_rev(self._scm, rev))
        except (DvcException, SCMError) as error:
            raise RepositoryError(self._unknown(rev)) from error
        except Exception as error:  # each Git library raises its own on a damaged repository
            raise RepositoryError(self._unreadable(rev, error)) from error

    def manifest(
        self, *targets: str | os.PathLike[str], rev: str | None = None, all_outs: bool = False
    ) -> Manifest:
        """Return what files must be at a revision.

        Parameters
        ----------
        *targets
            Outputs, paths inside outputs, folders that contain outputs, ``.dvc`` files or
            stages, relative to the folder that the repository was opened with. None means
            every source: tracked by a ``.dvc`` file, or imported.
        rev
            A Git revision, or ``workspace`` for the metadata as it lies in the work tree; by
            default the baseline inside a DVC experiment, else ``HEAD``.
        all_outs
            Without targets, take the outputs of stages too.

        Returns
        -------
        Manifest
            Sorted by path. An output without a usable content hash is one entry without a
            digest, and its ``Out.unverifiable`` says why.

        Raises
        ------
        RepositoryError
            If the revision is unknown, or no output covers a target.
        ManifestError
            If the metadata at that revision cannot be read, or names an unsafe path.
        """
        if rev is None:
            rev = default_rev()
        resolved = WORKSPACE if rev == WORKSPACE else self.resolve(rev)
        tracked = self._tracked(resolved)
        chosen: dict[_Tracked, list[str]]
        if targets:
            asked = {self._relative(target): os.fspath(target) for target in targets}
            chosen = _choose(tracked, asked, resolved)
        else:
            chosen = {each: [] for each in tracked if all_outs or each.out.source}
            asked = {each.out.path: each.out.path for each in chosen}
        builder = ManifestBuilder(resolved, sorted(asked))
        for each in sorted(chosen, key=lambda each: builder.sort_key(each.out)):
            self._add(builder, each, chosen[each])
        manifest = builder.build()
        _refuse_unlisted(manifest, chosen)
        return manifest

    def out_at(self, path: str | os.PathLike[str], rev: str) -> Out | None:
        """Return the output that a path belongs to at a resolved revision, if any does."""
        inside = _inside(os.path.normpath(os.path.join(self._base, path)), self.root)
        outs = (each.out for each in self._tracked(rev))
        return next((out for out in outs if inside and _covers(out.path, inside)), None)

    def _tracked(self, rev: str) -> tuple[_Tracked, ...]:
        """Return every output in the metadata at a revision."""
        if rev not in self._tracked_at:
            try:
                repo = self._repo_at(rev)
                outs = [_Tracked.read(out, repo.root_dir) for out in repo.index.outs]
            except IntegrityError:
                raise
            except Exception as error:  # DVC, its parsers and each Git library raise their own
                raise ManifestError(
                    f"The DVC metadata at {rev} cannot be read: {_reason(error)}. Mend it in a new "
                    f"commit, or name a revision where it is whole with '--rev'."
                ) from error
            self._tracked_at[rev] = tuple(outs)
        return self._tracked_at[rev]

    @cached_property
    def _tracked_at(self) -> dict[str, tuple[_Tracked, ...]]:
        return {}

    def _repo_at(self, rev: str) -> Repo:
        """Open DVC's view of the project at a revision: no lock, no state, nothing written."""
        inside = os.path.relpath(self.root, os.path.realpath(self._scm.root_dir))
        root = "/" if inside == os.curdir else f"/{inside}"
        workspace = rev == WORKSPACE
        files = _WorkTree(self._scm) if workspace else GitFileSystem(scm=self._scm, rev=rev)
        if not files.isdir(files.join(root, Repo.DVC_DIR)):
            raise RepositoryError(
                f"There was no DVC project in '{printable(self.root)}' at {rev}: its '.dvc' folder "
                f"is not in that commit. Commit it, or name another revision with '--rev'."
            )
        return Repo(root, fs=files, scm=self._scm)

    def _add(self, builder: ManifestBuilder, tracked: _Tracked, only: Sequence[str]) -> None:
        """Add one output, or the parts of it in ``only``, to a manifest."""
        out = tracked.out
        if tracked.files is not None:
            _add_files(builder, out, tracked.files, only)
        elif out.digest is None or not out.directory:
            builder.add_out(out)
            builder.add_entry(out.path, out.digest, out.size, tracked.executable)
        else:
            self._add_folder(builder, out, out.digest, only)

    def _add_folder(
        self, builder: ManifestBuilder, out: Out, digest: Digest, only: Sequence[str]
    ) -> None:
        listing = self._prove_listing(out, digest)
        if isinstance(listing, str):
            builder.add_out(replace(out, unverifiable=listing))
            builder.add_entry(out.path, None)
        else:
            builder.add_out(out)
            builder.add_listing(listing, digest.algorithm, only=only)

    def _prove_listing(self, out: Out, digest: Digest) -> deque[bytes] | str:
        """Return the listing of a folder, hashed and found good; else why there is none."""
        tried = []
        for store in self._listing_places(out):
            hasher = digest.algorithm.hasher()
            chunks: deque[bytes] = deque()
            try:
                for chunk in store.read(digest, listing=True):
                    hasher.update(chunk)
                    chunks.append(chunk)
            except FileNotFoundError:
                tried.append(f"absent from the {store.name}")
                continue
            except (OSError, StoreError) as error:
                tried.append(f"unreadable in the {store.name} ({_reason(error)})")
                continue
            if hasher.digest() == digest.value:
                return chunks
            tried.append(f"damaged in the {store.name}")
        return (
            f"the folder's listing {digest.hex}.dir is {', '.join(tried)}; bring it back with "
            f"'dvc fetch {out.path}', or with 'dvc push' from a machine that has it"
        )

    def _listing_places(self, out: Out) -> list[ObjectStore]:
        remote = out.remote or self._default
        return [self.cache, *([self.remote(remote)] if remote in self._config["remote"] else [])]

    def _connect(self, store: str, settings: dict[str, Any]) -> Connection:
        try:
            kind, config, base = get_cloud_fs(self._config, **settings)
            filesystem = kind(**config)
        except Exception as error:  # each kind of remote fails in a way of its own
            raise StoreError(
                f"The {store} cannot be used: {_reason(error)}. Check it with 'dvc remote list' "
                f"and 'dvc config --list'."
            ) from error
        if config.get("version_aware") or config.get("worktree"):
            raise StoreError(
                f"The {store} keeps files under their own names (version-aware), which is not "
                f"supported yet. Choose another store."
            )
        local = issubclass(kind, LocalFileSystem)
        return Connection(filesystem, partial(_object_path, base), local)

    @property
    def _default(self) -> str | None:
        name: str | None = self._config["core"].get("remote")
        return name

    @property
    def _default_cache(self) -> str:
        return os.path.join(self.root, Repo.DVC_DIR, "cache")

    def _relative(self, target: str | os.PathLike[str]) -> str:
        """Return a target relative to the DVC root; a stage's address stays as it is."""
        text = os.fspath(target)
        place = os.path.normpath(os.path.join(self._base, text))
        inside = _inside(place, self.root)
        if not text or inside is None:
            raise RepositoryError(
                f"'{printable(text)}' lies outside of the DVC project in '{printable(self.root)}'."
            )
        return inside

    def _unreadable(self, rev: str, error: Exception) -> str:
        return (
            f"The Git repository of '{printable(self.root)}' cannot be read at "
            f"'{printable(rev)}': {_reason(error)}. 'git fsck' shows what is wrong with it."
        )

    def _unknown(self, rev: str) -> str:
        try:
            self._scm.get_rev()
        except SCMError:
            return (
                f"Nothing is committed yet in '{printable(self.root)}', so there is no revision to "
                f"hold data to. Commit the DVC metadata first: 'git add -A && git commit'."
            )
        return (
            f"There is no revision '{printable(rev)}' in '{printable(self.root)}'. Name a branch, "
            f"a tag or a SHA that 'git log' shows (shallow clones have few)."
        )

    def _is_ignored(self, path: str) -> bool:
        return bool(self._ignore.is_ignored_file(os.path.join(self.root, path)))

    @cached_property
    def _ignore(self) -> DvcIgnoreFilter:
        return DvcIgnoreFilter(localfs, self.root)


@dataclass(frozen=True, slots=True, eq=False)
class _Tracked:
    """An output as DVC's metadata has it, and what of it does not belong into ``Out``."""

    out: Out
    executable: bool
    files: tuple[Mapping[str, Any], ...] | None  # the ``files:`` list of a version-aware remote
    address: str

    @classmethod
    def read(cls, found: Any, root: str) -> _Tracked:
        """Translate DVC's ``Output`` (``dvc/output.py``)."""
        stage = found.stage
        source = bool(stage.is_data_source)
        file = stage.repo.fs.relpath(stage.path, root)
        address = file if source else f"{file}:{stage.name}" if file != "dvc.yaml" else stage.name
        digest = _digest_of(found.hash_info)
        return cls(
            out=Out(
                path="/".join(found.index_key[1]) if found.is_in_repo else str(found.def_path),
                directory=bool(found.files is not None or found.hash_info.isdir),
                digest=digest if found.is_in_repo and found.files is None else None,
                source=source,
                stage=None if source else address,
                size=found.meta.size,
                cached=bool(found.use_cache),
                remote=found.remote,
                push=bool(found.can_push) and not stage.is_repo_import,
                defined_in=file if source else file.removesuffix("dvc.yaml") + "dvc.lock",
                unverifiable=_why_unverifiable(found, digest),
            ),
            executable=bool(found.meta.isexec),
            files=tuple(found.files) if found.files is not None else None,
            address=address,
        )


def _digest_of(hash_info: Any) -> Digest | None:
    """Return the content hash in a DVC ``HashInfo``; an etag or a checksum of a service is none."""
    if not hash_info or hash_info.name not in (algorithm.value for algorithm in Algorithm):
        return None
    return Digest.from_hex(Algorithm(hash_info.name), hash_info.value.removesuffix(".dir"))


def _why_unverifiable(found: Any, digest: Digest | None) -> str | None:
    """Say why an output has no content hash that its files can be held to."""
    if not found.is_in_repo:
        return "it lies outside of the project, where DVC keeps no content hash that can be checked"
    if found.files is not None:
        lacking = sum(not each.get("md5") for each in found.files)
        return f"DVC recorded no content hash for {lacking} of its files" if lacking else None
    if digest is not None:
        return None
    if found.stage.is_partial_import:
        return "it was imported without being downloaded, so DVC recorded no content hash"
    if found.hash_info:
        return f"DVC recorded its {found.hash_info.name}, which proves no content"
    return "no content hash is committed: its stage was never run, or the result never committed"


def _choose(
    tracked: Sequence[_Tracked], asked: Mapping[str, str], rev: str
) -> dict[_Tracked, list[str]]:
    """Find the outputs that targets mean, and the parts of them (none: the whole)."""
    parts: dict[_Tracked, list[str]] = {}
    whole: set[_Tracked] = set()
    for relative, typed in asked.items():
        found = False
        for each in tracked:
            path = each.out.path
            if _covers(relative, path) or relative == each.out.defined_in or typed == each.address:
                whole.add(each)
            elif each.out.directory and relative.startswith(f"{path}/"):
                parts.setdefault(each, []).append(relative[len(path) + 1 :])
            else:
                continue
            found = True
        if not found:
            raise RepositoryError(_not_tracked(typed, relative, tracked, rev))
    return {
        each: [] if each in whole else parts[each] for each in {**parts, **dict.fromkeys(whole)}
    }


def _covers(folder: str, path: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _not_tracked(typed: str, relative: str, tracked: Sequence[_Tracked], rev: str) -> str:
    known = [each.out.path for each in tracked]
    near = difflib.get_close_matches(relative, known, n=3, cutoff=0.4)
    names = ", ".join(f"'{printable(name)}'" for name in near or sorted(known)[:3])
    return (
        f"No DVC output covers '{printable(typed)}' at {rev}. "
        f"{f'Did you mean {names}?' if names else 'DVC tracks nothing there.'} If it is new, track "
        f"it with 'dvc add' and commit, or use '--rev workspace'."
    )


def _refuse_unlisted(manifest: Manifest, chosen: Mapping[_Tracked, list[str]]) -> None:
    """Refuse a target inside a tracked folder that the folder's listing does not have."""
    for each, parts in chosen.items():
        if manifest.find(each.out.path) is not None:
            continue  # the listing could not be had, which the entry says
        for part in parts:
            path = f"{each.out.path}/{part}"
            if manifest.find(path) is None and not manifest.below(path):
                raise RepositoryError(
                    f"'{printable(path)}' is not in the committed listing of "
                    f"'{printable(each.out.path)}' at {manifest.rev}. 'dvc list . "
                    f"{printable(each.out.path)} -R' shows what is."
                )


def _add_files(
    builder: ManifestBuilder, out: Out, files: Sequence[Mapping[str, Any]], only: Sequence[str]
) -> None:
    """Add an output whose files stand in the metadata itself, one by one."""
    builder.add_out(out)
    for each in sorted(files, key=lambda each: os.fsencode(each["relpath"])):
        name = each["relpath"]
        if only and not any(_covers(part, name) for part in only):
            continue
        algorithm = Algorithm.MD5
        digest = Digest.from_hex(algorithm, each["md5"]) if each.get("md5") else None
        executable = bool(each.get("isexec"))
        builder.add_entry(f"{out.path}/{name}", digest, each.get("size"), executable)
    for part in only or [""]:
        if not part or any(each["relpath"].startswith(f"{part}/") for each in files):
            builder.add_tree(f"{out.path}/{part}".rstrip("/"))


def _inside(place: str, root: str) -> str | None:
    """Return a path relative to the root ("" for the root), or None if it lies outside.

    The way to the root may go through links; the target itself is not resolved, because a
    tracked file may be a link into the cache.
    """
    relative = os.path.relpath(place, root)
    if relative == os.curdir:
        return ""
    if not relative.startswith(os.pardir):
        return relative
    parent = place
    while parent != os.path.dirname(parent):
        if os.path.exists(parent) and os.path.samefile(parent, root):
            return "" if parent == place else os.path.relpath(place, parent)
        parent = os.path.dirname(parent)
    return None


def _object_path(base: str, digest: Digest, listing: bool) -> str:
    """Return where DVC keeps an object (``HashFileDB.oid_to_path``; DVC 2 has no ``files/md5``)."""
    folder = base if digest.algorithm is Algorithm.MD5_DOS2UNIX else f"{base}/files/md5"
    return f"{folder}/{digest.hex[:2]}/{digest.hex[2:]}{'.dir' if listing else ''}"


def _is_in_cache(out: Out) -> bool:
    return out.cached


def _is_on_remote(name: str, out: Out) -> bool:
    return out.cached and out.push and out.remote in (None, name)


def _reason(error: BaseException) -> str:
    """Return what an exception says, and what its causes add, on one line."""
    said = [str(error)]
    while error := error.__cause__ or error.__context__:  # type: ignore[assignment]  # ends with None
        if str(error) and str(error) not in said[-1]:
            said.append(str(error))
    return " ".join(printable(part) for part in ": ".join(said).split())


class _WorkTree(GitFileSystem):  # type: ignore[misc]  # DVC's types are not followed
    """The work tree seen through the interface that DVC reads commits with.

    DVC opens no lock and no state database for such a file system, so that the metadata as it
    lies there is read without a trace, by the code that reads it from a commit.
    """

    def __init__(self, scm: Any) -> None:
        super().__init__(scm=scm, rev=WORKSPACE)
        self._scm = scm

    @cached_property
    def fs(self) -> GitObjects:
        return _WorkTreeFiles(self._scm)


class _WorkTreeFiles(GitObjects):  # type: ignore[misc]  # scmrepo's types are not followed
    """Files of the work tree that Git does not ignore, by their paths from its root."""

    def __init__(self, scm: Any) -> None:
        AbstractFileSystem.__init__(self)
        self.rev = WORKSPACE
        self._cwd = self.root_marker
        self._scm = scm

    def _place(self, path: str) -> str:
        return os.path.join(str(self._scm.root_dir), *self._get_key(path))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        return open(self._place(path), mode)  # type: ignore[return-value]  # "rb" alone is asked for

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        stat = os.stat(self._place(path))
        kind = "directory" if os.path.isdir(self._place(path)) else "file"
        return {"name": path, "type": kind, "size": stat.st_size, "mode": stat.st_mode}

    def exists(self, path: str, **_: Any) -> bool:
        return os.path.exists(self._place(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        listed = []
        with os.scandir(self._place(path)) as entries:
            for entry in entries:
                folder = entry.is_dir(follow_symlinks=False)
                if (entry.is_file() or folder) and not self._is_ignored(entry.path, folder):
                    listed.append(f"{path.rstrip('/')}/{entry.name}")
        return [self.info(name) for name in listed] if detail else listed

    def _is_ignored(self, place: str, folder: bool) -> bool:
        return not isinstance(self._scm, NoSCM) and bool(
            self._scm.is_ignored(f"{place}{os.sep}" if folder else place)
        )


class _Causes:
    """Explains differences from DVC's state database and the metadata in the work tree."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._recorded: dict[str, Manifest | None] = {}

    def __call__(self, path: str, expected: Digest | None, found: Digest | None) -> Hint:
        recorded = self._recorded_for(path)
        adopted = False
        if recorded is not None:
            row = recorded.find(path)
            now = recorded[row].digest if row is not None else None
            adopted = now != expected and (now == found or expected is None)
        written, detail = self._when_written(path, expected, found)
        if adopted and recorded is not None:
            where = printable(recorded.outs[0].defined_in)
            detail = f"'{where}' in the work tree already records this change"
        return Hint(written, adopted, detail)

    def _recorded_for(self, path: str) -> Manifest | None:
        """Return the manifest of the work tree's metadata for the output that a path is in."""
        try:
            tracked = self._repository._tracked(WORKSPACE)  # noqa: SLF001 (the same module)
            out = next((each.out for each in tracked if _covers(each.out.path, path)), None)
            if out is None:
                return None
            if out.path not in self._recorded:
                place = os.path.join(self._repository.root, out.path)
                self._recorded[out.path] = self._repository.manifest(place, rev=WORKSPACE)
            return self._recorded[out.path]
        except (ManifestError, RepositoryError):
            return None  # a hint only: metadata that cannot be read records nothing

    def _when_written(
        self, path: str, expected: Digest | None, found: Digest | None
    ) -> tuple[bool | None, str]:
        if expected is None or found is None:
            return None, ""
        place = os.path.join(self._repository.root, path)
        record = self._state.get(place)
        if record is None and self._is_cache_link(place, expected):
            return False, "it is a link to the cache object of that hash, so that is damaged too"
        if record is None:
            return None, "DVC has no record of when it was last written"
        digest, token = record
        if token != state_token(localfs.info(place)):
            return True, "it was written since DVC last read it"
        if digest == expected:
            return False, (
                "nothing wrote it since DVC recorded the committed hash: "
                "same inode, size and modification time"
            )
        return True, "it was written since it was committed"

    def _is_cache_link(self, place: str, expected: Digest) -> bool:
        cache = self._repository._config["cache"].get("dir") or self._repository._default_cache  # noqa: SLF001 (the same module)
        target = _object_path(str(cache), expected, False)
        return os.path.exists(target) and os.path.samefile(place, target)

    @cached_property
    def _state(self) -> _StateDatabase:
        return _StateDatabase(self._repository.root, self._repository._config)  # noqa: SLF001 (the same module)


class _StateDatabase:
    """DVC's record of which bytes it saw in a file, opened for reading only.

    Where it lies is ``Repo.site_cache_dir``, what stands in it is
    ``dvc_data.hashfile.state.State.save``. A database that cannot be read is one without
    records: it serves as a hint on the cause of a difference and nothing else.
    """

    def __init__(self, root: str, config: Mapping[str, Any]) -> None:
        folder = site_cache_dir(config["core"].get("site_cache_dir"))
        stamp = os.path.join(root, Repo.DVC_DIR, "tmp", "btime")
        born = (
            os.path.getmtime(stamp)
            if os.path.exists(stamp)
            else getattr(os.stat(root), "st_birthtime", None)
        )
        text = str((root, None, born, getpass.getuser(), version_tuple[0], 0))
        token = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        self.path = os.path.join(folder, "repo", token, "hashes", "local", "cache.db")

    def get(self, place: str) -> tuple[Digest, str] | None:
        """Return the digest that DVC recorded for a file, and the token of its state then."""
        if not os.path.exists(self.path):
            return None
        try:
            with closing(sqlite3.connect(f"file:{quote(self.path)}?mode=ro", uri=True)) as database:
                query = "SELECT value FROM Cache WHERE key = ? AND raw = 1"
                row = database.execute(query, (place,)).fetchone()
            entry = json.loads(row[0]) if row else None
            if entry is None:
                return None
            ((name, value),) = entry["hash_info"].items()
            if name == "md5" and entry.get("version") is None:
                name = "md5-dos2unix"
            return Digest.from_hex(Algorithm(name), value), entry["checksum"]
        except (sqlite3.Error, ValueError, KeyError):
            return None

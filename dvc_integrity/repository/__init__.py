"""The only module that knows DVC: a Git revision to a manifest, its configuration to stores.

The expectation is read from the metadata at a commit, through a read-only view of Git's
objects. DVC's own ``Repo`` on the work tree is never opened: it would take part in locks, make
folders and open DVC's state database. A listing is hashed before it is parsed.

Sources for DVC's formats are named where they are used; they refer to DVC 3.67.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from dvc.config import Config, RemoteConfigError
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.fs import LocalFileSystem, get_cloud_fs, get_fs_config
from dvc.repo import Repo
from dvc.scm import SCM, NoSCM, SCMError, resolve_rev
from scmrepo.exceptions import SCMError as GitError

from dvc_integrity.blocks import BlockRecords
from dvc_integrity.digest import Digest
from dvc_integrity.errors import (
    IntegrityError,
    ManifestError,
    NothingToVerify,
    RepositoryError,
    StoreError,
    printable,
)
from dvc_integrity.gate import Experiment
from dvc_integrity.incidents import Incidents
from dvc_integrity.manifest import Manifest, ManifestBuilder, Out, Place
from dvc_integrity.patterns import Version
from dvc_integrity.reader import OnCorrupt, Reader
from dvc_integrity.repository.causes import Causes
from dvc_integrity.repository.history import History
from dvc_integrity.repository.lines import Lines
from dvc_integrity.repository.tracked import Tracked, read_tracked
from dvc_integrity.repository.views import ROOT, WORKSPACE, Commit, ViewedRepo, WorkTree
from dvc_integrity.restore import Restorer
from dvc_integrity.schedule import Schedule
from dvc_integrity.stores import (
    DEFAULT_LINKS,
    Connection,
    ObjectStore,
    VersionedStore,
    Workspace,
)
from dvc_integrity.stores.transport import MOST_STREAMS, STALL_SECONDS

__all__ = ["WORKSPACE", "Repository", "default_rev"]

logger = logging.getLogger(__name__)

SUGGESTIONS = 3
"""Names that a message suggests at most."""

_READ_ONLY = ("http", "https")
"""Protocols over which nothing is put."""

COMPARED_PATHS = 5000
"""Paths that an unknown one is compared with at most: bounds the time."""

NEW_FOLDER_MODE, SHARED_FOLDER_MODE = 0o777, 0o2775
"""Of folders in the cache; the second with ``cache.shared`` (``LocalHashFileDB._dir_mode``)."""

_EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(.+)")
"""The reference of an experiment (``dvc.repo.experiments.refs.ExpRefInfo``)."""

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
                f"'{printable(os.fspath(path))}' is not in a DVC project: {_reason(error)}. "
                f"Change into one, or make one with 'dvc init'."
            ) from error
        except SCMError as error:
            raise RepositoryError(
                f"'{printable(self.root)}' is not in a Git repository: {_reason(error)}. "
                f"The hashes to hold data to come from commits; make a repository with 'git init'."
            ) from error
        except (DvcException, OSError) as error:
            raise RepositoryError(
                f"The DVC project in '{printable(os.fspath(path))}' cannot be opened: "
                f"{_reason(error)}. Mend what it names; 'dvc config --list' then works again."
            ) from error
        weakref.finalize(
            self, self._scm.close
        )  # else Git's packs stay open until they are collected

    @property
    def scratch(self) -> str:
        """The folder for what this package keeps beside DVC's temporary files."""
        return os.path.join(self.root, ".dvc", "tmp", "integrity")

    @property
    def records(self) -> str:
        """The folder for the records of runs: of an experiment, in the project that it is one of.

        The copy of the project that DVC runs it in is thrown away afterwards.
        """
        home = os.environ.get("DVC_ROOT", self.root)
        if not os.path.isdir(os.path.join(home, Repo.DVC_DIR)):
            home = self.root
        return os.path.join(home, Repo.DVC_DIR, "tmp", "integrity", "runs")

    @property
    def _blocks(self) -> BlockRecords:
        return BlockRecords(os.path.join(self.scratch, "blocks"))

    @property
    def workspace(self) -> Workspace:
        """The files of the work tree.

        Each access gives a store that looks up causes afresh; within one, what it looked up
        stays.
        """
        self._viewed.pop(WORKSPACE, None)
        causes = Causes(self.root, self._config, _Recorded(self), self._cache_path)
        return Workspace(
            self.root,
            hints=causes,
            ignored=self._is_ignored,
            blocks=self._blocks,
            links=tuple(self._config["cache"].get("type") or DEFAULT_LINKS),
        )

    @cached_property
    def cache(self) -> ObjectStore:
        """The cache that the project is configured to use."""
        connect = partial(self._connect, "cache", {"url": self._cache_folder})
        mode = SHARED_FOLDER_MODE if self._config["cache"].get("shared") else NEW_FOLDER_MODE
        return ObjectStore("cache", connect, _is_in_cache, blocks=self._blocks, folder_mode=mode)

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
            known = printable(", ".join(sorted(self._config["remote"])) or "none")
            raise RepositoryError(
                f"There is no remote '{printable(name)}'; configured: {known}."
                if name
                else f"No default remote is configured (configured: {known}). Name one as "
                f"'remote:NAME', or choose a default with 'dvc remote default NAME'."
            )
        connect = partial(self._connect, f"remote:{name}", {"name": name})
        has = partial(_is_on_remote, name)
        home = partial(_is_home, name, self._default)
        if self._is_versioned(name):
            return VersionedStore(name, connect, has, is_home=home)
        return ObjectStore(f"remote:{name}", connect, has, blocks=self._blocks, is_home=home)

    def sources(self) -> tuple[ObjectStore, ...]:
        """Return the cache and the remotes that can be opened, detached, the cheapest first."""
        sources = []
        for store in (self.cache, *self.remotes):
            try:
                sources.append(store.detached())
            except StoreError as error:
                logger.warning("%s", error)
        return tuple(sorted(sources, key=lambda store: store.cost))

    def store(self, name: str) -> Workspace | ObjectStore:
        """Return a store by its name: ``workspace``, ``cache``, ``remote`` or ``remote:NAME``.

        Raises
        ------
        RepositoryError
            If there is no such store.
        """
        if name == WORKSPACE:
            return self.workspace
        if name == "cache":
            return self.cache
        if name == "remote" or name.startswith("remote:"):
            return self.remote(name.partition(":")[2] or None)
        raise RepositoryError(
            f"There is no store '{printable(name)}': choose workspace, cache, remote or "
            f"remote:NAME."
        )

    def reader(
        self,
        target: str | os.PathLike[str],
        *,
        rev: str | None = None,
        source: str = WORKSPACE,
        on_corrupt: OnCorrupt = "raise",
        error_budget: float | None = None,
        check: str | float = "always",
        seed: int = 0,
    ) -> Reader:
        """Return a reader of proven bytes, which needs neither DVC nor this repository any more.

        Parameters
        ----------
        target
            A tracked file or folder, or a path inside a tracked folder, as for ``manifest``.
        rev
            The Git revision that the files are held to, as for ``manifest``.
        source
            Where the bytes come from: ``workspace``, ``cache``, ``remote`` or ``remote:NAME``.
            The latter three need no checkout of ``rev``.
        on_corrupt
            ``raise``; ``restore``: a proven copy from the cache or a remote takes the place of a
            bad file of the workspace, and the bad bytes go to the quarantine; ``substitute``:
            as ``raise`` for who asks for a path. A dataset puts another sample there.
        error_budget
            Files that may be bad before the run ends with ``TooManyIncidents``: a count, or a
            share of what was read, as a float. Of a large file that is read by blocks each bad
            block counts.
        check
            Which reads are hashed: ``always``; ``once`` (the first that a process does of a
            file); or a share of the files an epoch, which reaches each of them within
            ``ceil(1 / check)`` epochs. Set ``Reader.epoch`` for that; until then all are hashed.
        seed
            For substitutes, and for which files are hashed in which epoch.

        Raises
        ------
        RepositoryError
            If there is no such revision, target or source.
        ManifestError
            If a file of the target has no committed content hash to be held to.
        NothingToVerify
            If the target holds no file.
        StoreError
            If the source cannot be opened.
        ValueError
            If a parameter has a value that it cannot have.
        """
        _refuse_policy(on_corrupt, source)
        schedule = Schedule.of(check, seed)
        manifest = self.manifest(target, rev=rev)
        _refuse_unverifiable(manifest)
        name = printable(os.fspath(target))
        if not len(manifest):
            raise NothingToVerify(f"No file is tracked under '{name}'.")
        incidents = Incidents.of_run(self.scratch, budget=error_budget, samples=len(manifest))
        restorer = None
        if on_corrupt == "restore":
            restorer = Restorer(self.workspace.detached(), self.sources(), self.scratch)
        if check != "always":  # what is promised less than usual, whoever runs this is to know
            logger.warning("'%s' is not hashed each time that it is read: %s", name, schedule.bound)
        return Reader(
            manifest,
            self.store(source),
            restorer=restorer,
            incidents=incidents,
            schedule=schedule,
            refusal="substituted" if on_corrupt == "substitute" else "raised",
        )

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
            return str(self._scm.resolve_commit(resolve_rev(self._scm, rev)).hexsha)
        except (DvcException, SCMError, GitError, UnicodeError, AttributeError) as error:
            raise RepositoryError(self._unknown(rev)) from error  # or it is no commit
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
        chosen: dict[Tracked, list[str]]
        if targets:
            asked = {self._relative(target): os.fspath(target) for target in targets}
            chosen, names = _choose(tracked, asked, resolved)
        else:
            chosen = {each: [] for each in tracked if all_outs or each.out.source}
            names = {each.out.path for each in chosen}
        builder = ManifestBuilder(resolved, sorted(names))
        for each in sorted(chosen, key=lambda each: each.out.path):
            self._add(builder, each, chosen[each])
        manifest = builder.build()
        self._refuse_unlisted(manifest, chosen)
        return manifest

    def outs(self, rev: str) -> list[Out]:
        """Return every output in the metadata at a revision, in order of their paths.

        Raises
        ------
        RepositoryError, ManifestError
            As ``manifest``.
        """
        resolved = WORKSPACE if rev == WORKSPACE else self.resolve(rev)
        return [each.out for each in self._tracked(resolved)]

    def experiments(self) -> set[Experiment]:
        """Return the experiments that DVC keeps here, without their outputs.

        Raises
        ------
        RepositoryError
            If Git's references cannot be read.
        """
        if isinstance(self._scm, NoSCM):
            return set()
        try:
            names = [str(name) for name in self._scm.iter_refs("refs/exps/")]
            found = {name: self._scm.get_ref(name) for name in names}
        except (SCMError, GitError, OSError) as error:
            raise RepositoryError(f"The experiments cannot be listed: {_reason(error)}.") from error
        return {
            Experiment(match[3], match[1] + match[2], str(commit))
            for name, commit in found.items()
            if commit and (match := _EXPERIMENT.fullmatch(name))
        }

    def out_at(self, path: str | os.PathLike[str], rev: str) -> Out | None:
        """Return the output that a path belongs to at a revision, if any does."""
        inside = _inside(os.path.normpath(os.path.join(self._base, path)), self.root)
        return next((out for out in self.outs(rev) if inside and _covers(out.path, inside)), None)

    def places(self, outs: Collection[str], rev: str) -> dict[str, Place]:
        """Return which line of the metadata at a revision holds the hash of outputs.

        Parameters
        ----------
        outs
            Their paths; those that are no output at the revision are left out.
        rev
            As for ``manifest``.

        Returns
        -------
        dict[str, Place]
            By the path of the output. Of one that was never computed: where its stage begins in
            ``dvc.yaml``.

        Raises
        ------
        RepositoryError, ManifestError
            As ``manifest``.
        """
        if not outs:
            return {}
        resolved = WORKSPACE if rev == WORKSPACE else self.resolve(rev)
        repo, lines = self._repo_at(resolved), dict[str, Lines]()
        inside = os.path.relpath(self.root, os.path.realpath(self._scm.root_dir))
        places = {}
        for each in self._tracked(resolved):
            if each.out.path in outs:
                file, line = _line_of(each, repo, lines)
                places[each.out.path] = Place(os.path.normpath(os.path.join(inside, file)), line)
        return places

    def versions(self, path: str) -> Iterator[Version]:
        """Yield what a path was to be at other commits of any branch, the newest first.

        Each comes when it is asked for. Of at most 1,000 commits that touch what defines the
        path; a file in a tracked folder is looked up in the folder's listing, where the cache still
        has that. A commit whose metadata cannot be read is passed over.

        Parameters
        ----------
        path
            Relative to the DVC root.

        Raises
        ------
        RepositoryError
            If Git's history cannot be read.
        """
        if isinstance(self._scm, NoSCM):
            return
        inside = os.path.relpath(self.root, os.path.realpath(self._scm.root_dir))
        defined_in = [
            each.out.defined_in
            for tracked in self._tracked_at.values()
            for each in tracked
            if _covers(each.out.path, path)
        ]
        listing = partial(self._prove_listing, places=[self.cache])
        history = History(self._scm, inside, self._repo_at, listing)
        yield from history.versions(path, defined_in)

    def _tracked(self, rev: str) -> tuple[Tracked, ...]:
        """Return every output in the metadata at a revision; a commit's are kept."""
        if rev not in self._tracked_at:
            try:
                tracked = read_tracked(self._repo_at(rev))
            except IntegrityError:
                raise
            except Exception as error:  # DVC, its parsers and each Git library raise their own
                raise ManifestError(
                    f"The DVC metadata at {rev} cannot be read: {_reason(error)}. Mend it in a new "
                    f"commit, or name a revision where it is whole with '--rev'. What Git itself "
                    f"lost ('git fsck' tells), a fresh clone brings back."
                ) from error
            if rev == WORKSPACE:  # it may be another the next time
                return tracked
            self._tracked_at[rev] = tracked
        return self._tracked_at[rev]

    @cached_property
    def _tracked_at(self) -> dict[str, tuple[Tracked, ...]]:
        return {}

    def _repo_at(self, rev: str) -> Repo:
        """Open DVC's view of the project at a revision: no lock, no state, nothing written."""
        inside = os.path.relpath(self.root, os.path.realpath(self._scm.root_dir))
        root = os.path.normpath(f"{ROOT}/{inside}")
        files = WorkTree(self._scm) if rev == WORKSPACE else Commit(scm=self._scm, rev=rev)
        if not files.isdir(files.join(root, Repo.DVC_DIR)):
            raise RepositoryError(
                f"There was no DVC project in '{printable(self.root)}' at {rev}: its '.dvc' folder "
                f"is not in that commit. Commit it, or name another revision with '--rev'."
            )
        return ViewedRepo(root, files, self._scm, os.path.join(self.root, Repo.DVC_DIR))

    def _add(self, builder: ManifestBuilder, tracked: Tracked, only: Sequence[str]) -> None:
        """Add one output, or the parts of it in ``only``, to a manifest."""
        out = tracked.out
        if out.external:
            builder.add_out(out)
        elif tracked.files is not None:
            _add_files(builder, tracked, tracked.files, only)
            for each in tracked.files:
                self._add_version(builder, out, f"{out.path}/{each['relpath']}", each)
        elif out.digest is None or not out.directory:
            builder.add_out(out)
            builder.add_entry(out.path, out.digest, out.size, tracked.executable)
            self._add_version(builder, out, out.path, tracked.version)
        else:
            self._add_folder(builder, out, out.digest, only)

    def _add_version(
        self, builder: ManifestBuilder, out: Out, path: str, about: Mapping[str, Any]
    ) -> None:
        """Add which version of a file a version-aware remote keeps, if the metadata names one.

        DVC takes one remote alone (``dvc.output.merge_file_meta_from_cloud``); where it recorded
        none, the version is on the one that it pushes to.
        """
        version, remote = about.get("version_id"), about.get("remote") or out.remote
        if version and (remote or self._default):
            builder.add_version(path, str(remote or self._default).lower(), str(version))

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

    def _prove_listing(
        self, out: Out, digest: Digest, places: Sequence[ObjectStore] | None = None
    ) -> deque[bytes] | str:
        """Return the listing of a folder, hashed and found good; else why there is none.

        It is looked for in ``places``, by default the cache and the output's remote.
        """
        tried = []
        try:
            places = self._listing_places(out) if places is None else places
        except RepositoryError as error:
            places = [self.cache]
            tried.append(f"not to be had from its remote ({error})")
        for store in places:
            hasher = digest.algorithm.hasher()
            chunks: deque[bytes] = deque()
            try:
                for chunk in store.stream(digest, listing=True):
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
            f"'dvc fetch {printable(out.path)}', or with 'dvc push' from a machine that has it"
        )

    def _refuse_unlisted(self, manifest: Manifest, chosen: Mapping[Tracked, Sequence[str]]) -> None:
        """Refuse a target inside a tracked folder that the folder's listing does not have."""
        for each, parts in chosen.items():
            if each.out.external or manifest.find(each.out.path) is not None:
                continue  # the listing could not be had, which the entry says
            for part in parts:
                path = f"{each.out.path}/{part}"
                if manifest.find(path) is not None or manifest.below(path):
                    continue
                whole = self.manifest(os.path.join(self.root, each.out.path), rev=manifest.rev)
                raise RepositoryError(
                    f"'{printable(path)}' is not in the committed listing of "
                    f"'{printable(each.out.path)}' at {manifest.rev}. {_nearest(path, whole)}'dvc "
                    f"list . {printable(each.out.path)} -R' shows what is."
                )

    def _listing_places(self, out: Out) -> list[ObjectStore]:
        remote = out.remote or self._default
        return [self.cache, *([self.remote(remote)] if remote else [])]

    def _connect(self, store: str, settings: dict[str, Any]) -> Connection:
        try:
            kind, config, base = get_cloud_fs(self._config, **settings)
            config = _with_versions(config)
            filesystem = kind(**_in_bounded_time(kind, config))
            if kind.protocol == "s3":  # botocore has 10 connections where nothing is said
                client = filesystem.fs_args.setdefault("config_kwargs", {})
                client.setdefault("max_pool_connections", MOST_STREAMS)
                client.setdefault("retries", {"total_max_attempts": 1})  # s3fs tries again, and we
                # Bytes that are not the service's are to be judged, not refused.
                client.setdefault("response_checksum_validation", "when_required")
        except Exception as error:  # each kind of remote fails in a way of its own
            raise StoreError(
                f"The {store} cannot be used: {_reason(error)}. Check it with 'dvc remote list' "
                f"and 'dvc config --list'."
            ) from error
        if config.get("version_aware") and kind.protocol != "s3":
            raise StoreError(
                f"The {store} keeps files under their own names (version-aware), which is "
                f"supported on S3 only. Choose another store."
            )
        local = issubclass(kind, LocalFileSystem)
        if local and settings.get("name") and not os.path.isdir(base):
            raise StoreError(
                f"The {store} is not there: '{printable(base)}' is no folder. Is its disk mounted?"
            )
        try:
            connection = Connection(
                filesystem.fs,
                base,
                local,
                writable=kind.protocol not in _READ_ONLY,
                stall_seconds=_stall_seconds(config),
            )
            if not local:
                connection.reach()
        except PermissionError as error:
            raise StoreError(
                f"The {store} ('{printable(base)}') refuses the credentials: {_reason(error)}. "
                f"They are wrong, or lack the right to read it: 'dvc config --list' shows what is "
                f"configured."
            ) from error
        except Exception as error:  # each kind of remote fails in a way of its own
            raise StoreError(
                f"The {store} ('{printable(base)}') cannot be reached: {_reason(error)}. Check its "
                f"address, the network and the credentials: 'dvc remote list' and 'dvc config "
                f"--list' show what is configured."
            ) from error
        return connection

    def _is_versioned(self, name: str) -> bool:
        """Return whether a remote keeps versions of files under their own names."""
        try:
            config = get_fs_config(self._config, name=name)
        except Exception:  # noqa: BLE001 (what is wrong with it is told where it is opened)
            return False
        return bool(config.get("version_aware") or config.get("worktree"))

    @property
    def _default(self) -> str | None:
        name: str | None = self._config["core"].get("remote")
        return name

    @property
    def _cache_folder(self) -> str:
        folder = self._config["cache"].get("dir")
        return str(folder or os.path.join(self.root, Repo.DVC_DIR, "cache"))

    def _cache_path(self, digest: Digest) -> str:
        return Connection(None, self._cache_folder, local=True).locate(digest)

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
            f"'{printable(rev)}': {_reason(error)}. 'git fsck' shows damage; a repository of "
            f"another user needs 'git config --global --add safe.directory {printable(self.root)}'."
        )

    def _unknown(self, rev: str) -> str:
        try:
            self._scm.get_rev()
        except (SCMError, GitError):
            return (
                f"Nothing is committed yet in '{printable(self.root)}', so there is no revision to "
                f"hold data to. Commit the DVC metadata first: 'git add -A && git commit'."
            )
        except Exception as error:  # noqa: BLE001 (each Git library raises its own on damage)
            return self._unreadable(rev, error)
        return (
            f"There is no revision '{printable(rev)}' in '{printable(self.root)}'. Name a branch, "
            f"a tag or a SHA that 'git log' shows (shallow clones have few)."
        )

    def _is_ignored(self, rev: str, path: str) -> bool:
        """Return whether ``.dvcignore`` leaves a path out: what is ignored is committed, too."""
        if rev not in self._viewed:
            self._viewed[rev] = self._repo_at(rev)
        repo = self._viewed[rev]
        return bool(repo.dvcignore.is_ignored_file(os.path.join(repo.root_dir, path)))

    @cached_property
    def _viewed(self) -> dict[str, Repo]:
        return {}


def _in_bounded_time(kind: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a remote, with an end to the wait for a session of SSH."""
    if kind.protocol == "ssh" and not config.get("timeout"):
        return {**config, "timeout": math.ceil(STALL_SECONDS)}  # DVC itself waits for half an hour
    return dict(config)


def _with_versions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a remote; one with ``worktree`` is version-aware, too.

    Raises
    ------
    ConfigError
        If it says otherwise, as DVC does (``dvc.data_cloud.DataCloud.get_remote``).
    """
    if not config.get("worktree"):
        return dict(config)
    if config.get("version_aware") is False:
        raise RemoteConfigError("worktree remotes require version_aware cloud")
    return {**config, "version_aware": True}


def _stall_seconds(config: Mapping[str, Any]) -> float:
    """Return how long a remote may send nothing: what DVC's options for it allow to a request.

    ``timeout`` is that of SSH; the others are of S3 and of web servers.
    """
    read = config.get("read_timeout") or config.get("timeout")
    return float(read) + float(config.get("connect_timeout") or 0) if read else STALL_SECONDS


def _refuse_policy(on_corrupt: str, source: str) -> None:
    if on_corrupt not in ("raise", "restore", "substitute"):
        raise ValueError(f"on_corrupt is 'raise', 'restore' or 'substitute', not {on_corrupt!r}")
    if on_corrupt == "restore" and source != WORKSPACE:
        raise ValueError(f"files of the workspace can be restored, not those of {source!r}")


def _refuse_unverifiable(manifest: Manifest) -> None:
    rows = manifest.rows(None)
    for out in manifest.outs:
        if out.external:
            raise ManifestError(f"'{printable(out.path)}' cannot be verified: {out.unverifiable}.")
    if len(rows):
        entry = manifest[int(rows[0])]
        out = manifest.outs[int(manifest.out_index[rows[0]])]
        raise ManifestError(
            f"{len(rows)} of the files have no committed content hash to be held to, for example "
            f"'{printable(entry.path)}': {out.unverifiable}."
        )


def _choose(
    tracked: Sequence[Tracked], asked: Mapping[str, str], rev: str
) -> tuple[dict[Tracked, list[str]], set[str]]:
    """Find the outputs that targets mean, and the parts of them (none: the whole).

    The targets come back too, relative to the DVC root, or as the address of a stage.
    """
    names = set(asked)
    parts: dict[Tracked, list[str]] = {}
    whole: set[Tracked] = set()
    for relative, typed in asked.items():
        named = {each for each in tracked if _covers(relative, each.out.path)}
        inside = [
            each for each in tracked if each.out.directory and _covers(each.out.path, relative)
        ]
        if not named and inside:
            for each in inside:
                parts.setdefault(each, []).append(relative[len(each.out.path) + 1 :])
            continue
        if not named:
            named = {each for each in tracked if relative == each.out.defined_in}
        if not named:
            named = {each for each in tracked if typed == each.address}
            names = names - {relative} | {typed}
        if not named:
            raise RepositoryError(_not_tracked(typed, relative, tracked, rev))
        whole |= named
    chosen = {each: part for each, part in parts.items() if each not in whole}
    return chosen | {each: [] for each in whole}, names


def _line_of(tracked: Tracked, repo: Repo, lines: dict[str, Lines]) -> tuple[str, int]:
    """Return the metadata file of an output and the line in it; ``lines`` keeps what was read."""
    file = tracked.out.defined_in
    stage = tracked.out.stage.rpartition(":")[2] if tracked.out.stage else None
    line = _lines(file, repo, lines).of_output(tracked.spelled, stage)
    if line is not None or stage is None:
        return file, line or 1
    file = f"{file.removesuffix('dvc.lock')}dvc.yaml"
    return file, _lines(file, repo, lines).of_stage(stage) or 1


def _lines(file: str, repo: Repo, lines: dict[str, Lines]) -> Lines:
    if file not in lines:
        try:
            with repo.fs.open(repo.fs.join(repo.root_dir, file), "rb") as opened:
                lines[file] = Lines(opened.read())
        except FileNotFoundError:  # a stage that never ran has no lock
            lines[file] = Lines(b"")
    return lines[file]


def _covers(folder: str, path: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _not_tracked(typed: str, relative: str, tracked: Sequence[Tracked], rev: str) -> str:
    known = [each.out.path for each in tracked]
    near = difflib.get_close_matches(relative, known, n=SUGGESTIONS, cutoff=0.4)
    names = ", ".join(f"'{printable(name)}'" for name in near or sorted(known)[:SUGGESTIONS])
    return (
        f"No DVC output covers '{printable(typed)}' at {rev}. "
        f"{f'Did you mean {names}?' if names else 'DVC tracks nothing there.'} If it is new, track "
        f"it with 'dvc add' and commit, or use '--rev workspace'."
    )


def _nearest(path: str, manifest: Manifest) -> str:
    """Suggest listed paths like one that is not: from its own folder if that is listed."""
    rows = manifest.below(os.path.dirname(path)) or range(len(manifest))
    near = rows[:COMPARED_PATHS]
    names = {os.fsdecode(name) for name in manifest.paths(near.start, near.stop)}
    names |= {os.path.dirname(name) for name in names}
    close = difflib.get_close_matches(path, sorted(names), n=SUGGESTIONS)
    listed = ", ".join(f"'{printable(name)}'" for name in close)
    return f"Did you mean {listed}? " if listed else ""


def _add_files(
    builder: ManifestBuilder,
    tracked: Tracked,
    files: Sequence[Mapping[str, Any]],
    only: Sequence[str],
) -> None:
    """Add an output whose files stand in the metadata itself, one by one."""
    out, algorithm = tracked.out, tracked.algorithm
    builder.add_out(out)
    for each in files:
        name = each["relpath"]
        if only and not any(_covers(part, name) for part in only):
            continue
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
    if relative != os.pardir and not relative.startswith(os.pardir + os.sep):
        return relative
    parent = place
    while parent != os.path.dirname(parent):
        if os.path.exists(parent) and os.path.samefile(parent, root):
            return "" if parent == place else os.path.relpath(place, parent)
        parent = os.path.dirname(parent)
    return None


def _is_in_cache(out: Out) -> bool:
    return out.cached


def _is_home(name: str, default: str | None, out: Out) -> bool:
    return (out.remote or default) == name


def _is_on_remote(name: str, out: Out) -> bool:
    return out.cached and out.push and out.remote in (None, name)


def _reason(error: BaseException) -> str:
    """Return what an exception says, and what its causes add, on one line."""
    said = [str(error)]
    while error := error.__cause__ or error.__context__:  # type: ignore[assignment]  # ends with None
        if str(error) and str(error) not in said[-1]:
            said.append(str(error))
    text = " ".join(printable(part) for part in ": ".join(said).split())
    return text.replace(f"{ROOT}/", "").replace(f"{ROOT[1:]}/", "")  # as the user knows paths


class _Recorded:
    """Gives what the metadata in the work tree records for a path; each output is read once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._manifests: dict[str, Manifest] = {}

    def __call__(self, path: str) -> Manifest | None:
        try:
            out = next((out for out in self._outs if _covers(out.path, path)), None)
            if out is not None and out.path not in self._manifests:
                place = os.path.join(self._repository.root, out.path)
                self._manifests[out.path] = self._repository.manifest(place, rev=WORKSPACE)
        except (ManifestError, RepositoryError):
            return None  # a hint only: metadata that cannot be read records nothing
        return self._manifests[out.path] if out is not None else None

    @cached_property
    def _outs(self) -> list[Out]:
        return self._repository.outs(WORKSPACE)

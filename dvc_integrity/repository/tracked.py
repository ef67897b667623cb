"""DVC's outputs, as its metadata has them, to ``Out`` values."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dvc.output
from dvc.fs import FileSystem, get_cloud_fs
from dvc.repo import Repo

from dvc_integrity.digest import Algorithm, Digest
from dvc_integrity.errors import ManifestError, printable
from dvc_integrity.manifest import Out

__all__ = ["Tracked", "read_file", "read_tracked"]


@dataclass(frozen=True, slots=True, eq=False)
class Tracked:
    """An output as DVC's metadata has it, and what of it does not belong into ``Out``.

    Attributes
    ----------
    out
        The output.
    executable
        Whether DVC records that a single file is executable.
    files
        The ``files:`` list that a version-aware remote makes DVC write, if there is one.
    address
        What DVC's command line calls the stage, or the ``.dvc`` file.
    spelled
        Its path as the metadata has it.
    algorithm
        Of the hashes in ``files``.
    version
        The version-aware remote that keeps a single file, and the id of the version there.
    """

    out: Out
    executable: bool
    files: tuple[Mapping[str, Any], ...] | None
    address: str
    spelled: str
    algorithm: Algorithm = Algorithm.MD5
    version: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, found: Any, root: str) -> Tracked:
        """Translate DVC's ``Output`` (``dvc/output.py``).

        Raises
        ------
        ManifestError
            If a hash in the metadata is none.
        """
        stage = found.stage
        source = bool(stage.is_data_source)
        file = stage.repo.fs.relpath(stage.path, root)
        address = file if source else f"{file}:{stage.name}" if file != "dvc.yaml" else stage.name
        dos2unix = found.hash_name == Algorithm.MD5_DOS2UNIX.value
        defined_in = file if source else file.removesuffix("dvc.yaml") + "dvc.lock"
        try:
            digest = _digest_of(found.hash_info)
            for each in found.files or ():
                if each.get("md5"):
                    Digest.from_hex(Algorithm.MD5, each["md5"])
        except ValueError as error:
            raise ManifestError(
                f"'{printable(defined_in)}' gives '{printable(str(found.def_path))}' a hash "
                f"that is none: {error}. Track it again with 'dvc add' or 'dvc repro', and commit."
            ) from error
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
                defined_in=defined_in,
                unverifiable=_why_unverifiable(found, digest),
                external=not found.is_in_repo,
            ),
            executable=bool(found.meta.isexec),
            files=tuple(found.files) if found.files is not None else None,
            address=address,
            spelled=str(found.def_path),
            algorithm=Algorithm.MD5_DOS2UNIX if dos2unix else Algorithm.MD5,
            version={"version_id": found.meta.version_id, "remote": found.meta.remote},
        )


def read_tracked(repo: Repo) -> tuple[Tracked, ...]:
    """Return every output in the metadata that a view of DVC's shows.

    Raises
    ------
    ManifestError
        If a hash in the metadata is none.
    Exception
        Whatever DVC and its parsers raise on metadata that is broken.
    """
    with _without_plugins():
        outs = [Tracked.read(out, repo.root_dir) for out in repo.index.outs]
    return tuple(sorted(outs, key=lambda each: each.out.path))


def read_file(repo: Repo, path: str) -> tuple[Tracked, ...]:
    """Return the outputs that one ``.dvc`` file or ``dvc.yaml`` of a view defines.

    Raises
    ------
    ManifestError
        If a hash in the metadata is none.
    Exception
        Whatever DVC and its parsers raise on metadata that is broken.
    """
    with _without_plugins():
        stages = repo.stage.load_file(path)
        return tuple(Tracked.read(out, repo.root_dir) for stage in stages for out in stage.outs)


class _Unreachable(FileSystem):  # type: ignore[misc]  # DVC's types are not followed
    """Stands for a place that this machine has no plugin or no configuration for."""

    protocol = "unreachable"
    PARAM_CHECKSUM = "etag"

    def __init__(self, **_: Any) -> None:
        super().__init__()


_SWAPPING = threading.Lock()


@contextmanager
def _without_plugins() -> Iterator[None]:
    """Let metadata name an external output that DVC has no plugin for here.

    DVC opens a file system for each output as it reads the metadata, and gives the whole
    project up if one of them is, say, on S3 and ``dvc-s3`` is not installed. What lies there
    is unverifiable anyhow; it must not take the rest with it.
    """
    original = get_cloud_fs

    def tolerant(config: Any, **settings: Any) -> tuple[Any, dict[str, Any], str]:
        try:
            return original(config, **settings)  # type: ignore[no-any-return]  # DVC is untyped
        except Exception:  # each plugin is missing in its own way
            if "://" not in str(settings.get("url")):
                raise
            return _Unreachable, {}, str(settings["url"])

    with _SWAPPING:
        dvc.output.get_cloud_fs = tolerant
        try:
            yield
        finally:
            dvc.output.get_cloud_fs = original


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

"""Runs that begin on verified data only, and the record of what they ran on.

The files are looked at before they are verified, and again when the command has ended. What
looks different then is hashed again: DVC links and protects files without changing them. A
record binds the verdict, the command and what came of it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dvc_integrity.durable import write_file
from dvc_integrity.errors import StoreError, printable
from dvc_integrity.manifest import Manifest, Out
from dvc_integrity.receipt import receipt
from dvc_integrity.report import Report
from dvc_integrity.stores import Workspace
from dvc_integrity.survey import Item, State, survey

__all__ = ["Experiment", "Run", "appeared", "changed", "look", "write_record"]

_STATE_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment of DVC.

    Attributes
    ----------
    name
        As ``dvc exp show`` tells it.
    baseline
        The commit that it started from.
    commit
        Its own commit.
    outs
        What it made, with the digests that its ``dvc.lock`` records.
    """

    name: str
    baseline: str
    commit: str
    outs: tuple[Out, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the experiment as a JSON object."""
        return {
            "name": self.name,
            "baseline": self.baseline,
            "commit": self.commit,
            "outs": _outs(self.outs),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """A command that ran on verified data.

    Attributes
    ----------
    report
        The verification that let it run.
    committed
        Whether the metadata in the work tree is that of the commit.
    command
        Its name and arguments.
    status
        What it ended with.
    started, ended
        In UTC.
    variables
        What DVC says about an experiment in the environment that it ran in.
    experiments
        Those that appeared while it ran.
    outs
        What the metadata in the work tree records afterwards.
    rechecked
        Whether every file was hashed again afterwards.
    changed
        What is not what was verified any more.
    extra
        Files that appeared in tracked folders.
    """

    report: Report
    committed: bool
    command: Sequence[str]
    status: int
    started: datetime
    ended: datetime
    variables: Mapping[str, str]
    experiments: Sequence[Experiment]
    outs: Sequence[Out]
    rechecked: bool
    changed: Sequence[Item]
    extra: Sequence[str]

    SCHEMA = "dvc-integrity/run/1"

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON document (schema ``dvc-integrity/run/1``)."""
        return {
            "schema": self.SCHEMA,
            "receipt": receipt(self.report),
            "report": self.report.to_json(),
            "committed": self.committed,
            "command": list(self.command),
            "status": self.status,
            "started": self.started.isoformat(),
            "ended": self.ended.isoformat(),
            "variables": dict(self.variables),
            "experiments": [each.to_json() for each in self.experiments],
            "outs": _outs(self.outs),
            "afterwards": {
                "evidence": "rehashed" if self.rechecked else "stat",
                "changed": [item.to_json() for item in self.changed],
                "extra": list(self.extra),
            },
        }


def look(manifest: Manifest, workspace: Workspace) -> NDArray[np.int64]:
    """Return what the file system says of every file; int64[n, 5], zeros where there is none."""
    states = np.zeros((len(manifest), _STATE_FIELDS), np.int64)
    for row in range(len(manifest)):
        try:
            found = os.stat(workspace.place(manifest, row))
        except OSError:
            continue  # the verification tells
        states[row] = (
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
    return states


def changed(
    manifest: Manifest,
    workspace: Workspace,
    before: NDArray[np.int64],
    *,
    recheck: bool = False,
    jobs: int | None = None,
) -> list[Item]:
    """Return the files that are not what they were verified to be.

    Parameters
    ----------
    manifest
        What they must be.
    workspace
        Where they lie.
    before
        What ``look`` returned before they were verified.
    recheck
        Hash every file again, not only those that look different.
    jobs
        Reading threads.
    """
    touched = (look(manifest, workspace) != before).any(axis=1)
    rows = np.arange(len(manifest)) if recheck else np.flatnonzero(touched)
    items = survey(manifest, rows, [workspace], prove=True, listings=False, jobs=jobs)
    return [item for item in items if item.state(Workspace.name) is not State.GOOD]


def appeared(manifest: Manifest, workspace: Workspace) -> list[str]:
    """Return what lies in tracked folders, or cannot be listed there, and was not verified."""
    return sorted(path for path, _ in workspace.extras(manifest))


def write_record(run: Run, folder: str) -> str:
    """Write the record of a run as a file of its own in a folder, durably; return its path.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    name = f"{run.started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json"
    path = os.path.join(folder, name)
    text = json.dumps(run.to_json(), indent=2) + "\n"
    try:
        write_file(path, text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise StoreError(
            f"The record '{printable(path)}' could not be written: {error.strerror or error}. The "
            f"command has ended all the same."
        ) from error
    return path


def _outs(outs: Sequence[Out]) -> list[dict[str, str | None]]:
    return [{"path": out.path, "digest": str(out.digest) if out.digest else None} for out in outs]

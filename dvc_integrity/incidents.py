"""What readers met, on record: one JSON line an incident, shared by all processes of a run.

Workers and ranks append to one file under a lock. An incident that is there already is not
written again, so that a file which several processes meet counts once.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import secrets
import struct
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from dvc_integrity.durable import exclusive
from dvc_integrity.errors import printable
from dvc_integrity.report import CorruptDataError, Finding

__all__ = ["Incidents", "TooManyIncidents"]

logger = logging.getLogger(__name__)

SLOTS = 1 << 12
"""Processes that can count what they read."""

TRANSIENT = "transient"
"""The action on a file that was good when it was read again: it does not count."""

NAMED = 5
"""Files that the error names at most; the log has all of them."""

_COUNT = struct.Struct("=q")


class TooManyIncidents(CorruptDataError):  # noqa: N818 (the name says what happened)
    """More files were not what was committed than the error budget permits."""


class Incidents:
    """The incident log of a run, and how many incidents it may have; picklable.

    Parameters
    ----------
    path
        The log, JSON lines. Processes that are given the same path share it.
    budget
        Bad files that are permitted (of a large file that is read by blocks: bad blocks); one
        more ends the run. A count (an int), or a share (a float) of the samples that were read,
        but at least of ``samples``. None: no end.
    samples
        Samples of one epoch.
    """

    def __init__(self, path: str, *, budget: int | float | None = None, samples: int = 0) -> None:
        if budget is not None and budget < 0:
            raise ValueError(f"an error budget is a count or a share, not {budget!r}")
        self.path = path
        self.budget = budget
        self.samples = samples
        self._counter: _Counter | None = None
        self._read: dict[tuple[str, str, str | None, str], None] = {}
        self._read_bytes = 0
        self._warned = False

    @classmethod
    def of_run(
        cls, scratch: str, *, budget: int | float | None = None, samples: int = 0
    ) -> Incidents:
        """Return the log of this run below ``Repository.scratch``; ranks of torchrun share it."""
        run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if run == "none":  # torchrun's word for a run without a name
            run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        name = re.sub(r"[^0-9A-Za-z._-]", "_", run)
        return cls(
            os.path.join(scratch, "incidents", f"{name}.jsonl"), budget=budget, samples=samples
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counter": None, "_read": {}, "_read_bytes": 0}

    def add_reads(self, count: int) -> None:
        """Count samples that this process read; needed for a budget that is a share."""
        if not isinstance(self.budget, float):
            return
        try:
            if self._counter is None or self._counter.process != os.getpid():
                self._counter = _Counter(f"{self.path}.reads")
        except OSError as error:  # the budget is then a share of one epoch
            self._warn_once(error)
        else:
            self._counter.add(count)

    def note(self, finding: Finding, action: str, **more: Any) -> None:
        """Write an incident down, once, and end the run if there are too many.

        Parameters
        ----------
        finding
            What is wrong with the file.
        action
            What was done: ``raised``, ``restored``, ``substituted``, ``transient``.
        **more
            What else is known, as JSON.

        Raises
        ------
        TooManyIncidents
            If there are more incidents than the budget permits; the message names the log.
        """
        document = {"action": action, **finding.to_json(), **more}
        try:
            with exclusive(f"{self.path}.lock"):
                self._append(document)
        except OSError as error:  # a log that cannot be written must not hide what it is about
            self._warn_once(error)
            logger.warning("not on record: %s", document)
        self._read[_key(document)] = None  # this process counts it in any case
        self._refuse_more(finding)

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "'%s' cannot be written (%s): each process counts alone", self.path, error
            )

    def count(self) -> int:
        """Return how many files had incidents that were more than transient.

        Of a large file that is read by blocks each bad block counts.
        """
        return len(self._counted())

    def _counted(self) -> dict[tuple[str, str], None]:
        return {
            (path, ranges): None for path, ranges, _, action in self._known() if action != TRANSIENT
        }

    def _append(self, document: dict[str, Any]) -> None:
        if _key(document) in self._known():
            return
        time = datetime.now(timezone.utc).isoformat()
        line = json.dumps({"time": time, "process": os.getpid(), **document})
        with open(self.path, "a", encoding="utf-8") as log:
            log.write(f"{line}\n")
            log.flush()
            os.fsync(log.fileno())
        logger.warning(
            "'%s' is %s: %s", printable(document["path"]), document["status"], document["action"]
        )

    def _known(self) -> dict[tuple[str, str, str | None, str], None]:
        """Return what the log has, in order; only what others added since is read."""
        try:
            with open(self.path, "rb") as log:
                log.seek(self._read_bytes)
                lines = log.read()
        except FileNotFoundError:
            return self._read
        except OSError as error:
            self._warn_once(error)
            return self._read
        whole = lines[: lines.rfind(b"\n") + 1]  # the last one may be half written
        self._read_bytes += len(whole)
        self._read |= dict.fromkeys(_key(json.loads(line)) for line in whole.splitlines())
        return self._read

    def _refuse_more(self, finding: Finding) -> None:
        if self.budget is None:
            return
        counted = [path for path, _ in self._counted()]
        permitted = self.budget
        if isinstance(self.budget, float):
            permitted *= max(self.samples, _Counter.total(f"{self.path}.reads"))
        if len(counted) > permitted:
            files = list(dict.fromkeys(reversed(counted)))  # the latest first
            named = ", ".join(f"'{printable(path)}'" for path in files[:NAMED])
            more = f" and {len(files) - NAMED} more files" if len(files) > NAMED else ""
            raise TooManyIncidents(
                f"{len(counted)} times the data were not what was committed, and the error budget "
                f"is {self.budget:g}: {named}{more}. '{printable(self.path)}' lists them; "
                f"'dvc-integrity verify' shows the extent.",
                finding=finding,
            )


def _key(document: Mapping[str, Any]) -> tuple[str, str, str | None, str]:
    return document["path"], str(document["ranges"]), document["found"], document["action"]


class _Counter:
    """A number of this process in a file that others read: no lock, no system call to add."""

    def __init__(self, path: str) -> None:
        self.process = os.getpid()
        with exclusive(f"{path}.lock"), open(path, "a+b") as file:
            slot = file.seek(0, os.SEEK_END) // _COUNT.size % SLOTS
            file.write(_COUNT.pack(0))
            file.flush()
            self._map = mmap.mmap(file.fileno(), (slot + 1) * _COUNT.size)
        self._at = slot * _COUNT.size

    def add(self, count: int) -> None:
        """Add to the number."""
        (before,) = _COUNT.unpack_from(self._map, self._at)
        _COUNT.pack_into(self._map, self._at, before + count)

    @staticmethod
    def total(path: str) -> int:
        """Return the sum over all processes."""
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:  # there is none, or none can be made, which was told
            return 0
        return sum(count for (count,) in _COUNT.iter_unpack(data[: len(data) // 8 * 8]))

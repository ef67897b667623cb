"""Pairs of timed runs, the rows they make, and one Markdown table and one JSON file of them.

Ours and a peer are timed in turn in one run on one machine, and who goes first alternates, so
that a drift of the machine falls on both. What counts is the ratio of each pair; its median is
held to the goal, and every spread runs from the smallest to the largest value. Ratios say how
many times faster ours is.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dvc_integrity.hashing import usable_cpus
from dvc_integrity.kernel import kernel_name
from workload import BenchmarkError, Workplace, workplace

SCHEMA = "dvc-integrity/benchmark/1"

TOO_SHORT = "too short to tell"
"""Stands for a ratio when ours took no longer than the start-up that is taken off it."""

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    ``scale`` multiplies every number of files and every large size, ``pairs`` is how often each
    measurement is repeated, and ``million`` adds the peak memory of 1,000,000 files.
    """

    scale: float
    pairs: int
    million: bool

    def scaled(self, amount: int, least: int = 1) -> int:
        """Return ``amount`` by the scale, and never less than ``least``."""
        return max(least, round(amount * self.scale))


Part = Callable[[Options, Workplace], "list[Row]"]
"""One script's measurements."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: every value that was measured, and the goal.

    Parameters
    ----------
    work
        What was done, with its size.
    ours
        One value per run, in ``unit``.
    theirs
        The peer's values, in the order of ``ours``.
    peer
        What ours is compared with, or empty.
    unit
        ``s``, ``MB`` (10**6 bytes), ``MiB``, or what is counted.
    compared
        Whether the ratio of each pair is of interest; where ``ours`` is already a difference to
        the peer, it is not.
    least_ratio
        The goal for the median of the ratios.
    most
        The goal for the median of ``ours``.
    most_ratio
        The goal for the median of the ratios, where ours does more than the peer: they then say
        how many times as long it took.
    """

    work: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...] = ()
    peer: str = ""
    unit: str = "s"
    compared: bool = False
    least_ratio: float | None = None
    most: float | None = None
    most_ratio: float | None = None

    @property
    def ratios(self) -> list[float | None]:
        """How many times faster ours was in each pair; None where ours took no time.

        With ``most_ratio``, how many times as long it took.
        """
        if not self.compared:
            return []
        pairs = zip(self.ours, self.theirs, strict=True)
        if self.most_ratio is not None:
            return [ours / theirs for ours, theirs in pairs]
        return [theirs / ours if ours > 0 else None for ours, theirs in pairs]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios, or None if there is none in one of the pairs."""
        known = [ratio for ratio in self.ratios if ratio is not None]
        whole = bool(known) and len(known) == len(self.ratios)
        return statistics.median(known) if whole else None

    @property
    def goal(self) -> str:
        """The goal in words; empty without one."""
        if self.least_ratio is not None:
            return f">= {self.least_ratio:g}x"
        if self.most_ratio is not None:
            return f"<= {self.most_ratio:g}x the time"
        return "" if self.most is None else f"<= {self.most:g} {self.unit}"

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without a goal or if it cannot be told."""
        if self.least_ratio is not None:
            return None if self.ratio is None else self.ratio >= self.least_ratio
        if self.most_ratio is not None:
            return None if self.ratio is None else self.ratio <= self.most_ratio
        return None if self.most is None else statistics.median(self.ours) <= self.most

    def cells(self) -> list[str]:
        """Return the row's cells in the order of the table's columns."""
        peer = f"{self.peer}: {measured(self.theirs, self.unit)}" if self.peer else ""
        middle, spread = "", ""
        if self.compared and self.ratio is None:
            middle = TOO_SHORT
        elif self.ratio is not None:
            known = [ratio for ratio in self.ratios if ratio is not None]
            middle, spread = f"{self.ratio:.2f}x", f"{min(known):.2f}-{max(known):.2f}"
        met = {True: "yes", False: "no", None: "?" if self.goal else ""}[self.met]
        return [self.work, peer, measured(self.ours, self.unit), middle, spread, self.goal, met]

    def document(self) -> dict[str, object]:
        """Return the row for the JSON file, with every value."""
        return {
            "work": self.work,
            "unit": self.unit,
            "peer": self.peer or None,
            "peer_median": statistics.median(self.theirs) if self.theirs else None,
            "peer_values": self.theirs,
            "ours_median": statistics.median(self.ours),
            "ours_values": self.ours,
            "ratio_median": self.ratio,
            "ratios": self.ratios,
            "goal": self.goal or None,
            "met": self.met,
        }


COLUMNS = ("work", "peer", "ours", "ratio median", "spread", "goal", "met?")


def measured(values: Sequence[float], unit: str) -> str:
    """Return the median and the spread of values, with three digits or more; counts are whole."""
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 2 if middle >= 0.1 else 4  # noqa: PLR2004 (three digits)
    if all(isinstance(value, int) for value in values):
        digits = 0
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{middle:.{digits}f} {unit} ({low} to {high})"


def in_pairs(
    ours: Callable[[], float], theirs: Callable[[], float], pairs: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Time both ``pairs`` times, alternating who goes first; return both's values."""
    values: tuple[list[float], list[float]] = ([], [])
    turns = list(zip((ours, theirs), values, strict=True))
    for _ in range(pairs):
        for timed, measurements in turns:
            measurements.append(timed())
        turns.reverse()
    return tuple(values[0]), tuple(values[1])


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine() -> dict[str, object]:
    """Return what the figures depend on, without a name of the machine or a path on it."""
    return {
        "processor": processor(),
        "usable_cores": usable_cpus(),
        "python": platform.python_version(),
        "dvc": version("dvc"),
        "kernel": kernel_name(),
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
    }


def processor() -> str:
    """Return the processor's model as Linux tells it, or else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def heading(facts: dict[str, object], options: Options) -> str:
    """Return the line above the table: what the figures were measured on, and how."""
    line = (
        f"{facts['processor']}, {facts['usable_cores']} usable cores, Python {facts['python']}, "
        f"DVC {facts['dvc']}, kernel {facts['kernel']}, {facts['date']}: "
        f"median and spread of {options.pairs} pairs"
    )
    return line if options.scale == 1 else f"{line}, sizes scaled by {options.scale:g}"


def main(*parts: Part) -> None:
    """Measure the parts, print one table, write the JSON file if one is asked for."""
    arguments = parse()
    options = Options(arguments.scale, arguments.pairs, arguments.million)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidies up as Ctrl-C does
    try:
        with workplace(arguments.folder) as place:
            rows = [row for part in parts for row in part(options, place)]
    except BenchmarkError as error:
        sys.exit(f"The benchmark failed: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    facts = machine()
    if arguments.json is not None:
        document = {
            "schema": SCHEMA,
            **facts,
            "scale": options.scale,
            "pairs": options.pairs,
            "rows": [row.document() for row in rows],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"{heading(facts, options)}\n\n{table(rows)}")


def parse() -> argparse.Namespace:
    """Read the command line, which is the same for every script."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--scale", type=positive, default=1.0, help="multiply all sizes by this")
    parser.add_argument("--pairs", type=count, default=5, help="runs of each (default: 5)")
    parser.add_argument("--million", action="store_true", help="add a verify of 1,000,000 files")
    parser.add_argument("--folder", type=Path, help="for the temporary data, 7 GB at full scale")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to FILE")
    return parser.parse_args()


def positive(text: str) -> float:
    """Read a number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def count(text: str) -> int:
    """Read a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value

"""What people see: progress on stderr, the verdict and the findings on stdout.

Names that come from metadata or from a disk are untrusted: they pass ``printable`` and are
never taken for markup.
"""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dvc_integrity.damage import BLOCK_BYTES, PAGE_BYTES, Cell, CellKind, Damage
from dvc_integrity.diagnose import Diagnosis
from dvc_integrity.errors import printable
from dvc_integrity.hashing import Meter
from dvc_integrity.quarantine import Kept
from dvc_integrity.report import BLOCKS, Evidence, Finding, Report, Status, Verdict
from dvc_integrity.restore import Plan, Restoration, Result
from dvc_integrity.survey import Item, State

__all__ = [
    "print_diagnosis",
    "print_plan",
    "print_quarantine",
    "print_report",
    "print_restoration",
    "print_status",
    "show_progress",
]

ROWS_SHOWN = 20
"""Findings in the table, unless all are asked for."""

RANGES_SHOWN = 3
"""Damaged ranges of a file that are named; the JSON report has them all."""

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between two lines of progress where stderr is no terminal."""

REFRESHES_PER_SECOND = 8
"""How often the bar is drawn."""

CELLS_IN_A_LINE = 64
"""Cells of a damage map in one line of a terminal."""

MOST_SHARE = 0.99
"""A larger share than this, short of all, is told in words."""

WIDEST_TEXT = 100
"""Characters in a line of running text at most."""

_STYLES = {
    Status.CORRUPT: "bold red",
    Status.MISSING: "red",
    Status.MODIFIED: "red",
    Status.EXTRA: "magenta",
    Status.OK: "green",
}
_VERDICT_STYLES = {
    Verdict.CLEAN: "bold green",
    Verdict.DAMAGED: "bold red",
    Verdict.INCOMPLETE: "bold yellow",
}


@contextmanager
def show_progress(files: int, size: int | None, *, quiet: bool) -> Iterator[Meter]:
    """Show how far the reading is: a bar on a terminal, plain lines elsewhere.

    Parameters
    ----------
    files
        Files that will be read.
    size
        Bytes that will be read, or None if DVC records no size.
    quiet
        Show nothing.
    """
    meter = Meter()
    if quiet:
        yield meter
    elif sys.stderr.isatty():
        with _bar(meter, files, size):
            yield meter
    else:
        with _lines(meter, files):
            yield meter


def print_report(report: Report, *, verbose: bool, quiet: bool) -> None:
    """Print the findings, the worst first, then the verdict and what helps."""
    console = _Console(highlight=False, soft_wrap=True)
    if report.findings:
        _print_findings(console, report.findings, len(report.findings) if verbose else ROWS_SHOWN)
    if quiet and report.ok:
        return
    console.print(_summary(report))
    if report.left_out:
        names = " ".join(map(printable, report.left_out))
        console.print(
            f"left out, because the {report.store} is not to have it: {names}", markup=False
        )
    if verbose:
        console.print(f"manifest {report.manifest.digest}", markup=False)
    for line in _advice(report):
        console.print(line, markup=False)


def print_status(items: Sequence[Item], untouched: Sequence[Finding], *, quiet: bool) -> None:
    """Print a row for each file that is not good everywhere, a column for each place."""
    console = _Console(highlight=False, soft_wrap=True)
    places = list(dict.fromkeys(copy.store for item in items for copy in item.copies))
    table = Table(box=None, pad_edge=False, show_edge=False)
    for name in ("path", *places, "best source"):
        table.add_column(printable(name), overflow="fold")
    for item in items:
        states = {copy.store: copy.state for copy in item.copies}
        best = next((name for name, state in states.items() if state is State.GOOD), "none")
        path = f"{printable(item.entry.path)}{' (listing)' if item.listing else ''}"
        cells = [_state(states.get(name)) for name in places]
        table.add_row(Text(path), *cells, Text(printable(best)))
    if items:
        console.print(table)
    for finding in untouched:
        console.print(
            f"{finding.status.value:<12} {printable(finding.path)}  {printable(finding.detail)}",
            markup=False,
        )
    if not items and not untouched:
        if not quiet:
            console.print("clean: nothing is damaged or missing")
        return
    if items:
        console.print(_what_restores(items), markup=False)


def _state(state: State | None) -> Text:
    style = {State.GOOD: "green", State.BAD: "bold red", State.ABSENT: "red"}
    return Text(state.value if state else "", style=style.get(state, "") if state else "")


def _what_restores(items: Sequence[Item]) -> str:
    edited = any(item.finding and item.finding.status is Status.MODIFIED for item in items)
    more = (
        " What was written since it was committed ('modified') stays as it is; '--modified' "
        "restores that too."
        if edited
        else ""
    )
    return f"'dvc-integrity restore' brings good copies back ('--dry-run' shows how).{more}"


def print_plan(plan: Plan) -> None:
    """Print what a restore would do."""
    console = _Console(highlight=False, soft_wrap=True)
    for step in plan.steps:
        targets, sources = (printable(", ".join(each)) for each in (step.targets, step.sources))
        path = f"{printable(step.item.entry.path)}{' (listing)' if step.item.listing else ''}"
        console.print(f"restore      {path}  in {targets}, from {sources}", markup=False)
    for item in plan.hopeless:
        console.print(f"no copy      {printable(item.entry.path)}", markup=False)
    _print_untouched(console, plan.untouched)
    console.print(
        f"{len(plan.steps):,} to restore, {len(plan.hopeless):,} without a good copy, "
        f"{len(plan.untouched):,} left alone; nothing was changed"
    )


def print_restoration(done: Restoration, *, verbose: bool, quiet: bool) -> None:
    """Print what a restore did; what it could not do comes in any case."""
    console = _Console(highlight=False, soft_wrap=True)
    for each in done.outcomes:
        if each.ok and not verbose:
            continue
        source = f"  from {each.source}" if each.source else ""
        detail = f"  {each.detail}" if each.detail else ""
        text = f"{each.result.value:<12} {each.path}  in {each.place}{source}{detail}"
        console.print(printable(text), markup=False)
    for item in done.hopeless:
        why = ", ".join(f"{copy.store} {copy.state.value}" for copy in item.copies)
        text = f"hopeless     {item.entry.path}  no good copy: {why}"
        console.print(printable(text), markup=False)
    _print_untouched(console, done.untouched)
    restored = sum(each.result is Result.RESTORED for each in done.outcomes)
    if quiet and done.ok:
        return
    failed = sum(not each.ok for each in done.outcomes) + len(done.hopeless)
    console.print(f"{restored:,} restored, {failed:,} not, {len(done.untouched):,} left alone")
    if any(each.quarantine for each in done.outcomes):
        console.print("What lay there is kept: 'dvc-integrity restore --list-quarantine' shows it.")
    if done.hopeless or any(each.result is Result.HOPELESS for each in done.outcomes):
        console.print(
            "Bring what has no good copy back from a machine that has it ('dvc push' there), or "
            "from a backup; what DVC does not cache is in Git ('git checkout')."
        )


def _print_untouched(console: Console, untouched: Sequence[tuple[Finding, str]]) -> None:
    for finding, reason in untouched:
        text = f"left alone   {finding.path}  {finding.status.value}: {reason}"
        console.print(printable(text), markup=False)


def print_quarantine(kept: Sequence[Kept]) -> None:
    """Print what is in the quarantine, the oldest first."""
    console = _Console(highlight=False, soft_wrap=True)
    for each in kept:
        path = printable(str(each.note.get("path", "(no note: a kill came before it)")))
        text = f"{each.time:%Y-%m-%d %H:%M:%S}  {_bytes(each.size):>9}  {path}  {each.place}"
        console.print(printable(text), markup=False)
    console.print(f"{len(kept):,} in quarantine, {_bytes(sum(each.size for each in kept))}")


class _Console(Console):
    """A console that lets its caller decide what a reader that went away means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Rate(ProgressColumn):
    """Bytes a second since the start."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:
        return Text(f"{_bytes(self._meter.bytes / max(task.elapsed or 0.0, 1e-3))}/s")


@contextmanager
def _bar(meter: Meter, files: int, size: int | None) -> Iterator[None]:
    columns = (
        TextColumn("verify"),
        BarColumn(),
        TextColumn("{task.fields[files]:,}/{task.fields[of]:,} files"),
        _Rate(meter),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("verify", total=size or files, files=0, of=files)

        def draw() -> None:
            done = meter.bytes if size else meter.files
            progress.update(task, completed=done, files=meter.files)
            progress.refresh()

        with _repeated(draw, 1 / REFRESHES_PER_SECOND):
            yield


@contextmanager
def _lines(meter: Meter, files: int) -> Iterator[None]:
    start = time.monotonic()

    def say() -> None:
        rate = meter.bytes / max(time.monotonic() - start, 1e-3)
        print(  # noqa: T201 (this module prints)
            f"verify: {meter.files:,} of {files:,} files, {_bytes(meter.bytes)}, {_bytes(rate)}/s",
            file=sys.stderr,
            flush=True,
        )

    with _repeated(say, SECONDS_BETWEEN_LINES):
        yield


@contextmanager
def _repeated(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call ``action`` on a thread every so many seconds until the block ends."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=run, name="dvc-integrity-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _print_findings(console: Console, findings: tuple[Finding, ...], shown: int) -> None:
    rows = [_row(finding) for finding in findings[:shown]]
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, show_edge=False)
        table.add_column("status", no_wrap=True)
        table.add_column("path", overflow="fold")
        table.add_column("why", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for status, path, why in rows:
            console.print(f"{status!s:<12} {path}  {why}".rstrip(), markup=False)
    if len(findings) > shown:
        hidden = len(findings) - shown
        console.print(f"… and {hidden:,} more not shown ('-v' shows all, '--json' too)")
    console.print()


def _row(finding: Finding) -> tuple[Text, Text, Text]:
    status = "transient" if finding.transient else finding.status.value
    style = _STYLES.get(finding.status, "yellow")
    return Text(status, style=style), Text(printable(finding.path)), Text(_why(finding))


def _why(finding: Finding) -> str:
    parts = []
    if finding.expected and finding.found and finding.expected != finding.found:
        parts.append(f"expected {finding.expected.hex[:8]}…, found {finding.found.hex[:8]}…")
    if finding.ranges:
        parts.append(f"bytes {_shown(finding.ranges, len(finding.ranges))}")
    if finding.detail:
        parts.append(printable(finding.detail))
    return "; ".join(parts)


def _shown(ranges: tuple[tuple[int, int], ...], count: int) -> str:
    """Return the first of ``count`` ranges, and how many more there are."""
    shown = [
        f"{start:,}-{end - 1:,}" if end - start > 1 else f"{start:,}"
        for start, end in ranges[:RANGES_SHOWN]
    ]
    hidden = count - len(shown)
    return f"{' and '.join(shown)}{f' and {hidden:,} ranges more' if hidden else ''}"


def _summary(report: Report) -> Text:
    counts = dict.fromkeys(Status, 0)
    for finding in report.findings:
        counts[finding.status] += 1
    read = report.coverage.files[Evidence.REHASHED]
    size = _bytes(report.coverage.bytes[Evidence.REHASHED])
    by_blocks, _ = report.coverage.digests.get(BLOCKS, (0, 0))
    how = f", {by_blocks:,} by their blocks" if by_blocks else ""
    stated = report.coverage.files[Evidence.ATTESTED]
    if stated:
        size = _bytes(report.coverage.bytes[Evidence.ATTESTED])
    what = "attested by the service, not read" if stated else "re-hashed"
    judged = f"{stated or read:,} of {report.manifest.files:,} files {what}"
    parts = [
        f"{judged} ({size}{how}) in {report.seconds:.1f} s",
        *(f"{count:,} {status.value}" for status, count in counts.items() if count),
    ]
    rest = f": {report.store} {_at(report.rev)}, {', '.join(parts)}"
    return Text.assemble((report.verdict.value, _VERDICT_STYLES[report.verdict]), rest)


def _advice(report: Report) -> Iterator[str]:
    """Say what helps, once for each kind of trouble."""
    kinds = {finding.status for finding in report.findings}
    if report.store != "workspace":
        yield from _advice_on_objects(report.store, kinds)
    else:
        yield from _advice_on_files(report.findings, kinds)
    if kinds & {Status.UNREADABLE, Status.UNSTABLE}:
        yield "What could not be read says nothing about its bytes: mend that and run again."


def _advice_on_files(findings: tuple[Finding, ...], kinds: set[Status]) -> Iterator[str]:
    outs = sorted({printable(finding.out) for finding in findings if finding.adopted})
    if outs:
        names = " ".join(outs)
        yield (
            f"DVC has already recorded the change of {names} in the work tree. If it is meant, "
            f"commit the new version ('git add' its .dvc file or dvc.lock, 'git commit') and run "
            f"again. If not, go back: 'git checkout' that file, then 'dvc checkout {names}'."
        )
    elif kinds & {Status.MODIFIED, Status.EXTRA, Status.MISSING}:
        yield (
            "If the change is meant, record it ('dvc add' or 'dvc commit'), 'git commit', and run "
            "again. If not, 'dvc checkout' brings committed files back."
        )
    if Status.CORRUPT in kinds:
        yield (
            "Corrupt: nothing wrote these files, yet their bytes differ. DVC will not notice. "
            "'dvc-integrity status' shows who holds a good copy, 'dvc-integrity restore' brings it "
            "back and keeps the bad one. Then look at the disk and the memory."
        )


def _advice_on_objects(store: str, kinds: set[Status]) -> Iterator[str]:
    fill = "dvc fetch" if store == "cache" else "dvc push"
    heal = "--store cache" if store == "cache" else "--all-places --push"
    if Status.CORRUPT in kinds:
        yield (
            f"Corrupt objects in the {store}: DVC will neither notice nor replace them. "
            f"'dvc-integrity status --all-places' shows who holds a good copy, 'dvc-integrity "
            f"restore {heal}' puts it there and keeps the bad one."
        )
    elif Status.MISSING in kinds:
        yield (
            f"'{fill}' brings missing objects to the {store}, where another place has them; "
            f"'dvc-integrity restore {heal}' proves them on the way."
        )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 (decimal units)
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what kind of damage a file has: how much, where, which patterns, and what helps."""
    console = _Console(highlight=False, soft_wrap=True)
    finding = diagnosis.finding
    status, path, _ = _row(finding)
    console.print(Text.assemble(status, f"  {path}"))
    _print_paragraph(console, f"{diagnosis.store} {_at(diagnosis.rev)}", _why(finding))
    if diagnosis.damage is not None:
        console.print()
        _print_damage(console, diagnosis.damage, diagnosis.good_copy or "")
    for number, match in enumerate(diagnosis.matches, 1):
        console.print()
        share = f" ({_percent(match.share)} of it)" if match.share and match.share < 1 else ""
        name = match.pattern.value.replace("-", " ")
        _print_paragraph(console, f"{number}. {name}{share}: {printable(match.detail)}", indent="")
        _print_paragraph(console, f"cause: {match.cause}")
        _print_paragraph(console, f"next:  {match.next}")
    if finding.status is Status.OK:
        _print_paragraph(console, "Its bytes are the committed ones.", indent="")
    if finding.status.is_damage and not diagnosis.matches and diagnosis.damage is None:
        console.print()
        for line in _advice_on_one(diagnosis.store, finding):
            _print_paragraph(console, line, indent="")
    for note in diagnosis.notes:
        console.print()
        _print_paragraph(console, note, indent="")


def _advice_on_one(store: str, finding: Finding) -> Iterator[str]:
    if store == "workspace":
        yield from _advice_on_files((finding,), {finding.status})
    else:
        yield from _advice_on_objects(store, {finding.status})


def _at(rev: str) -> str:
    return f"at {rev[:12]}" if rev != "workspace" else "by the metadata in the work tree"


def _print_paragraph(console: Console, *lines: str, indent: str = "  ") -> None:
    """Print lines of running text; what they go on with is indented by two more."""
    for line in filter(None, lines):
        wrapped = textwrap.wrap(
            line,
            min(console.width, WIDEST_TEXT),
            initial_indent=indent,
            subsequent_indent=f"{indent}   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for each in wrapped:
            console.print(each, markup=False)


def _print_damage(console: Console, damage: Damage, good_copy: str) -> None:
    pages, blocks = (-(-damage.common // unit) for unit in (PAGE_BYTES, BLOCK_BYTES))
    counted = []
    if damage.bytes:
        counted.append(
            f"{_count(damage.bits, 'bit')} in {_count(damage.bytes, 'byte')} of "
            f"{damage.common:,} differ, in {damage.pages:,} of {_count(pages, 'page')} of 4 KiB "
            f"and {damage.blocks:,} of {_count(blocks, 'block')} of 1 MiB"
        )
    if damage.lacking:
        counted.append(f"{_count(damage.lacking, 'byte')} of {damage.good_bytes:,} lack")
    if damage.surplus:
        counted.append(f"{_count(damage.surplus, 'byte')} too many after {damage.good_bytes:,}")
    compared = f"Compared with the good copy in the {good_copy}"
    _print_paragraph(console, f"{compared}: {'; '.join(counted) or 'no byte differs'}.", indent="")
    if damage.ranges:
        _print_paragraph(
            console, f"At bytes {_shown(damage.ranges, damage.range_count)}.", indent=""
        )
    console.print()
    _print_map(console, damage)


def _print_map(console: Console, damage: Damage) -> None:
    """Print the cells of the damage map, some in a line, with the offset of the first."""
    glyphs = _GLYPHS if "utf" in console.encoding.lower() else _ASCII_GLYPHS
    cells = list(damage.cells())
    width = len(f"{cells[-1].start:,}")
    for start in range(0, len(cells), CELLS_IN_A_LINE):
        line = Text(f"{cells[start].start:>{width},} ")
        for cell in cells[start : start + CELLS_IN_A_LINE]:
            line.append(_glyph(cell, glyphs), "" if cell.kind is CellKind.GOOD else "red")
        console.print(line)
    kinds = {cell.kind for cell in cells}
    told = [f"{glyphs[kind]} {meaning}" for kind, meaning in _MEANINGS.items() if kind in kinds]
    legend = f"one cell is {_binary(damage.map.cell_bytes)}: {', '.join(told)}"
    console.print(f"{'':>{width}} {legend}", markup=False)


def _glyph(cell: Cell, glyphs: dict[CellKind, str]) -> str:
    shades = glyphs[cell.kind]
    return shades[cell.level(len(shades)) - 1] if len(shades) > 1 else shades


_GLYPHS = {
    CellKind.GOOD: "·",
    CellKind.DIFFERS: "░▒▓█",
    CellKind.LACKS: "-",
    CellKind.SURPLUS: "+",
}
_ASCII_GLYPHS = {**_GLYPHS, CellKind.GOOD: ".", CellKind.DIFFERS: "1234"}
_MEANINGS = {
    CellKind.GOOD: "good",
    CellKind.DIFFERS: "differs (few to all bytes)",
    CellKind.LACKS: "lacks",
    CellKind.SURPLUS: "too many",
}


def _percent(share: float) -> str:
    """Return a share in words that never round to nothing or to everything."""
    if share > MOST_SHARE:
        return "nearly all"
    return f"{share:.0%}" if share > 1 - MOST_SHARE else "little"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _binary(count: int) -> str:
    """Return a power of two of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 (binary units)
            return f"{count:,} {unit}"
        count //= 1024
    return f"{count:,} TiB"

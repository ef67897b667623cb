"""The damage map of a diagnosis as SVG: one file, no script, no font, no link.

It is drawn in the colours that the reader prefers, light or dark. Names that come from
metadata are untrusted: they pass ``printable`` and are escaped.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from html import escape

from dvc_integrity.damage import Cell, CellKind, Damage
from dvc_integrity.diagnose import SCHEMA, Diagnosis
from dvc_integrity.durable import write_file
from dvc_integrity.errors import StoreError, printable
from dvc_integrity.hashing import read_file

__all__ = ["draw", "is_replaceable", "write_picture"]

COLUMNS = 64
CELL, GAP, LINE = 10, 2, 18
"""Lengths in pixels: the side of a cell, between cells, of a line of text."""

MARGIN, WIDTH = 16, 960
CHARACTERS, TITLE_CHARACTERS = 112, 90
"""In a line of text of that width."""

CHARACTER = 8
"""Width of a character in pixels, at the most."""

LEVELS = 4
"""Shades of damage."""

MATCHES_DRAWN = 4

LARGEST_BYTES = 1 << 20
"""A larger file is no picture of ours."""

_OPENING = f'<svg xmlns="http://www.w3.org/2000/svg" data-schema="{SCHEMA}"'
"""How a picture of ours begins: what may be overwritten."""

_FAMILY = _OPENING[: _OPENING.rindex("/") + 1]

_SHAPES = """\
text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.title { font-size: 16px; font-weight: bold; }
.soft { font-size: 12px; }
.lacks { fill: none; stroke-width: 1.5; }
"""

_LIGHT = """\
text { fill: #1f2328; } .soft { fill: #59636e; } .paper { fill: #ffffff; } .good { fill: #d8dee4; }
.d1 { fill: #f3ad73; } .d2 { fill: #e8743b; } .d3 { fill: #c23b22; } .d4 { fill: #7f1010; }
.lacks { stroke: #4c7ac0; } .surplus { fill: #8250c4; }
"""

_DARK = """\
text { fill: #e6edf3; } .soft { fill: #9198a1; } .paper { fill: #0d1117; } .good { fill: #2f3742; }
.d1 { fill: #8a4a1c; } .d2 { fill: #c8621f; } .d3 { fill: #f0763f; } .d4 { fill: #ffb59a; }
.lacks { stroke: #6ea0ea; } .surplus { fill: #b78cf2; }
"""

_STYLE = f"{_SHAPES}{_LIGHT}@media (prefers-color-scheme: dark) {{\n{_DARK}}}"
"""The dark colours come last and replace the light ones; plain rules, which every viewer knows."""


def draw(diagnosis: Diagnosis, damage: Damage) -> str:
    """Return the damage map as an SVG document."""
    page = _Page()
    finding = diagnosis.finding
    page.write(f"{finding.status.value}: {printable(finding.path)}", "title")
    page.write(
        f"{diagnosis.store} at {diagnosis.rev[:12]}, compared with the good copy in the "
        f"{diagnosis.good_copy}: {damage.bits:,} bits in {damage.bytes:,} bytes of "
        f"{damage.common:,} differ{_tail(damage)}",
        "soft",
    )
    page.skip(LINE // 2)
    cells = list(damage.cells())
    label = len(f"{cells[-1].start:,}") if cells else 0
    for start in range(0, len(cells), COLUMNS):
        page.write_cells(cells[start : start + COLUMNS], label)
    page.skip(LINE // 2)
    page.write_legend({cell.kind for cell in cells}, damage.map.cell_bytes)
    page.skip(LINE // 2)
    for match in diagnosis.matches[:MATCHES_DRAWN]:
        page.write(f"{match.pattern.value.replace('-', ' ')}: {printable(match.detail)}")
        page.write(f"cause: {match.cause}", "soft")
    return page.document(f"Damage map of {printable(finding.path)}")


def is_replaceable(path: str) -> bool:
    """Return whether nothing lies at a path, or an earlier picture that may be overwritten."""
    if os.path.isfile(path) and os.path.getsize(path) > LARGEST_BYTES:
        return False
    data, seen = read_file(path)
    if isinstance(seen.error, (FileNotFoundError, NotADirectoryError)):
        return True
    return data.startswith(_FAMILY.encode())


def write_picture(diagnosis: Diagnosis, damage: Damage, path: str) -> None:
    """Write the picture durably: the whole file, or the old one stays.

    Raises
    ------
    StoreError
        If it cannot be written; the message names the file.
    """
    try:
        write_file(path, draw(diagnosis, damage).encode())
    except OSError as error:
        raise StoreError(
            f"'{printable(path)}' could not be written: {error.strerror or error}. Nothing was "
            f"left half written. Free space or name another file, and run again."
        ) from error


def _tail(damage: Damage) -> str:
    if damage.lacking:
        return f", {damage.lacking:,} lack"
    return f", {damage.surplus:,} are too many" if damage.surplus else ""


class _Page:
    """Elements from the top to the bottom."""

    def __init__(self) -> None:
        self._y = MARGIN
        self._elements: list[str] = []

    def skip(self, pixels: int) -> None:
        self._y += pixels

    def write(self, text: str, kind: str = "") -> None:
        """Write running text, in as many lines as it takes."""
        width = TITLE_CHARACTERS if kind == "title" else CHARACTERS
        for line in textwrap.wrap(text, width, break_on_hyphens=False):
            self._y += LINE
            self._text(MARGIN, line, kind)

    def write_cells(self, cells: list[Cell], label: int) -> None:
        """Draw a row of cells after the offset of the first."""
        left = MARGIN + CHARACTER * label + LINE // 2
        self._y += LINE
        self._text(left - LINE // 2, f"{cells[0].start:,}", "soft", anchor="end")
        for column, cell in enumerate(cells):
            tip = f"bytes {cell.start:,}-{cell.stop - 1:,}: {cell.differing:,} differ"
            self._square(left + column * (CELL + GAP), _class_of(cell), tip)

    def write_legend(self, kinds: set[CellKind], cell_bytes: int) -> None:
        """Say what the squares stand for."""
        self._y += LINE
        left = MARGIN
        for name, text in _legend(kinds):
            self._square(left, name, "")
            self._text(left + CELL + 6, text, "soft")
            left += CELL + LINE + CHARACTER * len(text)
        self.write(f"One square is {cell_bytes:,} bytes; the numbers are offsets in bytes.", "soft")

    def document(self, title: str) -> str:
        """Return the whole picture."""
        height = self._y + MARGIN
        size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        lines = [
            f'{_OPENING} {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
            *self._elements,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _text(self, x: int, text: str, kind: str, *, anchor: str = "start") -> None:
        place = f'x="{x}" y="{self._y}" text-anchor="{anchor}"'
        self._elements.append(f'<text class="{kind}" {place}>{escape(text)}</text>')

    def _square(self, x: int, kind: str, tip: str) -> None:
        inner = f"<title>{escape(tip)}</title>" if tip else ""
        shape = f'x="{x}" y="{self._y - CELL}" width="{CELL}" height="{CELL}" rx="1.5"'
        self._elements.append(f'<rect class="{kind}" {shape}>{inner}</rect>')


def _class_of(cell: Cell) -> str:
    return f"d{cell.level(LEVELS)}" if cell.kind is CellKind.DIFFERS else cell.kind.value


def _legend(kinds: set[CellKind]) -> Iterator[tuple[str, str]]:
    if CellKind.GOOD in kinds:
        yield "good", "good"
    if CellKind.DIFFERS in kinds:
        for level in range(1, LEVELS + 1):
            yield f"d{level}", f"differs, to {level * 100 // LEVELS} %"
    if CellKind.LACKS in kinds:
        yield "lacks", "lacks"
    if CellKind.SURPLUS in kinds:
        yield "surplus", "too many"

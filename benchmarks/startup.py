"""What a command costs before it reads a byte, next to importing DVC.

Usage: ``python benchmarks/startup.py [--pairs N] [--json FILE]``
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from timing import Options, Row, in_pairs, main
from workload import TOOL, Workplace

MOST_SECONDS_OF_HELP = 0.2
MOST_SECONDS_PAST_DVC = 0.5


def rows(options: Options, place: Workplace) -> list[Row]:
    """Time ``--help``, and a verify of one small file in turn with importing DVC."""
    with one_small_file(place) as root:
        helps = tuple(place.run([*TOOL, "--help"], root)[0] for _ in range(options.pairs))
        verifies, imports = in_pairs(
            lambda: place.verify(root),
            lambda: place.run([sys.executable, "-c", "import dvc.repo"], root)[0],
            options.pairs,
        )
    pairs = zip(verifies, imports, strict=True)
    return [
        Row("`dvc-integrity --help`", helps, most=MOST_SECONDS_OF_HELP),
        Row(
            "verify one small file, less importing DVC",
            tuple(verify - imported for verify, imported in pairs),
            imports,
            peer="importing DVC",
            most=MOST_SECONDS_PAST_DVC,
        ),
    ]


@contextlib.contextmanager
def one_small_file(place: Workplace) -> Iterator[Path]:
    """Make a project with one tracked file, on which a verify is nothing but start-up."""
    with place.project("small") as root:
        (root / "data.csv").write_text("1,2,3\n", encoding="utf-8")
        place.track(root, "data.csv")
        yield root


if __name__ == "__main__":
    main(rows)

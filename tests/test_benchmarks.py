"""The benchmarks, at a size that takes seconds: a table and a JSON file of the same rows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dvc_integrity.kernel import KERNEL_VARIABLE

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

if os.environ.get(KERNEL_VARIABLE):
    pytest.skip("the native kernel is kept out of use", allow_module_level=True)

pytest.importorskip("dvc_integrity._lanes", reason="the benchmarks measure the native kernel")

COLUMNS = ["work", "peer", "ours", "ratio median", "spread", "goal", "met?"]

GOALS = [">= 7x", "<= 0.2 s", "<= 0.5 s", "<= 5 s", "<= 150 MB", ">= 3.5x", ">= 8x", ">= 1.2x",
         "<= 300 MB", ">= 3x", "<= 300 MB", "<= 300 MB", ">= 1.5x",
         ">= 3x", "<= 2 requests",
         "<= 1.05x the time", "<= 1.4x the time",
         "<= 1.05x the time", "<= 1.1 MiB", "<= 0 MiB"]  # fmt: skip
"""What is to be reached, in the order of the rows."""

FAILING_MD5SUM = "#!/bin/sh\necho broken >&2\nexit 3\n"


def run(name, folder, *options, **environment):
    command = [sys.executable, str(BENCHMARKS / name), "--scale", "0.0001", "--folder", str(folder)]
    return subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def folder(tmp_path):
    """Return an empty folder for the temporary data."""
    made = tmp_path / "data"
    made.mkdir()
    return made


def test_all_benchmarks_make_one_table_and_one_document(folder: Path, tmp_path: Path) -> None:
    """One run measures every goal; table and JSON tell the same, and nothing is left behind."""
    file = tmp_path / "bench.json"
    done = run("__main__.py", folder, "--pairs", "1", "--million", "--json", str(file))
    assert 0 == done.returncode
    assert {"left out"} >= {line.partition(":")[0] for line in done.stderr.splitlines()}
    heading, blank, *table = done.stdout.splitlines()
    document = json.loads(file.read_text())

    assert "" == blank
    for fact in ("processor", "python", "dvc", "kernel", "date"):
        assert str(document[fact]) in heading
    assert f"{document['usable_cores']} usable cores" in heading
    assert "sizes scaled by 0.0001" in heading

    assert (COLUMNS, ["---"] * len(COLUMNS)) == (cells(table[0]), cells(table[1]))
    rows = [dict(zip(COLUMNS, cells(line), strict=True)) for line in table[2:]]
    assert [row["work"] for row in document["rows"]] == [row["work"] for row in rows]
    assert [row["goal"] or "" for row in document["rows"]] == [row["goal"] for row in rows]
    assert GOALS == [row["goal"] for row in rows if row["goal"]]
    for row, told in zip(rows, document["rows"], strict=True):
        assert re.fullmatch(r"-?[\d.]+ (s|MB|MiB|requests) \(-?[\d.]+ to -?[\d.]+\)", row["ours"])
        assert {True: "yes", False: "no", None: "?" if row["goal"] else ""}[told["met"]] == row[
            "met?"
        ]
        assert 1 == len(told["ours_values"])
        assert len(told["peer_values"]) == (1 if told["peer"] else 0)
        if told["ratio_median"] is not None:
            times = [told["peer_median"], told["ours_median"]]
            longer, shorter = times[::-1] if "time" in row["goal"] else times
            assert [longer / shorter] == told["ratios"]
            assert f"{told['ratio_median']:.2f}x" == row["ratio median"]

    for place in (str(tmp_path), str(BENCHMARKS.parent)):
        assert place not in done.stdout + file.read_text()
    assert [] == list(folder.iterdir())


def test_pairs_have_a_median_and_a_spread(folder: Path, tmp_path: Path) -> None:
    """Every value of every pair is kept, and the ratio is the median of the pairs' own."""
    file = tmp_path / "bench.json"
    done = run("kernel.py", folder, "--pairs", "3", "--json", str(file))
    assert (0, "") == (done.returncode, done.stderr)
    row = json.loads(file.read_text())["rows"][-1]
    ratios = [
        peer / ours for peer, ours in zip(row["peer_values"], row["ours_values"], strict=True)
    ]
    assert ratios == row["ratios"]
    assert sorted(ratios)[1] == row["ratio_median"]
    assert f"{min(ratios):.2f}-{max(ratios):.2f}" == cells(done.stdout.splitlines()[-1])[4]


def test_a_failing_program_fails_the_benchmark(folder: Path, tmp_path: Path) -> None:
    """A peer that fails leaves no figure, no file and no data; the reason is told."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "md5sum").write_text(FAILING_MD5SUM)
    (programs / "md5sum").chmod(0o755)
    file = tmp_path / "bench.json"
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = run("verify.py", folder, "--pairs", "1", "--json", str(file), PATH=path)
    assert (1, "") == (done.returncode, done.stdout)
    assert "The benchmark failed" in done.stderr
    assert "broken" in done.stderr
    assert not file.exists()
    assert [] == list(folder.iterdir())


@pytest.mark.parametrize("option", [("--scale", "0"), ("--pairs", "0")])
def test_nothing_measured_is_wrong_usage(folder: Path, option: tuple[str, str]) -> None:
    """A scale or a number of pairs of nothing is refused."""
    done = run("startup.py", folder, *option)
    assert (2, "") == (done.returncode, done.stdout)

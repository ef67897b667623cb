"""Temporary projects to measure on, and the programs that are measured.

A workplace is a temporary folder that goes away however the benchmark ends. The programs in it
run without the user's Git and DVC configuration, with DVC's analytics and update check off, and
with a site cache folder for each project. A program that fails ends the benchmark.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dvc_integrity.hashing import usable_cpus
from dvc_integrity.kernel import KERNEL_VARIABLE

SEED = 20260101

TOOL = (sys.executable, "-m", "dvc_integrity")
DVC = (sys.executable, "-m", "dvc")

DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
[cache]
    type = hardlink
"""
"""Hard links, so that the data fills the disk once."""

PIECE_BYTES = 1 << 24
FILES_PER_FOLDER = 1000
DEVICE_BLOCK_BYTES = 512

UNRELATED_BYTES = 1 << 24
"""What a program may read from the device next to the data, for its own code."""

TRIES = 10
"""How often a run is repeated before the page cache is found to be too small."""

BATCH_FILES = 1000

PEAK_MB = """
from pathlib import Path
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
"""
"""Source of ``peak``, the most memory that the running process ever held, in MB.

The resource usage of a child would not do: it starts from what the parent held.
"""

VERIFY_AND_TELL_PEAK = f"""{PEAK_MB}
import sys
from dvc_integrity.cli import main
sys.argv = ["dvc-integrity", "verify", "--quiet"]
try:
    main()
finally:
    print(peak())
"""


class BenchmarkError(Exception):
    """A program failed, or did something else than what was to be measured."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """A temporary folder, and how programs run in it."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: Sequence[str], folder: Path) -> tuple[float, str]:
        """Run a program that must succeed; return its seconds and what it printed."""
        with tempfile.TemporaryFile(dir=self.folder) as output:
            clock = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=folder,
                env={**self.environment, "DVC_SITE_CACHE_DIR": site_cache(folder)},
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
            )
            seconds = time.perf_counter() - clock
            output.seek(0)
            printed = output.read().decode(errors="replace")
        if done.returncode != 0:
            said = (printed[-1000:] + done.stderr.decode(errors="replace")[-1000:]).strip()
            program = shlex.join(command[1:] if command[0] == sys.executable else command)
            raise BenchmarkError(f"'{program[:200]}' ended with status {done.returncode}.\n{said}")
        return seconds, printed

    @contextlib.contextmanager
    def project(self, name: str) -> Iterator[Path]:
        """Make a Git and DVC project that goes away afterwards, to leave room for the next."""
        root = self.folder / name
        root.mkdir()
        try:
            self.run(["git", "init", "-q"], root)
            self.run([*DVC, "init", "-q"], root)
            yield root
        finally:
            shutil.rmtree(root)
            shutil.rmtree(site_cache(root), ignore_errors=True)

    @contextlib.contextmanager
    def twin(self, root: Path) -> Iterator[Path]:
        """Make a second project of the same files, by hard links, for programs that only read."""
        fresh = root.with_name(f"{root.name}-twin")
        try:
            shutil.copytree(root, fresh, copy_function=os.link)
            yield fresh
        finally:
            shutil.rmtree(fresh)
            shutil.rmtree(site_cache(fresh), ignore_errors=True)

    def track(self, root: Path, name: str) -> None:
        """Track a file or a folder with ``dvc add``, and commit.

        What was written is flushed to the device now rather than during a timed run.
        """
        self.run([*DVC, "add", "-q", name], root)
        self.commit(root)
        os.sync()

    def commit(self, root: Path) -> None:
        """Commit everything to Git."""
        self.run(["git", "add", "-A"], root)
        self.run(["git", "commit", "-qm", "data"], root)

    def verify(self, root: Path) -> float:
        """Return the seconds of ``dvc-integrity verify``, which succeeds only if all is clean."""
        return self.run([*TOOL, "verify"], root)[0]

    def peak(self, root: Path) -> float:
        """Return the most memory that a verify holds, in MB."""
        return float(self.run([sys.executable, "-c", VERIFY_AND_TELL_PEAK], root)[1])

    def md5sum(self, data: Path, files: int) -> float:
        """Return the seconds of ``md5sum`` over all ``files`` below a folder, on all cores.

        A process is given 1000 files, or fewer where that would leave a core without work.
        """
        cpus = usable_cpus()
        batch = min(BATCH_FILES, -(-files // (4 * cpus)))
        pipeline = f"find . -type f -print0 | xargs -0 -P{cpus} -n{batch} md5sum"
        seconds, printed = self.run(["bash", "-o", "pipefail", "-c", pipeline], data)
        if printed.count("\n") != files:
            raise BenchmarkError(f"md5sum hashed {printed.count(chr(10))} files, not {files}.")
        return seconds

    def dvc_rehash(self, root: Path) -> float:
        """Return the seconds of a ``dvc status`` that finds no state database, so that it reads.

        With ``--quiet`` it succeeds only if it finds the data unchanged. It writes the database
        again, which the next call must find: else DVC keeps it elsewhere, and did not re-hash.
        """
        databases = list(Path(site_cache(root)).glob("repo/*/hashes"))
        if not databases:
            raise BenchmarkError("DVC's state database does not lie in its site cache folder.")
        for database in databases:
            shutil.rmtree(database)
        return self.run([*DVC, "status", "--quiet"], root)[0]


def site_cache(root: Path) -> str:
    """Return where DVC keeps the state database of a project."""
    return f"{root}.site"


@contextlib.contextmanager
def workplace(parent: Path | None) -> Iterator[Workplace]:
    """Make a workplace below a folder (by default the system's temporary one), then remove it."""
    with tempfile.TemporaryDirectory(prefix="dvc-integrity-bench-", dir=parent) as name:
        folder = Path(name).resolve()
        config = folder / "config"
        config.mkdir()
        (config / "config").write_text(DVC_CONFIG, encoding="utf-8")
        foreign = ("DVC_", "GIT_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name == KERNEL_VARIABLE or not name.startswith(foreign)
        }
        people = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "bench"), ("EMAIL", "bench@example.org"))
        }
        places = {
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(config),
            "DVC_SYSTEM_CONFIG_DIR": str(folder / "none"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }
        yield Workplace(folder, {**kept, **people, **places})


def write_files(data: Path, sizes: Iterable[int]) -> None:
    """Write files of random bytes, the same in every run, 1000 to a folder."""
    source = np.random.default_rng(SEED)
    for number, size in enumerate(sizes):
        path = data / f"{number // FILES_PER_FOLDER:04d}" / f"{number:07d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.writelines(
                source.bytes(min(PIECE_BYTES, size - start))
                for start in range(0, size, PIECE_BYTES)
            )


def warmed(data: Path, timed: Callable[[], float]) -> Callable[[], float]:
    """Return a measurement with the page cache warmed right before it.

    A run that read from the device all the same, because the system dropped pages in between, is
    no measurement of what is meant, whoever ran: it is repeated, whatever its time was.
    """

    def run() -> float:
        for _ in range(TRIES):
            allowed = read_all(data) // 100 + UNRELATED_BYTES
            before = bytes_from_device()
            seconds = timed()
            missed = bytes_from_device() - before
            if missed <= allowed:
                return seconds
        raise BenchmarkError(
            f"The page cache does not hold the files: {missed / 1e6:.0f} MB came from the device."
        )

    return run


def read_all(data: Path) -> int:
    """Read every file below a folder once, for the page cache; return how many bytes it was."""
    piece = bytearray(PIECE_BYTES)
    total = 0
    for folder, _, names in os.walk(data):
        for name in names:
            with open(os.path.join(folder, name), "rb", buffering=0) as file:
                while size := file.readinto(piece):
                    total += size
    return total


def bytes_from_device() -> int:
    """Return how many bytes the programs that have ended read from a device."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock * DEVICE_BLOCK_BYTES


def generated_listing(entries: int) -> bytes:
    """Return a listing as DVC writes it, with names like ImageNet's.

    The content of the file ``listed_name(number)`` is ``str(number)``.
    """
    listed = [
        {
            "md5": hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest(),
            "relpath": listed_name(number),
        }
        for number in range(entries)
    ]
    return json.dumps(listed, sort_keys=True).encode()


def listed_name(number: int) -> str:
    """Return the path of a generated listing's entry."""
    return f"train/n{number // 1300:08d}/image_{number:08d}.jpeg"


def plant_listing(root: Path, entries: int) -> None:
    """Track a folder ``data`` with a generated listing; ``dvc add`` would take too long."""
    listing = generated_listing(entries)
    digest = hashlib.md5(listing, usedforsecurity=False).hexdigest()
    cached = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / f"{digest[2:]}.dir"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(listing)
    (root / "data.dvc").write_text(
        f"outs:\n- md5: {digest}.dir\n  nfiles: {entries}\n  hash: md5\n  path: data\n",
        encoding="utf-8",
    )
    (root / ".gitignore").write_text("/data\n", encoding="utf-8")

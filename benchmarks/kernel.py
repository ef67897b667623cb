"""The MD5 kernels in memory on one core, next to hashlib: 16 buffers of 1 MiB.

Usage: ``python benchmarks/kernel.py [--scale X] [--pairs N] [--json FILE]``
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from timing import Options, Row, in_pairs, main
from workload import SEED, BenchmarkError, Workplace

BUFFERS = 16
MIB = 1 << 20
PASSES = 8
LEAST_RATIO = 7.0


def rows(options: Options, _: Workplace) -> list[Row]:
    """Measure each kernel that the processor runs. The goal is the widest one's."""
    try:
        from dvc_integrity import _lanes  # noqa: PLC0415 (an optional part of the build)
    except ImportError as error:
        raise BenchmarkError("The native kernel is not built: it needs a C compiler.") from error
    kernels = [(index, name) for index, name in enumerate(_lanes.kernels()) if name is not None]
    size = options.scaled(MIB, least=64)
    source = np.random.default_rng(SEED)
    buffers: list[bytes | bytearray | memoryview] = [source.bytes(size) for _ in range(BUFFERS)]
    measured = []
    for index, name in kernels:

        def ours(kernel: int = index) -> bytes:
            return bytes(_lanes.hash_buffers(buffers, kernel))

        def theirs() -> bytes:
            return b"".join(
                hashlib.md5(buffer, usedforsecurity=False).digest() for buffer in buffers
            )

        with one_core():
            if ours() != theirs():
                raise BenchmarkError(f"The kernel {name} does not agree with hashlib.")
            values = in_pairs(lambda: seconds(ours), lambda: seconds(theirs), options.pairs)
        measured.append(
            Row(
                f"MD5 of {BUFFERS} x {size / MIB:g} MiB in memory, one core, {PASSES} passes, "
                f"kernel {name}",
                *values,
                peer="hashlib",
                compared=True,
                least_ratio=LEAST_RATIO if index == kernels[-1][0] else None,
            )
        )
    return measured


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def seconds(work: Callable[[], object]) -> float:
    """Return how long the passes of some work take together."""
    clock = time.perf_counter()
    for _ in range(PASSES):
        work()
    return time.perf_counter() - clock


if __name__ == "__main__":
    main(rows)

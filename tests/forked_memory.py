"""Prints how many bytes of private memory each forked worker gained over an epoch.

Run in a process of its own, so that what pytest holds does not count.
"""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import torch
from torch.utils.data import DataLoader

from dvc_integrity.torch import VerifiedFiles

WORKERS = 4
_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty): +(\d+) kB$", re.MULTILINE)


def private_bytes() -> int:
    """Return the memory that this process shares with no other."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
        return 1024 * sum(map(int, _PRIVATE.findall(rollup.read())))


def measured(batch: list[bytes]) -> torch.Tensor:
    """Collate to which process this is, what it holds, and how many samples came."""
    return torch.tensor([os.getpid(), private_bytes(), len(batch)])


def main(root: str) -> None:
    """Read every file once, shuffled."""
    data = VerifiedFiles("data", root=root)
    loader = DataLoader(
        data,
        batch_size=500,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="fork",
        collate_fn=measured,
    )
    seen = np.array([batch.tolist() for batch in loader])
    grown = [int(np.ptp(seen[seen[:, 0] == process, 1])) for process in np.unique(seen[:, 0])]
    json.dump({"entries": int(seen[:, 2].sum()), "grown": grown}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])

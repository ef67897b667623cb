"""Ranks that hold the same data, or none of them starts.

Each rank of a distributed training reads its own checkout. If one of them stands at another
commit, the ranks train on different data, and nothing in PyTorch notices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dvc_integrity.errors import ManifestError, printable
from dvc_integrity.manifest import Manifest

__all__ = ["assert_same_manifest"]

DIGEST_BYTES = 32
"""A manifest's digest is SHA-256."""

REV_BYTES = 64
"""Room for a full SHA of Git: 40 hexadecimal digits, or 64 in a SHA-256 repository."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one rank holds: the digest of its manifest, and the revision that it came from."""

    rank: int
    digest: str
    rev: str


def assert_same_manifest(manifest: Manifest, group: dist.ProcessGroup | None = None) -> None:
    """Raise on every rank unless all ranks of a group hold the same manifest.

    Every rank of the group must call this, as any collective; one that does not come lets the
    others wait for the group's timeout. The digests are compared, not the revisions: two
    commits with the same files are the same data. What travels is 96 bytes a rank, in a
    tensor on the group's own device, and no pickle.

    Parameters
    ----------
    manifest
        What this rank is going to read: ``VerifiedFiles(…).manifest``, or of a ``Repository``.
    group
        The ranks that are to agree; by default all. With NCCL the current CUDA device is used,
        so call ``torch.cuda.set_device`` before.

    Raises
    ------
    ManifestError
        On each rank alike, if any two ranks differ. The message tells every rank's digest and
        revision, which ranks differ from the majority, and which from this one. Ranks are
        global ones.
    RuntimeError
        If there is no process group to compare with, or this rank does not belong to it.
    """
    members = _members(group)
    own = dist.get_rank()
    mine = torch.frombuffer(_packed(manifest), dtype=torch.uint8).to(_device(group))
    theirs = [torch.empty_like(mine) for _ in members]
    dist.all_gather(theirs, mine, group=group)
    held = [_unpacked(rank, bytes(row.tolist())) for rank, row in zip(members, theirs, strict=True)]
    if len({each.digest for each in held}) > 1:
        raise ManifestError(_disagreement(held, own))


def _members(group: dist.ProcessGroup | None) -> list[int]:
    """Return the global ranks of a group, in the order of their ranks inside it."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "There are no ranks to compare: torch.distributed is not initialised. Call "
            "torch.distributed.init_process_group on every rank first, and start the ranks with "
            "torchrun."
        )
    if group is None:
        return list(range(dist.get_world_size()))
    if dist.get_rank(group) < 0:
        raise RuntimeError(
            f"Rank {dist.get_rank()} does not belong to the group, so it has nothing to compare "
            f"with. Call assert_same_manifest on the ranks of the group alone."
        )
    return dist.get_process_group_ranks(group)


def _device(group: dist.ProcessGroup | None) -> str:
    """Return where a group's tensors lie: on the CPU if it can talk from there."""
    return _first_device(dist.get_backend_config(group))


def _first_device(config: str) -> str:
    """Choose a device from a configuration such as ``cpu:gloo,cuda:nccl``."""
    devices = [part.partition(":")[0] for part in config.split(",")]
    return "cpu" if "cpu" in devices else devices[0]


def _packed(manifest: Manifest) -> bytearray:
    """Put digest and revision into a buffer that is equally long on every rank."""
    rev = manifest.rev.encode(errors="replace")[:REV_BYTES]
    return bytearray(bytes.fromhex(manifest.digest) + rev.ljust(REV_BYTES, b"\0"))


def _unpacked(rank: int, data: bytes) -> Held:
    rev = data[DIGEST_BYTES:].rstrip(b"\0").decode(errors="replace")
    return Held(rank, data[:DIGEST_BYTES].hex(), printable(rev))


def _disagreement(held: Sequence[Held], own: int) -> str:
    """Describe who holds what, as the rank ``own`` sees it."""
    counts = Counter(each.digest for each in held).most_common()
    common, most = counts[0]
    (mine,) = [each.digest for each in held if each.rank == own]
    odd = [each.rank for each in held if each.digest != common]
    others = [each.rank for each in held if each.digest != mine]
    verdict = (
        f"{_named(odd)} {'differs' if len(odd) == 1 else 'differ'} from the majority"
        if most > len(held) / 2
        else "No manifest has a majority"
    )
    summary = (
        f"The {len(held)} ranks hold {len(counts)} different manifests, so they would not read "
        f"the same data. {verdict}. This is rank {own}; {_named(others)} "
        f"{'differs' if len(others) == 1 else 'differ'} from it."
    )
    kinds = dict.fromkeys((each.digest, each.rev) for each in held)
    lines = [
        f"  {_named([each.rank for each in held if (each.digest, each.rev) == kind])}: "
        f"sha256:{kind[0]} at {kind[1]}"
        for kind in kinds
    ]
    help_text = (
        "Bring every rank to the same commit ('git rev-parse HEAD' tells it), give each the same "
        "target and 'rev', and start again."
    )
    return "\n".join([summary, *lines, help_text])


def _named(ranks: Sequence[int]) -> str:
    """Name ranks, runs of them as ranges: ``rank 2``, ``ranks 0-1, 3``."""
    runs: list[tuple[int, int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], rank)
        else:
            runs.append((rank, rank))
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {text}"

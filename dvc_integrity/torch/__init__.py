"""PyTorch datasets over a ``Reader``: each sample is decoded from bytes that were just proven.

DataLoader workers get a manifest in a few NumPy arrays and a folder name. They import no DVC
and open no repository, whatever the start method.
"""

from dvc_integrity.torch.array import VerifiedArray
from dvc_integrity.torch.checkpoint import load
from dvc_integrity.torch.distributed import assert_same_manifest
from dvc_integrity.torch.files import VerifiedFiles
from dvc_integrity.torch.shards import ShardError, VerifiedShards

__all__ = [
    "ShardError",
    "VerifiedArray",
    "VerifiedFiles",
    "VerifiedShards",
    "assert_same_manifest",
    "load",
]

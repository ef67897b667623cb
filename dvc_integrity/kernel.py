"""What computes MD5 here: the native kernel, or hashlib where there is none."""

from __future__ import annotations

import importlib
import os
from typing import Any

__all__ = ["KERNEL_VARIABLE", "kernel_name", "native"]

KERNEL_VARIABLE = "DVC_INTEGRITY_KERNEL"
"""Set to ``hashlib`` in the environment, it keeps the native kernel out of use."""


def _load() -> Any:
    if os.environ.get(KERNEL_VARIABLE) == "hashlib":
        return None
    try:
        return importlib.import_module("dvc_integrity._lanes")
    except ImportError:  # built without a compiler: hashlib serves the same interface
        return None


native = _load()
"""The extension ``_lanes``, or None."""


def kernel_name() -> str:
    """Return the name of the widest native kernel that the processor runs, or ``hashlib``."""
    if native is None:
        return "hashlib"
    return str([name for name in native.kernels() if name][-1])

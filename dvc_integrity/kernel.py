"""What computes MD5 here: the native kernel, or hashlib where there is none."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

__all__ = ["KERNEL_VARIABLE", "kernel_name", "native"]

logger = logging.getLogger(__name__)

KERNEL_VARIABLE = "DVC_INTEGRITY_KERNEL"
"""Set to ``hashlib`` in the environment, it keeps the native kernel out of use."""


def _load() -> Any:
    wanted = os.environ.get(KERNEL_VARIABLE, "")
    if wanted == "hashlib":
        return None
    if wanted:
        logger.warning("%s=%s is ignored: it may be 'hashlib' or unset", KERNEL_VARIABLE, wanted)
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

"""A pytest plugin for the run under AddressSanitizer and UndefinedBehaviorSanitizer.

``make sanitize`` loads it. It holds that the kernel under test is the instrumented one, and ends
the run with LeakSanitizer's check, which fails it with status 23. The check is made when the
interpreter still has all that it will not free, but no Python function runs any more: their
variables lie where LeakSanitizer does not look.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvc_integrity import hashing

INSTRUMENTED = (b"__asan_report_load", b"__asan_report_store", b"__ubsan_handle")
"""What an instrumented module calls."""


def pytest_report_header() -> str:
    """Name the kernels that are under test."""
    names = ", ".join(name or "(one not on this processor)" for name in hashing._lanes.kernels())
    return f"sanitized: {hashing._lanes.__file__}: {names}"


def pytest_configure() -> None:
    """Refuse to run on a module that is not instrumented, here or in a child, or on none."""
    folder = Path(os.environ["DVC_INTEGRITY_SANITIZED"])
    path = Path(hashing._lanes.__file__)
    code = "from dvc_integrity import hashing; print(hashing._lanes.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    for loaded in (path, Path(child.stdout.strip())):
        if loaded.parent != folder / "dvc_integrity":
            pytest.exit(f"{loaded} is loaded, not the kernel in {folder}", 1)
    if missing := [each for each in INSTRUMENTED if each not in path.read_bytes()]:
        pytest.exit(f"{path} is not instrumented: it never calls {missing}", 1)
    atexit.register(ctypes.CDLL(None).__lsan_do_leak_check)

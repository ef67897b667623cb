"""The verdict on one manifest as a file that a pipeline can depend on.

Its bytes depend on the manifest, the scope and the verdict alone: no time, host or commit.
So a clean re-run gives the same file, and DVC does not run again what depends on it. What
varies (times, coverage, versions) is kept apart, as a report.
"""

from __future__ import annotations

import json
import os
from typing import Any

from dvc_integrity.durable import write_file
from dvc_integrity.errors import StoreError, printable
from dvc_integrity.hashing import read_file
from dvc_integrity.report import Report

__all__ = ["SCHEMA", "is_replaceable", "receipt", "write_receipt", "write_report"]

LARGEST_RECEIPT_BYTES = 1 << 20
"""A larger file is no receipt."""

FAMILY = "dvc-integrity/receipt/"
SCHEMA = f"{FAMILY}1"


def receipt(report: Report) -> dict[str, Any]:
    """Return the stable receipt of a report (schema ``dvc-integrity/receipt/1``)."""
    return {
        "schema": SCHEMA,
        "manifest": report.manifest.to_json(),
        "scope": {
            "store": report.store,
            "targets": list(report.targets),
            "left_out": list(report.left_out),
        },
        "verdict": report.verdict.value,
    }


def is_replaceable(path: str) -> bool:
    """Return whether nothing lies at a path, or an earlier receipt that may be overwritten."""
    if os.path.isfile(path) and os.path.getsize(path) > LARGEST_RECEIPT_BYTES:
        return False
    data, seen = read_file(path)
    if isinstance(seen.error, (FileNotFoundError, NotADirectoryError)):
        return True
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and str(document.get("schema", "")).startswith(FAMILY)


def write_receipt(report: Report, path: str) -> None:
    """Write the stable receipt durably: the whole file, or the old one stays.

    Raises
    ------
    StoreError
        If it cannot be written (a full disk, a read-only folder); the message names the file.
    """
    _write_json(receipt(report), path)


def write_report(report: Report, path: str) -> None:
    """Write the full report durably, with all that varies from run to run.

    Raises
    ------
    StoreError
        If it cannot be written; the message names the file.
    """
    _write_json(report.to_json(), path)


def _write_json(document: dict[str, Any], path: str) -> None:
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise StoreError(
            f"'{printable(path)}' could not be written: {error.strerror or error}. Nothing was "
            f"left half written. Free space or name another file, and run again."
        ) from error

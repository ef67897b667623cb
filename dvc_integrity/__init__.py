"""Holds every byte that DVC tracks and PyTorch reads to the hash that was committed to Git.

The names below are loaded when they are first used, so that importing the package (as the
command line does for ``--help``) costs neither DVC nor NumPy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc_integrity.digest import Algorithm as Algorithm
    from dvc_integrity.digest import Digest as Digest
    from dvc_integrity.errors import IntegrityError as IntegrityError
    from dvc_integrity.errors import ManifestError as ManifestError
    from dvc_integrity.errors import NothingToVerify as NothingToVerify
    from dvc_integrity.errors import RepositoryError as RepositoryError
    from dvc_integrity.errors import RestoreError as RestoreError
    from dvc_integrity.errors import StoreError as StoreError
    from dvc_integrity.incidents import Incidents as Incidents
    from dvc_integrity.manifest import Entry as Entry
    from dvc_integrity.manifest import Manifest as Manifest
    from dvc_integrity.manifest import Out as Out
    from dvc_integrity.reader import Reader as Reader
    from dvc_integrity.report import CorruptDataError as CorruptDataError
    from dvc_integrity.report import Coverage as Coverage
    from dvc_integrity.report import Evidence as Evidence
    from dvc_integrity.report import Finding as Finding
    from dvc_integrity.report import Report as Report
    from dvc_integrity.report import Status as Status
    from dvc_integrity.report import Verdict as Verdict
    from dvc_integrity.repository import Repository as Repository
    from dvc_integrity.restore import Plan as Plan
    from dvc_integrity.restore import Restoration as Restoration
    from dvc_integrity.restore import Restorer as Restorer
    from dvc_integrity.restore import restore as restore
    from dvc_integrity.schedule import Schedule as Schedule
    from dvc_integrity.stores import Workspace as Workspace
    from dvc_integrity.verify import verify as verify

_HOME = {
    "Algorithm": "digest",
    "CorruptDataError": "report",
    "Coverage": "report",
    "Digest": "digest",
    "Entry": "manifest",
    "Evidence": "report",
    "Finding": "report",
    "Incidents": "incidents",
    "IntegrityError": "errors",
    "Manifest": "manifest",
    "ManifestError": "errors",
    "NothingToVerify": "errors",
    "Out": "manifest",
    "Plan": "restore",
    "Reader": "reader",
    "Report": "report",
    "Repository": "repository",
    "RepositoryError": "errors",
    "RestoreError": "errors",
    "Restoration": "restore",
    "Restorer": "restore",
    "Schedule": "schedule",
    "Status": "report",
    "StoreError": "errors",
    "Verdict": "report",
    "Workspace": "stores",
    "restore": "restore",
    "verify": "verify",
}

__all__ = [*_HOME]  # noqa: PLE0604 (the table has them all)


class _Package(ModuleType):
    """Keeps ``dvc_integrity.verify`` the function, whatever module of that name is imported.

    Importing a submodule sets it as an attribute of its package; the public name wins here.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package

"""The package is light to import, and its public names are what they say."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dvc_integrity as di

HEAVY = ("dvc", "dvc_data", "torch", "numpy", "rich", "yaml", "git")


def python(program: str) -> str:
    """Run a program in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def imported_by(program: str) -> set[str]:
    """Return which heavy modules a program imports."""
    tell = f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    return set(json.loads(python(program + tell).splitlines()[-1]))


def test_the_package_imports_nothing_heavy() -> None:
    """``import dvc_integrity`` costs neither DVC, nor PyTorch, nor NumPy."""
    assert set() == imported_by("import dvc_integrity; dir(dvc_integrity)")


def test_help_imports_nothing_heavy() -> None:
    """``--help`` and ``--version`` answer without DVC, PyTorch or NumPy."""
    for arguments in (["--help"], ["--version"], ["verify", "--help"], ["diagnose", "--help"], []):
        program = (
            "import contextlib, sys\n"
            f"sys.argv = ['dvc-integrity', *{arguments!r}]\n"
            "from dvc_integrity.cli import main\n"
            "with contextlib.suppress(SystemExit), contextlib.redirect_stderr(sys.stdout):\n"
            "    main()\n"
        )
        assert set() == imported_by(program)


def test_verifying_by_hand_imports_no_dvc() -> None:
    """Manifest, workspace and ``verify`` need NumPy alone: they never open a repository."""
    names = "Manifest, Workspace, verify, Reader, Report, CorruptDataError"
    assert {"numpy"} == imported_by(f"from dvc_integrity import {names}")


def test_every_public_name_resolves() -> None:
    """Each name in ``__all__`` is there, is no module, and is what its own module has."""
    assert len(di.__all__) == len(set(di.__all__))
    for name in di.__all__:
        value = getattr(di, name)
        assert not isinstance(value, ModuleType)
        assert value.__module__.startswith("dvc_integrity.")
        assert value is getattr(sys.modules[value.__module__], name)
        assert name in dir(di)


def test_a_star_import_gives_the_public_names() -> None:
    """``from dvc_integrity import *`` gives exactly what ``__all__`` lists."""
    names: dict[str, object] = {}
    exec("from dvc_integrity import *", names)
    assert set(di.__all__) == set(names) - {"__builtins__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that the package lacks is told as Python tells it."""
    with pytest.raises(AttributeError, match=r"dvc_integrity.* has no attribute"):
        _ = di.nothing_like_this
    assert not hasattr(di, "nothing_like_this")


IMPORTS = [
    "import dvc_integrity.verify",
    "from dvc_integrity.verify import verify as inner",
    "from dvc_integrity import verify as outer",
    "import dvc_integrity; dvc_integrity.verify",
]


@pytest.mark.parametrize("first", IMPORTS)
def test_verify_is_the_function_however_it_was_imported(first: str) -> None:
    """The module of the same name never takes the function's place, in whatever order."""
    check = (
        "import dvc_integrity, sys, types\n"
        "module = sys.modules['dvc_integrity.verify']\n"
        "assert isinstance(module, types.ModuleType)\n"
        "assert dvc_integrity.verify is module.verify\n"
        "from dvc_integrity.verify import verify\n"
        "from dvc_integrity import verify as public\n"
        "assert verify is public is dvc_integrity.verify\n"
        "assert callable(public)\n"
    )
    others = [line for line in IMPORTS if line != first]
    for order in itertools.islice(itertools.permutations(others), 0, None, 5):
        python("\n".join([first, *order, check]))


def test_public_functions_and_classes_pickle_by_their_name() -> None:
    """What is public can be sent to another process."""
    for name in di.__all__:
        value = getattr(di, name)
        assert value is pickle.loads(pickle.dumps(value))


def test_the_package_is_typed_and_has_a_version() -> None:
    """Type checkers find ``py.typed``; both commands tell the version."""
    program = (
        "from importlib.metadata import version\n"
        "from importlib.resources import files\n"
        "assert (files('dvc_integrity') / 'py.typed').is_file()\n"
        "print(version('dvc-integrity'))\n"
    )
    version = python(program).strip()
    module = [sys.executable, "-m", "dvc_integrity", "--version"]
    told = subprocess.run(module, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"dvc-integrity, version {version} (MD5 by ")


def test_every_package_is_installed() -> None:
    """What setuptools is told to install are the folders with code, all of them."""
    top = Path(__file__).parent.parent
    listed = re.search(
        r"^packages = \[(.*?)\]", (top / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    assert listed
    found = {
        ".".join(path.parent.relative_to(top).parts)
        for path in (top / "dvc_integrity").rglob("__init__.py")
    }
    assert found == set(re.findall(r'"(.*?)"', listed[1]))

"""A command in the foreground: signals go through to it, and its exit status comes back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from dvc_integrity.errors import IntegrityError, printable

__all__ = ["CommandError", "run"]

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""What a shell ends with when it cannot run a command."""

SIGNALLED = 128
"""Added by a shell to the number of the signal that ended a command."""

_PASSED_ON = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)

_FROM_TERMINAL = 0x80
"""``SI_KERNEL``: the terminal sent it to every process in the foreground, the command too."""

_PR_SET_PDEATHSIG = 1
"""Tells a child when its parent is gone (``prctl(2)``)."""


class CommandError(IntegrityError):
    """A command cannot be run.

    Attributes
    ----------
    status
        What a shell would end with.
    """

    def __init__(self, message: str = "", *, status: int = NOT_EXECUTABLE) -> None:
        super().__init__(message)
        self.status = status


def run(command: Sequence[str]) -> int:
    """Run a command to its end, and pass signals on to it meanwhile.

    Parameters
    ----------
    command
        Its name and arguments; no shell looks at them.

    Returns
    -------
    int
        Its exit status; 128 and the number of the signal if one ended it.

    Raises
    ------
    CommandError
        If it cannot be started.
    """
    watched = _PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    handler = signal.getsignal(signal.SIGCHLD)
    if handler in (signal.SIG_IGN, None):  # an ignored child leaves no status behind
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it was gone before that
                os._exit(SIGNALLED + signal.SIGTERM)

    try:
        child = subprocess.Popen(  # noqa: S603 (the user's own command)
            list(command),
            preexec_fn=prepare,  # noqa: PLW1509 (it calls the system alone, and takes no lock)
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CommandError(
            f"'{printable(command[0])}' cannot be run: {why}.",
            status=NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE,
        ) from error
    else:
        while child.poll() is None:
            came = signal.sigwaitinfo(watched)
            if came.si_signo in _PASSED_ON and came.si_code != _FROM_TERMINAL:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(came.si_signo)
    finally:
        _drop_pending()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = child.returncode
    return SIGNALLED - status if status < 0 else status


def _drop_pending() -> None:
    """Forget a Ctrl-C that the command had too: it has ended, and its status tells how."""
    while signal.SIGINT in signal.sigpending():
        signal.sigwait({signal.SIGINT})

"""A process that restores in children of its own, one for each line that it is given.

It imports everything once, so that a restore takes a few hundredths of a second. ``calls.c`` is
preloaded; each child arms it with the fault that the line asks for.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from typing import Any

import dvc_integrity as di
from dvc_integrity import durable


def restored(order: dict[str, Any]) -> dict[str, Any]:
    """Restore as the command does, and tell what became of it."""
    repository = di.Repository(order["root"])
    remotes = list(repository.remotes)
    manifest = repository.manifest()
    report = di.verify(manifest, repository.workspace)
    plan = di.restore(
        report,
        repository.workspace,
        [repository.cache, *remotes],
        modified=True,
        push=[store.name for store in remotes] if order["push"] else (),
        everywhere=order.get("everywhere", order["push"]),
        scratch=order["scratch"],
        **({"jobs": order["jobs"]} if "jobs" in order else {}),
    )
    durable.FILES_WORTH_ONE_SYNC = order.get("files_worth_one_sync", durable.FILES_WORTH_ONE_SYNC)
    done = plan.apply()
    return {"ok": done.ok, "outcomes": [each.to_json() for each in done.outcomes]}


def answered(order: dict[str, Any]) -> dict[str, Any]:
    """Restore, and tell what was raised: a message of ours, or a defect with its traceback."""
    try:
        return restored(order)
    except di.IntegrityError as error:
        return {"ok": False, "outcomes": [], "message": f"{type(error).__name__}: {error}"}
    except BaseException:  # noqa: BLE001 (the test shows it)
        return {"ok": False, "outcomes": [], "defect": traceback.format_exc()}


def serve(order: dict[str, Any]) -> dict[str, Any]:
    """Restore in a child; return what it says, how it ended and how many calls it made."""
    shim = ctypes.CDLL(None)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        log = -1
        if order.get("log"):
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        below = "\n".join(order["below"]).encode()
        shim.arm(below, order["fault"], ctypes.c_long(order["turn"]), order["error"], log)
        answer = answered(order)
        answer["calls"] = shim.disarm()
        with open(writing, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), **json.loads(said or "{}")}


def warm_up(root: str) -> None:
    """Import what opening a project imports: children then have it."""
    repository = di.Repository(root)
    repository.manifest()
    _ = repository.cache, list(repository.remotes), repository.workspace
    gc.freeze()


if __name__ == "__main__":
    warm_up(sys.argv[1])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(serve(json.loads(line))) + "\n")
        sys.stdout.flush()

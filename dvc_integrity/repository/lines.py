"""The line of a ``.dvc`` file or a ``dvc.lock`` that holds the hash of an output.

Files are read as YAML nodes, which know their lines, so several outputs in one file, quoted
names and comments are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

__all__ = ["Lines"]

_HASHES = ("md5", "etag", "checksum", "files", "path")
"""Keys of an output, the one to point at first."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Lines:
    """Finds the outputs of one metadata file.

    Parameters
    ----------
    text
        The file; what is no YAML holds no output.
    """

    def __init__(self, text: bytes) -> None:
        try:
            self._root = _members(yaml.compose(text, Loader=_LOADER))
        except yaml.YAMLError:
            self._root = {}

    def of_output(self, path: str, stage: str | None) -> int | None:
        """Return the line of an output's hash, from 1; None if the file does not hold it.

        Parameters
        ----------
        path
            As the file spells it.
        stage
            Its name for a ``dvc.lock``; None for a ``.dvc`` file.
        """
        holder = self._root if stage is None else self._of_stage(stage)
        for out in _sequence(holder.get("outs")):
            members = _members(out)
            found = members.get("path")
            if found is not None and found.value == path:
                node = next(members[key] for key in _HASHES if key in members)
                return _line(node)
        return None

    def of_stage(self, stage: str) -> int | None:
        """Return the line where a stage begins in a ``dvc.yaml``; None if it has none."""
        node = self._stages().get(stage) or self._stages().get(stage.partition("@")[0])
        return _line(node) if node is not None else None

    def _of_stage(self, stage: str) -> Mapping[str, Any]:
        return _members(self._stages().get(stage))

    def _stages(self) -> Mapping[str, Any]:
        stages = self._root.get("stages")
        return self._root if stages is None else _members(stages)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _members(node: Any) -> Mapping[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {str(key.value): value for key, value in node.value}


def _sequence(node: Any) -> Iterable[Any]:
    return node.value if isinstance(node, yaml.SequenceNode) else ()

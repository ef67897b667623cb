"""Tar shards as a stream of samples: each shard is proven as a whole before it is opened.

A shard is read once. That buffer is hashed, held to the commit, and parsed; no sample leaves it
before. The order follows from (seed, epoch) alone and never from a global random number
generator, so an interrupted pass goes on exactly where it stopped: its state is a position and
the names of the samples in the shuffle buffer.
"""

from __future__ import annotations

import fnmatch
import io
import json
import operator
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO, Generic, Literal, TypeVar

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from dvc_integrity.errors import IntegrityError, NothingToVerify, printable
from dvc_integrity.manifest import Manifest
from dvc_integrity.reader import Reader
from dvc_integrity.torch.samples import call, open_reader, share_inherited_memory

__all__ = ["ShardError", "VerifiedShards"]

Sample = TypeVar("Sample")

KEY, SHARD = "__key__", "__shard__"
"""What a sample is called in its shard, and the shard's path; the other members are files."""

_UNSET = -1
"""Stands for an epoch where ``set_epoch`` was never called."""

_DRAW_BITS = 64


class ShardError(IntegrityError):
    """A shard holds the committed bytes, and they are no usable tar file."""


class VerifiedShards(IterableDataset[Sample], Generic[Sample]):
    """Samples from tracked tar files in the WebDataset convention, as an iterable dataset.

    The files of a tar whose paths agree up to the first dot of the last component form one
    sample: a dict with that path as ``__key__``, the shard's path as ``__shard__``, and the
    bytes of each file under what follows the dot, in lower case (``jpg``, ``seg.png``). Files
    of one sample need not follow one another. A file without a dot, or with nothing before it,
    belongs to no sample and is left out.

    A shard is read once and as a whole, hashed, and parsed from that very buffer, so a damaged
    shard raises ``CorruptDataError`` before any of its samples is handed out. Each worker holds
    one shard in memory (decompressed, if it was compressed) and the samples of its shuffle
    buffer. Asked on after such an error, a pass tries the same shard again: none is left out.

    Each shard goes to one worker of one rank, so over all of them every sample comes exactly
    once an epoch. With fewer shards than workers some yield nothing. Ranks yield different
    numbers of samples; where every rank must take the same number of steps, end the epoch after
    a number that the smallest share reaches (``itertools.islice(loader, steps)``) or use
    ``torch.distributed.algorithms.Join``.

    Parameters
    ----------
    target
        A tracked file or folder, or a path inside a tracked folder, relative to ``root``.
    rev
        The Git revision that the shards are held to; by default the baseline inside a DVC
        experiment, else ``HEAD``. ``workspace`` means the metadata in the work tree.
    source
        Where the bytes come from: ``workspace``, ``cache``, ``remote`` or ``remote:NAME``.
    select
        Which files below the target are shards, as one shell pattern or several. A pattern
        without a slash is matched with the file's name, one with a slash with its path relative
        to the DVC root; ``*`` matches slashes too. Compressed shards need patterns of their
        own, such as ``*.tar.gz``; how a shard is compressed is read from its bytes.
    decode
        Turns the dict of a sample into what is handed out. By default it is that dict. To be
        used by workers that are spawned it must be importable: a function of a module, not a
        lambda. What it raises keeps its type, with a note that names the sample and the shard;
        ``StopIteration`` becomes ``RuntimeError``.
    shuffle
        Whether the shards come in another order each epoch, instead of in order of their paths.
    shuffle_buffer
        How many samples each worker collects, over the borders of shards, to hand out a random
        one of them; 0 and 1 keep the order in which they lie in the shards.
    seed
        Decides, with the epoch, every order. The same on all ranks.
    root
        A folder inside the DVC project.
    on_corrupt
        ``raise``; ``restore``: a proven copy from the cache or a remote takes the shard's place,
        and its samples come from there. There are no substitutes: how many samples a bad shard
        holds is not known.
    error_budget
        Shards that may be bad, over all workers, before the run ends with ``TooManyIncidents``:
        a count, or a share of the shards that were read as a float.
    rank, world_size
        Which of how many processes this one is. By default what ``torch.distributed`` says if
        it is initialised, else the variables ``RANK`` and ``WORLD_SIZE``, else one process.

    Raises
    ------
    RepositoryError
        If there is no such revision or target.
    ManifestError
        If a file of the target has no committed content hash to be held to.
    NothingToVerify
        If the target holds no file that ``select`` matches.
    ValueError
        If an option has no such value.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        rev: str | None = None,
        source: str = "workspace",
        select: str | Sequence[str] = "*.tar",
        decode: Callable[[dict[str, Any]], Sample] | None = None,
        shuffle: bool = False,
        shuffle_buffer: int = 0,
        seed: int = 0,
        root: str | os.PathLike[str] = ".",
        on_corrupt: Literal["raise", "restore"] = "raise",
        error_budget: float | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        _refuse_policy(on_corrupt)
        if operator.index(shuffle_buffer) < 0:
            raise ValueError(f"shuffle_buffer is a number of samples, not {shuffle_buffer!r}")
        self._given_rank = None
        if rank is not None or world_size is not None:
            self._given_rank = _checked_rank(rank, world_size, "the options rank and world_size")
        self.reader = open_reader(
            target,
            root=root,
            rev=rev,
            source=source,
            on_corrupt=on_corrupt,
            error_budget=error_budget,
        )
        self._shards = _selected(self.manifest, [select] if isinstance(select, str) else select)
        if not len(self._shards):
            raise NothingToVerify(
                f"No file under '{printable(os.fspath(target))}' matches {select!r}. Name the "
                f"shards with 'select'."
            )
        self._decode = decode
        self._options: dict[str, Any] = {
            "seed": operator.index(seed),
            "shuffle": bool(shuffle),
            "shuffle_buffer": operator.index(shuffle_buffer),
            "shards": _fingerprint(self.manifest, self._shards),
        }
        self._inherited_rank: tuple[int, int] | None = None
        self._epoch = torch.tensor(_UNSET)
        self._share_epoch()
        self._position: _Position | None = None
        self._resumed: tuple[_Position, int] | None = None

    @property
    def manifest(self) -> Manifest:
        """What the files below the target must be."""
        return self.reader.manifest

    @property
    def shards(self) -> list[str]:
        """Paths of all shards, relative to the DVC root, in ascending order."""
        return [os.fsdecode(self.manifest.path(row)) for row in self._shards.tolist()]

    @property
    def epoch(self) -> int:
        """The epoch that the next pass is of; 0 until ``set_epoch`` is called."""
        return max(0, int(self._epoch.item()))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the passes that start from now on, in running workers too.

        Without it every pass has the order of epoch 0, as with ``DistributedSampler``.

        Raises
        ------
        ValueError
            If it is negative.
        """
        if operator.index(epoch) < 0:
            raise ValueError(f"an epoch is 0 or greater, not {epoch}")
        self._epoch.fill_(operator.index(epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return where the latest pass of this process stands; plain numbers, lists and text.

        It takes a few hundred bytes, and two numbers for each sample in the shuffle buffer. In
        a ``DataLoader`` with workers the passes run there: torchdata's ``StatefulDataLoader``
        collects their states.
        """
        if self._resumed is not None:
            position = self._resumed[0]
        else:
            position = self._position or _Position(self.epoch, self._share())
        return {**self._options, **position.to_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass of this process go on where ``state_dict`` was taken.

        It hands out exactly the samples that were left, in the same order. It reads the shard
        in which it stopped and those with samples in the shuffle buffer, and none that was
        consumed. The pass has the epoch of the state; ``set_epoch`` may name that epoch, or
        another one if nothing of the state's epoch is left.

        Raises
        ------
        ValueError
            If the state is of other shards or another seed, ``shuffle`` or ``shuffle_buffer``,
            or is no such state. For another rank, number of ranks, worker, number of workers
            or epoch, the next pass raises it.
        """
        for name, expected in self._options.items():
            if state.get(name) != expected:
                raise ValueError(
                    f"The state does not fit these data: {name} is {expected!r} here, and "
                    f"{state.get(name)!r} in the state. Make the dataset with the same shards "
                    f"and options to go on, or load no state to begin an epoch."
                )
        self._resumed = (_Position.from_state(state), os.getpid())

    def __iter__(self) -> Iterator[Sample]:
        """Begin a pass. Its epoch is fixed here, before the first sample is asked for."""
        share_inherited_memory()
        position = self._start()
        self._position, self._resumed = position, None
        shards = [os.fsdecode(self.manifest.path(row)) for row in self._order(position)]
        random = self._random(position.epoch, position.share.rank, position.share.worker)
        held = max(1, self._options["shuffle_buffer"])
        return _Pass(position, _Samples(shards, self.reader), held, random, self._decode)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind the pass of this process; take along which rank it is."""
        return self.__dict__ | {
            "_position": None,
            "_inherited_rank": _distributed_rank() or self._inherited_rank,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_epoch()  # a plain pickle brings it as private memory

    def _share_epoch(self) -> None:
        """Put the epoch where running workers see it change, whatever the start method."""
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped

    def _start(self) -> _Position:
        """Return where the next pass starts: at the state that was loaded, or at the front."""
        share, epoch = self._share(), int(self._epoch.item())
        if self._resumed is None:
            return _Position(self.epoch, share)
        position, process = self._resumed
        if process != os.getpid():
            raise ValueError(
                "The state was loaded in another process than the one that iterates. With "
                "workers, load it into torchdata's StatefulDataLoader, which hands each worker "
                "its own."
            )
        if position.share != share:
            raise ValueError(
                f"The state is of {position.share}, and this is {share}. Go on with the same "
                f"numbers of ranks and workers, or load no state to begin an epoch."
            )
        if epoch in (_UNSET, position.epoch):
            return position
        if position.buffer or position.shard < len(self._order(position)):
            raise ValueError(
                f"The state is from the middle of epoch {position.epoch}, and the dataset was "
                f"set to epoch {epoch}. Call set_epoch({position.epoch}) to go on, or load no "
                f"state to begin epoch {epoch}."
            )
        return _Position(epoch, share)

    def _share(self) -> _Share:
        """Return which part of an epoch falls to this process."""
        rank, ranks = (
            self._given_rank
            or _distributed_rank()
            or self._inherited_rank
            or _environment_rank()
            or (0, 1)
        )
        worker = get_worker_info()
        if worker is None:
            return _Share(rank, ranks, 0, 1)
        return _Share(rank, ranks, worker.id, worker.num_workers)

    def _order(self, position: _Position) -> list[int]:
        """Return the rows of the shards of one share in one epoch, in order."""
        rows: list[int] = self._shards.tolist()
        if self._options["shuffle"]:
            random = self._random(position.epoch)
            rows.sort(key=lambda row: random(self.manifest.path(row)))
        share = position.share
        return rows[share.rank :: share.world_size][share.worker :: share.workers]

    def _random(self, *context: int) -> Callable[[bytes], int]:
        """Return a function from names to random numbers, for one seed and context.

        A number follows from its name alone, so a pass needs no generator's state to go on,
        and it is the same with every version of Python and NumPy.
        """
        key = blake2b(json.dumps([self._options["seed"], *context]).encode())

        def draw(name: bytes) -> int:
            hasher = key.copy()
            hasher.update(name)
            return int.from_bytes(hasher.digest()[: _DRAW_BITS // 8], "big")

        return draw


@dataclass(frozen=True, slots=True)
class _Share:
    """One worker of one rank; each of them gets shards of its own."""

    rank: int
    world_size: int
    worker: int
    workers: int

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.world_size}, worker {self.worker} of {self.workers} "
            f"(counted from 0)"
        )


@dataclass(slots=True)
class _Position:
    """How far a pass has come.

    Attributes
    ----------
    shard, sample
        The next sample that comes into the buffer: a position in the order of the shards, and
        one in that shard.
    handed_out
        Samples that left the buffer.
    buffer
        The samples that wait in the buffer, as such pairs; the order matters.
    """

    epoch: int
    share: _Share
    shard: int = 0
    sample: int = 0
    handed_out: int = 0
    buffer: list[tuple[int, int]] = field(default_factory=list)

    def to_state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "rank": self.share.rank,
            "world_size": self.share.world_size,
            "worker": self.share.worker,
            "workers": self.share.workers,
            "shard": self.shard,
            "sample": self.sample,
            "handed_out": self.handed_out,
            "buffer": [list(each) for each in self.buffer],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Position:
        try:
            return cls(
                epoch=state["epoch"],
                share=_Share(state["rank"], state["world_size"], state["worker"], state["workers"]),
                shard=state["shard"],
                sample=state["sample"],
                handed_out=state["handed_out"],
                buffer=[(shard, sample) for shard, sample in state["buffer"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This is no state of VerifiedShards: {error!r}") from error


class _Pass(Iterator[Sample]):
    """One pass over one share. It can be asked on after an error; a generator could not.

    Parameters
    ----------
    position
        Where it starts; it is kept up to date.
    samples
        Those of the share.
    size
        Samples that the buffer holds; at least 1.
    random
        Random numbers by name.
    decode
        As the user gave it.
    """

    def __init__(
        self,
        position: _Position,
        samples: _Samples,
        size: int,
        random: Callable[[bytes], int],
        decode: Callable[[dict[str, Any]], Sample] | None,
    ) -> None:
        self._position = position
        self._samples = samples
        self._size = size
        self._random = random
        self._decode = decode
        self._held: dict[tuple[int, int], dict[str, Any]] = {}

    def __next__(self) -> Sample:
        self._refill()
        buffer = self._position.buffer
        if not buffer:
            raise StopIteration
        chosen = self._draw(len(buffer))
        buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
        sample = self._held.pop(buffer.pop())
        self._position.handed_out += 1
        return self._decoded(sample)

    def _refill(self) -> None:
        """Bring back what was in the buffer when the state was taken, and fill it up."""
        position = self._position
        if len(self._held) < len(position.buffer):
            for place in sorted(set(position.buffer) - self._held.keys()):
                self._held[place] = self._samples.at(*place)
        while len(position.buffer) < self._size and position.shard < len(self._samples):
            place = position.shard, position.sample
            if position.sample < self._samples.count(position.shard):
                self._held[place] = self._samples.at(*place)
                position.buffer.append(place)
                position.sample += 1
            if position.sample >= self._samples.count(position.shard):
                # At once: what was consumed shall not be read again after a resume.
                position.shard, position.sample = position.shard + 1, 0
                self._samples.close()

    def _draw(self, choices: int) -> int:
        """Return a position in the buffer."""
        if self._size == 1:
            return 0
        number = self._random(b"%d" % self._position.handed_out)
        return (number * choices) >> _DRAW_BITS

    def _decoded(self, sample: dict[str, Any]) -> Sample:
        if self._decode is None:
            return sample  # type: ignore[return-value]  # without decode a sample is its dict
        key, shard = sample[KEY], sample[SHARD]  # what decode does to the dict is its own affair
        return call(
            self._decode,
            sample,
            what="decode",
            where=lambda: f"sample '{printable(key)}' of shard '{printable(shard)}'",
        )


class _Samples:
    """The samples of a share by (shard, sample); one shard is open at a time."""

    def __init__(self, shards: list[str], reader: Reader) -> None:
        self._shards = shards
        self._reader = reader
        self._open: tuple[int, _Shard] | None = None

    def __len__(self) -> int:
        return len(self._shards)

    def count(self, shard: int) -> int:
        """Return how many samples a shard has."""
        return len(self._opened(shard))

    def at(self, shard: int, sample: int) -> dict[str, Any]:
        """Return one sample."""
        return self._opened(shard).sample(sample)

    def close(self) -> None:
        """Let go of the bytes of the open shard."""
        self._open = None

    def _opened(self, shard: int) -> _Shard:
        if self._open is None or self._open[0] != shard:
            self._open = None  # before the next is read: two of them need not fit into memory
            path = self._shards[shard]
            self._open = shard, _Shard(path, self._reader.read(path))
        return self._open[1]


class _Shard:
    """The samples of one tar file, from its proven bytes.

    Raises
    ------
    ShardError
        If it is no whole tar file, or two of its files are the same part of one sample.
    """

    def __init__(self, path: str, content: bytes) -> None:
        self._path = path
        try:
            self._data = _decompressed(io.BytesIO(content))
            self._members = list(_members(self._data).items())
        except MemoryError:
            raise  # it says nothing about the shard
        except Exception as error:  # tarfile and each decompressor raise their own
            why = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
            raise ShardError(
                f"The shard '{printable(path)}' cannot be read as a tar file: "
                f"{printable(why)}. Its bytes are the committed "
                f"ones, so it was committed like this: write it anew, track and commit it."
            ) from error

    def __len__(self) -> int:
        return len(self._members)

    def sample(self, index: int) -> dict[str, Any]:
        """Return the sample at a position, in order of the first file of each."""
        key, parts = self._members[index]
        sample: dict[str, Any] = {KEY: key, SHARD: self._path}
        for extension, part in parts.items():
            sample[extension] = self._data[part] if isinstance(part, slice) else part
        return sample


def _decompressed(file: BinaryIO) -> bytes:
    """Return the bytes of the tar itself; tarfile finds out how it is compressed."""
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        stream = archive.fileobj
        if isinstance(stream, io.BytesIO):
            return stream.getvalue()  # shared with the buffer that was proven, not copied
        if stream is None:
            raise tarfile.ReadError("it has no content")
        stream.seek(0)
        return stream.read(-1)


def _members(data: bytes) -> dict[str, dict[str, slice | bytes]]:
    """Return the parts of each sample: where they lie in ``data``, or their bytes."""
    samples: dict[str, dict[str, slice | bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as archive:
        for member in archive:
            key, extension = _key_and_extension(member.name)
            if member.isdir() or not key:
                continue
            parts = samples.setdefault(key, {})
            if extension in parts or extension in (KEY, SHARD):
                raise tarfile.ReadError(f"'{member.name}' is the same part of a sample as another")
            parts[extension] = _content(archive, member)
        _refuse_unfinished(data, archive.offset)
    return samples


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> slice | bytes:
    """Return where a file lies; of a link or a sparse file the bytes."""
    if member.isreg() and not member.issparse():
        return slice(member.offset_data, member.offset_data + member.size)
    try:
        file = archive.extractfile(member)
    except (KeyError, RecursionError):  # a link that leads nowhere
        file = None
    if file is None:
        raise tarfile.ReadError(f"'{member.name}' is no file and no link to one in it")
    return file.read()


def _key_and_extension(name: str) -> tuple[str, str]:
    """Split a path at the first dot of its last component; no key where there is none."""
    folder, base = posixpath.split(name)
    stem, dot, extension = base.partition(".")
    return (posixpath.join(folder, stem) if stem and dot else "", extension.lower())


def _refuse_unfinished(data: bytes, end: int) -> None:
    """Refuse what tarfile takes for the end of an archive though it is none."""
    block = data[end : end + tarfile.BLOCKSIZE]
    if not block:
        raise tarfile.ReadError("it ends without the end-of-archive mark, as if it were cut off")
    if block.strip(tarfile.NUL):
        raise tarfile.ReadError(f"there is no valid header at byte {end}")
    if data[end:].strip(tarfile.NUL):
        raise tarfile.ReadError(f"more follows after the end of the archive at byte {end}")


def _refuse_policy(on_corrupt: str) -> None:
    if on_corrupt == "substitute":
        raise ValueError(
            "on_corrupt='substitute' is not possible for shards: how many samples a bad shard "
            "holds is not known, so nothing of the same length can take their place. Use "
            "on_corrupt='restore'."
        )
    if on_corrupt not in ("raise", "restore"):
        raise ValueError(f"on_corrupt is 'raise' or 'restore', not {on_corrupt!r}")


def _selected(manifest: Manifest, patterns: Sequence[str]) -> NDArray[np.int64]:
    """Return the rows of the files that one of the patterns matches, ascending."""
    by_path, by_name = (
        [re.compile(fnmatch.translate(each)) for each in patterns if ("/" in each) is slash]
        for slash in (True, False)
    )

    def matches(path: str) -> bool:
        name = posixpath.basename(path)
        return any(each.match(path) for each in by_path) or any(
            each.match(name) for each in by_name
        )

    paths = map(os.fsdecode, manifest.paths(0, len(manifest)))
    return np.array([row for row, path in enumerate(paths) if matches(path)], np.int64)


def _fingerprint(manifest: Manifest, rows: NDArray[np.int64]) -> str:
    """Return what tells shards from others: their paths and digests, hashed."""
    hasher = blake2b(digest_size=16)
    for row in rows.tolist():
        hasher.update(manifest.path(row) + b"\0" + manifest.digests[row].tobytes())
    return hasher.hexdigest()


def _distributed_rank() -> tuple[int, int] | None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def _environment_rank() -> tuple[int, int] | None:
    rank, ranks = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None and ranks is None:
        return None
    what = f"the variables RANK={rank} and WORLD_SIZE={ranks}"
    if rank is None or ranks is None or not (rank.isdecimal() and ranks.isdecimal()):
        raise ValueError(f"{what} must be two numbers, or both unset")
    return _checked_rank(int(rank), int(ranks), what)


def _checked_rank(rank: int | None, ranks: int | None, what: str) -> tuple[int, int]:
    if rank is None or ranks is None:
        raise ValueError(f"{what} go together, and one of them is missing")
    if not 0 <= operator.index(rank) < operator.index(ranks):
        raise ValueError(f"{what} are {rank} and {ranks}: a rank is below the number of ranks")
    return operator.index(rank), operator.index(ranks)

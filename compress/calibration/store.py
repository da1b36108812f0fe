"""A logged trajectory on disk, read chunk by chunk.

Layout of the folder: `chunk-00000.safetensors`, … (see `chunks.py`), and `trajectory.json` once all of them are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compress.calibration.chunks import Chunk, load_chunk, load_sigma
from compress.calibration.sampler import stream_seed
from compress.config import content_hash
from compress.errors import RecipeError, RunError
from compress.files import file_sha256

INDEX_FILE = "trajectory.json"
LAYOUT_VERSION = 1


class Record(NamedTuple):
    """A batch of denoiser inputs.

    `half` is 0 for conditional and 1 for unconditional inputs; `image` is the number of the sample on whose way to an
    image the input lay: inputs of one sample are not independent.
    """

    sample: Tensor  # [b, c, h, w]
    t: Tensor  # [b] float32
    sigma: Tensor  # [b] float32
    condition: dict[str, Tensor]  # each [b, ...]
    half: Tensor  # [b] int64
    image: Tensor  # [b] int64

    def to(self, device: str | torch.device) -> Record:
        """The same batch on `device`."""
        condition = {name: tensor.to(device) for name, tensor in self.condition.items()}
        fields = (self.sample.to(device), self.t.to(device), self.sigma.to(device))
        return Record(*fields, condition, self.half.to(device), self.image.to(device))

    def part(self, start: int, stop: int) -> Record:
        """Rows `start:stop` of the batch."""
        condition = {name: tensor[start:stop] for name, tensor in self.condition.items()}
        fields = (self.sample[start:stop], self.t[start:stop], self.sigma[start:stop])
        return Record(*fields, condition, self.half[start:stop], self.image[start:stop])


@dataclass(frozen=True)
class ChunkFile:
    """One chunk of a finished trajectory."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Trajectory:
    """A finished trajectory on disk; batches are read chunk by chunk.

    Attributes:
        folder: where it lies.
        hash: SHA-256 of everything that determines it.
        samples: number of images that were sampled.
        halves: 2 with guidance (conditional, unconditional), else 1.
        chunks: its files.
    """

    folder: Path
    hash: str
    samples: int
    halves: int
    chunks: tuple[ChunkFile, ...]

    @classmethod
    def open(cls, folder: str | Path) -> Trajectory:
        """The trajectory in `folder`, every file of it checked. Raises RunError when it is unfinished or damaged."""
        folder = Path(folder)
        trajectory = read_index(folder)
        if trajectory is None:
            raise RunError("no finished trajectory", where=str(folder), hint="run the logging again; it continues")
        for chunk in trajectory.chunks:
            path = folder / chunk.file
            if not path.is_file() or file_sha256(path) != chunk.sha256:
                raise RunError("damaged or missing", where=str(path), hint="run the logging again; whole chunks stay")
        return trajectory

    @property
    def rows(self) -> int:
        """Logged model calls, each counted once for both halves."""
        return sum(chunk.rows for chunk in self.chunks)

    def __len__(self) -> int:
        """Denoiser inputs: rows times halves."""
        return self.rows * self.halves

    def batches(self, size: int, *, halves: bool = True, shuffle: int | None = None) -> Iterator[Record]:
        """All inputs in batches of at most `size`, in the order of logging; no batch spans two chunks.

        Both halves of a call follow each other, conditional first; without `halves`, conditional ones only. With
        `shuffle`, a seed, the inputs of each chunk are mixed: a chunk holds all noise levels of its samples.
        """
        count = self.halves if halves else 1
        for number, file in enumerate(self.chunks):
            chunk, order = load_chunk(self.folder / file.file), torch.arange(file.rows * count)
            if shuffle is not None:
                generator = torch.Generator().manual_seed(stream_seed(shuffle, "shuffle", number))
                order = torch.randperm(len(order), generator=generator)
            for entries in torch.split(order, size):
                yield _gather(chunk, entries // count, entries % count)

    def pairs(self, n: int, seed: int) -> Record:
        """`n` different inputs (sample, t, sigma, condition), spread evenly over the noise levels; for evaluation.

        Every logged level gives n / levels of them, one more here and there, or all it has; both halves take part.

        Raises:
            RecipeError: the trajectory holds fewer.
        """
        return next(self.select(self.spread(n, seed), n))

    def spread(self, n: int, seed: int, stream: str = "pairs") -> Tensor:
        """Ascending numbers (row * halves + half) of `n` inputs, drawn as evenly as possible over the noise levels.

        Raises:
            RecipeError: the trajectory holds fewer.
        """
        if n > len(self):
            raise RecipeError(
                f"{n} denoiser inputs are wanted, but the trajectory holds {len(self)}",
                hint="raise calibration.samples or ask for fewer",
            )
        sigma = torch.cat([load_sigma(self.folder / chunk.file) for chunk in self.chunks])
        generator = torch.Generator().manual_seed(stream_seed(seed, stream, 0))
        return _even_choice(sigma.repeat_interleave(self.halves), n, generator)

    def select(self, entries: Tensor, size: int) -> Iterator[Record]:
        """The inputs with these ascending numbers in batches of `size`, of which only the last may be smaller.

        One chunk at a time is in memory.
        """
        waiting: list[Record] = []
        first = held = 0
        for file in self.chunks:
            here = entries[(entries >= first) & (entries < first + file.rows * self.halves)] - first
            chunk = load_chunk(self.folder / file.file) if len(here) else None
            while chunk is not None and len(here):
                part, here = here[: size - held], here[size - held :]
                waiting.append(_gather(chunk, part // self.halves, part % self.halves))
                held += len(part)
                if held == size:
                    yield _concatenate(waiting)
                    waiting, held = [], 0
            first += file.rows * self.halves
        if waiting:
            yield _concatenate(waiting)


def read_index(folder: Path) -> Trajectory | None:
    """The finished trajectory that `folder` claims to hold, its chunks unchecked; None without an index.

    Raises:
        RunError: the index is not one of ours, or not consistent.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf8"))
        if data["layout"] != LAYOUT_VERSION or content_hash(data["spec"]) != data["hash"]:
            raise ValueError("its hash or its layout version is wrong")
        chunks = tuple(ChunkFile(**chunk) for chunk in data["chunks"])
        return Trajectory(folder, data["hash"], data["samples"], data["halves"], chunks)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"not a trajectory index: {error}", where=str(path), hint="delete the folder") from error


def index_text(trajectory: Trajectory, facts: dict[str, Any]) -> str:
    """Content of `trajectory.json`."""
    data = {
        "layout": LAYOUT_VERSION,
        "hash": trajectory.hash,
        "samples": trajectory.samples,
        "rows": trajectory.rows,
        "halves": trajectory.halves,
        "chunks": [vars(chunk) for chunk in trajectory.chunks],
        "spec": facts,
    }
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _gather(chunk: Chunk, rows: Tensor, half: Tensor) -> Record:
    """The inputs of these rows and halves of a chunk."""
    local = (chunk.index[rows] - chunk.first).long()
    condition = {name: _pick(chunk.condition[name], chunk.null.get(name), local, half) for name in chunk.condition}
    return Record(chunk.sample[rows], chunk.t[rows], chunk.sigma[rows], condition, half, chunk.index[rows].long())


def _pick(condition: Tensor, null: Tensor | None, local: Tensor, half: Tensor) -> Tensor:
    picked = condition[local]
    if null is None:
        return picked
    unconditional = null[local if len(null) > 1 else torch.zeros_like(local)]
    mask = (half == 1).view(-1, *(1 for _ in condition.shape[1:]))
    return torch.where(mask, unconditional, picked)


def _concatenate(parts: Sequence[Record]) -> Record:
    return Record(
        torch.cat([part.sample for part in parts]),
        torch.cat([part.t for part in parts]),
        torch.cat([part.sigma for part in parts]),
        {name: torch.cat([part.condition[name] for part in parts]) for name in parts[0].condition},
        torch.cat([part.half for part in parts]),
        torch.cat([part.image for part in parts]),
    )


def _even_choice(level: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Ascending positions of `n` items, drawn at random within levels and as evenly as possible over them."""
    members = [(level == value).nonzero().flatten() for value in sorted(set(level.tolist()))]
    quotas = even_quotas([len(group) for group in members], n)
    drawn = [
        group[torch.randperm(len(group), generator=generator)[:quota]]
        for group, quota in zip(members, quotas, strict=True)
    ]
    return torch.cat(drawn).sort().values


def even_quotas(sizes: Sequence[int], n: int) -> list[int]:
    """How many of `n` go to each group: equal shares, at most its size, the remainder at even intervals."""
    quotas = [0] * len(sizes)
    while n > 0:
        open_groups = [i for i, size in enumerate(sizes) if quotas[i] < size]
        share = n // len(open_groups)
        if share == 0:
            open_groups, share = [open_groups[j * len(open_groups) // n] for j in range(n)], 1
        for i in open_groups:
            added = min(share, sizes[i] - quotas[i])
            quotas[i] += added
            n -= added
    return quotas

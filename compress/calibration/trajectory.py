"""Logs a trajectory: samples with the full-precision model and stores what it saw, the only calibration data there is.

Killed runs continue. What was logged is read through `Trajectory` (store.py). A row's `sigma` is the noise level of its
sample; its `t` is what a model is given with it, which is the timestep of that level unless the policy says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from compress.calibration.chunks import Chunk, chunk_owner, load_sigma, save_chunk
from compress.calibration.sampler import (
    Call,
    Denoise,
    Progress,
    denoise_with,
    initial_noise,
    sample,
    sample_generators,
    to_device,
)
from compress.calibration.spec import Plan, TrajectorySpec, make_plan, spec_hash
from compress.calibration.store import INDEX_FILE, ChunkFile, Record, Trajectory, index_text, read_index
from compress.errors import RunError
from compress.files import PARTIAL_SUFFIX, file_sha256, write_text_atomically
from compress.models.adapter import Adapter, Condition

__all__ = ["Record", "Trajectory", "TrajectorySpec", "log_trajectory", "spec_hash"]


def log_trajectory(
    adapter: Adapter,
    model_or_denoise: nn.Module | Denoise,
    spec: TrajectorySpec,
    folder: str | Path,
    *,
    progress: Progress | None = None,
) -> Trajectory:
    """The trajectory of `spec` in `folder`, logged now or, as far as its chunks are there already, earlier.

    It may be killed at any moment and called again: whole chunks are kept, and the files come out byte for byte as
    without the interruption.

    Raises:
        RunError: the folder holds another trajectory, or the model gives values that are not finite.
        OutputError: a file cannot be written.
    """
    denoise = denoise_with(adapter, model_or_denoise) if isinstance(model_or_denoise, nn.Module) else model_or_denoise
    plan, folder = make_plan(adapter, spec), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = _claim(folder, plan.hash)
    files = []
    for number, first in enumerate(range(0, spec.samples, plan.chunk_samples)):
        path = folder / _chunk_name(number)
        if not _is_whole(path, plan.hash, known.get(path.name)):
            save_chunk(path, _log_chunk(plan, denoise, first), plan.hash)
        files.append(ChunkFile(path.name, len(load_sigma(path)), file_sha256(path)))
        if progress is not None:
            progress(min(first + plan.chunk_samples, spec.samples), spec.samples)
    trajectory = Trajectory(folder, plan.hash, spec.samples, 2 if spec.sampler.guided else 1, tuple(files))
    text = index_text(trajectory, plan.facts)
    write_text_atomically(folder / INDEX_FILE, text)
    return trajectory


def _claim(folder: Path, wanted: str) -> dict[str, str]:
    """File hashes known from an index in `folder`, which holds nothing but this trajectory; torn files are removed."""
    index = read_index(folder)
    owners = {None if index is None else index.hash}
    for path in sorted(folder.glob("chunk-*")):
        if path.name.endswith(PARTIAL_SUFFIX):
            path.unlink()
        else:
            owners.add(chunk_owner(path))
    if owners - {None, wanted}:
        raise RunError(
            "the folder holds a trajectory of other settings, another model or another version",
            where=str(folder),
            hint="choose another folder or delete this one",
        )
    return {} if index is None else {chunk.file: chunk.sha256 for chunk in index.chunks}


def _is_whole(path: Path, owner: str, sha256: str | None) -> bool:
    return chunk_owner(path) == owner and (sha256 is None or file_sha256(path) == sha256)


def _chunk_name(number: int) -> str:
    return f"chunk-{number:05d}.safetensors"


def _log_chunk(plan: Plan, denoise: Denoise, first: int) -> Chunk:
    """Sample the chunk that begins with sample `first`, and keep the chosen calls."""
    spec = plan.spec
    indices = range(first, min(first + plan.chunk_samples, spec.samples))
    rows = _Rows(plan, indices)
    pair = spec.conditions(indices)
    noise = initial_noise(plan.shape, spec.seed, indices).to(spec.device)
    condition, null = to_device(pair.condition, spec.device), to_device(pair.null, spec.device)
    generators = sample_generators(spec.seed, indices)
    sample(denoise, plan.scheduler, spec.sampler, noise, condition, null, generators=generators, on_call=rows.add)
    return rows.chunk(pair.condition, pair.null if spec.sampler.guided else None)


class _Rows:
    """Collects the chosen calls of a chunk, ordered by call, then by sample."""

    def __init__(self, plan: Plan, indices: Sequence[int]) -> None:
        self.plan, self.indices = plan, indices
        # Call number -> (position in the batch, timestep to store), repeated as often as chosen.
        self.wanted: dict[int, list[tuple[int, float]]] = {}
        for position, index in enumerate(indices):
            for call, t in plan.chosen(index):
                self.wanted.setdefault(call, []).append((position, t))
        # One block from the start: a list joined at the end would need twice the memory cap.
        self.sample = torch.empty(sum(map(len, self.wanted.values())), *plan.shape)
        self.filled = 0

    def add(self, call: Call) -> None:
        """Keep what the model saw in this call, if it was chosen for any sample. Raises RunError."""
        wanted = self.wanted.get(call.index)
        if wanted is None:
            return
        rows = call.sample[[position for position, _ in wanted]]
        if not bool(torch.isfinite(rows).all()):
            raise RunError(
                f"the model's samples are not finite at model call {call.index} (t = {call.t:g})",
                hint="check the weights, or use float32",
            )
        self.sample[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def chunk(self, condition: Condition, null: Condition | None) -> Chunk:
        """The rows as a chunk, with the conditions of its samples."""
        rows = [(call, *wanted) for call in sorted(self.wanted) for wanted in self.wanted[call]]
        assert self.filled == len(rows)
        calls = torch.tensor([call for call, _, _ in rows], dtype=torch.int32)
        return Chunk(
            sample=self.sample,
            t=torch.tensor([t for _, _, t in rows]),
            sigma=torch.tensor(self.plan.sigmas)[calls],
            call=calls,
            index=torch.tensor([self.indices[position] for _, position, _ in rows], dtype=torch.int32),
            condition=dict(condition),
            null=dict(null or {}),
            first=self.indices[0],
        )

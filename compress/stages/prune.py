"""The prune stage: a smaller component, physically."""

from __future__ import annotations

from typing import Literal

from compress.checkpoint.writer import ShardWriter
from compress.config import Config
from compress.models.source import component_folder, read_tensors
from compress.prune.depth import block_prefix, renumber, shorter_config, write_config
from compress.prune.methods import MethodSettings
from compress.prune.methods.block_influence import block_influence, kept_blocks
from compress.stages.base import RunContext, StageKind, StageResult, register_stage


class Prune(Config):
    """Remove parts of the denoiser for good."""

    kind: Literal["prune"] = "prune"
    component: Literal["denoiser"] = "denoiser"
    method: MethodSettings


def run(settings: Prune, context: RunContext) -> StageResult:
    """Score the blocks on the trajectory, and write the component without the weakest ones."""
    adapter = context.adapter
    model = adapter.load(device=context.device)
    names = [name for name, _ in adapter.blocks(model)]
    prefix = block_prefix(names, adapter.source.config)
    scores = block_influence(adapter, model, context.trajectory(), settings.method.samples, context.seed)
    kept = kept_blocks(scores, settings.method.keep)
    with read_tensors(component_folder(adapter.source)) as reader, ShardWriter(context.folder) as writer:
        for name in reader.names():
            if (renamed := renumber(name, prefix, kept)) is not None:
                writer.add(renamed, reader.get(name))
    write_config(shorter_config(adapter.source.config, kept), context.folder)
    removed = [i for i in range(len(names)) if i not in kept]
    return StageResult(
        {
            "method": settings.method.kind,
            "blocks": f"{len(names)} -> {len(kept)}",
            "removed": ", ".join(map(str, removed)),
            "block influence": ", ".join(f"{score:.3g}" for score in scores),
        }
    )


def pruned_source_config(settings: Prune, config: dict[str, object], blocks: int) -> dict[str, object]:
    """The component's config after this stage, for plans: which blocks go is not known yet, how many is."""
    return shorter_config(config, kept_blocks([0.0] * blocks, settings.method.keep))


register_stage(StageKind(Prune, run, lambda settings: True))

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.policies import AllTimesteps
from compress.calibration.sampler import Sampler
from compress.calibration.trajectory import TrajectorySpec, log_trajectory
from compress.errors import UnsupportedLayer
from compress.models.layout import scheduler_config
from compress.models.source import open_adapter, resolve
from compress.prune.depth import block_prefix, renumber, shorter_config, token_similarity
from compress.prune.methods.block_influence import block_influence, kept_blocks


def test_similarity_is_the_cosine_of_each_token() -> None:
    x = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(token_similarity(x, 3 * x), torch.ones(2, 5, dtype=torch.float64))
    assert torch.allclose(token_similarity(x, -x), -torch.ones(2, 5, dtype=torch.float64))
    assert float(token_similarity(x[:, :, :1] * 0, x[:, :, :1]).abs().max()) == 0


def test_the_least_influential_blocks_go_and_the_ends_stay() -> None:
    scores = [0.0, 0.5, 0.1, 0.4, 0.2, 0.0]
    assert kept_blocks(scores, 0.67) == [0, 1, 3, 5]
    assert kept_blocks(scores, 0.01) == [0, 5]
    assert kept_blocks([0.3] * 6, 0.5) == [0, 1, 5]


def test_tensors_are_renumbered() -> None:
    kept = [0, 3, 5]
    assert renumber("blocks.3.attn.weight", "blocks", kept) == "blocks.1.attn.weight"
    assert renumber("blocks.30.attn.weight", "blocks", kept) is None
    assert renumber("blocks.4.attn.weight", "blocks", kept) is None
    assert renumber("pos_embed.weight", "blocks", kept) == "pos_embed.weight"
    assert shorter_config({"num_layers": 6, "a": 1}, kept) == {"num_layers": 3, "a": 1}


def test_models_without_one_list_of_blocks_are_refused() -> None:
    assert block_prefix(["b.0", "b.1"], {"num_layers": 2}) == "b"
    with pytest.raises(UnsupportedLayer, match="do not follow `num_layers`"):
        block_prefix(["down.0", "up.0"], {"num_layers": 2})
    with pytest.raises(UnsupportedLayer, match="one list of blocks"):
        block_prefix(["b.0", "b.1"], {"num_layers": 3})


def test_a_planted_idle_block_has_no_influence(dit_folder: Path, tmp_path: Path) -> None:
    adapter = open_adapter(resolve(str(dit_folder)))
    model = adapter.load()
    block = model.transformer_blocks[1]
    nn.init.zeros_(block.norm1.linear.weight)  # gates of zero: the block returns its input
    nn.init.zeros_(block.norm1.linear.bias)
    spec = TrajectorySpec(
        sampler=Sampler(steps=3, guidance_scale=1.5),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter),
        timesteps=AllTimesteps(),
        samples=4,
    )
    trajectory = log_trajectory(adapter, model, spec, tmp_path)
    scores = block_influence(adapter, model, trajectory, samples=16, seed=0)
    assert abs(scores[1]) < 1e-6
    assert min(scores[0], scores[2]) > 1e-4
    assert not any(module._forward_hooks for module in model.modules())

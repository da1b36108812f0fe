"""Pairs of timestep and class, and what tiny models project of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_dit_pipeline, tiny_unet2d, tiny_unet2d_pipeline

from compress.models.adapter import Adapter
from compress.models.conditioning import capture_projections, conditioning_grid, projection_layers
from compress.models.source import open_adapter, resolve
from compress.models.zoo.bundle import write_bundled_model
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG

TIMESTEPS = (40.0, 1.0, 500.0, 999.0, 500.0)


@pytest.fixture(params=["unet", "dit"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Adapter:
    make = tiny_unet2d_pipeline if request.param == "unet" else tiny_dit_pipeline
    return open_adapter(resolve(str(make(tmp_path / "model"))))


def test_the_grid_holds_every_pair_once_and_the_null_class_last(adapter: Adapter) -> None:
    grid = conditioning_grid(adapter, TIMESTEPS)
    assert grid.timesteps == (1.0, 40.0, 500.0, 999.0)
    assert (grid.classes, len(grid)) == (11, 44)
    t, condition = grid.rows(torch.arange(len(grid)))
    labels = condition["class_labels"]
    assert t.dtype == torch.float32
    assert len(set(zip(t.tolist(), labels.tolist(), strict=True))) == 44
    assert labels[:11].tolist() == list(range(11))
    assert set(t[:11].tolist()) == {1.0}


def test_fewer_classes_are_spread_evenly_and_keep_the_null_class(adapter: Adapter) -> None:
    grid = conditioning_grid(adapter, TIMESTEPS, classes=3)
    assert grid.conditions["class_labels"].tolist() == [0, 3, 6, 10]


def test_an_unconditional_model_counts_as_one_class(tmp_path: Path) -> None:
    folder = write_bundled_model(tiny_unet2d(classes=None), tmp_path / "model", SCHEDULER_CONFIG)
    adapter = open_adapter(resolve(str(folder)))
    grid = conditioning_grid(adapter, TIMESTEPS)
    assert (grid.classes, len(grid)) == (1, 4)
    assert grid.rows(torch.tensor([3])) == (torch.tensor([999.0]), {})
    model = adapter.load()
    names = [layer.name for layer in projection_layers(adapter, model)]
    assert capture_projections(adapter, model, grid, names)[names[0]].shape[:2] == (4, 1)


def test_captured_projections_are_the_layers_applied_to_the_conditioning(adapter: Adapter) -> None:
    """SiLU, then the layer: so do diffusers' residual blocks, adaLN-zero and DiT's head."""
    model, grid = adapter.load(), conditioning_grid(adapter, TIMESTEPS)
    layers = projection_layers(adapter, model)
    assert layers
    found = capture_projections(adapter, model, grid, [layer.name for layer in layers], batch_size=7)
    t, condition = grid.rows(torch.arange(len(grid)))
    with torch.no_grad():
        x = torch.nn.functional.silu(adapter.conditioning(model, t, condition))
        for layer in layers:
            expected = model.get_submodule(layer.name)(x).reshape(4, 11, -1)
            assert torch.allclose(found[layer.name], expected, atol=1e-5)
    assert all(not module._forward_hooks for module in model.modules())


def test_projections_do_not_depend_on_the_sample(adapter: Adapter) -> None:
    model, grid = adapter.load(), conditioning_grid(adapter, TIMESTEPS)
    name = projection_layers(adapter, model)[-1].name
    zeros = capture_projections(adapter, model, grid, [name])[name].flatten(0, 1)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output))
    t, condition = grid.rows(torch.arange(len(grid)))
    with torch.no_grad():
        adapter.denoise(model, torch.randn(len(t), *adapter.sample_shape()) * 10, t, condition)
    hook.remove()
    assert torch.equal(seen[0], zeros)

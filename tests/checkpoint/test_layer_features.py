"""Split layers, smoothed inputs and scales per timestep, through a checkpoint and back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import EVERYTHING, TIMESTEPS, packed_model, quantized_layers
from safetensors.torch import load_file, save_file
from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline

from compress.checkpoint.accounting import file_bytes, planned_tensors
from compress.checkpoint.assemble import assemble_checkpoint, component_name
from compress.checkpoint.component import write_quantized_component
from compress.checkpoint.load import load_denoiser
from compress.checkpoint.quantization_config import from_config, to_config
from compress.errors import CheckpointError, RunError
from compress.evaluate.size import bits_per_weight, bytes_by_class
from compress.formats import WeightSpec
from compress.models.adapter import Adapter
from compress.models.source import component_folder, open_adapter, read_tensors, resolve
from compress.quantize.cached_embeddings import EmbeddingCache
from compress.quantize.job import QuantizedLayer
from compress.quantize.modules import SplitLayer, swap_layers
from compress.quantize.spec import ActivationSpec, LayerSpec


@pytest.fixture(scope="module", params=["unet", "dit"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Path]:
    """A model, and a checkpoint of it in which every layer has every feature."""
    folder = tmp_path_factory.mktemp(request.param)
    make = tiny_unet2d_pipeline if request.param == "unet" else tiny_dit_pipeline
    adapter = open_adapter(resolve(str(make(folder / "model"))))
    layers = quantized_layers(adapter, EVERYTHING)
    specs = {name: spec for name, (spec, _) in layers.items()}
    component = folder / "component"
    component.mkdir()
    with read_tensors(component_folder(adapter.source)) as reader:
        done = [layer for _, layer in layers.values()]
        write_quantized_component(reader, adapter.source.config, specs, [], done, {}, component)
    assemble_checkpoint(adapter.source, component, folder / "checkpoint", {})
    return adapter, folder / "checkpoint"


def part_folder(adapter: Adapter, checkpoint: Path) -> Path:
    return checkpoint / component_name(adapter.source)


def outputs(adapter: Adapter, model: Any) -> torch.Tensor:
    """Of samples at different timesteps."""
    inputs = adapter.example_inputs(4)
    with torch.no_grad():
        return adapter.denoise(model, inputs.sample, torch.tensor([0, 300, 700, 999]), inputs.condition)


def test_a_loaded_model_computes_what_was_packed(made) -> None:
    adapter, checkpoint = made
    loaded = load_denoiser(checkpoint)
    assert torch.equal(outputs(adapter, loaded), outputs(adapter, packed_model(adapter)))
    splits = [layer.name for layer in adapter.layers(adapter.skeleton()) if layer.split is not None]
    assert [name for name, module in loaded.named_modules() if isinstance(module, SplitLayer)] == splits


def test_every_sample_has_the_scales_of_its_timestep(made) -> None:
    """Alone it computes the same as among samples at other timesteps, and another timestep changes its scales."""
    adapter, checkpoint = made
    model, inputs, times = load_denoiser(checkpoint), adapter.example_inputs(3), torch.tensor(TIMESTEPS)
    with torch.no_grad():
        together = adapter.denoise(model, inputs.sample, times, inputs.condition)
        for row in range(3):
            one = {name: value[row : row + 1] for name, value in inputs.condition.items()}
            alone = adapter.denoise(model, inputs.sample[row : row + 1], times[row : row + 1], one)
            assert torch.allclose(alone[0], together[row], atol=1e-5)
    clock = next(module.clock for module in model.modules() if getattr(module, "clock", None) is not None)
    assert clock.indices.tolist() == [2]


def test_a_copy_of_a_loaded_model_keeps_time_by_itself(made) -> None:
    adapter, checkpoint = made
    model = load_denoiser(checkpoint)
    expected = outputs(adapter, model)
    twin = copy.deepcopy(model)
    clocks = {id(module.clock) for module in twin.modules() if getattr(module, "clock", None) is not None}
    others = {id(module.clock) for module in model.modules() if getattr(module, "clock", None) is not None}
    assert len(clocks) == len(others) == 1
    assert clocks.isdisjoint(others)
    assert torch.equal(outputs(adapter, twin), expected)


def test_the_bytes_are_predicted_from_the_skeleton(made) -> None:
    adapter, checkpoint = made
    path = part_folder(adapter, checkpoint) / "diffusion_pytorch_model.safetensors"
    skeleton, config = adapter.skeleton(), json.loads(path.with_name("config.json").read_text())
    swap_layers(skeleton, from_config(config["quantization_config"]))
    with read_tensors(component_folder(adapter.source)) as reader:
        stored = {name: reader.dtype(name) for name in reader.names()}
    assert file_bytes(planned_tensors(skeleton, stored)) == path.stat().st_size


def test_saving_again_keeps_every_tensor(made, tmp_path: Path) -> None:
    adapter, checkpoint = made
    load_denoiser(checkpoint).save_pretrained(tmp_path / "again")
    before = load_file(part_folder(adapter, checkpoint) / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name].to(before[name].dtype)) for name in before)


def test_sizes_count_split_layers_as_one(made) -> None:
    adapter, checkpoint = made
    weights = {layer.name: layer.weight_parameters for layer in adapter.layers(adapter.skeleton())}
    tensors = load_file(part_folder(adapter, checkpoint) / "diffusion_pytorch_model.safetensors")
    counted = ("weight_packed", "weight_scale", "weight_zero_point", "input_smooth")
    stored = sum(t.numel() * t.element_size() for name, t in tensors.items() if name.endswith(counted))
    expected = 8 * stored / sum(weights.values())
    assert bits_per_weight(part_folder(adapter, checkpoint), weights) == pytest.approx(expected)
    classes = bytes_by_class(part_folder(adapter, checkpoint))
    assert classes["tables"] == sum(4 * t.numel() for name, t in tensors.items() if name.endswith("input_smooth"))


@pytest.mark.parametrize("name", ["input_smooth", "input_scale"])
def test_loading_is_strict(made, tmp_path: Path, name: str) -> None:
    import shutil

    adapter, checkpoint = made
    shutil.copytree(checkpoint, tmp_path / "copy")
    path = part_folder(adapter, tmp_path / "copy") / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    full = next(found for found in sorted(tensors) if found.endswith(name))
    kept = tensors.pop(full)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"lacks {full}"):
        load_denoiser(tmp_path / "copy")
    save_file(tensors | {full: kept[:-1].clone()}, path)
    with pytest.raises(CheckpointError, match=f"{full}: shape"):
        load_denoiser(tmp_path / "copy")


def test_a_method_must_give_what_the_spec_asks_for(made, tmp_path: Path) -> None:
    adapter, _ = made
    name, (spec, layer) = next(iter(quantized_layers(adapter, EVERYTHING).items()))
    lacking = [part._replace(inputs={"input_scale": part.inputs["input_scale"]}) for part in layer.parts]
    with read_tensors(component_folder(adapter.source)) as reader:

        def write(parts: Any) -> None:
            done = [QuantizedLayer(name, tuple(parts))]
            write_quantized_component(reader, adapter.source.config, {name: spec}, [], done, {}, tmp_path)

        with pytest.raises(RunError, match=rf"{name}.*'input_smooth': "):
            write(lacking)
        with pytest.raises(RunError, match=rf"{name}: the method returned 2 of 1 parts"):
            write([*layer.parts, *layer.parts])


def test_config_groups_say_only_what_is_set() -> None:
    weights = WeightSpec("int8")
    specs = {
        "plain": LayerSpec(weights, ActivationSpec("int8", "static")),
        "timed": LayerSpec(weights, ActivationSpec("int8", "static", timesteps=(1.0, 20.5))),
        "split": LayerSpec(weights, None, split=16),
        "smooth": LayerSpec(weights, None, smooth=True),
    }
    config = json.loads(json.dumps(to_config(specs, [])))
    assert from_config(config) == specs
    assert config["version"] == 2
    groups = list(config["config_groups"].values())
    assert [sorted({"split", "smooth"} & set(group)) for group in groups] == [[], [], ["split"], ["smooth"]]
    assert [group["input_activations"] and "timesteps" in group["input_activations"] for group in groups] == [
        False,
        True,
        None,
        None,
    ]
    assert to_config({"plain": specs["plain"]}, [])["version"] == 1
    cached = to_config({"plain": specs["plain"]}, [], cache=EmbeddingCache(("time_embedding",), TIMESTEPS))
    assert cached["version"] == 2 and cached["cached_embeddings"]["modules"] == ["time_embedding"]


def test_a_configuration_without_groups_is_damaged() -> None:
    config = to_config({"plain": LayerSpec(WeightSpec("int8"))}, [])
    del config["config_groups"]
    with pytest.raises(CheckpointError, match="no config_groups"):
        from_config(config)


@pytest.mark.parametrize(
    ("group", "key", "value", "reason"),
    [
        (2, "split", 0, "split 0, not a number of channels"),
        (2, "split", "16", "split '16'"),
        (1, "timesteps", [5.0, 1.0], "ascending numbers"),
        (1, "timesteps", ["a"], "ascending numbers"),
    ],
)
def test_senseless_features_are_refused(group: int, key: str, value: object, reason: str) -> None:
    timed = LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "static", timesteps=(1.0, 2.0)))
    specs = {"a": LayerSpec(WeightSpec("int4")), "b": timed, "c": LayerSpec(WeightSpec("int8"), None, split=16)}
    config = json.loads(json.dumps(to_config(specs, [])))
    place = config["config_groups"][f"group_{group}"]
    (place["input_activations"] if key == "timesteps" else place)[key] = value
    with pytest.raises(CheckpointError, match=reason):
        from_config(config)

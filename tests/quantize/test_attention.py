"""Quantized attention: what it computes, where its scales come from, which modules it refuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from tiny import TINY_CONFIGS, config_only_folder, tiny_dit_pipeline, tiny_model, tiny_unet2d_pipeline
from torch import Tensor, nn

from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.policies import AllTimesteps
from compress.calibration.sampler import Sampler
from compress.calibration.trajectory import TrajectorySpec, log_trajectory
from compress.errors import CheckpointError, UnsupportedLayer
from compress.export.onnx_export import export_denoiser
from compress.export.session import OnnxDenoiser, kernels_available
from compress.formats import WeightSpec, quantize_weight
from compress.models.adapter import Adapter
from compress.models.layout import scheduler_config
from compress.models.source import open_adapter, resolve
from compress.quantize.attention import (
    SCALE_NAMES,
    AttentionSettings,
    AttentionSpec,
    attention_modules,
    attention_spec,
    install_attention,
    is_attention_scale,
)
from compress.quantize.attention_processor import QuantizedAttention
from compress.quantize.attention_scales import AttentionWatch, attention_scales, largest_weight, watched
from compress.quantize.modules import swap_layers
from compress.quantize.observers.ema import Ema
from compress.quantize.observers.minmax import MinMax
from compress.quantize.spec import ActivationSpec, LayerSpec

BATCH = 4


@pytest.fixture(scope="module", params=[tiny_dit_pipeline, tiny_unet2d_pipeline], ids=["dit", "unet"])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return open_adapter(resolve(str(request.param(tmp_path_factory.mktemp("attention")))))


def predict(adapter: Adapter, model: nn.Module) -> Tensor:
    return adapter.denoise(model, *adapter.example_inputs(BATCH))


def watches_of(adapter: Adapter, model: nn.Module, settings: AttentionSettings) -> dict[str, AttentionWatch]:
    """Statistics of one forward."""
    watches = {name: AttentionWatch(settings, MinMax()) for name in attention_modules(model)}
    for watch in watches.values():
        watch.sigma = torch.ones(BATCH)
    with torch.no_grad(), watched(model, watches):
        predict(adapter, model)
    return watches


def with_attention(adapter: Adapter, settings: AttentionSettings, model: nn.Module | None = None) -> nn.Module:
    """The model with quantized attention, scales from one forward of the original."""
    watches = watches_of(adapter, adapter.load(), settings)
    model = adapter.load() if model is None else model
    install_attention(model, attention_spec(settings, model), "cpu")
    for name, watch in watches.items():
        model.get_submodule(f"{name}.processor").load_state_dict(watch.scales())
    return model


def packed(adapter: Adapter) -> nn.Module:
    """The model with its layers around attention int8 in both operands."""
    model, spec = adapter.load(), LayerSpec(WeightSpec("int8"), ActivationSpec("int8", "dynamic"))
    layers = {info.name: model.get_submodule(info.name) for info in adapter.layers(model) if ".to_" in info.name}
    swap_layers(model, dict.fromkeys(layers, spec), "cpu")
    for name, layer in layers.items():
        target: Any = model.get_submodule(name)
        target.fill(quantize_weight(layer.weight, spec.weights), layer.bias)
    return model.eval()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_without_settings_nothing_changes(adapter: Adapter) -> None:
    model = adapter.load()
    expected, names = predict(adapter, model), set(model.state_dict())
    assert attention_spec(None, model) is None
    install_attention(model, None)
    assert torch.equal(predict(adapter, model), expected) and set(model.state_dict()) == names


def test_watching_changes_nothing_and_ends(adapter: Adapter) -> None:
    model = adapter.load()
    processors = {name: model.get_submodule(name).processor for name in attention_modules(model)}
    expected = predict(adapter, model)
    watches = {name: AttentionWatch(AttentionSettings(), MinMax()) for name in processors}
    for watch in watches.values():
        watch.sigma = torch.ones(BATCH)
    with torch.no_grad(), watched(model, watches):
        assert torch.equal(predict(adapter, model), expected)
    assert all(model.get_submodule(name).processor is before for name, before in processors.items())
    assert not any("processor" in name for name in model.state_dict())


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_masks_and_norms_are_diffusers_own(masked: bool) -> None:
    """`WatchedAttention` and `QuantizedAttention` share all but the products, so this holds for both."""
    model = tiny_model("UNet2DConditionModel", cross_attention_norm="layer_norm")
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]]).bool() if masked else None
    given = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    expected = model(sample, torch.tensor([3, 7]), **given).sample
    watches = {name: AttentionWatch(AttentionSettings(), MinMax()) for name in attention_modules(model)}
    for watch in watches.values():
        watch.sigma = torch.ones(2)
    with watched(model, watches):
        found = model(sample, torch.tensor([3, 7]), **given).sample
    assert len(watches) == 8
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_error_shrinks_with_bits(adapter: Adapter) -> None:
    expected = predict(adapter, adapter.load())
    errors = {}
    for bits, softmax_bits in ((4, 8), (8, 8), (8, 16)):
        settings = AttentionSettings(bits=bits, softmax_bits=softmax_bits)
        errors[bits, softmax_bits] = relative(predict(adapter, with_attention(adapter, settings)), expected)
    assert 0 < errors[8, 16] <= errors[8, 8] < 0.01 < errors[4, 8] < 0.2


def test_the_range_of_the_softmax_may_be_observed(adapter: Adapter) -> None:
    model = adapter.load()
    one = watches_of(adapter, model, AttentionSettings())
    seen = watches_of(adapter, model, AttentionSettings(softmax_range="observed"))
    wide = watches_of(adapter, model, AttentionSettings(softmax_bits=16))
    for name in one:
        assert float(one[name].scales()["softmax_scale"]) == pytest.approx(1 / 255)
        assert float(wide[name].scales()["softmax_scale"]) == pytest.approx(1 / 65535)
        assert 0 < float(seen[name].scales()["softmax_scale"]) < 1 / 255
        assert torch.equal(one[name].scales()["key_scale"], seen[name].scales()["key_scale"])


def test_scales_are_those_of_the_largest_values(adapter: Adapter) -> None:
    model = adapter.load()
    name = attention_modules(model)[0]
    seen: list[Tensor] = []
    handle = model.get_submodule(f"{name}.to_k").register_forward_hook(lambda m, x, y: seen.append(y))
    scales = watches_of(adapter, model, AttentionSettings(bits=4))[name].scales()
    handle.remove()
    assert float(scales["key_scale"]) == pytest.approx(float(seen[0].abs().max()) / 7)
    assert set(scales) == set(SCALE_NAMES) and all(scale.shape == (1,) for scale in scales.values())


def test_onnx_multiplies_integers_and_agrees_with_the_checkpoint(adapter: Adapter, tmp_path: Path) -> None:
    model = with_attention(adapter, AttentionSettings(), packed(adapter))
    expected, modules = predict(adapter, model), len(attention_modules(model))
    noise = relative(expected, predict(adapter, adapter.load()))
    result = export_denoiser(adapter, model, tmp_path)
    for kernels in {False, kernels_available()}:
        found = OnnxDenoiser(tmp_path, threads=1, kernels=kernels)(*adapter.example_inputs(BATCH))
        assert relative(found, expected) <= 0.5 * noise
    nodes = optimized(result.path, tmp_path / "optimized.onnx")
    assert nodes["MatMulIntegerToFloat"] == 2 * modules and nodes["Softmax"] == modules


def optimized(path: Path, target: Path) -> Counter[str]:
    """Nodes of what a stock onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(target).graph.node)


@pytest.mark.parametrize(
    ("class_name", "named"), [("FluxTransformer2DModel", "FluxAttention"), ("SD3Transformer2DModel", "JointAttn")]
)
def test_other_attention_is_refused_by_name(class_name: str, named: str, tmp_path: Path) -> None:
    folder = config_only_folder(tmp_path, {"_class_name": class_name, **TINY_CONFIGS[class_name]})
    with pytest.raises(UnsupportedLayer, match=named) as caught:
        attention_modules(open_adapter(resolve(str(folder))).skeleton())
    assert caught.value.where and "blocks.0" in caught.value.where


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(UnsupportedLayer, match="no attention"):
        attention_modules(nn.Sequential(nn.Linear(2, 2)))


def test_the_configuration_comes_back() -> None:
    spec = AttentionSpec(("mid_block.attentions.0",), 4, 16)
    assert AttentionSpec.from_config(spec.as_config()) == spec
    with pytest.raises(CheckpointError, match="lacks 'num_bits'"):
        AttentionSpec.from_config({"targets": []})
    with pytest.raises(CheckpointError, match="3 bits"):
        AttentionSpec.from_config({**spec.as_config(), "num_bits": 3})


def test_installed_scales_belong_to_the_state(adapter: Adapter) -> None:
    model = adapter.skeleton()
    before = set(model.state_dict())
    spec = attention_spec(AttentionSettings(), model)
    assert spec is not None
    install_attention(model, spec.as_config())
    added = set(model.state_dict()) - before
    assert added == {f"{name}.processor.{scale}" for name in spec.targets for scale in SCALE_NAMES}
    assert all(is_attention_scale(model, name) for name in added)
    assert not any(is_attention_scale(model, name) for name in before)
    assert isinstance(model.get_submodule(f"{spec.targets[0]}.processor"), QuantizedAttention)
    with pytest.raises(UnsupportedLayer, match="no such module"):
        install_attention(model, AttentionSpec(("nowhere",), 8, 8))


def test_the_largest_weight_is_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores of a latent U-Net's batch would take tens of gigabytes."""
    draws = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, 2, n, 4, generator=draws) for n in (7, 5))
    mask = torch.where(torch.rand(3, 1, 1, 5, generator=draws) < 0.5, -1e4, 0.0)
    for added in (None, mask):
        scores = query @ key.transpose(-1, -2) * 0.5
        expected = float((scores if added is None else scores + added).softmax(-1).max())
        for most in (1, 20, 1 << 24):
            monkeypatch.setattr("compress.quantize.attention_scales.SCORES", most)
            assert largest_weight(query, key, added, 0.5) == pytest.approx(expected, rel=1e-5)


def test_a_running_average_sees_the_timesteps_mixed(adapter: Adapter, tmp_path: Path) -> None:
    """In the order of logging it would remember the last timesteps only, whatever the seed."""
    spec = TrajectorySpec(
        sampler=Sampler(steps=3),
        scheduler_config=scheduler_config(adapter.source),
        conditions=resolve_conditions(ClassConditions(), adapter),
        timesteps=AllTimesteps(),
        samples=4,
    )
    model, settings = adapter.load(), AttentionSettings()
    trajectory, found = log_trajectory(adapter, model, spec, tmp_path / "log"), []
    targets = attention_spec(settings, model)
    assert targets is not None
    for observer, seed in ((Ema(decay=0.5), 0), (Ema(decay=0.5), 0), (Ema(decay=0.5), 1), (MinMax(), 0), (MinMax(), 1)):
        scales = attention_scales(
            adapter, adapter.load(), trajectory, settings, targets, observer, batch_size=4, seed=seed
        )
        found.append([float(scale) for name, scale in sorted(scales.items())])
    assert found[0] == found[1] != found[2]
    assert found[3] == pytest.approx(found[4])

import json
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_inputs import inputs_of_layers
from tiny import config_only_folder, tiny_unet2d_pipeline
from torch import Tensor, nn

from compress.errors import ModelError, UnsupportedLayer
from compress.models.adapter import DenoiserInputs, LayerInfo, Role
from compress.models.source import open_adapter, resolve
from compress.models.unet2d import UNet2DAdapter
from compress.models.zoo.digits_unet import MODEL_CONFIG
from compress.prune.depth import block_prefix

BASE: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 2,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def _levels(down: str, up: str, **changes: Any) -> dict[str, Any]:
    return {"down_block_types": (down, down), "up_block_types": (up, up)} | changes


CONFIGS: dict[str, dict[str, Any]] = {
    "bundled": MODEL_CONFIG,
    "one layer": {"layers_per_block": 1},
    "three layers": {"layers_per_block": 3},
    "uneven widths": {
        "block_out_channels": (16, 40, 24),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "narrowing": {"block_out_channels": (32, 16)},
    "resnet levels": _levels("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    "resnet resamplers": _levels("AttnDownBlock2D", "AttnUpBlock2D", downsample_type="resnet", upsample_type="resnet"),
    "skip levels": _levels("SkipDownBlock2D", "SkipUpBlock2D"),
    "attention skip levels": _levels("AttnSkipDownBlock2D", "AttnSkipUpBlock2D", block_out_channels=(32, 64)),
    "mixed": {
        "down_block_types": ("SkipDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "SkipUpBlock2D"),
    },
    "old names": _levels("UNetResDownBlock2D", "UNetResUpBlock2D"),
    "no attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
}
UNTOLD = {"k levels": _levels("KDownBlock2D", "KUpBlock2D", block_out_channels=(32, 64))}
"""Its up path reads one skip a level, not one a residual block."""

CONDITIONS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "table": {"num_class_embeds": 5},
    "timestep": {"class_embed_type": "timestep"},
    "identity": {"class_embed_type": "identity", "time_embedding_dim": 24},
    "sine first": {"flip_sin_to_cos": False, "freq_shift": 1, "num_class_embeds": 5},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 50},
    "fourier": {"time_embedding_type": "fourier"},
}


@cache
def _build(name: str) -> Any:
    """Model of a configuration above, in eval mode, with random weights."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**_config(name)).eval().requires_grad_(False)


def _config(name: str) -> dict[str, Any]:
    return BASE | (CONFIGS | UNTOLD | CONDITIONS)[name]


def _adapter(folder: Path, name: str) -> UNet2DAdapter:
    adapter = open_adapter(resolve(str(config_only_folder(folder, {"_class_name": "UNet2DModel"} | _config(name)))))
    assert isinstance(adapter, UNet2DAdapter) and adapter.family == "unet2d"
    return adapter


@dataclass
class Trace:
    """One real forward: units in the order of their calls, and the widths joined before each residual block."""

    units: list[str] = field(default_factory=list)
    joined: dict[str, tuple[int, int]] = field(default_factory=dict)


def _trace(adapter: UNet2DAdapter, model: Any, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Listens to torch.cat and to every residual and attention block while the model runs."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D

    trace, cat = Trace(), torch.cat
    results: list[tuple[Tensor, tuple[int, int]]] = []
    skips: list[Tensor] = []

    def recording_cat(tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        result = cat(tensors, *args, **kwargs)
        if result.dim() == 4:
            backbone, skip = tensors
            assert any(skip is made for made in skips)
            results.append((result, (backbone.shape[1], skip.shape[1])))
        return result

    def record(name: str) -> Any:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            trace.units.append(name)
            for result, widths in results:
                if result is arguments[0]:
                    trace.joined[name] = widths

        return hook

    with ExitStack() as hooks, monkeypatch.context() as patch:
        patch.setattr(torch, "cat", recording_cat)
        hooks.enter_context(model.conv_in.register_forward_hook(lambda _m, _i, made: skips.append(made)))
        for level in model.down_blocks:
            hooks.enter_context(level.register_forward_hook(lambda _m, _i, made: skips.extend(made[1])))
        for name, module in model.named_modules():
            if isinstance(module, Attention | ResnetBlock2D | ResnetBlockCondNorm2D):
                hooks.enter_context(module.register_forward_pre_hook(record(name)))
        adapter.denoise(model, *adapter.example_inputs(1))
    assert len(trace.joined) == len(results) > 0
    return trace


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _expected_role(name: str, trace: Trace) -> Role:
    parent, own = _parent(name), name.rpartition(".")[2]
    if own in ("conv1", "conv_shortcut") and parent in trace.joined:
        return Role.SKIP
    if own == "time_emb_proj" or parent == "time_embedding":
        return Role.TIME_EMBEDDING
    attention = {"to_q": Role.ATTENTION_Q, "to_k": Role.ATTENTION_K, "to_v": Role.ATTENTION_V}
    ends = {"conv_in": Role.IN_PROJECTION, "conv_out": Role.OUT_PROJECTION, "linear": Role.MODULATION}
    return Role.ATTENTION_OUT if parent.endswith("to_out") else (attention | ends).get(own, Role.CONV)


@pytest.mark.parametrize("name", [*CONFIGS, *UNTOLD])
def test_roles_splits_and_blocks_are_those_of_the_forward(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, model = _adapter(tmp_path, name), _build(name)
    trace, layers = _trace(adapter, model, monkeypatch), adapter.layers(adapter.skeleton())
    blocks = adapter.blocks(model)
    assert [block for block, _ in blocks] == trace.units
    assert all(model.get_submodule(block) is module for block, module in blocks)
    assert [layer.name for layer in layers] == [
        layer for layer, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    for layer in layers:
        assert layer.role is _expected_role(layer.name, trace), layer
        assert layer.block == next((unit for unit in trace.units if layer.name.startswith(unit + ".")), None)
        told = layer.role is Role.SKIP and name in CONFIGS
        assert layer.split == (trace.joined[_parent(layer.name)][0] if told else None), layer
        if told:
            assert layer.weight_shape[1] == sum(trace.joined[_parent(layer.name)])


def test_the_bundled_model_by_hand(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "bundled")
    layers = {layer.name: layer for layer in adapter.layers(adapter.skeleton())}
    assert [name for name, layer in layers.items() if layer.block is None] == [
        "conv_in",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.upsamplers.0.conv",
        "conv_out",
    ]
    # Widths 32, 64, 128; skips leave as 128 128 64 | 64 64 32 | 32 32 32.
    splits = {name: layer.split for name, layer in layers.items() if name.endswith("conv1") and layer.split}
    assert list(splits.values()) == [128, 128, 128, 128, 64, 64, 64, 32, 32]
    shortcuts = {name: layer.split for name, layer in layers.items() if name.endswith("conv_shortcut") and layer.split}
    assert shortcuts == {name.replace("conv1", "conv_shortcut"): split for name, split in splits.items()}
    assert [name for name, _ in adapter.blocks(adapter.skeleton())][:5] == [
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnets.1",
        "down_blocks.1.resnets.0",
        "down_blocks.1.attentions.0",
        "down_blocks.1.resnets.1",
    ]


def _skip_layers(adapter: UNet2DAdapter, model: Any) -> list[LayerInfo]:
    return [layer for layer in adapter.layers(model) if layer.role is Role.SKIP]


@pytest.mark.parametrize("part", ["down_blocks", "mid_block", "up_blocks"])
def test_a_level_of_an_unknown_class_takes_the_splits_away(part: str, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "one layer")
    model = adapter.skeleton()
    known = _skip_layers(adapter, model)
    level = model.get_submodule(part if part == "mid_block" else f"{part}.0")
    level.__class__ = type("OtherBlock2D", (type(level),), {})
    unknown = _skip_layers(adapter, model)
    assert [layer.name for layer in unknown] == [layer.name for layer in known] != []
    assert all(layer.split for layer in known) and not any(layer.split for layer in unknown)


def test_widths_that_do_not_add_up_give_no_split(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "one layer")
    model: Any = adapter.skeleton()
    model.up_blocks[1].resnets[0].conv1 = nn.Conv2d(50, 16, 3, device="meta")
    splits = {layer.name: layer.split for layer in _skip_layers(adapter, model)}
    assert splits["up_blocks.1.resnets.0.conv1"] is None and splits["up_blocks.1.resnets.1.conv1"] == 16


def test_depth_pruning_refuses_a_unet(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "bundled")
    names = [name for name, _ in adapter.blocks(adapter.skeleton())]
    with pytest.raises(UnsupportedLayer, match="depth pruning needs a transformer"):
        block_prefix(names, adapter.source.config)


def _inputs(name: str, *, seed: int, timestep: tuple[int, int], labels: tuple[int, int]) -> DenoiserInputs:
    sample = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    condition: dict[str, Tensor] = {}
    if name == "identity":
        condition = {"class_labels": torch.randn(2, 24, generator=torch.Generator().manual_seed(labels[0]))}
    elif {"num_class_embeds", "class_embed_type"} & set(_config(name)):
        condition = {"class_labels": torch.tensor(labels)}
    return DenoiserInputs(sample, torch.tensor(timestep), condition)


@pytest.mark.parametrize(
    "name", [*CONDITIONS, "scale and shift", "resnet levels", "resnet resamplers", "attention skip levels", "k levels"]
)
def test_conditioning_layers_read_timestep_and_class_alone(name: str, tmp_path: Path) -> None:
    adapter, model = _adapter(tmp_path, name), _build(name)
    first, sampled, timed = (
        inputs_of_layers(adapter, model, _inputs(name, seed=seed, timestep=timestep, labels=labels))
        for seed, timestep, labels in [(0, (3, 40), (1, 2)), (1, (3, 40), (1, 2)), (0, (5, 17), (4, 0))]
    )
    unmoved = [layer for layer, read in first.items() if torch.equal(read, sampled[layer])]
    layers = adapter.conditioning_layers(model)
    assert [layer.name for layer in layers] == unmoved
    assert len(unmoved) >= 2 + sum(layer.endswith("time_emb_proj") for layer in first) > 2
    assert not [layer for layer in unmoved if torch.equal(first[layer], timed[layer])]
    assert layers == sorted(layers, key=lambda layer: unmoved.index(layer.name))
    assert {layer.name: layer for layer in adapter.layers(model)} | {layer.name: layer for layer in layers} == {
        layer.name: layer for layer in adapter.layers(model)
    }


# In another type than float32 diffusers itself cannot run a class that is embedded as a second time.
HALF = [(name, torch.bfloat16) for name in CONDITIONS if name != "timestep"]


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, torch.float32) for name in (*CONDITIONS, "resnet resamplers", "k levels")] + HALF
)
def test_conditioning_is_what_the_residual_blocks_get(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    adapter, model = _adapter(tmp_path, name), deepcopy(_build(name)).to(dtype)
    given: list[Tensor] = []
    inputs = _inputs(name, seed=0, timestep=(3, 40), labels=(1, 2))
    residual = [module for _, module in adapter.blocks(model) if hasattr(module, "conv1")]

    def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given.append(keywords["temb"] if "temb" in keywords else arguments[1])

    for module in residual:
        module.register_forward_pre_hook(hook, with_kwargs=True)
    adapter.denoise(model, inputs.sample.to(dtype), inputs.timestep, inputs.condition)
    assert len(given) == len(residual)
    for part in (model.conv_in, model.down_blocks, model.mid_block, model.up_blocks, model.conv_out):
        part.to("meta")  # whatever ran there could not give numbers
    found = adapter.conditioning(model, inputs.timestep, inputs.condition)
    assert found.dtype == dtype
    assert found.shape == (2, 24 if name == "identity" else 4 * model.config.block_out_channels[0])
    assert all(torch.equal(found, temb) for temb in given)


def test_conditioning_has_shapes_on_the_meta_device(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "table")
    inputs = adapter.example_inputs(3, device="meta")
    found = adapter.conditioning(adapter.skeleton(), inputs.timestep, inputs.condition)
    assert found.is_meta and found.shape == (3, 64)


def test_conditioning_wants_labels_exactly_where_the_model_does(tmp_path: Path) -> None:
    timestep, labels = torch.tensor([3]), {"class_labels": torch.tensor([1])}
    with pytest.raises(ModelError, match="needs class_labels"):
        _adapter(tmp_path / "a", "table").conditioning(_build("table"), timestep, {})
    with pytest.raises(ModelError, match="takes no class_labels"):
        _adapter(tmp_path / "b", "unconditional").conditioning(_build("unconditional"), timestep, labels)
    with pytest.raises(ModelError, match="takes no mood"):
        _adapter(tmp_path / "c", "table").conditioning(_build("table"), timestep, {"mood": timestep})


def test_classes_of_a_table_with_a_null_row(tmp_path: Path) -> None:
    adapter = open_adapter(resolve(str(tiny_unet2d_pipeline(tmp_path))))
    condition = adapter.class_condition(torch.tensor([0, 9]))
    assert adapter.class_count() == adapter.null_class() == 10
    assert condition["class_labels"].tolist() == [0, 9]
    assert adapter.null_condition(condition)["class_labels"].tolist() == [10, 10]


def test_classes_of_a_table_without_a_null_row(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "table")
    condition = adapter.class_condition(torch.tensor([4]))
    assert (adapter.class_count(), adapter.null_class()) == (5, None)
    assert condition["class_labels"].tolist() == [4] and adapter.null_condition(condition) is None


def test_an_unconditional_model_takes_labels_as_nothing(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "unconditional")
    assert (adapter.class_count(), adapter.null_class()) == (None, None)
    assert adapter.class_condition(torch.tensor([4])) == {} and adapter.null_condition({}) is None


@pytest.mark.parametrize("row", [0, 9, 11])
def test_a_null_class_must_be_the_last_row(row: int, tmp_path: Path) -> None:
    index = tiny_unet2d_pipeline(tmp_path) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"null_class": row}))
    adapter = open_adapter(resolve(str(tmp_path)))
    with pytest.raises(ModelError, match=rf"model_index\.json: null_class {row} is not the last of 11 rows"):
        adapter.class_count()


@pytest.mark.parametrize(("name", "takes"), [("timestep", "a second time"), ("identity", "embedding vectors")])
def test_other_kinds_of_class_embedding_take_no_labels(name: str, takes: str, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, name)
    assert adapter.class_count() is None
    with pytest.raises(ModelError, match=f"'{name}' takes {takes}, not class labels"):
        adapter.class_condition(torch.tensor([1]))


def test_example_timesteps_stay_in_a_learned_table(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, "learned")
    timestep = adapter.example_inputs(500).timestep
    assert 40 < int(timestep.max()) < 50 and timestep.dtype == torch.int64

import re
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_unet2d
from torch import nn

from compress.models.adapter import Role
from compress.models.roles import describe_layers, enclosing_block, find_blocks, role_of, skip_splits

LINEAR, CONV = nn.Linear(2, 2), nn.Conv2d(2, 2, 1)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("transformer_blocks.0.attn1.to_q", Role.ATTENTION_Q),
        ("transformer_blocks.0.attn.add_k_proj", Role.ATTENTION_K),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v", Role.ATTENTION_V),
        ("mid_block.attentions.0.to_out.0", Role.ATTENTION_OUT),
        ("transformer_blocks.3.attn.to_add_out", Role.ATTENTION_OUT),
        ("transformer_blocks.3.ff_context.net.0.proj", Role.FF_IN),
        ("transformer_blocks.3.ff.net.2", Role.FF_OUT),
        ("single_transformer_blocks.3.proj_mlp", Role.FF_IN),
        ("single_transformer_blocks.3.proj_out", Role.FF_OUT),
        ("single_transformer_blocks.3.norm.linear", Role.MODULATION),
        ("transformer_blocks.3.norm1_context.linear", Role.MODULATION),
        ("norm_out.linear", Role.MODULATION),
        ("adaln_single.linear", Role.MODULATION),
        ("adaln_single.emb.timestep_embedder.linear_1", Role.TIME_EMBEDDING),
        ("time_text_embed.text_embedder.linear_2", Role.TIME_EMBEDDING),
        ("down_blocks.0.resnets.0.time_emb_proj", Role.TIME_EMBEDDING),
        ("class_embedding.linear_1", Role.CLASS_EMBEDDING),
        ("caption_projection.linear_1", Role.TEXT_EMBEDDING),
        ("context_embedder", Role.TEXT_EMBEDDING),
        ("add_embedding.linear_1", Role.TEXT_EMBEDDING),
        ("x_embedder", Role.IN_PROJECTION),
        ("pos_embed.proj", Role.IN_PROJECTION),
        ("conv_in", Role.IN_PROJECTION),
        ("proj_out", Role.OUT_PROJECTION),
        ("mid_block.attentions.0.proj_out", Role.LINEAR),
        ("mid_block.attentions.0.proj_in", Role.LINEAR),
        ("layers.3.feed_forward.w2", Role.FF_OUT),
        ("layers.3.mlp.gate_proj", Role.FF_IN),
        ("joint_transformer_blocks.0.ff_context.linear_2", Role.FF_IN),
        ("transformer_blocks.3.img_mod.1", Role.MODULATION),
        ("double_stream_modulation_img.linear", Role.MODULATION),
        ("whatever", Role.LINEAR),
    ],
)
def test_role_by_name(name: str, role: Role) -> None:
    assert role_of(name, LINEAR) is role


def test_an_unknown_convolution_is_a_convolution() -> None:
    assert role_of("down_blocks.0.downsamplers.0.conv", CONV) is Role.CONV


def test_extra_rules_come_first() -> None:
    assert role_of("conv_in", CONV, ((r"^conv_in$", Role.SKIP),)) is Role.SKIP


def test_a_block_name_must_match_whole_parts() -> None:
    assert enclosing_block("blocks.10.fc", ["blocks.1", "blocks.10"]) == "blocks.10"
    assert enclosing_block("blocks.100.fc", ["blocks.1", "blocks.10"]) is None


def test_layers_come_in_definition_order_with_their_facts() -> None:
    model = nn.Module()
    model.first = nn.Linear(3, 5, bias=False)
    model.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)) for _ in range(2)])
    layers = describe_layers(model, ["blocks.0", "blocks.1"])
    assert [layer.name for layer in layers] == ["first", "blocks.0.0", "blocks.1.0"]
    assert [layer.block for layer in layers] == [None, "blocks.0", "blocks.1"]
    assert (layers[0].kind, layers[0].has_bias, layers[0].weight_shape) == ("linear", False, (5, 3))
    assert (layers[1].kind, layers[1].has_bias, layers[1].in_features) == ("conv2d", True, 2 * 3 * 3)


def test_blocks_of_transformers_are_outermost_lists_in_order() -> None:
    names = [name for name, _ in find_blocks(tiny_model("FluxTransformer2DModel"))]
    assert names == ["transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.1"]


def test_blocks_of_a_unet_are_its_levels_in_order_of_computation() -> None:
    names = [name for name, _ in find_blocks(tiny_unet2d())]
    assert names == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]


def test_lists_of_single_layers_are_no_blocks() -> None:
    model = nn.Module()
    model.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.mixed = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.TransformerEncoderLayer(4, 1)])
    model.empty_blocks = nn.ModuleList()
    assert find_blocks(model) == []


def _recorded_inputs(model: Any, *arguments: Any) -> dict[str, Any]:
    """Input of every residual block of the up path in one forward."""
    seen: dict[str, Any] = {}

    def record(name: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            seen[name] = inputs[0]

        return hook

    for name, module in model.named_modules():
        if re.fullmatch(r"up_blocks\.\d+\.resnets\.\d+", name):
            module.register_forward_pre_hook(record(name))
    model(*arguments)
    return seen


@pytest.mark.parametrize("attention", [True, False])
def test_splits_are_where_the_forward_concatenates(attention: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records what torch.cat joins on the channel axis while the model runs: the truth, independent of module sizes."""
    if attention:
        model = tiny_model("UNet2DConditionModel", layers_per_block=2)
        arguments = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 77, 12))
    else:
        model = tiny_unet2d(classes=None)
        arguments = (torch.randn(1, 1, 8, 8), torch.tensor([3]))
    joined, cat = [], torch.cat

    def recording_cat(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(tensors) == 2 and tensors[0].dim() == 4:
            joined.append((tensors[0].shape[1], tensors[0].shape[1] + tensors[1].shape[1]))
        return cat(tensors, *args, **kwargs)

    monkeypatch.setattr(torch, "cat", recording_cat)
    inputs = _recorded_inputs(model, *arguments)
    splits = skip_splits(model)
    conv1 = {name.removesuffix(".conv1"): split for name, split in splits.items() if name.endswith(".conv1")}
    assert list(conv1) == list(inputs)
    assert [(split, inputs[name].shape[1]) for name, split in conv1.items()] == joined
    shortcuts = {name for name in splits if name.endswith("conv_shortcut")}
    assert shortcuts == {
        name
        for name, module in model.named_modules()
        if name.startswith("up_blocks") and name.endswith("conv_shortcut") and isinstance(module, nn.Conv2d)
    }


def test_a_unet_without_middle_block_still_has_splits() -> None:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    )
    assert find_blocks(model)[2][0] == "up_blocks.0"
    assert skip_splits(model)["up_blocks.0.resnets.0.conv1"] == 16


def test_a_skip_linear_is_split_in_the_middle() -> None:
    model = nn.Module()
    model.skip_linear = nn.Linear(10, 5)
    (layer,) = describe_layers(model, [])
    assert (layer.role, layer.split) == (Role.SKIP, 5)

import time
from pathlib import Path

import pytest
from tiny import (
    DIT_XL_2_CONFIG,
    TINY_CONFIGS,
    config_only_folder,
    tiny_dit,
    tiny_dit_pipeline,
    tiny_model,
    tiny_unet2d,
    tiny_unet2d_pipeline,
)

from compress.models.inspect import Inspection, inspect_model
from compress.models.source import open_adapter, resolve


def _inspect(folder: Path, batch: int = 1) -> Inspection:
    return inspect_model(open_adapter(resolve(str(folder))), batch)


def test_a_dit_by_hand(tmp_path: Path) -> None:
    """8x8 pixels in 2x2 patches: n = 16 tokens of width d = 16, so attention costs 2 n^2 d and the rest is shapes."""
    facts = _inspect(tiny_dit_pipeline(tmp_path))
    n, d = 16, 16
    macs = {layer.info.name: layer.macs for layer in facts.layers}
    block = "transformer_blocks.1"
    assert macs["pos_embed.proj"] == n * d * 4
    assert macs[f"{block}.norm1.emb.timestep_embedder.linear_1"] == 256 * d
    assert macs[f"{block}.norm1.linear"] == 6 * d * d
    assert macs[f"{block}.attn1.to_q"] == n * d * d
    assert macs[f"{block}.ff.net.0.proj"] == macs[f"{block}.ff.net.2"] == n * 4 * d * d
    assert macs["proj_out_1"] == 2 * d * d and macs["proj_out_2"] == n * d * 4
    assert facts.attention_macs == 2 * (2 * n * n * d)
    assert [b.attention_macs for b in facts.blocks] == [2 * n * n * d] * 2
    per_block = 256 * d + d * d + 6 * d * d + 4 * n * d * d + 8 * n * d * d + 2 * n * n * d
    assert [b.macs for b in facts.blocks] == [per_block] * 2
    assert facts.macs == sum(macs.values()) + facts.attention_macs


def test_the_head_calls_the_first_embedder_again(tmp_path: Path) -> None:
    macs = {layer.info.name: layer.macs for layer in _inspect(tiny_dit_pipeline(tmp_path)).layers}
    name = "norm1.emb.timestep_embedder.linear_2"
    assert macs[f"transformer_blocks.0.{name}"] == 2 * macs[f"transformer_blocks.1.{name}"]


def test_parameters_and_bytes(tmp_path: Path) -> None:
    facts, model = _inspect(tiny_dit_pipeline(tmp_path)), tiny_dit()
    count = sum(p.numel() for p in model.parameters())
    tables = sum(b.norm1.emb.class_embedder.embedding_table.weight.numel() for b in model.transformer_blocks)
    assert (facts.parameters, facts.other_parameters) == (count, tables)
    assert (facts.bytes_float32, facts.bytes_float16) == (4 * count, 2 * count)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    assert facts.bytes_on_disk == file.stat().st_size
    assert 0 < facts.bytes_on_disk - facts.bytes_float16 < 10_000  # the header


def test_persistent_buffers_count_as_bytes(tmp_path: Path) -> None:
    model = tiny_model("SD3Transformer2DModel")
    model.save_pretrained(tmp_path)
    facts = _inspect(tmp_path)
    assert facts.bytes_float32 == 4 * (facts.parameters + model.pos_embed.pos_embed.numel())


def test_batches_scale_the_macs(tmp_path: Path) -> None:
    folder = tiny_unet2d_pipeline(tmp_path)
    one, three = _inspect(folder), _inspect(folder, batch=3)
    assert three.macs == 3 * one.macs and three.attention_macs == 3 * one.attention_macs
    assert three.parameters == one.parameters


def test_a_unet_by_hand(tmp_path: Path) -> None:
    facts, model = _inspect(tiny_unet2d_pipeline(tmp_path)), tiny_unet2d()
    macs = {layer.info.name: layer.macs for layer in facts.layers}
    assert macs["conv_in"] == 8 * 8 * 16 * 9
    assert macs["down_blocks.1.resnets.0.conv1"] == 4 * 4 * 32 * 16 * 9
    assert macs["up_blocks.1.resnets.0.conv_shortcut"] == 8 * 8 * 16 * 48
    assert facts.attention_macs == sum(block.attention_macs for block in facts.blocks) == 4 * (2 * 16 * 16 * 32)
    assert sum(b.parameters for b in facts.blocks) < facts.parameters == sum(p.numel() for p in model.parameters())
    outside = {layer.info.name for layer in facts.layers if layer.info.block is None}
    resamplers = {"down_blocks.0.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"}
    assert outside == {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"} | resamplers
    assert len(facts.layers) == sum(b.layers for b in facts.blocks) + len(outside)


def test_skip_layers_tell_where_their_input_is_joined(tmp_path: Path) -> None:
    """Widths 16 and 32: the skips of the upper level leave as 32 and 16 channels, those of the lower as 16 and 16."""
    layers = {layer.info.name: layer.role_text for layer in _inspect(tiny_unet2d_pipeline(tmp_path)).layers}
    skips = {name: text for name, text in layers.items() if text.startswith("skip")}
    joins = {"0.resnets.0": "32+32", "0.resnets.1": "32+16", "1.resnets.0": "32+16", "1.resnets.1": "16+16"}
    assert skips == {
        f"up_blocks.{name}.{part}": f"skip {join}"
        for name, join in joins.items()
        for part in ("conv1", "conv_shortcut")
    }
    assert layers["conv_in"] == "in_projection" and layers["up_blocks.0.resnets.0.conv2"] == "conv"


@pytest.mark.parametrize("class_name", sorted(TINY_CONFIGS))
def test_every_known_family_is_inspected(tmp_path: Path, class_name: str) -> None:
    facts = _inspect(config_only_folder(tmp_path, {"_class_name": class_name} | TINY_CONFIGS[class_name]))
    assert facts.bytes_on_disk is None and facts.denoiser_class == class_name
    assert all(layer.macs > 0 for layer in facts.layers)
    assert all(block.macs >= block.attention_macs >= 0 for block in facts.blocks)
    assert facts.macs >= sum(block.macs for block in facts.blocks)
    assert facts.attention_macs >= sum(block.attention_macs for block in facts.blocks) > 0


def test_dit_xl_2_matches_the_paper_and_is_quick(tmp_path: Path) -> None:
    folder = config_only_folder(tmp_path, DIT_XL_2_CONFIG)
    start = time.process_time()
    facts = _inspect(folder)
    assert time.process_time() - start < 5
    assert len(facts.blocks) == 28 and len(facts.layers) == 28 * 9 + 3
    # Peebles and Xie 2023, Table 4: 118.64 G. diffusers keeps an embedder per block, which adds 28 small ones.
    assert facts.macs / 1e9 == pytest.approx(118.64, rel=1e-3)
    assert facts.bytes_float32 == 4 * facts.parameters

"""What a model computes besides linears and convolutions, against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from tiny import TINY_CONFIGS, config_only_folder, tiny_dit_pipeline, tiny_unet2d_pipeline
from torch import nn

from compress.models.float_operators import OperatorFacts, OperatorKind, counting
from compress.models.inspect import inspect_model
from compress.models.source import open_adapter, resolve


def operators(folder: Path) -> dict[OperatorKind, OperatorFacts]:
    return {facts.kind: facts for facts in inspect_model(open_adapter(resolve(str(folder)))).operators}


def test_a_dit_by_hand(tmp_path: Path) -> None:
    """Two blocks on 16 tokens of width 16; the head calls block 0's embedder again."""
    found = operators(tiny_dit_pipeline(tmp_path))
    macs = 2 * 16 * 16 * 16
    assert found[OperatorKind.QUERY_KEY] == OperatorFacts(OperatorKind.QUERY_KEY, {"attention": 2}, macs)
    assert found[OperatorKind.WEIGHT_VALUE] == OperatorFacts(OperatorKind.WEIGHT_VALUE, {"attention": 2}, macs)
    assert found[OperatorKind.SOFTMAX].count == 2
    assert found[OperatorKind.NORM].types == {"LayerNorm": 2 * 2 + 1}
    assert found[OperatorKind.ACTIVATION].types == {"SiLU": 2 * 3, "GELU": 2}  # embedder twice, modulation, head
    assert found[OperatorKind.EMBEDDING].types == {"Timesteps": 3, "Embedding": 3}
    # Two residuals a block, time plus class in each of three embedders, and the position is added to one batch only.
    assert found[OperatorKind.ADDITION].count == 2 * 2 + 3 + 1
    assert found[OperatorKind.MODULATION].types == {"scale or gate": 2 * 4 + 1, "shift": 2 * 2 + 1}
    assert OperatorKind.PRODUCT not in found


def test_a_unet_by_hand(tmp_path: Path) -> None:
    """Eight residual blocks of two norms and two activations, four attention blocks of one norm, the head."""
    found = operators(tiny_unet2d_pipeline(tmp_path))
    assert found[OperatorKind.SOFTMAX].count == found[OperatorKind.QUERY_KEY].count == 4
    assert found[OperatorKind.NORM].types == {"GroupNorm": 8 * 2 + 4 + 1}
    assert found[OperatorKind.ACTIVATION].types == {"SiLU": 8 * 3 + 1 + 1}  # blocks, time embedding, head
    assert found[OperatorKind.ADDITION].count == 8 + 4 + 1  # residuals, time plus class
    assert found[OperatorKind.MODULATION].types == {"shift": 8}  # the projected time, over pixels
    assert found[OperatorKind.RESAMPLING].types == {"nearest": 1}


@pytest.mark.parametrize("class_name", TINY_CONFIGS)
def test_products_are_all_that_inspection_calls_attention(class_name: str, tmp_path: Path) -> None:
    folder = config_only_folder(tmp_path, {"_class_name": class_name, **TINY_CONFIGS[class_name]})
    facts = inspect_model(open_adapter(resolve(str(folder))))
    assert sum(found.macs for found in facts.operators) == facts.attention_macs > 0
    kinds = {found.kind: found for found in facts.operators}
    assert kinds[OperatorKind.QUERY_KEY].count == kinds[OperatorKind.SOFTMAX].count
    assert OperatorKind.PRODUCT not in kinds


def test_attention_in_plain_products_counts_alike() -> None:
    """AttnProcessor writes two products with a softmax between them; other products are not attention's."""
    attention = Attention(8, heads=2, dim_head=4)
    attention.set_processor(AttnProcessor())
    model = nn.Sequential(attention)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    x = torch.randn(1, 6, 8)
    with torch.no_grad(), counting(model, layers) as counter:
        model(x) @ torch.ones(8, 3)
    found = {facts.kind: facts for facts in counter.facts()}
    assert found[OperatorKind.QUERY_KEY].macs == found[OperatorKind.WEIGHT_VALUE].macs == 6 * 6 * 8
    assert found[OperatorKind.PRODUCT].macs == 6 * 8 * 3

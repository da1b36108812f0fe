"""Which layer does what, and which modules are the repeated blocks, from types and qualified names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from compress.models.adapter import LayerInfo, Role

Rule = tuple[str, Role]
"""A regular expression searched in the qualified name, and the role it gives; the first match wins."""

# Names in diffusers' models. `(?:^|\.)` and `$` keep a rule to whole path parts.
RULES: tuple[Rule, ...] = (
    (
        r"(?:^|\.)(?:time_embedding|time_embed|time_text_embed|time_emb_proj|timestep_embedder|time_embedder|t_embedder"
        r"|guidance_embedder|adaln_single\.emb|time_guidance_embed)(?:\.|$)",
        Role.TIME_EMBEDDING,
    ),
    (r"(?:^|\.)(?:class_embedding|class_embedder|y_embedder|label_emb)(?:\.|$)", Role.CLASS_EMBEDDING),
    (
        r"(?:^|\.)(?:context_embedder|caption_projection|caption_embedder|text_embedder|text_proj|cap_embedder"
        r"|add_embedding|encoder_hid_proj|txt_in)(?:\.|$)",
        Role.TEXT_EMBEDDING,
    ),
    (
        r"(?:^|\.)(?:norm\w*\.linear(?:_\d)?|adaln_single\.linear|\w*modulation\w*(?:\.\w+)*|(?:img|txt)_mod\.\d+"
        r"|condition_embedder\.time_proj)$",
        Role.MODULATION,
    ),
    (r"(?:^|\.)(?:to_q|add_q_proj|q_proj|query)$", Role.ATTENTION_Q),
    (r"(?:^|\.)(?:to_k|add_k_proj|k_proj|key)$", Role.ATTENTION_K),
    (r"(?:^|\.)(?:to_v|add_v_proj|v_proj|value)$", Role.ATTENTION_V),
    (r"(?:^|\.)(?:to_out(?:\.0)?|to_add_out|out_proj|proj_attn)$", Role.ATTENTION_OUT),
    (
        r"(?:^|\.)(?:net\.0\.proj|proj_mlp|fc1|linear_in|feed_forward\.(?:linear_|w)[13]|gate_proj|up_proj"
        r"|ff(?:_context)?\.(?:linear_[12]|gate|up))$",
        Role.FF_IN,
    ),
    # A parallel block of Flux has one projection behind attention and feed-forward; its larger part is the latter.
    (
        r"(?:^|\.)(?:net\.2|fc2|linear_out|feed_forward\.(?:linear_|w)2|down_proj|ff(?:_context)?\.(?:out_projection|down)"
        r"|single_transformer_blocks\.\d+\.proj_out)$",
        Role.FF_OUT,
    ),
    (r"(?:^|\.)skip_linear$", Role.SKIP),
    (
        r"^(?:conv_in|proj_in|img_in|(?:pos_embed|x_embedder|patch_embed|patch_embedding)(?:\.proj)?)$",
        Role.IN_PROJECTION,
    ),
    (r"^(?:conv_out|proj_out|final_layer\.linear)$", Role.OUT_PROJECTION),
)

# diffusers' levels that hand on, or take in, one skip for each residual block. Its k-diffusion levels do otherwise.
_LEVEL = re.compile(
    r"(?:Attn|CrossAttn|SimpleCrossAttn|Skip|AttnSkip)?(?:Down|Up)Block2D|Resnet(?:Down|Up)sampleBlock2D"
    r"|UNetMidBlock2D(?:CrossAttn|SimpleCrossAttn)?"
)


def role_of(name: str, layer: nn.Module, rules: Sequence[Rule] = RULES) -> Role:
    """Role of one layer by its name; a layer no rule knows is a plain linear or convolution."""
    for pattern, role in rules:
        if re.search(pattern, name):
            return role
    return Role.CONV if isinstance(layer, nn.Conv2d) else Role.LINEAR


def describe_layers(model: nn.Module, block_names: Sequence[str], rules: Sequence[Rule] = RULES) -> list[LayerInfo]:
    """Every `nn.Linear` and `nn.Conv2d` of the model, in definition order."""
    splits = skip_splits(model)
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        role = Role.SKIP if name in splits else role_of(name, module, rules)
        split = splits.get(name)
        if role is Role.SKIP and isinstance(module, nn.Linear) and module.in_features % 2 == 0:
            split = module.in_features // 2  # HunyuanDiT: two streams of the model's own width
        layers.append(
            LayerInfo(
                name=name,
                kind="linear" if isinstance(module, nn.Linear) else "conv2d",
                role=role,
                block=enclosing_block(name, block_names),
                weight_shape=tuple(module.weight.shape),
                has_bias=module.bias is not None,
                split=split,
            )
        )
    return layers


def enclosing_block(name: str, block_names: Sequence[str]) -> str | None:
    """The block whose qualified name is a prefix of `name`, else None."""
    return next((block for block in block_names if name.startswith(block + ".")), None)


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated blocks in definition order, which diffusers keeps equal to the order of computation.

    A UNet's are its levels: down, mid, up. Elsewhere they are the members of the outermost module lists that hold
    several composite modules of one class, or whose name says "blocks" or "layers".
    """
    if _is_unet(model):
        return list(unet_levels(model))
    found: list[tuple[str, nn.Module]] = []
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and _holds_blocks(name, module):
            lists.append(name)
            found += [(f"{name}.{i}", child) for i, child in enumerate(module)]
    return found


def skip_splits(model: nn.Module) -> dict[str, int | None]:
    """Names of the convolutions that read a concatenation [backbone, skip], with the backbone's channel count.

    In a UNet's up path every residual block reads what the block before it made, followed by the channels of one skip
    connection (Q-Diffusion: Li et al. 2023, section 4.3). Skips leave in the reverse of the order in which the input
    convolution, the down path's residual blocks and its downsamplers made them. The count is None if a level's class
    is not known to do so, or if backbone and skip do not add up to the convolution's input.
    """
    if not _is_unet(model):
        return {}
    known = all(_LEVEL.fullmatch(type(level).__name__) for _, level in unet_levels(model))
    splits: dict[str, int | None] = {}
    width = _channels(model, "conv_in", "out_channels")
    skips = [width]
    for level_name, level in unet_levels(model):
        for i, resnet in enumerate(getattr(level, "resnets", None) or ()):
            read = _channels(resnet, "conv1", "in_channels")
            if level_name.startswith("up_blocks.") and read is not None:
                skip = skips.pop() if skips else None
                if width is None or read > width:
                    adds_up = width is not None and skip is not None and width + skip == read
                    names = ["conv1"] + (["conv_shortcut"] if isinstance(resnet.conv_shortcut, nn.Module) else [])
                    split = width if known and adds_up else None
                    splits |= {f"{level_name}.resnets.{i}.{part}": split for part in names}
            width = _channels(resnet, "conv2", "out_channels")
            if level_name.startswith("down_blocks."):
                skips.append(width)
        if level_name.startswith("down_blocks.") and getattr(level, "downsamplers", None):
            skips.append(width)
    return splits


def unet_levels(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The levels of a UNet by name in the order of computation: down, mid, up."""
    for part in ("down_blocks", "mid_block", "up_blocks"):
        module = getattr(model, part, None)
        if isinstance(module, nn.ModuleList):
            yield from ((f"{part}.{i}", child) for i, child in enumerate(module))
        elif isinstance(module, nn.Module):
            yield part, module


def _is_unet(model: nn.Module) -> bool:
    return all(isinstance(getattr(model, name, None), nn.ModuleList) for name in ("down_blocks", "up_blocks"))


def _holds_blocks(name: str, modules: nn.ModuleList) -> bool:
    composite = all(next(child.children(), None) is not None for child in modules)
    trainable = any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in modules.modules())
    repeated = len(modules) >= 2 and len({type(child) for child in modules}) == 1
    return len(modules) > 0 and composite and trainable and (repeated or name.endswith(("blocks", "layers")))


def _channels(module: nn.Module, layer: str, side: str) -> int | None:
    channels: int | None = getattr(getattr(module, layer, None), side, None)
    return channels

"""What a denoiser consists of and what one forward costs, counted on the meta device: no weights, no memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.adapter import Adapter, LayerInfo
from compress.models.float_operators import OperatorFacts, counting
from compress.models.layout import component_files, component_folder, has_weights


@dataclass(frozen=True)
class LayerFacts:
    """One linear or convolution; `macs` are multiply-accumulates of one forward, over all its calls."""

    info: LayerInfo
    macs: int
    parameters: int

    @property
    def role_text(self) -> str:
        """The role, for a skip concatenation with the channels of backbone and skip: `skip 64+32`."""
        if self.info.split is None:
            return self.info.role
        return f"{self.info.role} {self.info.split}+{self.info.weight_shape[1] - self.info.split}"


@dataclass(frozen=True)
class BlockFacts:
    """One block; `macs` includes `attention_macs`, the products of queries with keys and of weights with values."""

    name: str
    kind: str
    layers: int
    parameters: int
    macs: int
    attention_macs: int


@dataclass(frozen=True)
class Inspection:
    """Facts about a denoiser; MACs are those of one forward of `batch` samples.

    `other_parameters` are in no linear or convolution: norms, embedding tables. `attention_macs` are all products
    outside linears and convolutions. Bytes are those of the state dictionary, whose persistent buffers count too;
    `bytes_on_disk` is None without weights. `operators` are those outside linears and convolutions.
    """

    model: str
    denoiser_class: str
    family: str
    batch: int
    sample_shape: tuple[int, int, int]
    layers: tuple[LayerFacts, ...]
    blocks: tuple[BlockFacts, ...]
    parameters: int
    other_parameters: int
    macs: int
    attention_macs: int
    bytes_float32: int
    bytes_float16: int
    bytes_on_disk: int | None
    operators: tuple[OperatorFacts, ...] = ()


def inspect_model(adapter: Adapter, batch: int = 1) -> Inspection:
    """Layers, blocks, parameters, bytes and MACs of the adapter's denoiser.

    Raises:
        ModelError: the configuration is refused, or the inputs of its class are not known.
    """
    model = adapter.skeleton()
    layers = adapter.layers(model)
    blocks = adapter.blocks(model)
    counts = _count(adapter, model, [info.name for info in layers], [name for name, _ in blocks], batch)
    layer_facts = tuple(
        LayerFacts(info, counts.layer[info.name], _parameters(model.get_submodule(info.name))) for info in layers
    )
    block_facts = tuple(
        BlockFacts(
            name=name,
            kind=type(block).__name__,
            layers=sum(info.block == name for info in layers),
            parameters=_parameters(block),
            macs=counts.block_total[name],
            attention_macs=counts.block_total[name] - counts.in_block[name],
        )
        for name, block in blocks
    )
    parameters, stored = _parameters(model), sum(tensor.numel() for tensor in model.state_dict().values())
    folder = component_folder(adapter.source)
    return Inspection(
        model=adapter.source.name,
        denoiser_class=adapter.source.denoiser_class,
        family=adapter.family,
        batch=batch,
        sample_shape=adapter.sample_shape(),
        layers=layer_facts,
        blocks=block_facts,
        parameters=parameters,
        other_parameters=parameters - sum(facts.parameters for facts in layer_facts),
        macs=counts.total,
        attention_macs=counts.total - sum(counts.layer.values()),
        bytes_float32=4 * stored,
        bytes_float16=2 * stored,
        bytes_on_disk=sum(file.stat().st_size for file in component_files(folder)) if has_weights(folder) else None,
        operators=counts.operators,
    )


@dataclass
class _Counts:
    """MACs by layer; of layers while a block runs; of whole blocks; of the whole forward; what else it computes."""

    layer: Counter[str]
    in_block: Counter[str]
    block_total: dict[str, int]
    total: int
    operators: tuple[OperatorFacts, ...]


def _count(adapter: Adapter, model: nn.Module, layers: list[str], blocks: list[str], batch: int) -> _Counts:
    """Count one meta forward.

    Layers are counted by hooks, all products by torch's FLOP counter, which also sees attention written as plain
    matrix products. A layer called from outside its block (DiT's head calls block 0's embedder) counts to the layer but
    not to the block's running time: `in_block` follows the block that is running, not the one that owns the layer.
    """
    from torch.utils.flop_counter import FlopCounterMode

    layer_macs: Counter[str] = Counter()
    in_block: Counter[str] = Counter()
    running: list[str] = []

    def layer_hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            macs = layer_call_macs(module, output)
            layer_macs[name] += macs
            if running:
                in_block[running[-1]] += macs

        return count

    with ExitStack() as hooks, torch.no_grad():
        for name in layers:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(layer_hook(name)))
        for name in blocks:
            block = model.get_submodule(name)
            hooks.enter_context(block.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
            hooks.enter_context(block.register_forward_hook(lambda *_: running.pop() and None))
        inputs = adapter.example_inputs(batch, device="meta")
        with FlopCounterMode(display=False) as flops, counting(model, layers) as counter:
            adapter.denoise(model, inputs.sample, inputs.timestep, inputs.condition)
    by_module = flops.get_flop_counts()
    root = type(model).__name__
    totals = {name: sum(by_module.get(f"{root}.{name}", {}).values()) // 2 for name in blocks}
    return _Counts(layer_macs, in_block, totals, flops.get_total_flops() // 2, counter.facts())


def layer_call_macs(layer: nn.Module, output: Tensor) -> int:
    """Multiply-accumulates of one call: every output value is a product with one row of the weight."""
    weight = layer.get_parameter("weight")
    return output.numel() * (weight.numel() // weight.shape[0])


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

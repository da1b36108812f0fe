"""The temporal information block: everything of a denoiser that depends on timestep and class alone, run by itself.

Huang et al., "TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion Models" (CVPR 2024), section 4.1: the
embedding of the timestep and every block's projection of it, `emb_{t,i} = g_i(h(t))`, are one unit of reconstruction.
It sees no image, so its inputs are few and all known: every timestep with every class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.errors import UnsupportedLayer
from compress.models.adapter import Adapter, Condition
from compress.models.conditioning import ConditioningGrid, capture_projections, projection_layers
from compress.quantize.simulate import SimulatedLayer


class Branch(NamedTuple):
    """A projection of the embedding: `layer(activation(embedding))`; `embedder` is None for the adapter's own."""

    layer: str
    activation: Callable[[Tensor], Tensor]
    embedder: str | None


class TemporalBlock:
    """The block of one model, whose layers may be simulated ones.

    Attributes:
        layers: names of all its linear layers, embeddings and projections, in the order of computation.
        branches: its outputs, in the order of computation.
        leaders: embedders that are exact copies of an earlier one, with that one's name: converted DiT checkpoints hold
            the same embedder in every block. They are learned once.
    """

    def __init__(self, adapter: Adapter, model: nn.Module) -> None:
        """Raises ModelError for a family that does not know its conditioning."""
        self.adapter, self.model = adapter, model
        skeleton = adapter.skeleton()  # which has the original's layers where the model has simulated ones
        self.layers = tuple(layer.name for layer in adapter.conditioning_layers(skeleton))
        self.branches = tuple(_branch(model, layer.name) for layer in projection_layers(adapter, skeleton))
        self.leaders = _leaders(model, self.branches)

    def outputs(self, t: Tensor, condition: Condition, *, share: bool = True) -> list[Tensor]:
        """What every branch gives, `[b, channels]`, for timesteps `[b]` and a condition; no image is involved.

        Args:
            share: embedders that are copies of another run once; False runs each of them.
        """
        embedded: dict[str | None, Tensor] = {}
        found = []
        for branch in self.branches:
            name = branch.embedder
            if share and name is not None:
                name = self.leaders.get(name, name)
            if name not in embedded:
                embedded[name] = self._embed(name, t, condition)
            found.append(self.model.get_submodule(branch.layer)(branch.activation(embedded[name])))
        return found

    def check(self, grid: ConditioningGrid) -> None:
        """Compare with the whole model's projections, on its first timestep.

        Raises:
            UnsupportedLayer: the model computes something else.
        """
        few = ConditioningGrid(grid.timesteps[:1], grid.conditions)
        names = [branch.layer for branch in self.branches]
        whole = capture_projections(self.adapter, self.model, few, names)
        with torch.no_grad():
            alone = self.outputs(*self.rows(few, torch.arange(len(few))), share=False)
        for name, output in zip(names, alone, strict=True):
            expected = whole[name].flatten(0, 1)
            if not torch.allclose(output.cpu(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
                raise UnsupportedLayer("it computes something else within the model than alone", where=name)

    def rows(self, grid: ConditioningGrid, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Timesteps and condition of the grid's pairs with the numbers `chosen` `[n]`, on the model's device."""
        t, condition = grid.rows(chosen)
        return t.to(self.device), {name: tensor.to(self.device) for name, tensor in condition.items()}

    @property
    def copies(self) -> dict[str, str]:
        """Layers of the embedders that are copies, with the layers that they are copies of."""
        return {
            name: leader + name.removeprefix(embedder)
            for embedder, leader in self.leaders.items()
            for name in self.layers
            if name.startswith(f"{embedder}.")
        }

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    def _embed(self, name: str | None, t: Tensor, condition: Condition) -> Tensor:
        if name is None:
            return self.adapter.conditioning(self.model, t, condition)
        embedding: Tensor = self.model.get_submodule(name)(t, condition["class_labels"], hidden_dtype=torch.float32)
        return embedding


def _branch(model: nn.Module, layer: str) -> Branch:
    """What stands before a projection, by the module that holds it.

    Residual blocks have a `nonlinearity` and may skip it, adaLN-zero a `silu` and an embedder of its own, modulated
    group norms an optional `act`; DiT's head reads SiLU.
    """
    name = layer.rpartition(".")[0]
    parent = model.get_submodule(name)
    embedder = f"{name}.emb" if isinstance(getattr(parent, "emb", None), nn.Module) else None
    if not name:
        return Branch(layer, F.silu, None)
    for attribute in ("nonlinearity", "silu", "act"):
        found = getattr(parent, attribute, None)
        if found is not None:
            return Branch(layer, nn.Identity() if getattr(parent, "skip_time_act", False) else found, embedder)
    return Branch(layer, nn.Identity(), embedder)


def _leaders(model: nn.Module, branches: Sequence[Branch]) -> dict[str, str]:
    """Embedders that hold the same tensors, under the same formats, as an earlier one."""
    found: list[str] = []
    leaders: dict[str, str] = {}
    for embedder in dict.fromkeys(branch.embedder for branch in branches if branch.embedder is not None):
        leader = next((other for other in found if _alike(model, other, embedder)), None)
        if leader is None:
            found.append(embedder)
        else:
            leaders[embedder] = leader
    return leaders


def _alike(model: nn.Module, first: str, second: str) -> bool:
    """Whether two embedders hold equal weights under equal formats."""
    one, other = (model.get_submodule(name) for name in (first, second))
    tensors = [{n: p for n, p in module.named_parameters() if ".parts." not in n} for module in (one, other)]
    specs = [{n: m.spec for n, m in module.named_modules() if isinstance(m, SimulatedLayer)} for module in (one, other)]
    same = tensors[0].keys() == tensors[1].keys() and specs[0] == specs[1]
    return same and all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())

"""What a denoiser computes besides linears and convolutions, counted in one forward: what no weight format touches.

Published "W4A8" rows do not mean the same thing: Q-Diffusion quantizes attention's products, the code of TFMQ-DM and
PTQ4DM leaves them in floating point, and nobody quantizes norms. A report that says what is left can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorKind(StrEnum):
    """Kinds of operators outside linears and convolutions."""

    QUERY_KEY = "attention queries with keys"
    WEIGHT_VALUE = "attention weights with values"
    PRODUCT = "other matrix products"
    SOFTMAX = "softmax"
    NORM = "normalization"
    ACTIVATION = "activation function"
    ADDITION = "addition of two tensors"
    MODULATION = "scale, shift, gate or rotation"
    EMBEDDING = "embedding"
    RESAMPLING = "resampling"


@dataclass(frozen=True)
class OperatorFacts:
    """Operators of one kind in one forward: how many of each type, and multiply-accumulates of matrix products."""

    kind: OperatorKind
    types: dict[str, int] = field(hash=False)
    macs: int = 0

    @property
    def count(self) -> int:
        return sum(self.types.values())


_BY_NAME: Final[dict[str, tuple[OperatorKind, str]]] = {
    "native_group_norm": (OperatorKind.NORM, "GroupNorm"),
    "native_layer_norm": (OperatorKind.NORM, "LayerNorm"),
    "_fused_rms_norm": (OperatorKind.NORM, "RMSNorm"),
    "native_batch_norm": (OperatorKind.NORM, "BatchNorm"),
    "silu": (OperatorKind.ACTIVATION, "SiLU"),
    "gelu": (OperatorKind.ACTIVATION, "GELU"),
    "relu": (OperatorKind.ACTIVATION, "ReLU"),
    "leaky_relu": (OperatorKind.ACTIVATION, "LeakyReLU"),
    "mish": (OperatorKind.ACTIVATION, "Mish"),
    "sigmoid": (OperatorKind.ACTIVATION, "sigmoid"),
    "tanh": (OperatorKind.ACTIVATION, "tanh"),
    "embedding": (OperatorKind.EMBEDDING, "Embedding"),
    "upsample_nearest2d": (OperatorKind.RESAMPLING, "nearest"),
    "upsample_bilinear2d": (OperatorKind.RESAMPLING, "bilinear"),
    "avg_pool2d": (OperatorKind.RESAMPLING, "average"),
}
_SUMS, _SCALINGS = ("add", "sub"), ("mul", "div")
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}  # which arguments are multiplied
_SINUSOIDS = "Timesteps"  # diffusers' class


class OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is active, best on the meta device; linears, convolutions and norms must be announced.

    `inside` is how many announced modules are running: what they compute is theirs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: dict[OperatorKind, Counter[str]] = {kind: Counter() for kind in OperatorKind}
        self.macs: Counter[OperatorKind] = Counter()
        self.inside = 0
        self._last: int | None = None  # MACs of the product before this one, which a softmax makes scores
        self._weighs = False  # a softmax has run, so the next product takes its weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside:
            self._see(func.overloadpacket.__name__.removesuffix("_"), args, output)
        return output

    def add(self, kind: OperatorKind, name: str, macs: int = 0) -> None:
        """One more operator."""
        self.types[kind][name] += 1
        self.macs[kind] += macs

    def facts(self) -> tuple[OperatorFacts, ...]:
        """What was counted, kinds without operators left out."""
        self._settle()
        return tuple(OperatorFacts(kind, dict(types), self.macs[kind]) for kind, types in self.types.items() if types)

    def _see(self, name: str, args: Any, output: Any) -> None:
        if name in _BY_NAME:
            self.add(*_BY_NAME[name])
        elif "scaled_dot_product" in name:
            query, key, value = args[:3]
            scores = query.shape[:-1].numel() * key.shape[-2]
            self.add(OperatorKind.QUERY_KEY, "attention", scores * query.shape[-1])
            self.add(OperatorKind.SOFTMAX, "softmax")
            self.add(OperatorKind.WEIGHT_VALUE, "attention", scores * value.shape[-1])
        elif name in ("_softmax", "_safe_softmax"):
            self._softmax()
        elif name in _PRODUCTS:
            self._product(args[_PRODUCTS[name][0]], output)
        elif name in _SUMS + _SCALINGS:
            self._elementwise(name, args)

    def _softmax(self) -> None:
        if self._last is not None:
            self.add(OperatorKind.QUERY_KEY, "attention", self._last)
        self.add(OperatorKind.SOFTMAX, "softmax")
        self._last, self._weighs = None, True

    def _product(self, first: Tensor, output: Tensor) -> None:
        macs = output.numel() * first.shape[-1]
        if self._weighs:
            self.add(OperatorKind.WEIGHT_VALUE, "attention", macs)
            self._weighs = False
            return
        self._settle()
        self._last = macs

    def _settle(self) -> None:
        """A product that no softmax followed is no score."""
        if self._last is not None:
            self.add(OperatorKind.PRODUCT, "product", self._last)
        self._last = None

    def _elementwise(self, name: str, args: Any) -> None:
        """Two tensors of samples: of one shape, or the smaller one repeated. Numbers do not count."""
        tensors = [value for value in args[:2] if isinstance(value, Tensor) and value.ndim]
        if len(tensors) < 2:
            return
        if name in _SUMS and tensors[0].shape == tensors[1].shape:
            self.add(OperatorKind.ADDITION, "addition")
        elif max(tensor.ndim for tensor in tensors) > 1 and all(math.prod(t.shape) > 1 for t in tensors):
            self.add(OperatorKind.MODULATION, "shift" if name in _SUMS else "scale or gate")


@contextmanager
def counting(model: nn.Module, layers: Iterable[str]) -> Iterator[OperatorCounter]:
    """Inside the block a forward of `model` is counted; `layers` are its linears and convolutions by name."""
    counter, own = OperatorCounter(), set(layers)

    def enter(module: nn.Module, args: Any) -> None:
        counter.inside += 1

    def leave(kind: OperatorKind | None) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            counter.inside -= 1
            if kind is not None and not counter.inside:
                counter.add(kind, type(module).__name__)

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            kind = _module_kind(module)
            if name in own or kind is not None:
                hooks.enter_context(module.register_forward_pre_hook(enter))
                hooks.enter_context(module.register_forward_hook(leave(None if name in own else kind)))
        hooks.enter_context(counter)
        yield counter


def _module_kind(module: nn.Module) -> OperatorKind | None:
    """Kind of a module without parts that is one operator, however it is spelled in torch's operators."""
    if next(module.children(), None) is not None:
        return None
    name = type(module).__name__
    if name.endswith("Norm") or isinstance(module, nn.GroupNorm | nn.LayerNorm):
        return OperatorKind.NORM
    return OperatorKind.EMBEDDING if name == _SINUSOIDS else None

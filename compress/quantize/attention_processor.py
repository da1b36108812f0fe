"""Attention processors for diffusers' `Attention` that leave the two products to their subclasses.

Semantics are those of diffusers' plain processors: tokens or images in; a group norm, query and key norms, a norm of
the context where the module has them; masks; the output projection; residual and rescaling. diffusers calls a processor
with the attention module, so that one without state could serve all; these hold the scales of one module each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compress.kernels.integer_product  # noqa: F401  registers torch.ops.compress.integer_product

SCALE_NAMES = ("query_scale", "key_scale", "value_scale", "softmax_scale")
"""Buffers of a quantized attention module's processor, float32 `[1]`."""


class AttentionProcessor(nn.Module, ABC):
    """What surrounds the two products; `mix` is the products with the softmax between them."""

    def __call__(  # diffusers reads the names of the arguments it may pass off this signature
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Output of the attention module `attn` for `[b, n, c]` or `[b, c, h, w]`, of the same shape."""
        output: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)
        return output

    def forward(self, attn: Any, hidden: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        tokens = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        if context is None:
            context = tokens
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key = self._heads(attn, attn.to_q(tokens)), self._heads(attn, attn.to_k(context))
        value = self._heads(attn, attn.to_v(context))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        mixed = self.mix(query, key, value, self._mask(attn, mask, context), attn.scale)
        projection, dropout = attn.to_out
        output = dropout(projection(mixed.transpose(1, 2).flatten(2).to(query.dtype)))
        if hidden.ndim == 4:
            output = output.transpose(1, 2).reshape(hidden.shape)
        output = output + hidden if attn.residual_connection else output
        result: Tensor = output / attn.rescale_output_factor
        return result

    @abstractmethod
    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        """`softmax(factor * query @ key^T + mask) @ value`, all `[b, heads, tokens, c]`."""

    @staticmethod
    def _heads(attn: Any, x: Tensor) -> Tensor:
        """`[b, n, heads * c]` as `[b, heads, n, c]`."""
        return x.reshape(*x.shape[:2], attn.heads, -1).transpose(1, 2)

    @staticmethod
    def _mask(attn: Any, mask: Tensor | None, context: Tensor) -> Tensor | None:
        """What is added to the scores, to broadcast against `[b, heads, n, m]`."""
        if mask is None:
            return None
        rows = attn.prepare_attention_mask(mask, context.shape[1], context.shape[0])
        found: Tensor = rows.unflatten(0, (context.shape[0], attn.heads))
        return found


class QuantizedAttention(AttentionProcessor):
    """Both products on integer codes: q, k, v of `bits`, signed; the softmax's output of `softmax_bits`, unsigned.

    Codes are `clamp(round(x / scale))`; the products of codes are exact, and each is multiplied by its two scales.
    """

    query_scale: Tensor
    key_scale: Tensor
    value_scale: Tensor
    softmax_scale: Tensor

    def __init__(self, bits: int, softmax_bits: int, device: str | torch.device = "meta") -> None:
        super().__init__()
        self.bits, self.softmax_bits = bits, softmax_bits
        for name in SCALE_NAMES:
            self.register_buffer(name, torch.empty(1, device=device))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        scores = self._product(query, key.transpose(-1, -2), self.query_scale, self.key_scale, self.bits, True) * factor
        weights = (scores if mask is None else scores + mask).softmax(-1)
        return self._product(weights, value, self.softmax_scale, self.value_scale, self.softmax_bits, False)

    def _product(self, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, a_bits: int, a_signed: bool) -> Tensor:
        settings: dict[str, Any] = {"a_bits": a_bits, "b_bits": self.bits, "a_signed": a_signed}
        y: Tensor = torch.ops.compress.integer_product(a, b, a_scale, b_scale, **settings)
        return y

    def extra_repr(self) -> str:
        return f"int{self.bits}, softmax uint{self.softmax_bits}"


class WatchedAttention(AttentionProcessor):
    """Full precision; `watch` is called with (query, key, value, mask, factor) before each pair of products."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self.watch = watch

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        self.watch(query, key, value, mask, factor)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=factor)

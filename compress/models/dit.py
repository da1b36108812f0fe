"""DiT: class-conditional diffusion transformers (Peebles and Xie 2023), diffusers' `DiTTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from compress.models.adapter import Condition, Role
from compress.models.generic import GenericAdapter
from compress.models.roles import RULES, Rule


class DiTAdapter(GenericAdapter):
    """Every block owns a timestep and label embedder; the output head reads that of block 0."""

    family = "dit"
    rules: ClassVar[Sequence[Rule]] = (
        (r"^proj_out_1$", Role.MODULATION),
        (r"^proj_out_2$", Role.OUT_PROJECTION),
        *RULES,
    )

    conditioning_roles: ClassVar[frozenset[Role]] = frozenset({Role.TIME_EMBEDDING, Role.MODULATION})

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The transformer blocks; a depth-pruned model may have a single one."""
        blocks = model.get_submodule("transformer_blocks")
        return [(f"transformer_blocks.{name}", block) for name, block in blocks.named_children()]

    def conditioning(self, model: Any, timestep: Tensor, condition: Condition) -> Tensor:
        """Sum of timestep and label embedding `[b, c]` by block 0's embedder, for `timestep` `[b]`.

        adaLN-zero's modulations and the output head read SiLU of it (Peebles and Xie 2023, section 3.2). Checkpoints
        converted to diffusers hold the same embedder in every block.
        """
        embedder = model.transformer_blocks[0].norm1.emb
        embedding: Tensor = embedder(timestep, condition["class_labels"], hidden_dtype=model.dtype)
        return embedding

    def class_count(self) -> int:
        """Number of classes; the table has one more row, for no class."""
        return int(self.config["num_embeds_ada_norm"])

    def null_class(self) -> int:
        """The last row of the label table, which label dropout trains (Peebles and Xie 2023, section 3.2)."""
        return self.class_count()

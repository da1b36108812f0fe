"""Range search: per block of a weight, the clipping range whose rounding and clipping together cost least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compress.config import Config
from compress.errors import FormatError
from compress.formats import Scales, WeightSpec, as_stored, scale_values, stored_scales, weight_scales
from compress.formats.layout import to_blocks

CHUNK = 1 << 18  # weights searched at once, or one row: few enough to stay in a processor's cache


class RangeSearch(Config):
    """How the clipping range of a block is chosen: its full range, or the shrunken copy with the least error.

    Candidate i keeps `1 - shrink * i` of the full range. The defaults are those of Q-Diffusion (Li et al. 2023), whose
    weight quantizers come from BRECQ (Li et al. 2021); `steps: 100` tries the thresholds of PTQ4DM (Shang et al. 2023),
    i / 100 of the largest magnitude.

    Departures: every range holds 0 and every zero point is a code, which the released codes do not see to; and the
    symmetric search clips as the operators do, where Q-Diffusion's searches with other limits than it rounds with.
    """

    kind: Literal["max", "mse"] = Field("mse", description="max: the full range; mse: search the least error.")
    norm: float = Field(2.4, gt=0, le=10, description="Power of the rounding error that is summed over a block.")
    steps: int = Field(80, ge=1, description="Ranges tried, from the full one downwards.")
    shrink: float = Field(0.01, gt=0, lt=1, description="By how much of the full range each next one is smaller.")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.shrink * (self.steps - 1) > 1 - 1e-9:
            raise ValueError(f"{self.steps} steps of {self.shrink:g} shrink the range to nothing; take fewer")
        return self

    def factors(self) -> list[float]:
        """Fractions of the full range that are tried, the full one first."""
        return [1.0 - self.shrink * step for step in range(self.steps if self.kind == "mse" else 1)]


def search_scales(weight: Tensor, spec: WeightSpec, search: RangeSearch) -> Scales:
    """Scales (and zero points) of a weight `[n, ...]`, as stored, whose blocks have the least rounding error.

    A block is what shares a scale. Its error is `sum |x - x^|**norm` over its weights, x^ being what the stored scale
    and zero point decode to; of equal errors the widest range wins. The full range holds 0. Asymmetric: both ends
    shrink together, and every candidate has its own zero point, `clamp(round(-low / scale), 0, 2**bits - 1)`, from its
    own stored scale. Symmetric: scale = largest magnitude kept / (2**(bits-1) - 1). The full range's scales are those
    of `formats.weight_scales`.

    Raises:
        FormatError: the weight has values that are not finite or too large, or (kind mse) `spec` is no integer format.
    """
    full = weight_scales(weight, spec)
    if search.kind == "max":
        return full
    if spec.number_format.kind != "int":
        raise FormatError(
            f"the range of {spec.format} cannot be searched: it is no integer format",
            hint="use the full range, or `clip: mse` of the method `nearest`",
        )
    rows = weight.detach().reshape(len(weight), -1)
    block = spec.block_size(rows.shape[1])
    candidates = _full_range(rows, block, full, spec)
    factors = torch.tensor(search.factors(), dtype=torch.float32, device=rows.device)
    find = _of_tensor if spec.granularity == "tensor" else _of_rows
    best = find(rows, block, candidates, factors, search.norm)
    return stored_scales(best.scales, best.zero_points, tuple(weight.shape), spec)


class _Grid(NamedTuple):
    """One candidate: float32 scales, and the smallest and largest multiple of the scale that codes stand for."""

    scales: Tensor
    lowest: Tensor
    highest: Tensor


class _Candidates(NamedTuple):
    """The full range of every block, and the smaller ranges made of it; tensors in the scales' shape."""

    full: Scales
    exact: Tensor  # float32 scales of the full range, not rounded to what is stored
    low: Tensor  # its lower end, 0 at most
    spec: WeightSpec

    def part(self, rows: slice) -> _Candidates:
        """Those of some rows."""
        zero_points = None if self.full.zero_points is None else self.full.zero_points[rows]
        full = Scales(self.full.scales[rows], zero_points)
        return _Candidates(full, self.exact[rows], self.low[rows], self.spec)

    def scales(self, factor: Tensor) -> Scales:
        """Stored scales and zero points of the ranges times `factor`, float32 of shape `[]` or one for each block."""
        asked = as_stored(self.exact * factor, self.spec)
        # What float16 cannot hold any more stays the full range, which `weight_scales` may have rounded up.
        shrunken = (scale_values(asked) > 0) & (factor < 1)
        stored = torch.where(shrunken, asked, self.full.scales)
        if self.full.zero_points is None:
            return Scales(stored, None)
        levels = (1 << self.spec.number_format.bits) - 1
        zero = (-self.low * factor / scale_values(stored)).round_().clamp_(0, levels).to(torch.uint8)
        return Scales(stored, torch.where(shrunken, zero, self.full.zero_points))

    def grid(self, factor: Tensor) -> _Grid:
        """The same as the error needs it."""
        stored, bits = self.scales(factor), self.spec.number_format.bits
        scales = scale_values(stored.scales)[..., None]
        middle = scales.new_full((1, 1, 1), float(1 << bits - 1))
        zero = middle if stored.zero_points is None else stored.zero_points.float()[..., None]
        return _Grid(scales, -zero, (1 << bits) - 1 - zero)


def _full_range(rows: Tensor, block: int, full: Scales, spec: WeightSpec) -> _Candidates:
    """The candidates of blocks whose full range has the stored scales `full`."""
    low = torch.cat([blocks.amin(-1) for _, blocks in _chunks(rows, block)]).clamp_max_(0)
    high = torch.cat([blocks.amax(-1) for _, blocks in _chunks(rows, block)]).clamp_min_(0)
    if spec.granularity == "tensor":
        low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
    fmt = spec.number_format
    exact = torch.maximum(high, -low) / fmt.max_value if spec.symmetric else (high - low) / ((1 << fmt.bits) - 1)
    return _Candidates(full, torch.where(exact == 0, 1.0, exact), low, spec)


def _of_rows(rows: Tensor, block: int, candidates: _Candidates, factors: Tensor, norm: float) -> Scales:
    """Best scales of blocks that lie within a row."""
    found: list[Scales] = []
    for part, blocks in _chunks(rows, block):
        here = candidates.part(part)
        best = _errors(blocks, here, factors, norm).argmin(0)  # the first of equals
        found.append(here.scales(factors[best]))
    zero_points = [scales.zero_points for scales in found if scales.zero_points is not None]
    return Scales(torch.cat([scales.scales for scales in found]), torch.cat(zero_points) if zero_points else None)


def _of_tensor(rows: Tensor, block: int, candidates: _Candidates, factors: Tensor, norm: float) -> Scales:
    """Best scale of a whole weight."""
    errors = sum(_errors(blocks, candidates, factors, norm).sum((1, 2)) for _, blocks in _chunks(rows, block))
    assert isinstance(errors, Tensor)
    return candidates.scales(factors[errors.argmin()])


def _chunks(rows: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time, float32 `[rows, blocks, block]`."""
    count = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        yield part, to_blocks(rows[part].float(), block)


def _errors(blocks: Tensor, candidates: _Candidates, factors: Tensor, norm: float) -> Tensor:
    """Error of every candidate in every block, float64 `[steps, rows, blocks]`."""
    distance, rounded = torch.empty_like(blocks), torch.empty_like(blocks)
    errors = []
    for factor in factors:
        grid = candidates.grid(factor)
        torch.div(blocks, grid.scales, out=distance)  # the division of `formats.encode`, for the same codes
        torch.round(distance, out=rounded)
        rounded.clamp_(grid.lowest, grid.highest)
        distance.sub_(rounded).abs_().pow_(norm)
        # In units of the scale until here: powers of small weights leave float32.
        errors.append(distance.sum(-1, dtype=torch.float64) * grid.scales[..., 0].double() ** norm)
    return torch.stack(errors)

import pytest
import torch

from compress.formats import WeightSpec, quantize_weight
from compress.models.adapter import LayerInfo, Role
from compress.quantize.job import QuantizeJob
from compress.quantize.methods import METHODS
from compress.quantize.methods.nearest import Nearest, mse_scales, run
from compress.quantize.rules import Assignment
from compress.quantize.settings import ActivationSettings
from compress.quantize.spec import LayerSpec

SPECS = [
    WeightSpec("int4", "group", 32, scale_dtype="float16"),
    WeightSpec("int4", "channel", None),
    WeightSpec("int4", "tensor", None),
    WeightSpec("int8", "channel", None),
    WeightSpec("int4", "channel", None, symmetric=False),
    WeightSpec("fp4_e2m1", "group", 16),
    WeightSpec("fp8_e4m3", "channel", None),
    WeightSpec("nf4", "group", 64, scale_dtype="float16"),
    WeightSpec.natural("mxfp4"),
    WeightSpec.natural("nvfp4"),
]


def weight(rows: int = 31, columns: int = 96) -> torch.Tensor:
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    w[3, 5] = 9.0
    return w


def error(w: torch.Tensor, quantized) -> float:
    return float((w - quantized.dequantize()).square().sum())


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.format}-{s.granularity}-{s.symmetric}")
def test_mse_clipping_is_never_worse(spec: WeightSpec) -> None:
    w = weight()
    assert error(w, mse_scales(w, spec)) <= error(w, quantize_weight(w, spec)) * (1 + 1e-6)


def test_mse_clipping_helps_where_an_outlier_rules_the_scale() -> None:
    spec = WeightSpec("int4", "tensor", None)
    assert error(weight(), mse_scales(weight(), spec)) < 0.6 * error(weight(), quantize_weight(weight(), spec))


def test_powers_of_two_are_tried_upwards_too() -> None:
    """MX lets 7.9 saturate at 6 under scale 1; under scale 2 it is 8."""
    w = torch.full((1, 32), 7.9)
    spec = WeightSpec.natural("mxfp4")
    assert quantize_weight(w, spec).scales.tolist() == [[127]]
    assert mse_scales(w, spec).scales.tolist() == [[128]]
    assert mse_scales(torch.full((1, 32), 6.1), spec).scales.tolist() == [[127]]


def test_convolutions_and_zero_rows() -> None:
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    w[2] = 0
    quantized = mse_scales(w, WeightSpec("int4", "channel", None))
    assert quantized.dequantize().shape == w.shape
    assert float(quantized.dequantize()[2].abs().max()) == 0


@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_a_job_reads_one_weight_at_a_time(clip: str) -> None:
    spec, reads, ticks = LayerSpec(WeightSpec("int8", "channel", None)), [], []
    names = ["a", "b", "c"]
    layers = tuple(
        Assignment(LayerInfo(n, "linear", Role.LINEAR, None, (31, 96), True), spec, ActivationSettings()) for n in names
    )
    job = QuantizeJob(layers, read=lambda name: reads.append(name) or weight(), tick=ticks.append)
    for index, layer in enumerate(run(Nearest(clip=clip), job)):
        assert len(reads) == index + 1
        assert layer.bias is None
    assert reads == ["a.weight", "b.weight", "c.weight"]
    assert ticks == names


def test_every_method_names_its_source() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.settings(kind=name).kind == name
        assert any(character.isdigit() for character in method.citation)

"""Split layers, smoothed inputs and scales per timestep in ONNX, by our operators and by stock ones."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from export_models import adapter_of
from packed import EVERYTHING, TIMED, TIMESTEPS, packed_model, spec_for
from tiny import tiny_dit_pipeline, tiny_unet2d_pipeline
from torch import nn

from compress.export.onnx_export import export_denoiser
from compress.export.parity import OPERATOR_LIMIT, check_parity, relative_error
from compress.export.session import OnnxDenoiser, kernels_available
from compress.formats import WeightSpec
from compress.kernels.schema import DOMAIN, QCONV2D
from compress.models.adapter import Adapter
from compress.quantize.spec import LayerSpec

NAMES = [tensor.name for tensor in QCONV2D.inputs]
SYMMETRIC = LayerSpec(WeightSpec("int8"), TIMED)


@dataclass(frozen=True)
class Made:
    """A packed model with every feature, and its export."""

    adapter: Adapter
    model: nn.Module
    folder: Path

    def nodes(self) -> list[onnx.NodeProto]:
        graph = onnx.load(str(self.folder / "model.onnx")).graph
        return list(graph.node)

    def operators(self) -> list[dict[str, str]]:
        """The given inputs of each operator node, by name."""
        ours = [node for node in self.nodes() if node.domain == DOMAIN]
        return [{name: value for name, value in zip(NAMES, node.input, strict=False) if value} for node in ours]


@pytest.fixture(scope="module", params=["unet", "dit"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "unet":
        adapter = adapter_of(tiny_unet2d_pipeline(folder / "model"))
    else:
        adapter = adapter_of(tiny_dit_pipeline(folder / "model", blocks=1))
    model = packed_model(adapter, EVERYTHING)
    export_denoiser(adapter, model, folder / "onnx", fuse=request.param == "unet")
    return Made(adapter, model, folder / "onnx")


def prediction(made: Made, session: OnnxDenoiser, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By the checkpoint and by the file, of samples at timesteps near and between the calibrated ones."""
    inputs = made.adapter.example_inputs(batch, seed=batch)
    timestep = torch.tensor([TIMESTEPS[2] - 3, 0.0, 222.5, 999.0])[:batch]
    with torch.no_grad():
        expected = made.adapter.denoise(made.model, inputs.sample, timestep, inputs.condition)
    return expected, session(inputs.sample, timestep, inputs.condition)


def test_a_split_layer_is_two_operators(made: Made) -> None:
    splits = [layer.name for layer in made.adapter.layers(made.adapter.skeleton()) if layer.split is not None]
    operators = made.operators()
    for part in ("backbone", "skip"):
        codes = [f"{name}.{part}.weight_packed" for name in splits]
        found = [operator for operator in operators if operator["codes"] in codes]
        assert len(found) == len(splits)
        assert all(("residual" in operator) == (part == "skip") for operator in found)
        assert all(("bias" in operator) == (part == "backbone") for operator in found)


def test_every_operator_smooths_its_input(made: Made) -> None:
    operators = made.operators()
    assert operators and all(operator["smooth"].endswith("input_smooth") for operator in operators)


def test_the_timestep_is_looked_up_once_and_chooses_every_scale(made: Made) -> None:
    nodes = made.nodes()
    counts = Counter(node.op_type for node in nodes if not node.domain)
    assert counts["ArgMin"] == 1
    makers = {output: node for node in nodes for output in node.output}
    for operator in made.operators():
        for name in ("act_scale", "act_zero_point"):
            node = makers[operator[name]]
            while node.op_type in ("Reshape", "Unsqueeze", "Expand", "Identity"):
                node = makers[node.input[0]]
            assert node.op_type in ("Gather", "GatherND"), node.op_type


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kernels", [False, True], ids=["stock session", "kernels"])
def test_any_batch_is_computed_as_by_the_checkpoint(made: Made, batch: int, kernels: bool) -> None:
    if kernels and not kernels_available():
        pytest.skip("no kernels here")
    expected, found = prediction(made, OnnxDenoiser(made.folder, threads=1, kernels=kernels), batch)
    assert relative_error(found, expected) <= 0.02  # roundings that flip


def test_parity_holds_call_by_call(made: Made) -> None:
    parity = check_parity(made.adapter, made.model, made.folder, made.adapter.example_inputs(2), threads=1)
    assert parity.passed and parity.worst_operator is not None
    assert parity.worst_operator.error <= OPERATOR_LIMIT
    expected = set()
    for layer in made.adapter.layers(made.adapter.skeleton()):
        parts = spec_for(layer, EVERYTHING).parts(layer.weight_shape)
        expected |= {part.of(layer.name) for part in parts}
    assert {call.layer for call in parity.operators} == expected


def test_a_traced_model_can_still_be_copied(made: Made) -> None:
    twin = copy.deepcopy(made.model)
    inputs = made.adapter.example_inputs(2)
    with torch.no_grad():
        assert torch.equal(made.adapter.denoise(twin, *inputs), made.adapter.denoise(made.model, *inputs))


def test_stock_operators_express_it_and_say_how(made: Made, tmp_path: Path) -> None:
    """Scales that are computed suit no integer operator of a stock session: layers round and compute in floats."""
    model = packed_model(made.adapter, SYMMETRIC if made.adapter.family == "unet2d" else EVERYTHING)
    result = export_denoiser(made.adapter, model, tmp_path, operators="stock")
    stock = Made(made.adapter, model, tmp_path)
    expected, found = prediction(stock, OnnxDenoiser(tmp_path, threads=1), 4)
    assert relative_error(found, expected) <= 0.02
    assert result.layers and all("activations are rounded to " in " ".join(note.differs) for note in result.layers)
    assert not any(note.operator in ("MatMulInteger", "ConvInteger") for note in result.layers)

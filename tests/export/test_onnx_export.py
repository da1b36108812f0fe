from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from export_models import Exported, Folded, PixelAdapter, Squeezing, packed_bytes

from compress.errors import ExportError, OutputError
from compress.export.onnx_export import DATA_FILE, export_denoiser
from compress.export.parity import relative_error
from compress.export.session import OnnxDenoiser
from compress.kernels.schema import DOMAIN


def operator_nodes(exported: Exported) -> list[onnx.NodeProto]:
    graph = onnx.load(str(exported.result.path)).graph
    return [node for node in graph.node if node.domain == DOMAIN]


def test_every_layer_becomes_an_operator_with_its_function(exported: Exported) -> None:
    nodes = operator_nodes(exported)
    kinds = [layer.kind for layer in exported.adapter.layers(exported.original)]
    counted = exported.result.nodes_by_operator
    assert sum(counted.values()) == len(nodes) and counted["QConv2d"] == kinds.count("conv2d")
    codes = {t.name: t.dims for t in onnx.load(str(exported.result.path)).graph.initializer}
    packed = [
        exported.model.get_buffer(f"{layer.name}.weight_packed") for layer in exported.adapter.layers(exported.original)
    ]
    assert sum(codes[node.input[1]][0] for node in nodes) == sum(len(buffer) for buffer in packed)  # layers are joined
    assert {node.overload for node in nodes} == set(exported.result.functions)
    functions = onnx.load(str(exported.result.path)).functions
    assert {f.overload for f in functions if f.domain == DOMAIN} == set(exported.result.functions)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stock_session_computes_the_checkpoint(exported: Exported, batch: int) -> None:
    """Fractional timesteps too. Roundings that flip limit the agreement of a whole model."""
    inputs = exported.adapter.example_inputs(batch, seed=batch)
    t = inputs.timestep + 0.25
    with torch.no_grad():
        expected = exported.adapter.denoise(exported.model, inputs.sample, t, inputs.condition)
        original = exported.adapter.denoise(exported.original, inputs.sample, t, inputs.condition)
    found = OnnxDenoiser(exported.folder, threads=1)(inputs.sample, t, inputs.condition)
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= 0.5 * relative_error(expected, original)


def test_inputs_and_output_have_their_names_and_a_free_batch(exported: Exported) -> None:
    graph = onnx.load(str(exported.result.path)).graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    image = ["batch", *exported.adapter.sample_shape()]
    assert shapes == {"sample": image, "timestep": ["batch"], "class_labels": ["batch"], "prediction": image}


def test_weights_keep_their_names_and_their_packing(exported: Exported) -> None:
    graph = onnx.load(str(exported.result.path)).graph
    names = {tensor.name for tensor in graph.initializer}
    packed = {name for name, _ in exported.model.named_buffers() if name.endswith("weight_packed")}
    assert len(packed - names) == exported.result.fused["shared_input"] < len(packed) / 2
    used = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer)
    assert used <= packed_bytes(exported.model) + 20_000


def test_a_default_session_does_not_expand_the_weights(unet: Exported, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(unet.result.path), options, providers=["CPUExecutionProvider"])
    before, after = (
        sum(onnx.numpy_helper.to_array(t).nbytes for t in onnx.load(str(path)).graph.initializer)
        for path in (unet.result.path, tmp_path / "optimized.onnx")
    )
    layers = unet.adapter.layers(unet.original)
    expanded = 4 * sum(layer.weight_parameters for layer in layers)
    assert after - before < 0.1 * expanded


def test_manifest_says_what_a_sampler_needs(dit: Exported, unet: Exported) -> None:
    for exported, largest in ((dit, None), (unet, 63)):
        facts = json.loads((exported.folder / "export.json").read_text())
        stored = {p.key: p.value for p in onnx.load(str(exported.result.path)).metadata_props}
        assert json.loads(stored["compress"]) == facts
        assert facts["largest_batch"] == largest and facts["classes"] == 10
        assert [i["name"] for i in facts["inputs"]] == ["sample", "timestep", "class_labels"]
        assert [i["dtype"] for i in facts["inputs"]] == ["float32", "float32", "int64"]
        scheduler = json.loads((exported.folder / "scheduler_config.json").read_text())
        assert scheduler["prediction_type"] == facts["prediction"]
    assert json.loads((dit.folder / "export.json").read_text())["null_condition"] == {"class_labels": 10}


def test_files_name_nothing_of_the_machine(exported: Exported) -> None:
    content = b"".join(path.read_bytes() for path in sorted(exported.folder.iterdir()))
    for trace in (
        b".py",
        b"site-packages",
        b"stack_trace",
        b"class_hierarchy",
        exported.adapter.source.folder.encode(),
    ):
        assert trace not in content


def test_equal_input_gives_equal_bytes(dit: Exported, tmp_path: Path) -> None:
    messages: list[str] = []
    again = export_denoiser(dit.adapter, dit.model, tmp_path, progress=messages.append)
    digests = [hashlib.sha256(result.path.read_bytes()).hexdigest() for result in (dit.result, again)]
    assert digests[0] == digests[1]
    assert again.bytes == dit.result.bytes == again.path.stat().st_size
    assert messages == ["tracing", "translating to ONNX", "writing"]


def test_large_weights_go_to_a_file_of_their_own(dit: Exported, tmp_path: Path) -> None:
    result = export_denoiser(dit.adapter, dit.model, tmp_path, external_above=1000)
    data = tmp_path / DATA_FILE
    assert result.bytes == result.path.stat().st_size + data.stat().st_size > dit.result.bytes * 0.9
    inputs = dit.adapter.example_inputs(2)
    expected = OnnxDenoiser(dit.folder, threads=1)(*inputs)
    assert torch.equal(OnnxDenoiser(tmp_path, threads=1)(*inputs), expected)


@pytest.mark.parametrize(("arguments", "message"), [({"operators": "own"}, "own"), ({"opset": 20}, "20")])
def test_refuses_what_it_cannot_write(dit: Exported, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_denoiser(dit.adapter, dit.model, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_refuses_training_mode(dit: Exported, tmp_path: Path) -> None:
    model = dit.adapter.load().train()
    with pytest.raises(ExportError, match="training"):
        export_denoiser(dit.adapter, model, tmp_path)


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        export_denoiser(PixelAdapter(tmp_path), Squeezing().eval(), tmp_path / "taken" / "onnx")


def test_a_model_without_our_operators_and_without_scheduler(tmp_path: Path) -> None:
    """Also: axes that are not 1 survive `squeeze`, and a data file of an earlier export goes away."""
    (tmp_path / DATA_FILE).write_bytes(b"left over")
    adapter, model = PixelAdapter(tmp_path), Squeezing().eval()
    result = export_denoiser(adapter, model, tmp_path)
    assert result.functions == () and result.nodes_by_operator == {}
    assert not (tmp_path / DATA_FILE).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "model.onnx"]
    inputs = adapter.example_inputs(3)
    assert torch.allclose(OnnxDenoiser(tmp_path)(*inputs), adapter.denoise(model, *inputs))


def test_a_layer_without_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^layer: weights of 8 bits cannot be folded"):
        export_denoiser(PixelAdapter(tmp_path), Folded().eval(), tmp_path)
    assert list(tmp_path.iterdir()) == []

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.errors import ModelError
from compress.evaluate.size import (
    bits_per_weight,
    bytes_by_class,
    float_bytes,
    onnx_bytes,
    read_header,
    size_bytes,
    size_metrics,
    tensor_class,
    weight_files,
)

NAME = "diffusion_pytorch_model.safetensors"
PACKED = {
    "block.0.to_q.weight_packed": torch.zeros(33, 2, 16, dtype=torch.uint8),  # int4, k = 50 padded to 2 groups of 32
    "block.0.to_q.weight_scale": torch.ones(33, 2, dtype=torch.float16),
    "block.0.to_q.weight_zero_point": torch.zeros(33, 2, dtype=torch.uint8),
    "block.0.to_q.input_scale": torch.ones(20),
    "block.0.to_q.bias": torch.zeros(33, dtype=torch.float16),
    "block.0.norm.weight": torch.ones(31, dtype=torch.float16),
    "out.weight": torch.ones(401, 1),
    "out.bias": torch.zeros(401),
}
ORIGINAL = {
    "block.0.to_q.weight": torch.zeros(33, 50, dtype=torch.bfloat16),
    "block.0.to_q.bias": torch.zeros(33, dtype=torch.bfloat16),
    "positions": torch.zeros(7, dtype=torch.int64),
}


def write(folder: Path, tensors: dict[str, torch.Tensor], name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


def test_classes_add_up_to_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, PACKED)
    classes = bytes_by_class(folder)
    assert sum(classes.values()) == size_bytes(folder) == (folder / NAME).stat().st_size
    header = classes.pop("header")
    assert 8 < header < 2000
    assert classes == {
        "codes": 33 * 2 * 16,
        "scales": 33 * 2 * 2,
        "zero points": 33 * 2,
        "activation scales": 20 * 4,
        "biases": 33 * 2 + 401 * 4,
        "kept": 31 * 2 + 401 * 4,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.weight_codebook", "tables"),
        ("time_embedding.table", "tables"),
        ("a.scale_shift_table", "kept"),
        ("a.low_rank_a", "low rank"),
        ("a.input_zero_point", "activation scales"),
        ("a.bias", "biases"),
        ("bias", "biases"),
        ("a.weight", "kept"),
        ("weight_packed_bias.weight", "kept"),
    ],
)
def test_class_follows_from_the_end_of_the_name(name: str, expected: str) -> None:
    assert tensor_class(name) == expected


def test_original_counts_at_the_width_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, ORIGINAL)
    floats = 33 * 50 + 33
    assert float_bytes(folder) == floats * 4 + 7 * 8
    assert float_bytes(folder, 16) == floats * 2 + 7 * 8


def test_metrics_hold_total_classes_and_both_ratios(tmp_path: Path) -> None:
    compressed, original = write(tmp_path / "c", PACKED), write(tmp_path / "o", ORIGINAL)
    metrics = size_metrics(compressed, original, artefact="checkpoint")
    total = next(m for m in metrics if m.name == "size_bytes" and not m.labels)
    assert total.value == size_bytes(compressed) and total.unit == "bytes"
    assert sum(m.value for m in metrics if "tensor_class" in m.labels) == total.value
    ratios = {m.labels.get("against", ""): m.value for m in metrics if m.name == "size_ratio"}
    assert ratios == {
        "": total.value / float_bytes(original),
        "float16": total.value / float_bytes(original, 16),
    }


def test_bits_per_weight_counts_everything_a_layer_stores_for_its_weights(tmp_path: Path) -> None:
    folder = write(tmp_path, PACKED)
    stored = 33 * 2 * 16 + 33 * 2 * 2 + 33 * 2
    assert bits_per_weight(folder, {"block.0.to_q": 33 * 50}) == pytest.approx(8 * stored / (33 * 50))
    both = bits_per_weight(folder, {"block.0.to_q": 33 * 50, "out": 401})
    assert both == pytest.approx((8 * stored + 32 * 401) / (33 * 50 + 401))
    with pytest.raises(ModelError, match="no stored weights"):
        bits_per_weight(folder, {"block.0.to_q": 33 * 50, "block.7.to_q": 5})
    with pytest.raises(ModelError, match="no stored weights"):
        bits_per_weight(folder, {})


def test_a_pipeline_counts_every_component_once(tmp_path: Path) -> None:
    write(tmp_path / "transformer", ORIGINAL)
    write(tmp_path / "transformer", ORIGINAL, "diffusion_pytorch_model.fp16.safetensors")  # a variant of the same
    write(tmp_path / "text_encoder", ORIGINAL, "model.safetensors")
    (tmp_path / "scheduler").mkdir()
    assert [file.parent.name for file in weight_files(tmp_path)] == ["text_encoder", "transformer"]
    assert float_bytes(tmp_path) == 2 * float_bytes(tmp_path / "transformer")


def test_shards_count_together(tmp_path: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write(tmp_path, {"a.weight": torch.zeros(31, 4)}, names[0])
    write(tmp_path, {"b.weight": torch.zeros(33, 4)}, names[1])
    index = {"weight_map": {"a.weight": names[0], "b.weight": names[1]}}
    (tmp_path / f"{NAME}.index.json").write_text(json.dumps(index))
    assert float_bytes(tmp_path) == 64 * 4 * 4
    assert bytes_by_class(tmp_path)["kept"] == 64 * 4 * 4


def test_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    header = read_header(write(tmp_path, PACKED) / NAME)
    assert set(header.tensors) == set(PACKED)
    assert all(header.tensors[name].elements == tensor.numel() for name, tensor in PACKED.items())
    assert header.tensors["block.0.to_q.weight_scale"] == ("F16", (33, 2), 132)


@pytest.mark.parametrize("damage", ["truncate", "append", "garbage", "empty", "wrong"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path, ORIGINAL) / NAME
    content = path.read_bytes()
    wrong = b'{"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}'
    path.write_bytes(
        {
            "truncate": content[:-1],
            "append": content + b"0",
            "garbage": b"not a safetensors file",
            "empty": b"",
            "wrong": len(wrong).to_bytes(8, "little") + wrong + b"0000",
        }[damage]
    )
    with pytest.raises(ModelError, match=NAME):
        read_header(path)


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        size_bytes(tmp_path)
    with pytest.raises(ModelError, match="no ONNX files"):
        onnx_bytes(tmp_path)


def test_onnx_counts_external_data_once_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    (folder / "transformer").mkdir(parents=True)
    for name, size in (("model.onnx", 401), ("model.onnx.data", 1000), ("model_index.json", 99)):
        (folder / "transformer" / name).write_bytes(b"0" * size)
    assert onnx_bytes(folder) == 1401
    original = write(tmp_path / "original", ORIGINAL)
    metrics = size_metrics(folder, original, artefact="onnx")
    assert [m.name for m in metrics] == ["size_bytes", "size_ratio", "size_ratio"]
    assert math.isclose(metrics[1].value, 1401 / float_bytes(original))

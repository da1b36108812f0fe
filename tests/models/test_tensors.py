import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_dit

from compress.errors import ModelError
from compress.models.tensors import TensorReader, read_tensors


@pytest.fixture(params=["single", "sharded"])
def component(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_dit().half().save_pretrained(tmp_path, max_shard_size="10KB" if request.param == "sharded" else "1GB")
    return tmp_path


def test_reads_every_tensor(component: Path) -> None:
    state = tiny_dit().half().state_dict()
    with read_tensors(component) as reader:
        assert reader.names() == sorted(state)
        for name, tensor in state.items():
            assert reader.shape(name) == tuple(tensor.shape) and reader.dtype(name) == torch.float16
            assert torch.equal(reader.get(name), tensor)


def test_reads_rows(component: Path) -> None:
    name = "transformer_blocks.1.ff.net.0.proj.weight"
    with read_tensors(component) as reader:
        assert torch.equal(reader.rows(name, 3, 34), tiny_dit().half().state_dict()[name][3:34])


def test_reading_after_close_is_an_error(component: Path) -> None:
    reader = read_tensors(component)
    reader.close()
    with pytest.raises(ModelError, match="closed"):
        reader.get("proj_out_1.weight")


def test_an_absent_tensor_is_named(component: Path) -> None:
    with read_tensors(component) as reader, pytest.raises(ModelError, match="'nothing'"):
        reader.get("nothing")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_types_come_from_the_header(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"x": torch.ones(3).to(dtype)}, tmp_path / "model.safetensors")
    with read_tensors(tmp_path) as reader:
        assert reader.dtype("x") == dtype


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({"x": torch.ones(31, 33)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"{path.name}: is truncated"):
        read_tensors(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        TensorReader([tmp_path / "gone.safetensors"])


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        save_file({"x": torch.ones(1)}, file)
    with pytest.raises(ModelError, match="also in"):
        TensorReader(files)


def _two_shards(folder: Path, weight_map: dict[str, str]) -> None:
    for i, name in enumerate("xy", 1):
        save_file({name: torch.ones(1)}, folder / f"model-0000{i}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_the_index_must_agree_with_the_shards(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    _two_shards(tmp_path, {"x": second, "y": first})
    with pytest.raises(ModelError, match="says that"):
        read_tensors(tmp_path)
    _two_shards(tmp_path, {"x": first, "y": second, "z": second})
    with pytest.raises(ModelError, match="'z'"):
        read_tensors(tmp_path)


def test_a_tensor_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    _two_shards(tmp_path, {"x": first, "y": second})
    save_file({"y": torch.ones(1), "extra": torch.ones(1)}, tmp_path / second)
    with pytest.raises(ModelError, match="'extra'"):
        read_tensors(tmp_path)

import json
from pathlib import Path

import pytest
from tiny import tiny_dit

from compress.errors import ModelError
from compress.models.layout import component_files, has_weights, weight_map


def _sharded(folder: Path) -> Path:
    tiny_dit().save_pretrained(folder, max_shard_size="30KB")
    return folder


def test_a_single_file(tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path)
    assert [file.name for file in component_files(tmp_path)] == ["diffusion_pytorch_model.safetensors"]


def test_shards_come_in_order(tmp_path: Path) -> None:
    files = component_files(_sharded(tmp_path))
    assert len(files) >= 3
    assert files == sorted(files)


def test_variants_are_left_alone(tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    assert len(component_files(tmp_path)) == 1


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = component_files(_sharded(tmp_path))
    files[1].unlink()
    with pytest.raises(ModelError, match=files[1].name):
        component_files(tmp_path)


def test_a_superfluous_shard_is_named(tmp_path: Path) -> None:
    _sharded(tmp_path)
    stray = tmp_path / "diffusion_pytorch_model-00009-of-00009.safetensors"
    stray.write_bytes(b"")
    with pytest.raises(ModelError, match=stray.name):
        component_files(tmp_path)


def test_no_weights_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="configuration alone"):
        component_files(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"found diffusion_pytorch_model\.bin"):
        component_files(tmp_path)
    assert not has_weights(tmp_path)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": {"w": "../secret.safetensors"}}])
def test_a_broken_index_is_refused(tmp_path: Path, content: dict[str, object]) -> None:
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=index.name):
        weight_map(index)

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_dit, tiny_dit_pipeline, tiny_unet2d_pipeline

from compress.errors import InputError, ModelError
from compress.models.adapter import ModelSource
from compress.models.loading import build_skeleton, load_denoiser
from compress.models.source import resolve


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return resolve(str(tiny_dit_pipeline(tmp_path)))


def _weights(source: ModelSource) -> Path:
    return Path(source.folder) / source.denoiser / "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_loads_weights_ready_for_inference(source: ModelSource, dtype: str) -> None:
    model = load_denoiser(source, dtype, "cpu")
    expected = tiny_dit().half().state_dict()
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == getattr(torch, dtype) and not parameter.requires_grad
        assert torch.equal(parameter, expected[name].to(parameter.dtype))


def test_unknown_dtype(source: ModelSource) -> None:
    with pytest.raises(InputError, match="int8"):
        load_denoiser(source, "int8", "cpu")


def test_a_missing_tensor_is_an_error(source: ModelSource) -> None:
    tensors = load_file(_weights(source))
    del tensors["transformer_blocks.1.ff.net.2.bias"]
    save_file(tensors, _weights(source))
    with pytest.raises(ModelError, match=r"lack transformer_blocks\.1\.ff\.net\.2\.bias"):
        load_denoiser(source, "float32", "cpu")


def test_an_unexpected_tensor_is_an_error(source: ModelSource) -> None:
    save_file(load_file(_weights(source)) | {"surplus": torch.ones(1)}, _weights(source))
    with pytest.raises(ModelError, match="unexpected surplus"):
        load_denoiser(source, "float32", "cpu")


def test_a_tensor_of_another_shape_is_an_error(source: ModelSource) -> None:
    save_file(load_file(_weights(source)) | {"proj_out_1.bias": torch.ones(33)}, _weights(source))
    with pytest.raises(ModelError, match=r"proj_out_1\.bias"):
        load_denoiser(source, "float32", "cpu")


def test_sharded_weights_load(tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path, max_shard_size="30KB")
    model = load_denoiser(resolve(str(tmp_path)), "float32", "cpu")
    assert torch.equal(model.get_parameter("proj_out_2.weight"), tiny_dit().proj_out_2.weight)


@pytest.mark.parametrize("build", [tiny_dit_pipeline, tiny_unet2d_pipeline])
def test_the_skeleton_has_every_shape_and_no_memory(tmp_path: Path, build: Any) -> None:
    source = resolve(str(build(tmp_path)))
    skeleton, loaded = build_skeleton(source), load_denoiser(source, "float32", "cpu")
    assert {name: t.shape for name, t in skeleton.state_dict().items()} == {
        name: t.shape for name, t in loaded.state_dict().items()
    }
    tensors = [*skeleton.parameters(), *skeleton.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors)
    assert not skeleton.training


def test_a_configuration_that_does_not_fit_is_refused(source: ModelSource) -> None:
    path = Path(source.folder) / "transformer" / "config.json"
    path.write_text(json.dumps(source.config | {"norm_type": "layer_norm"}))
    with pytest.raises(ModelError, match=r"transformer/config\.json: DiTTransformer2DModel refuses"):
        build_skeleton(resolve(source.folder))

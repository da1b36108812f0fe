"""What a checkpoint promises: it loads in diffusers, strictly, and nothing about it is silent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compress.api import load, run
from compress.checkpoint.accounting import PlannedTensor, file_bytes, planned_tensors
from compress.checkpoint.load import read_manifest
from compress.checkpoint.quantization_config import from_config, to_config
from compress.checkpoint.writer import ShardWriter
from compress.errors import CheckpointError, OutputError
from compress.formats import WeightSpec
from compress.quantize.modules import PACKED_NAMES
from compress.quantize.spec import ActivationSpec, LayerSpec

STAGE = {
    "kind": "quantize",
    "weights": {"format": "int4", "granularity": "group", "group": 8},
    "activations": {"format": "int8"},
    "rules": [
        {"role": "modulation", "weights": {"format": "fp8_e4m3"}, "activations": {"format": "fp8_e4m3"}},
        {
            "role": "ff_in",
            "weights": {"format": "fp4_e2m1", "granularity": "group", "group": 8},
            "activations": {"format": "none"},
        },
        {
            "role": "ff_out",
            "weights": {"format": "int4", "symmetric": False},
            "activations": {"format": "int8", "granularity": "tensor", "mode": "static", "symmetric": False},
        },
        {"match": "*.to_q", "weights": {"format": "nf4", "mode": "folded"}},
        {"match": "*.to_v", "weights": {"format": "mxfp4"}},
        {"match": "*.to_out.0", "weights": {"format": "nvfp4", "mode": "folded"}},
        {"role": "in_projection", "keep": True},
    ],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, dit_folder: Path) -> Path:
    """A checkpoint with every kind of layer in it."""
    import yaml

    folder = tmp_path_factory.mktemp("checkpoint")
    recipe = {
        "name": "mixed",
        "model": {"source": str(dit_folder), "device": "cpu"},
        "calibration": {"sampler": {"kind": "ddim", "steps": 2, "guidance_scale": 1.5}, "samples": 4},
        "stages": [STAGE],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run(folder / "recipe.yaml", output=folder / "out")
    return folder / "out" / "checkpoint"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path / "copy")
    return tmp_path / "copy"


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(5, 1, 8, 8, generator=generator),
        "timestep": torch.tensor([0, 10, 400, 800, 999]),
        "class_labels": torch.tensor([0, 1, 5, 9, 10]),
    }


def output_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(), return_dict=False)[0]


def test_a_new_process_gives_the_same_bits(checkpoint: Path, tmp_path: Path) -> None:
    # Setting the number of threads, to whatever it is, changes how MKL divides products: done in both processes alike.
    torch.set_num_threads(torch.get_num_threads())
    save_file({"out": output_of(load(checkpoint))}, tmp_path / "here.safetensors")
    save_file(inputs(), tmp_path / "inputs.safetensors")
    code = f"""
import compress.diffusers, torch
from diffusers import DiTTransformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
torch.set_num_threads({torch.get_num_threads()})
model = DiTTransformer2DModel.from_pretrained({str(checkpoint)!r}, subfolder="transformer")
assert not model.training
with torch.no_grad():
    out = model(**load_file({str(tmp_path / "inputs.safetensors")!r}), return_dict=False)[0]
save_file({{"out": out}}, {str(tmp_path / "there.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    here, there = (load_file(tmp_path / f"{name}.safetensors")["out"] for name in ("here", "there"))
    assert torch.equal(here, there)


def test_the_pipeline_loads_and_samples(checkpoint: Path) -> None:
    code = f"""
import compress.diffusers
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(checkpoint)!r})
images = pipe([1, 2], num_inference_steps=2, output_type="pt").images
assert images.shape == (2, 1, 8, 8), images.shape
print(type(pipe).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "ClassConditionalPixelPipeline"


def test_saving_again_keeps_every_tensor(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint).save_pretrained(tmp_path / "again")
    before = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name].to(before[name].dtype)) for name in before)


def test_scales_keep_their_type_in_a_float16_model(checkpoint: Path) -> None:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(checkpoint, subfolder="transformer", torch_dtype=torch.float16)
    layer = model.transformer_blocks[0].norm1.linear
    assert layer.weight_scale.dtype == torch.float32
    assert layer.bias.dtype == torch.float16


def test_kept_tensors_keep_the_type_of_the_source(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    assert tensors["pos_embed.proj.weight"].dtype == torch.float16
    assert tensors["transformer_blocks.0.attn1.to_q.bias"].dtype == torch.float16
    assert tensors["transformer_blocks.0.attn1.to_q.weight_packed"].dtype == torch.uint8


def test_blocks_and_modes_of_a_format_come_back(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    block = "transformer_blocks.1.attn1"
    assert tensors[f"{block}.to_v.weight_scale"].dtype == torch.uint8
    assert tensors[f"{block}.to_out.0.weight_scale"].dtype == torch.float8_e4m3fn
    assert tensors[f"{block}.to_out.0.weight_scale_factor"].shape == (1,)
    attention = load(checkpoint).get_submodule(block)
    assert [attention.to_q.spec.mode, attention.to_k.spec.mode, attention.to_out[0].spec.mode] == [
        "folded",
        "exact",
        "folded",
    ]
    for name in ("to_q", "to_v", "to_out.0"):
        layer = attention.get_submodule(name)
        parts = {part: tensor for part, tensor in layer.state_dict().items() if part != "bias"}
        assert all(
            torch.equal(tensor.float(), tensors[f"{block}.{name}.{part}"].float()) for part, tensor in parts.items()
        )
        assert all(tensor.dtype == tensors[f"{block}.{name}.{part}"].dtype for part, tensor in parts.items())


def test_the_bytes_of_every_format_are_predicted(checkpoint: Path) -> None:
    path = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    kept = {name: t.dtype for name, t in load_file(path).items() if name.rpartition(".")[2] not in PACKED_NAMES}
    assert file_bytes(planned_tensors(load(checkpoint), kept)) == path.stat().st_size


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_loading_is_strict(copy: Path, change: str) -> None:
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = "transformer_blocks.1.attn1.to_k.weight_scale"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["transformer_blocks.1.attn1.to_k.extra"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:, :1].contiguous()
    save_file(tensors, path)
    expected = {"missing": rf"lacks {name}", "unexpected": "has unexpected", "shape": rf"{name}: shape \(16, 1\)"}
    with pytest.raises(CheckpointError, match=expected[change]) as caught:
        load(copy)
    assert caught.value.exit_code == 2


def test_a_checkpoint_from_a_newer_schema_is_refused(copy: Path) -> None:
    path = copy / "transformer" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["version"] = 99
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"schema 99, this version reads up to 2.*upgrade"):
        load(copy)


def test_without_the_import_diffusers_says_what_is_missing(checkpoint: Path) -> None:
    code = f"""
from diffusers import DiTTransformer2DModel
DiTTransformer2DModel.from_pretrained({str(checkpoint)!r}, subfolder="transformer")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Unknown quantization type, got compress" in done.stderr


def test_manifest_says_where_it_comes_from(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint / "transformer")
    assert manifest["recipe"]["name"] == "mixed"
    assert manifest["sampler"]["steps"] == 2
    assert set(manifest["versions"]) >= {"compress", "torch", "diffusers"}
    assert len(manifest["source_sha256"]) == 64
    assert "/" not in json.dumps(manifest["versions"])


def test_config_groups_round_trip() -> None:
    specs = {
        "a": LayerSpec(WeightSpec("int8", "channel", None), ActivationSpec("int8", "dynamic")),
        "b": LayerSpec(WeightSpec("int4", "group", 32, scale_dtype="float16")),
        "c": LayerSpec(WeightSpec("int8", "channel", None), ActivationSpec("int8", "dynamic")),
        "e": LayerSpec(WeightSpec.natural("nvfp4"), None, "folded"),
        "f": LayerSpec(WeightSpec.natural("nvfp4"), None),
    }
    config = json.loads(json.dumps(to_config(specs, ["d"])))
    assert config["config_groups"]["group_0"]["targets"] == ["a", "c"]
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == 8
    assert config["ignore"] == ["d"]
    assert from_config(config) == specs
    assert [group.get("mode") for group in config["config_groups"].values()] == [None, None, "folded", None]
    config["config_groups"]["group_2"]["mode"] = "fast"
    with pytest.raises(CheckpointError, match=r"mode 'fast', not exact or folded"):
        from_config(config)


def tensors(count: int = 7) -> dict[str, torch.Tensor]:
    return {f"layer.{i}.weight": torch.full((i + 1, 33), float(i)) for i in range(count)}


def test_shards_are_bounded_and_indexed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, shard_bytes=1000) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors()[name])
    assert not list(tmp_path.glob("*.part*"))


MIXED = [torch.uint8, torch.float8_e4m3fn, torch.float16, torch.int8, torch.float32, torch.bfloat16, torch.int64]


@pytest.mark.parametrize("dtypes", [[torch.float32], MIXED])
def test_file_bytes_are_exact(tmp_path: Path, dtypes: list[torch.dtype]) -> None:
    state = {f"a.{'b' * i}.{i}": torch.zeros(i, 5).to(dtypes[i % len(dtypes)]) for i in range(1, 32)}
    state["scalar"] = torch.zeros((), dtype=torch.float32)
    save_file(state, tmp_path / "x.safetensors", metadata={"format": "pt"})
    planned = [PlannedTensor(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
    assert file_bytes(planned) == (tmp_path / "x.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), r"the disk is full \(\d+ MB free\)"),
        (SafetensorError("Error while serializing: I/O error: No space left (os error 28)"), "the disk is full"),
        (PermissionError(13, "Permission denied"), "cannot write: Permission denied"),
    ],
)
def test_write_errors_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("compress.checkpoint.writer.save_file", fail)
    with pytest.raises(OutputError, match=sentence), ShardWriter(tmp_path) as writer:
        writer.add("a", torch.zeros(3))

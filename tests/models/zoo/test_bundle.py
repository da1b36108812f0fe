import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file
from tiny import tiny_dit, tiny_unet2d

from compress.models.zoo import digits_unet
from compress.models.zoo.bundle import null_class, write_bundled_model
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG, share_embedder


def test_the_layout(tmp_path: Path) -> None:
    assert write_bundled_model(tiny_dit(), tmp_path / "m", SCHEDULER_CONFIG) == tmp_path / "m"
    files = sorted(str(path.relative_to(tmp_path / "m")) for path in (tmp_path / "m").rglob("*") if path.is_file())
    assert files == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["_class_name"] == "ClassConditionalPixelPipeline" and index["null_class"] == 10
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]


def test_the_scheduler_keeps_its_settings(tmp_path: Path) -> None:
    config = DDIMScheduler.from_pretrained(
        write_bundled_model(tiny_dit(), tmp_path, SCHEDULER_CONFIG) / "scheduler"
    ).config
    assert {key: config[key] for key in SCHEDULER_CONFIG} == SCHEDULER_CONFIG


def test_shared_embedders_become_identical_copies(tmp_path: Path) -> None:
    model = tiny_dit()
    share_embedder(model)
    write_bundled_model(model, tmp_path, SCHEDULER_CONFIG)
    tensors = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    name = "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_1.weight"
    assert torch.equal(tensors[name.format(0)], tensors[name.format(1)])
    again = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer")
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([5, 900]), torch.tensor([0, 10])
    torch.testing.assert_close(again(x, t, y).sample, model(x, t, y).sample, rtol=1e-2, atol=1e-2)


def test_the_model_in_memory_stays_as_it_was(tmp_path: Path) -> None:
    model = tiny_dit()
    write_bundled_model(model, tmp_path, SCHEDULER_CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_dit().parameters(), strict=True))


def test_null_classes(tmp_path: Path) -> None:
    assert null_class(tiny_dit()) == 10 == null_class(tiny_unet2d())
    assert null_class(tiny_unet2d(classes=None)) is None
    write_bundled_model(tiny_unet2d(classes=None), tmp_path, SCHEDULER_CONFIG)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline" and "null_class" not in index


def test_an_unconditional_bundle_loads_in_plain_diffusers(tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    write_bundled_model(tiny_unet2d(classes=None), tmp_path, SCHEDULER_CONFIG)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=1, num_inference_steps=2, output_type="np").images.shape[:3] == (1, 8, 8)


def test_the_unet_that_ships_keeps_its_null_class_in_the_last_row(tmp_path: Path) -> None:
    write_bundled_model(digits_unet.build(0), tmp_path, digits_unet.SCHEDULER_CONFIG)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["null_class"] == digits_unet.NULL_CLASS and index["unet"] == ["diffusers", "UNet2DModel"]
    table = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")["class_embedding.weight"]
    assert len(table) == digits_unet.CLASSES + 1

import pickle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny import tiny_dit, tiny_dit_pipeline, tiny_unet2d_pipeline

from compress.errors import InputError
from compress.models.pipelines import pixel_pipeline_class, register_pipelines, step_arguments
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG

LABELS = [3, 7]


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    return _load(tiny_dit_pipeline(tmp_path))


def _load(folder: Path) -> Any:
    register_pipelines()
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _noise() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def test_from_pretrained_finds_the_class(pipeline: Any) -> None:
    assert type(pipeline) is pixel_pipeline_class()
    assert pipeline.config.null_class == 10 and pipeline.unet is None


def test_output_types(pipeline: Any) -> None:
    arguments = {"class_labels": LABELS, "num_inference_steps": 2, "latents": _noise()}
    tensors = pipeline(**arguments, output_type="pt").images
    arrays = pipeline(**arguments, output_type="np", return_dict=False)[0]
    pictures = pipeline(**arguments).images
    assert tensors.shape == (2, 1, 8, 8) and 0 <= float(tensors.min()) <= float(tensors.max()) <= 1
    np.testing.assert_array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pictures[1]), (arrays[1, ..., 0] * 255).round().astype(np.uint8))


def test_it_is_the_sampling_loop_written_out(pipeline: Any) -> None:
    """DDIM with guidance, two separate forwards a step, against the batch doubled by the pipeline."""
    scheduler = diffusers.DDIMScheduler(**SCHEDULER_CONFIG)
    scheduler.set_timesteps(4)
    sample, labels, null = _noise(), torch.tensor(LABELS), torch.tensor([10, 10])
    model = pipeline.transformer
    with torch.no_grad():
        for t in scheduler.timesteps:
            conditional, unconditional = (model(sample, t.expand(2), y).sample for y in (labels, null))
            guided = unconditional + 2.5 * (conditional - unconditional)
            sample = scheduler.step(guided, t, sample).prev_sample
    expected = (sample / 2 + 0.5).clamp(0, 1)
    images = pipeline(LABELS, guidance_scale=2.5, num_inference_steps=4, latents=_noise(), output_type="pt").images
    torch.testing.assert_close(images, expected)


def test_guidance_of_one_needs_no_null_class(pipeline: Any) -> None:
    with_null = pipeline(LABELS, 1.0, 2, latents=_noise(), output_type="pt").images
    pipeline.register_to_config(null_class=None)
    torch.testing.assert_close(pipeline(LABELS, 1.0, 2, latents=_noise(), output_type="pt").images, with_null)
    with pytest.raises(InputError, match="no null class"):
        pipeline(LABELS, 1.5, 2)


def test_generators_make_it_repeat(pipeline: Any) -> None:
    def images(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipeline(LABELS, num_inference_steps=3, generator=generator, eta=1.0, output_type="pt").images

    assert torch.equal(images(1), images(1)) and not torch.equal(images(1), images(2))


def test_a_generator_for_each_image(pipeline: Any) -> None:
    def images(labels: list[int], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(labels, num_inference_steps=2, generator=generators, output_type="pt").images

    torch.testing.assert_close(images([3, 7], [1, 2])[1:], images([7], [2]))


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ],
)
def test_any_scheduler(pipeline: Any, name: str) -> None:
    pipeline.scheduler = getattr(diffusers, name)(num_train_timesteps=1000)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(LABELS, num_inference_steps=5, generator=generator, output_type="pt").images
    assert images.shape == (2, 1, 8, 8) and bool(images.isfinite().all())


def test_scheduler_scaling_is_applied(pipeline: Any) -> None:
    """Euler in sigma space and DDIM solve the same ODE: from the same noise they end near each other, if scaled."""
    images = {}
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        config = {"beta_schedule": "linear", "timestep_spacing": "leading"}
        config |= {"clip_sample": False} if name == "DDIMScheduler" else {}
        pipeline.scheduler = getattr(diffusers, name)(**config)
        noise = _noise().double().to(torch.float32)
        images[name] = pipeline(LABELS, num_inference_steps=200, latents=noise, output_type="pt").images
    assert float((images["DDIMScheduler"] - images["EulerDiscreteScheduler"]).abs().mean()) < 0.05


def test_learned_sigmas_are_dropped() -> None:
    pipeline = pixel_pipeline_class()(
        diffusers.DDIMScheduler(), transformer=tiny_dit(learned_sigma=True), null_class=10
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(LABELS, num_inference_steps=2, output_type="pt").images.shape == (2, 1, 8, 8)


def test_a_unet_works_as_well(tmp_path: Path) -> None:
    pipeline = _load(tiny_unet2d_pipeline(tmp_path))
    assert pipeline.transformer is None
    first, second = (
        pipeline([y], num_inference_steps=2, latents=_noise()[:1], output_type="pt").images for y in (1, 2)
    )
    assert not torch.equal(first, second)


def test_save_and_load_again(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "copy")
    again = _load(tmp_path / "copy")
    arguments = {"class_labels": LABELS, "num_inference_steps": 2, "output_type": "pt"}
    torch.testing.assert_close(
        again(**arguments, latents=_noise()).images, pipeline(**arguments, latents=_noise()).images
    )
    assert again.config.null_class == 10


def test_wrong_arguments_are_named(pipeline: Any) -> None:
    with pytest.raises(InputError, match="output_type"):
        pipeline(LABELS, output_type="jpeg")
    with pytest.raises(InputError, match=r"\(2, 1, 8, 8\) fits"):
        pipeline(LABELS, latents=torch.zeros(3, 1, 8, 8))
    with pytest.raises(InputError, match="not both"):
        pixel_pipeline_class()(diffusers.DDIMScheduler())


def test_the_class_can_be_pickled_and_is_made_once() -> None:
    assert pickle.loads(pickle.dumps(pixel_pipeline_class())) is pixel_pipeline_class()


def test_step_arguments_follow_the_signature() -> None:
    candidates = {"generator": None, "eta": 0.0}
    assert set(step_arguments(diffusers.DDIMScheduler(), **candidates)) == {"generator", "eta"}
    assert set(step_arguments(diffusers.PNDMScheduler(), **candidates)) == set()

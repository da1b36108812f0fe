import math

import pytest
import torch

from compress.errors import ModelError
from compress.models.noise import NoiseSchedule
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG

SCHEDULES = {
    "linear": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "scaled_linear": {
        "_class_name": "PNDMScheduler",
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
    },
    "cosine": {"_class_name": "DDIMScheduler"} | SCHEDULER_CONFIG,
    "short": {"_class_name": "EulerDiscreteScheduler", "num_train_timesteps": 31, "prediction_type": "sample"},
    "zero_snr": {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler_config(SCHEDULES[request.param])


def test_timestep_inverts_sigma(schedule: NoiseSchedule) -> None:
    last = schedule.train_timesteps - 1
    t = torch.linspace(0, last, 401)
    torch.testing.assert_close(schedule.timestep(schedule.sigma(t)), t, rtol=1e-5, atol=2e-3)


def test_whole_timesteps_come_back_exactly_enough_to_round(schedule: NoiseSchedule) -> None:
    t = torch.arange(schedule.train_timesteps)
    assert torch.equal(schedule.timestep(schedule.sigma(t)).round().long(), t)


def test_sigma_rises_with_t(schedule: NoiseSchedule) -> None:
    sigma = schedule.sigma(torch.linspace(0, schedule.train_timesteps - 1, 997))
    assert bool((sigma.diff() > 0).all()) and bool(sigma.isfinite().all())


def test_sigma_of_trained_timesteps_is_the_schedulers() -> None:
    schedule = NoiseSchedule.from_scheduler_config(SCHEDULES["linear"])
    assert schedule.alphas_cumprod is not None
    abar = schedule.alphas_cumprod[[0, 1, 500, 999]]
    expected = ((1 - abar) / abar).sqrt().float()
    torch.testing.assert_close(schedule.sigma(torch.tensor([0, 1, 500, 999])), expected)


def test_fractional_timesteps_interpolate_log_sigma() -> None:
    schedule = NoiseSchedule.from_scheduler_config(SCHEDULES["linear"])
    low, middle, high = schedule.sigma(torch.tensor([400.0, 400.5, 401.0]))
    assert float(middle) == pytest.approx(math.sqrt(float(low * high)), rel=1e-6)


def test_beyond_the_trained_range_is_clamped() -> None:
    schedule = NoiseSchedule.from_scheduler_config(SCHEDULES["cosine"])
    assert torch.equal(schedule.sigma(torch.tensor([-5.0, 2000.0])), schedule.sigma(torch.tensor([0.0, 999.0])))
    assert schedule.timestep(torch.tensor([0.0, math.inf])).tolist() == [0.0, 999.0]


def test_flow_sigma_ignores_the_shift_and_is_infinite_at_pure_noise() -> None:
    schedule = NoiseSchedule.from_scheduler_config(SCHEDULES["flow"])
    assert schedule.prediction == "flow" and schedule.alphas_cumprod is None
    sigma = schedule.sigma(torch.tensor([0.0, 500.0, 800.0, 1000.0]))
    torch.testing.assert_close(sigma, torch.tensor([0.0, 1.0, 4.0, math.inf]))
    torch.testing.assert_close(schedule.timestep(sigma), torch.tensor([0.0, 500.0, 800.0, 1000.0]))


def test_flow_is_also_told_by_the_prediction_type() -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}
    assert NoiseSchedule.from_scheduler_config(config).prediction == "flow"


def _model_output(schedule: NoiseSchedule, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What a perfect model of this kind answers."""
    signal, sigma = (scale.reshape(-1, 1, 1, 1) for scale in schedule.scales(t))
    return {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": signal * noise - sigma * x0,
        "flow": noise - x0,
    }[schedule.prediction]


def test_to_epsilon_recovers_the_noise(schedule: NoiseSchedule) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([1.0, 7.5, 20.0])
    x0, noise = torch.randn(2, 3, 1, 5, 5, generator=generator)
    signal, sigma = (scale.reshape(-1, 1, 1, 1) for scale in schedule.scales(t))
    sample = signal * x0 + sigma * noise
    epsilon = schedule.to_epsilon(_model_output(schedule, x0, noise, t), sample, t)
    torch.testing.assert_close(epsilon, noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_conversions_agree_with_diffusers(prediction: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    schedule = NoiseSchedule.from_scheduler_config(dict(scheduler.config) | {"_class_name": "DDIMScheduler"})
    output, sample = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(1000)
    step = scheduler.step(output, 500, sample)
    abar = scheduler.alphas_cumprod[500]
    epsilon = schedule.to_epsilon(output, sample, torch.tensor([500]))
    torch.testing.assert_close((sample - abar.sqrt() * step.pred_original_sample) / (1 - abar).sqrt(), epsilon)


def test_scales_are_variance_preserving() -> None:
    signal, noise = NoiseSchedule.from_scheduler_config(SCHEDULES["cosine"]).scales(torch.linspace(0, 999, 33))
    torch.testing.assert_close(signal.square() + noise.square(), torch.ones(33))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float32, torch.float64])
def test_double_precision_stays_double_all_else_is_single(dtype: torch.dtype) -> None:
    schedule = NoiseSchedule.from_scheduler_config(SCHEDULES["linear"])
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert schedule.sigma(torch.tensor([3], dtype=dtype)).dtype == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "no cumulative alphas"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "prediction type"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.0, 0.1]}, "do not decrease"),
    ],
)
def test_unusable_schedulers_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        NoiseSchedule.from_scheduler_config(config)

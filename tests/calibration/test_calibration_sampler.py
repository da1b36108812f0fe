from __future__ import annotations

import pytest
import torch
from calibration_fakes import FLOW_CONFIG, SHAPE, VP_CONFIG, FakeAdapter
from torch import Tensor

from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.sampler import (
    Call,
    Draw,
    Sampler,
    call_timesteps,
    denoise_with,
    initial_noise,
    make_scheduler,
    sample,
    sample_batches,
    sample_generators,
    stream_seed,
)
from compress.calibration.schedulers import KINDS
from compress.errors import RecipeError
from compress.models.adapter import Condition

FLOW_KINDS = [kind for kind in KINDS if kind.startswith("flow")]
VP_KINDS = [kind for kind in KINDS if kind not in FLOW_KINDS]
STOCHASTIC = ["ddpm", "euler_ancestral", "kdpm2_ancestral", "dpmpp_2m_sde", "sa_solver", "lcm", "tcd"]
LABELS = torch.tensor([0, 3, 1])


def _config(kind: str) -> dict[str, object]:
    return FLOW_CONFIG if kind in FLOW_KINDS else VP_CONFIG


def _sampled(kind: str, config: dict[str, object], steps: int = 12, guidance: float = 1.0) -> tuple[Tensor, Tensor]:
    """What the perfect denoiser gives, and what it should give."""
    adapter = FakeAdapter(config)
    model = adapter.load()
    settings = Sampler(kind=kind, steps=steps, guidance_scale=guidance)
    condition = adapter.class_condition(LABELS)
    noise = initial_noise(SHAPE, 1, range(3))
    result = sample(
        denoise_with(adapter, model),
        make_scheduler(settings, config),
        settings,
        noise,
        condition,
        adapter.null_condition(condition),
        generators=sample_generators(1, range(3)),
    )
    targets = model.get_buffer("targets")
    return result, targets[-1] + guidance * (targets[LABELS] - targets[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_perfect_denoiser_ends_at_its_target(kind: str) -> None:
    result, target = _sampled(kind, _config(kind))
    # These stop at the smallest trained noise level (0.006) instead of zero, as published.
    stops_early = kind in ("pndm", "deis", "sa_solver", "tcd")
    assert torch.allclose(result, target, atol=0.03 if stops_early else 0.01)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["ddim", "dpmpp_2m", "euler", "unipc"])
def test_prediction_types_come_from_the_model(kind: str, prediction: str) -> None:
    result, target = _sampled(kind, VP_CONFIG | {"prediction_type": prediction})
    assert torch.allclose(result, target, atol=0.01)


@pytest.mark.parametrize("kind", ["dpmpp_2m", "unipc"])
def test_multistep_solvers_run_flow_models(kind: str) -> None:
    result, target = _sampled(kind, FLOW_CONFIG, steps=30)
    assert torch.allclose(result, target, atol=0.02)


def test_flow_schedulers_take_the_shift_of_a_flow_model_saved_with_a_solver() -> None:
    config = {
        "_class_name": "DPMSolverMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    }
    settings = Sampler(kind="flow_match_euler", steps=5)
    expected = call_timesteps(make_scheduler(settings, FLOW_CONFIG), settings)
    assert call_timesteps(make_scheduler(settings, config), settings) == expected
    with pytest.raises(RecipeError, match="this is a flow model"):
        make_scheduler(Sampler(kind="ddim"), config)


def test_guidance_extrapolates_between_the_halves() -> None:
    # The guided prediction of a point model is that of the extrapolated point, so the answer stays exact.
    result, target = _sampled("ddim", VP_CONFIG, guidance=2.5)
    assert torch.allclose(result, target, atol=0.01)


def test_both_halves_run_in_one_batch_and_are_reported() -> None:
    sizes: list[int] = []
    calls: list[Call] = []
    adapter = FakeAdapter()
    model = adapter.load()

    def denoise(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        sizes.append(len(x))
        assert t.dtype == torch.float32
        assert t.shape == (len(x),)
        return adapter.denoise(model, x, t, condition)

    settings = Sampler(kind="euler", steps=3, guidance_scale=3.0)
    condition = adapter.class_condition(LABELS)
    scheduler = make_scheduler(settings, VP_CONFIG)
    null = adapter.null_condition(condition)
    sample(denoise, scheduler, settings, initial_noise(SHAPE, 0, range(3)), condition, null, on_call=calls.append)
    assert sizes == [6, 6, 6]
    assert [call.index for call in calls] == [0, 1, 2]
    assert [call.t for call in calls] == call_timesteps(scheduler, settings)
    for call in calls:
        t = torch.full((3,), call.t)
        assert call.output_null is not None
        assert null is not None
        assert torch.allclose(call.output_cond, adapter.denoise(model, call.sample, t, condition), atol=1e-6)
        assert torch.allclose(call.output_null, adapter.denoise(model, call.sample, t, null), atol=1e-6)
    # Euler keeps x = x0 + sigma * e; what the model sees is scaled back to unit variance.
    assert torch.allclose(calls[0].sample, initial_noise(SHAPE, 0, range(3)), atol=1e-6)


def test_without_guidance_only_one_half_runs() -> None:
    adapter = FakeAdapter()
    calls: list[Call] = []
    settings = Sampler(steps=2)
    condition = adapter.class_condition(LABELS)
    denoise = denoise_with(adapter, adapter.load())
    scheduler = make_scheduler(settings, VP_CONFIG)
    sample(denoise, scheduler, settings, initial_noise(SHAPE, 0, range(3)), condition, condition, on_call=calls.append)
    assert len(calls) == 2
    assert all(call.output_null is None for call in calls)


def test_guidance_without_a_null_half_is_refused() -> None:
    adapter = FakeAdapter(null=False)
    settings = Sampler(steps=2, guidance_scale=2.0)
    noise = initial_noise(SHAPE, 0, range(3))
    with pytest.raises(RecipeError, match="guidance_scale: 1"):
        sample(
            denoise_with(adapter, adapter.load()), make_scheduler(settings, VP_CONFIG), settings, noise, {"a": LABELS}
        )


@pytest.mark.parametrize("kind", ["ddim", "heun", *STOCHASTIC])
def test_batch_size_changes_nothing(kind: str) -> None:
    adapter = FakeAdapter()
    settings = Sampler(kind=kind, steps=6, guidance_scale=1.5)
    conditions = resolve_conditions(ClassConditions(), adapter)
    scheduler = make_scheduler(settings, VP_CONFIG)
    # A perfect model of one point forgets all noise; this one keeps some of it.
    denoise = denoise_with(adapter, adapter.load())

    def blurred(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return 0.8 * denoise(x, t, condition)

    results = [
        sample_batches(blurred, scheduler, settings, conditions, Draw(5, SHAPE, seed=3, batch_size=size))
        for size in (1, 2, 5)
    ]
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[0], results[2], atol=1e-5)
    tail = sample_batches(blurred, scheduler, settings, conditions, Draw(2, SHAPE, seed=3, first=3))
    assert torch.allclose(results[0][3:], tail, atol=1e-5)
    other = sample_batches(blurred, scheduler, settings, conditions, Draw(5, SHAPE, seed=4, batch_size=5))
    assert not torch.allclose(results[0], other, atol=1e-3)


@pytest.mark.parametrize("kind", [*STOCHASTIC, "ddim"])
def test_no_ambient_random_state(kind: str) -> None:
    adapter = FakeAdapter()
    settings = Sampler(kind=kind, steps=4)
    scheduler, noise = make_scheduler(settings, VP_CONFIG), initial_noise(SHAPE, 0, range(3))
    inputs = (denoise_with(adapter, adapter.load()), scheduler, settings, noise, adapter.class_condition(LABELS))
    before = torch.random.get_rng_state()
    assert torch.equal(sample(*inputs), sample(*inputs))
    drawn = [sample(*inputs, generators=sample_generators(0, range(3))) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(before, torch.random.get_rng_state())


def test_sampling_leaves_the_scheduler_alone() -> None:
    settings = Sampler(kind="dpmpp_2m", steps=4)
    scheduler = make_scheduler(settings, VP_CONFIG)
    before = repr(vars(scheduler))
    adapter = FakeAdapter()
    condition = adapter.class_condition(LABELS)
    sample(denoise_with(adapter, adapter.load()), scheduler, settings, initial_noise(SHAPE, 0, range(3)), condition)
    assert repr(vars(scheduler)) == before


@pytest.mark.parametrize(("kind", "calls"), [("ddim", 7), ("heun", 13), ("pndm", 8), ("unipc", 7)])
def test_some_schedulers_call_the_model_more_often(kind: str, calls: int) -> None:
    config = VP_CONFIG | {"skip_prk_steps": True}
    settings = Sampler(kind=kind, steps=7)
    assert len(call_timesteps(make_scheduler(settings, config), settings)) == calls


def test_initial_noise_is_keyed_by_seed_and_index() -> None:
    noise = initial_noise(SHAPE, 7, range(401))
    assert torch.equal(noise[33:35], initial_noise(SHAPE, 7, [33, 34]))
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    assert not torch.equal(noise, initial_noise(SHAPE, 8, range(401)))
    assert len(initial_noise(SHAPE, 7, [])) == 0


def test_no_two_samples_share_a_seed() -> None:
    seeds = {stream_seed(3, "noise", i) for i in range(20_000)}
    assert len(seeds) == 20_000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert stream_seed(3, "noise", 5) != stream_seed(3, "steps", 5)
    # Another value here would change every published result.
    items = [(0, "noise", 0), (0, "noise", 1), (7, "steps", 401)]
    assert [stream_seed(*item) for item in items] == [2916330406, 4238181137, 1091781943]


def test_a_full_class_name_is_a_kind() -> None:
    scheduler = make_scheduler(Sampler(kind="DDIMParallelScheduler", steps=3), VP_CONFIG)
    assert type(scheduler).__name__ == "DDIMParallelScheduler"
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("dimm", VP_CONFIG, "did you mean `ddim`"),
        ("DDIMShceduler", VP_CONFIG, "did you mean `DDIMScheduler`"),
        ("DiTPipeline", VP_CONFIG, "unknown sampler"),
        ("ddim", FLOW_CONFIG, "this is a flow model"),
        ("flow_match_euler", VP_CONFIG, "for flow models"),
        ("EDMEulerScheduler", VP_CONFIG, "neither variance-preserving nor flow"),
        ("DDIMInverseScheduler", VP_CONFIG, "from image to noise"),
        ("CogVideoXDPMScheduler", VP_CONFIG, "old_pred_original_sample"),
        ("DPMSolverSDEScheduler", VP_CONFIG, "torchsde|noise path"),
        ("AmusedScheduler", VP_CONFIG, "cannot be built"),
        ("ddim", {}, "no scheduler configuration"),
        ("flow_match_euler", FLOW_CONFIG | {"use_dynamic_shifting": True}, "`mu` must be passed"),
    ],
)
def test_unfit_schedulers_are_refused(kind: str, config: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_scheduler(Sampler(kind=kind, steps=4), config)


def test_too_many_steps_and_misplaced_mu_are_refused() -> None:
    with pytest.raises(RecipeError, match="refuses 1001 steps"):
        make_scheduler(Sampler(steps=1001), VP_CONFIG)
    with pytest.raises(RecipeError, match="takes no `mu`"):
        make_scheduler(Sampler(mu=1.0), VP_CONFIG)
    settings = Sampler(kind="flow_match_euler", steps=3, mu=1.15)
    shifted = make_scheduler(settings, FLOW_CONFIG | {"use_dynamic_shifting": True})
    assert call_timesteps(shifted, settings)[1] > 500


def test_a_learned_variance_falls_back_to_the_fixed_one() -> None:
    scheduler = make_scheduler(Sampler(kind="ddpm", steps=3), VP_CONFIG | {"variance_type": "learned_range"})
    assert scheduler.config.variance_type == "fixed_small"


def test_settings_describe_themselves() -> None:
    properties = Sampler.model_json_schema()["properties"]
    assert all(field["description"] for field in properties.values())
    assert "dpmpp_2m" in properties["kind"]["description"]
    with pytest.raises(ValueError, match="extra"):
        Sampler.model_validate({"kind": "ddim", "step": 3})
    with pytest.raises(ValueError, match="greater"):
        Sampler(steps=0)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from calibration_fakes import CLASSES, FLOW_CONFIG, SHAPE, VP_CONFIG, FakeAdapter, TextFakeAdapter
from torch import Tensor

from compress.calibration.chunks import load_chunk
from compress.calibration.conditions import ClassConditions, NoConditions, PromptConditions, resolve_conditions
from compress.calibration.policies import (
    AllTimesteps,
    BandTimesteps,
    NormalTimesteps,
    RandomTimesteps,
    SingleTimestep,
    TimestepPolicy,
    UniformTimesteps,
)
from compress.calibration.sampler import (
    Call,
    Sampler,
    denoise_with,
    initial_noise,
    make_scheduler,
    sample,
    sample_generators,
)
from compress.calibration.spec import calibrated_timesteps
from compress.calibration.store import even_quotas
from compress.calibration.trajectory import Record, Trajectory, TrajectorySpec, log_trajectory, spec_hash
from compress.errors import MemoryBudgetError, OutputError, RecipeError, RunError
from compress.files import file_sha256
from compress.models.adapter import Condition

ADAPTER = FakeAdapter()
SPEC = TrajectorySpec(
    sampler=Sampler(kind="euler_ancestral", steps=5, guidance_scale=1.5),
    scheduler_config=VP_CONFIG,
    conditions=resolve_conditions(ClassConditions(), ADAPTER),
    timesteps=UniformTimesteps(count=3),
    samples=7,
    batch_size=3,
    model_hashes={"model.safetensors": "0" * 64},
)


def _log(folder: Path, spec: TrajectorySpec = SPEC, adapter: FakeAdapter = ADAPTER) -> Trajectory:
    return log_trajectory(adapter, adapter.load(), spec, folder)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def _join(trajectory: Trajectory, size: int = 4, *, halves: bool = True) -> Record:
    batches = list(trajectory.batches(size, halves=halves))
    assert all(len(batch.t) <= size for batch in batches)
    return Record(
        torch.cat([batch.sample for batch in batches]),
        torch.cat([batch.t for batch in batches]),
        torch.cat([batch.sigma for batch in batches]),
        {"class_labels": torch.cat([batch.condition["class_labels"] for batch in batches])},
        torch.cat([batch.half for batch in batches]),
        torch.cat([batch.image for batch in batches]),
    )


def test_replaying_the_sampler_gives_every_stored_input_bit_for_bit(tmp_path: Path) -> None:
    trajectory = _log(tmp_path)
    calls: list[tuple[int, Call]] = []
    denoise, scheduler = denoise_with(ADAPTER, ADAPTER.load()), make_scheduler(SPEC.sampler, VP_CONFIG)
    for first in (0, 3, 6):
        indices = range(first, min(first + 3, 7))
        inputs = (denoise, scheduler, SPEC.sampler, initial_noise(SHAPE, 0, indices), *SPEC.conditions(indices))
        seen: list[Call] = []
        sample(*inputs, generators=sample_generators(0, indices), on_call=seen.append)
        calls += [(first, call) for call in seen]
    chosen = [(first, call) for first, call in calls if call.index in (0, 2, 4)]
    expected = torch.cat([call.sample for _, call in chosen])
    record = _join(trajectory, halves=False)
    assert torch.equal(record.sample, expected)
    assert record.t.tolist() == [call.t for _, call in chosen for _ in call.sample]
    assert torch.equal(record.sigma, ADAPTER.noise_schedule().sigma(record.t))
    labels = [(first + i) % CLASSES for first, call in chosen for i in range(len(call.sample))]
    assert record.condition["class_labels"].tolist() == labels
    assert not record.half.any()


@pytest.mark.parametrize("pairing", ["paper", "compat"])
def test_normal_timesteps_pair_samples_of_the_replayed_sampler(
    pairing: Literal["paper", "compat"], tmp_path: Path
) -> None:
    """Every stored x is, bit for bit, what the sampler saw: at its t, or (as the released script has it) at T - t."""
    policy = NormalTimesteps(count=5, pairing=pairing)
    spec = replace(SPEC, sampler=Sampler(steps=20, guidance_scale=1.5), timesteps=policy)
    trajectory = _log(tmp_path, spec)
    record = _join(trajectory, halves=False)
    denoise, scheduler = denoise_with(ADAPTER, ADAPTER.load()), make_scheduler(spec.sampler, VP_CONFIG)
    seen: dict[tuple[int, float], Tensor] = {}
    for first in (0, 3, 6):
        indices = range(first, min(first + 3, 7))

        def keep(call: Call, indices: range = indices) -> None:
            seen.update({(image, call.t): x for image, x in zip(indices, call.sample.clone(), strict=True)})

        inputs = (denoise, scheduler, spec.sampler, initial_noise(SHAPE, 0, indices), *spec.conditions(indices))
        sample(*inputs, generators=sample_generators(0, indices), on_call=keep)
    levels = sorted({t for _, t in seen}, reverse=True)  # of two equally near, the noisier
    wanted = record.t if pairing == "paper" else 1000 - record.t
    true_t = [min(levels, key=lambda level: abs(level - t)) for t in wanted.tolist()]
    assert len(record.t) == 35
    for x, image, t in zip(record.sample, record.image.tolist(), true_t, strict=True):
        assert torch.equal(x, seen[image, t])
    # The noise level is that of the sample, not that of the timestep which goes with it.
    assert torch.equal(record.sigma, ADAPTER.noise_schedule().sigma(torch.tensor(true_t)))
    both = _join(trajectory)
    assert torch.equal(both.t[0::2], both.t[1::2])
    assert both.half.tolist() == [0, 1] * 35


@pytest.mark.parametrize(
    "policy",
    [NormalTimesteps(count=2), RandomTimesteps(count=3), SingleTimestep()],
)
def test_calibrated_timesteps_are_those_that_are_stored(policy: TimestepPolicy, tmp_path: Path) -> None:
    spec = replace(SPEC, sampler=Sampler(steps=20), timesteps=policy)
    stored = _join(_log(tmp_path, spec)).t
    assert calibrated_timesteps(ADAPTER, spec) == tuple(sorted(set(stored.tolist())))


def test_mispaired_timesteps_are_no_set_to_keep_scales_for() -> None:
    spec = replace(SPEC, timesteps=NormalTimesteps(count=2, pairing="compat"))
    with pytest.raises(RecipeError, match="belong to other samples"):
        calibrated_timesteps(ADAPTER, spec)


def test_random_timesteps_are_the_same_for_every_sample(tmp_path: Path) -> None:
    spec = replace(SPEC, sampler=Sampler(steps=20), timesteps=RandomTimesteps(count=4))
    record = _join(_log(tmp_path / "a", spec))
    by_image = {image: sorted(record.t[record.image == image].tolist()) for image in range(7)}
    assert len(set(map(tuple, by_image.values()))) == 1
    assert len(by_image[0]) == 4
    other = _join(_log(tmp_path / "b", replace(spec, seed=1)))
    assert sorted(set(other.t.tolist())) != by_image[0]


def test_both_halves_follow_each_other(tmp_path: Path) -> None:
    trajectory = _log(tmp_path)
    assert (trajectory.rows, len(trajectory), trajectory.samples, trajectory.halves) == (21, 42, 7, 2)
    record = _join(trajectory, size=5)
    assert record.half.tolist() == [0, 1] * 21
    assert torch.equal(record.sample[0::2], record.sample[1::2])
    assert torch.equal(record.t[0::2], record.t[1::2])
    labels = record.condition["class_labels"]
    assert torch.equal(labels[0::2], _join(trajectory, halves=False).condition["class_labels"])
    assert (labels[1::2] == CLASSES).all()


def test_a_sample_is_stored_once_for_both_halves(tmp_path: Path) -> None:
    trajectory = _log(tmp_path)
    chunk = load_chunk(tmp_path / trajectory.chunks[0].file)
    assert chunk.sample.shape == (9, *SHAPE)
    assert chunk.condition["class_labels"].shape == (3,)
    assert chunk.null["class_labels"].shape == (1,)
    assert chunk.call.tolist() == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert chunk.index.tolist() == [0, 1, 2] * 3


def test_without_guidance_there_is_one_half(tmp_path: Path) -> None:
    spec = replace(SPEC, sampler=Sampler(steps=4), timesteps=AllTimesteps())
    trajectory = _log(tmp_path, spec)
    assert (len(trajectory), trajectory.halves) == (28, 1)
    assert not _join(trajectory).half.any()


def test_unconditional_and_flow_models(tmp_path: Path) -> None:
    adapter = FakeAdapter(FLOW_CONFIG, classes=None)
    spec = replace(
        SPEC,
        sampler=Sampler(kind="flow_match_euler", steps=4),
        scheduler_config=FLOW_CONFIG,
        conditions=resolve_conditions(NoConditions(), adapter),
        timesteps=AllTimesteps(),
    )
    trajectory = _log(tmp_path, spec, adapter)
    batches = list(trajectory.batches(401))
    assert all(batch.condition == {} for batch in batches)
    sigma = torch.cat([batch.sigma for batch in batches])
    assert sigma[0] == float("inf")  # t = 1000 is pure noise
    assert sigma.isfinite().sum() == 21
    assert len(set(trajectory.pairs(8, 0).t.tolist())) == 4


def test_text_conditions_are_kept_per_sample(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\nbb\nccc\n", encoding="utf8")
    adapter = TextFakeAdapter()
    conditions = resolve_conditions(PromptConditions(path="prompts.txt"), adapter, folders=[tmp_path])
    spec = replace(SPEC, conditions=conditions)
    trajectory = log_trajectory(adapter, lambda x, t, c: x * 0.5 + c["text"][:, :1, None, None], spec, tmp_path / "out")
    texts = torch.cat([batch.condition["text"] for batch in trajectory.batches(5)])
    assert texts[:6].tolist() == [[1, 1], [0, 0], [2, 2], [0, 0], [3, 3], [0, 0]]


def test_normal_timesteps_are_drawn_for_every_sample_anew(tmp_path: Path) -> None:
    spec = replace(SPEC, sampler=Sampler(steps=20), timesteps=NormalTimesteps(count=2), samples=40, batch_size=16)
    trajectory = _log(tmp_path, spec)
    assert trajectory.rows == 80
    chunks = [load_chunk(tmp_path / chunk.file) for chunk in trajectory.chunks]
    per_sample = Counter(int(i) for chunk in chunks for i in chunk.index)
    assert set(per_sample.values()) == {2}
    calls = Counter(int(i) for chunk in chunks for i in chunk.call)
    assert len(calls) > 10
    assert calls[19] > 5  # the mass below t = 0


def test_batch_size_is_part_of_the_hash_and_the_memory_cap_bounds_it(tmp_path: Path) -> None:
    row_bytes = 4 * (15 + 4)
    sample_bytes = 3 * row_bytes + 2 * 8
    capped = replace(SPEC, batch_size=401, memory_cap_bytes=2 * sample_bytes)
    trajectory = _log(tmp_path, capped)
    assert [chunk.rows for chunk in trajectory.chunks] == [6, 6, 6, 3]
    assert spec_hash(ADAPTER, capped) == spec_hash(ADAPTER, replace(SPEC, batch_size=2))
    assert spec_hash(ADAPTER, capped) != spec_hash(ADAPTER, SPEC)
    with pytest.raises(MemoryBudgetError, match=f"one sample logs {sample_bytes} bytes"):
        spec_hash(ADAPTER, replace(SPEC, memory_cap_bytes=sample_bytes - 1))


def test_the_hash_covers_everything() -> None:
    changes: dict[str, Any] = {
        "sampler": Sampler(kind="euler_ancestral", steps=5, guidance_scale=1.25),
        "scheduler_config": VP_CONFIG | {"beta_schedule": "linear"},
        "conditions": resolve_conditions(ClassConditions(labels=(1,)), ADAPTER),
        "timesteps": UniformTimesteps(count=2),
        "samples": 8,
        "seed": 1,
        "model_hashes": {"model.safetensors": "1" * 64},
        "batch_size": 2,
        "device": "cuda",
        "dtype": "bfloat16",
    }
    hashes = {spec_hash(ADAPTER, replace(SPEC, **{name: value})) for name, value in changes.items()}
    assert len(hashes | {spec_hash(ADAPTER, SPEC)}) == len(changes) + 1
    # Bookkeeping of diffusers lists defaults in random order; infinities have no JSON.
    noted = VP_CONFIG | {"_use_default_values": ["eta"], "_diffusers_version": "9"}
    assert spec_hash(ADAPTER, replace(SPEC, scheduler_config=noted)) == spec_hash(ADAPTER, SPEC)
    odd = VP_CONFIG | {"lambda_min_clipped": -float("inf"), "trained_betas": torch.linspace(1e-4, 0.02, 1000)}
    assert len(spec_hash(ADAPTER, replace(SPEC, scheduler_config=odd))) == 64


def test_an_existing_trajectory_is_not_logged_again(tmp_path: Path) -> None:
    first = _log(tmp_path)
    before = _digests(tmp_path)

    def never(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        raise AssertionError("the model was called")

    progress: list[tuple[int, int]] = []
    again = log_trajectory(ADAPTER, never, SPEC, tmp_path, progress=lambda *done: progress.append(done))
    assert again == first == Trajectory.open(tmp_path)
    assert _digests(tmp_path) == before
    assert progress == [(3, 7), (6, 7), (7, 7)]
    assert first.hash == spec_hash(ADAPTER, SPEC)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "index", "partial"])
def test_damage_is_found_and_repaired(tmp_path: Path, damage: str) -> None:
    _log(tmp_path)
    before = _digests(tmp_path)
    chunk = tmp_path / "chunk-00001.safetensors"
    content = bytearray(chunk.read_bytes())
    match damage:
        case "truncate":
            chunk.write_bytes(content[:-5])
        case "flip":
            content[-3] ^= 1
            chunk.write_bytes(content)
        case "delete":
            chunk.unlink()
        case "index":
            (tmp_path / "trajectory.json").unlink()
        case _:
            chunk.rename(tmp_path / "chunk-00001.safetensors.part")
    with pytest.raises(RunError, match="run the logging again"):
        Trajectory.open(tmp_path)
    _log(tmp_path)
    assert _digests(tmp_path) == before


def test_another_trajectory_is_not_overwritten(tmp_path: Path) -> None:
    _log(tmp_path)
    before = _digests(tmp_path)
    with pytest.raises(RunError, match="other settings"):
        _log(tmp_path, replace(SPEC, seed=1))
    (tmp_path / "trajectory.json").unlink()
    with pytest.raises(RunError, match="other settings"):
        _log(tmp_path, replace(SPEC, seed=1))
    assert _digests(tmp_path).items() <= before.items()


def test_a_forged_index_is_refused(tmp_path: Path) -> None:
    _log(tmp_path)
    index = tmp_path / "trajectory.json"
    data = json.loads(index.read_text())
    data["spec"]["seed"] = 5
    index.write_text(json.dumps(data))
    with pytest.raises(RunError, match="not a trajectory index"):
        Trajectory.open(tmp_path)
    index.write_text("{")
    with pytest.raises(RunError, match="not a trajectory index"):
        _log(tmp_path)


def test_values_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not finite at model call 2"):
        log_trajectory(ADAPTER, lambda x, t, c: x * float("nan"), SPEC, tmp_path)


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("compress.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        _log(tmp_path)


def test_pairs_are_spread_evenly_over_the_noise_levels(tmp_path: Path) -> None:
    trajectory = _log(tmp_path, replace(SPEC, sampler=Sampler(steps=10, guidance_scale=2.0), timesteps=AllTimesteps()))
    record = trajectory.pairs(33, seed=1)
    counts = Counter(record.sigma.tolist())
    assert len(record.t) == 33
    assert len(counts) == 10
    assert set(counts.values()) == {3, 4}
    assert 0 < int(record.half.sum()) < 33
    assert ((record.condition["class_labels"] == CLASSES) == (record.half == 1)).all()
    again, other = trajectory.pairs(33, seed=1), trajectory.pairs(33, seed=2)
    assert torch.equal(record.sample, again.sample)
    assert not torch.equal(record.sample, other.sample)
    everything = trajectory.pairs(len(trajectory), seed=0)
    assert torch.equal(everything.sample, _join(trajectory).sample)
    with pytest.raises(RecipeError, match="141 denoiser inputs are wanted, but the trajectory holds 140"):
        trajectory.pairs(141, seed=0)


def test_bands_policy_logs_each_band(tmp_path: Path) -> None:
    spec = replace(SPEC, sampler=Sampler(steps=12), timesteps=BandTimesteps(edges=(0.3, 1.5), count=2))
    sigma = _join(_log(tmp_path, spec)).sigma
    bands = (sigma >= 0.3).int() + (sigma >= 1.5).int()
    assert bands.bincount().tolist() == [14, 14, 14]


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ([5, 5, 5], 6, [2, 2, 2]),
        ([1, 5, 5], 7, [1, 3, 3]),
        ([5, 5, 5, 5], 2, [1, 0, 1, 0]),
        ([1, 1, 9], 11, [1, 1, 9]),
        ([3], 0, [0]),
    ],
)
def test_even_quotas(sizes: list[int], n: int, expected: list[int]) -> None:
    assert even_quotas(sizes, n) == expected


def log_slowly(folder: str) -> None:
    """What the killed process runs: a denoiser slow enough to be killed in the middle of a chunk."""
    model = ADAPTER.load()

    def slow(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        time.sleep(0.05)
        return ADAPTER.denoise(model, x, t, condition)

    log_trajectory(ADAPTER, slow, SPEC, folder)


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    code = f"from test_calibration_trajectory import log_slowly; log_slowly({str(killed)!r})"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=environment)
    deadline = time.monotonic() + 300
    while not (killed / "chunk-00000.safetensors").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "trajectory.json").exists()
    kept = (killed / "chunk-00000.safetensors").stat().st_mtime_ns
    (killed / "chunk-00001.safetensors.part").write_bytes(b"torn")
    _log(killed)
    _log(whole)
    assert (killed / "chunk-00000.safetensors").stat().st_mtime_ns == kept
    assert _digests(killed) == _digests(whole)
    assert sorted(_digests(whole)) == [*(f"chunk-0000{i}.safetensors" for i in range(3)), "trajectory.json"]

"""Captured inputs and outputs of one unit: the right rows, on disk as in memory, and nothing left behind."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_fakes import VP_CONFIG, FakeAdapter
from torch import Tensor, nn

from compress.calibration import Record, TrajectorySpec, log_trajectory
from compress.calibration.conditions import ClassConditions, resolve_conditions
from compress.calibration.policies import UniformTimesteps
from compress.calibration.sampler import Sampler
from compress.calibration.unit_inputs import Place, RecordRows, TrajectoryRows, capture_unit
from compress.errors import OutputError, UnsupportedLayer

ROWS = 11


class Block(nn.Module):
    """Returns (new hidden states, scale, nothing); takes whatever a test wants to give it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, scale: Tensor, options: dict[str, Any], **rest: Any) -> tuple[Any, ...]:
        return self.linear(x) * scale + options["bias"], options["table"], None


class Model(nn.Module):
    """Block `first`, then block `second` on four tokens a sample folded into the batch, then `late`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = Block(), Block()
        self.late_runs = 0
        self.gain, self.flag, self.table = 1.0, "plain", torch.ones(4, 3)
        self.requires_grad_(False)

    def forward(self, sample: Tensor, t: Tensor) -> Tensor:
        x = sample[:, 0] * self.gain  # b 4 3
        options = {"bias": t.reshape(-1, 1, 1), "table": self.table}
        x, _, _ = self.first(x, scale=t.reshape(-1, 1, 1) / 100, options=options, flag=self.flag, nothing=None)
        b = len(x)
        options = {"bias": torch.zeros(b * 4, 1), "table": self.table}
        x, _, _ = self.second(x.reshape(b * 4, 3), scale=torch.ones(b * 4, 1), options=options)
        self.late_runs += 1
        return x.reshape(b, 1, 4, 3)


def record() -> Record:
    generator = torch.Generator().manual_seed(1)
    t = torch.arange(ROWS).float() * 10
    sample = torch.randn(ROWS, 1, 4, 3, generator=generator)
    return Record(sample, t, t, {}, torch.zeros(ROWS).long(), torch.arange(ROWS))


def denoiser(model: Model, gain: float = 1.0):
    def denoise(sample: Tensor, t: Tensor, condition: Any) -> Tensor:
        model.gain = gain
        return model(sample, t)

    return denoise


def capture(model: Model, name: str, folder: Path, cap: int = 0, batch_size: int = 4, gain: float | None = None):
    place = Place(folder, cap, batch_size=batch_size)
    inputs, targets = (denoiser(model), None) if gain is None else (denoiser(model, gain), denoiser(model))
    return capture_unit(model, name, RecordRows(record()), place, inputs=inputs, targets=targets)


@pytest.mark.parametrize("cap", [0, 1 << 20], ids=["disk", "memory"])
@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_the_unit_gives_its_targets_for_any_rows(name: str, cap: int, batch_size: int, tmp_path: Path) -> None:
    model = Model()
    with capture(model, name, tmp_path, cap, batch_size) as inputs:
        assert len(inputs) == ROWS
        assert torch.equal(inputs.timesteps, record().t)
        rows = torch.tensor([7, 0, 10, 3, 3])
        batch = inputs.batch(rows)
        (output,) = inputs.outputs(model.get_submodule(name)(*batch.args, **batch.kwargs))
        assert torch.allclose(output, batch.target[0], atol=1e-6)
        assert len(output) == (5 if name == "first" else 20)
        assert torch.equal(batch.kwargs["options"]["table"], model.table)
        if name == "first":
            assert batch.kwargs["flag"] == "plain" and batch.kwargs["nothing"] is None
            assert torch.equal(batch.kwargs["options"]["bias"].flatten(), record().t[rows])
    assert model.late_runs == 0  # no forward went beyond the unit


def test_disk_and_memory_hold_the_same(tmp_path: Path) -> None:
    rows = torch.randperm(ROWS)
    with capture(Model(), "first", tmp_path) as disk, capture(Model(), "first", tmp_path, 1 << 20) as memory:
        assert disk.bytes == memory.bytes > 0
        one, other = disk.batch(rows), memory.batch(rows)
        assert torch.equal(one.args[0], other.args[0])
        assert torch.equal(one.target[0], other.target[0])


def test_a_batch_as_large_as_a_shared_extent_is_told_apart(tmp_path: Path) -> None:
    """Four rows of `table` are no samples, although four samples run at a time."""
    with capture(Model(), "first", tmp_path, batch_size=4) as inputs:
        batch = inputs.batch(torch.tensor([1]))
        assert batch.kwargs["options"]["table"].shape == (4, 3)
        assert len(batch.target) == 1


def test_asymmetric_inputs_come_from_one_model_and_targets_from_the_other(tmp_path: Path) -> None:
    model = Model()
    rows = torch.arange(ROWS)
    with capture(model, "first", tmp_path) as plain, capture(model, "first", tmp_path, gain=3.0) as asymmetric:
        assert torch.equal(asymmetric.batch(rows).args[0], plain.batch(rows).args[0] * 3)
        assert torch.equal(asymmetric.batch(rows).target[0], plain.batch(rows).target[0])


def test_what_a_unit_changes_in_place_is_kept_as_it_was(tmp_path: Path) -> None:
    model = Model()
    inner = model.first.forward
    model.first.forward = lambda x, **rest: inner(x.mul_(0), **rest)  # type: ignore[method-assign]
    with capture(model, "first", tmp_path) as inputs:
        assert torch.equal(inputs.batch(torch.arange(ROWS)).args[0], record().sample[:, 0])


def test_one_row_in_all(tmp_path: Path) -> None:
    model = Model()
    rows = RecordRows(record().part(2, 3))
    with capture_unit(model, "second", rows, Place(tmp_path), inputs=denoiser(model)) as inputs:
        batch = inputs.batch(torch.tensor([0]))
        (output, *_) = inputs.outputs(model.second(*batch.args, **batch.kwargs))
        assert torch.allclose(output, batch.target[0])


@pytest.mark.parametrize("change", ["table", "flag", "shape"])
def test_arguments_that_change_between_batches_are_refused(change: str, tmp_path: Path) -> None:
    model = Model()
    plain = denoiser(model)

    def denoise(sample: Tensor, t: Tensor, condition: Any) -> Tensor:
        if float(t[0]) > 30:
            changes: dict[str, Any] = {"table": torch.zeros(4, 3), "flag": "other", "shape": torch.ones(5, 3)}
            setattr(model, change.replace("shape", "table"), changes[change])
        return plain(sample, t, condition)

    with pytest.raises(UnsupportedLayer, match=r"first: .*differ.* between batches"):
        capture_unit(model, "first", RecordRows(record()), Place(tmp_path, batch_size=4), inputs=denoise)
    assert list(tmp_path.iterdir()) == []


def test_a_unit_that_never_runs_is_refused(tmp_path: Path) -> None:
    model = Model()
    model.unused = Block()
    with pytest.raises(UnsupportedLayer, match="unused: the model's forward never calls this unit"):
        capture(model, "unused", tmp_path)


def test_a_unit_runs_twice_and_is_seen_first(tmp_path: Path) -> None:
    model = Model()
    model.second = model.first
    with capture(model, "first", tmp_path) as inputs:
        assert torch.equal(inputs.batch(torch.arange(ROWS)).args[0], record().sample[:, 0])


def test_files_have_no_name(tmp_path: Path) -> None:
    with capture(Model(), "first", tmp_path / "rows") as inputs:
        assert inputs.bytes > 0
        assert list((tmp_path / "rows").iterdir()) == []  # a killed process leaves nothing


def test_too_little_space_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Counter(free=10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), dict(free))())
    with pytest.raises(OutputError, match="do not fit on the disk"):
        capture(Model(), "first", tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: io.FileIO("/dev/full", "r+b"))
    with pytest.raises(OutputError, match="the disk is full"):
        capture(Model(), "first", tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.float32])
def test_every_type_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    from compress.calibration.row_store import FileRows

    values = (torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    store = FileRows(tmp_path, (5, 2), dtype)
    store.append(values[:2])
    store.append(values.transpose(1, 2).contiguous().transpose(1, 2)[2:])  # not contiguous
    assert torch.equal(store.read(torch.tensor([5, 0, 0])), values[[5, 0, 0]])
    store.close()


def test_trajectory_rows_are_an_even_choice_in_the_order_of_logging(tmp_path: Path) -> None:
    adapter = FakeAdapter()
    spec = TrajectorySpec(
        sampler=Sampler(kind="ddim", steps=4, guidance_scale=1.5),
        scheduler_config=VP_CONFIG,
        conditions=resolve_conditions(ClassConditions(), adapter),
        timesteps=UniformTimesteps(),
        samples=9,
        batch_size=2,  # several chunks
    )
    trajectory = log_trajectory(adapter, adapter.load(), spec, tmp_path)
    whole, some = TrajectoryRows(trajectory), TrajectoryRows(trajectory, 24, seed=1)
    assert len(whole) == len(trajectory) == 72 and len(some) == 24
    assert len(TrajectoryRows(trajectory, 500)) == 72
    batches = list(whole.batches(10))
    assert [len(batch.t) for batch in batches] == [10] * 7 + [2]
    logged = torch.cat([batch.sample for batch in trajectory.batches(7)])
    assert torch.equal(torch.cat([batch.sample for batch in batches]), logged)
    chosen = list(some.batches(5))
    assert [len(batch.t) for batch in chosen] == [5] * 4 + [4]
    assert torch.equal(torch.cat([batch.sample for batch in chosen]), logged[some.entries])
    assert set(Counter(torch.cat([batch.sigma for batch in chosen]).tolist()).values()) == {6}
    assert set(torch.cat([batch.half for batch in chosen]).tolist()) == {0, 1}
    assert not torch.equal(some.entries, TrajectoryRows(trajectory, 24, seed=2).entries)

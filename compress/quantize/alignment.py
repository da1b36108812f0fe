"""QuEST's two training stages: which layers each of them trains, on what, and how a killed run goes on.

See `compress/quantize/methods/quest.py` for the paper and for what is different here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from compress.calibration.chunks import load_sigma
from compress.calibration.sampler import denoise_with
from compress.calibration.trajectory import Record, Trajectory
from compress.config import Config
from compress.models.adapter import LayerInfo, Role
from compress.quantize.calibrated import Simulation
from compress.quantize.finetune import Descent, Objective, Outputs, Student, take_step
from compress.quantize.reconstruct import Mode
from compress.quantize.tuned import TunedPart, biases_of, load_progress, save_progress, tune_parts

EMBEDDING_ROLES = frozenset({Role.TIME_EMBEDDING, Role.CLASS_EMBEDDING, Role.MODULATION})
PROGRESS_FILE = "quest.safetensors"

_QUERY_KEY_VALUE = (Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V)
_FEED_FORWARD = (Role.FF_IN, Role.FF_OUT)

CriticalKind = Literal["auto", "attention", "transformer", "feed_forward"]


class TimeAlignment(Config):
    """TLA: the projections of the time embedding, at one timestep after the other."""

    epochs: int = Field(200, ge=0, description="Passes over the inputs of each timestep; 0 leaves this stage out.")
    samples: int = Field(8, ge=1, description="Logged denoiser inputs of each timestep.")
    step_samples: int = Field(2, ge=1, description="Inputs of one step of Adam.")
    learning_rate: float = Field(1e-5, ge=0, description="Of Adam, for weights and biases.")
    scale_learning_rate: float = Field(1e-5, ge=0, description="Of Adam, for input scales.")


class CriticalAlignment(Config):
    """CMA: attention or feed-forward layers, and the input scales of all layers outside the time path."""

    epochs: int = Field(20, ge=0, description="Passes over all timesteps; 0 leaves this stage out.")
    samples: int = Field(64, ge=1, description="Logged denoiser inputs of each timestep.")
    step_samples: int = Field(4, ge=1, description="Inputs of one step of Adam.")
    learning_rate: float = Field(1e-5, ge=0, description="Of Adam, for weights and biases.")
    scale_learning_rate: float = Field(1e-4, ge=0, description="Of Adam, for input scales.")
    layers: CriticalKind = Field(
        "auto",
        description="attention: q, k, v (unconditional models); transformer: feed-forward, q and self-attention's k, v "
        "(class-conditional); feed_forward (text); auto: by what the model has.",
    )


class Stages(NamedTuple):
    """Settings of both stages; `backward_batch` inputs go through the model together."""

    time: TimeAlignment
    critical: CriticalAlignment
    mode: Mode = "paper"
    backward_batch: int = 4


def embedding_projections(layers: Sequence[LayerInfo]) -> list[str]:
    """Every block's projection of the time embedding: modulation, or a residual block's `time_emb_proj`."""
    modulation = [layer.name for layer in layers if layer.role is Role.MODULATION]
    in_blocks = [layer for layer in layers if layer.role is Role.TIME_EMBEDDING and layer.block is not None]
    return modulation or [layer.name for layer in in_blocks]


def critical_layers(layers: Sequence[LayerInfo], kind: CriticalKind, *, text: bool = False) -> list[str]:
    """The layers whose weights the second stage trains; `text` is asked for kind auto: whether prompts condition it."""
    if kind == "auto":
        has_feed_forward = any(layer.role in _FEED_FORWARD for layer in layers)
        kind = ("feed_forward" if text else "transformer") if has_feed_forward else "attention"
    return [layer.name for layer in layers if _is_critical(layer, kind)]


def _is_critical(layer: LayerInfo, kind: CriticalKind) -> bool:
    if kind == "attention":
        return layer.role in _QUERY_KEY_VALUE
    if layer.role in _FEED_FORWARD:
        return True
    if kind == "feed_forward" or layer.role not in _QUERY_KEY_VALUE:
        return False
    crosses = ".attn2." in layer.name or layer.name.rpartition(".")[2].startswith("add_")
    return layer.role is Role.ATTENTION_Q or not crosses


def fine_tune(simulation: Simulation, stages: Stages) -> frozenset[str]:
    """Run both stages on a model whose rounding is decided; the names of layers whose biases may have changed.

    After every timestep of the first stage and every epoch of the second, what is learned is written to the job's work
    folder and read back by a run that continues.
    """
    calibration, layers = simulation.calibration, simulation.layers
    rows = rows_by_timestep(calibration.trajectory(), max(_samples(stages)), simulation.job.seed)
    if not rows:
        return frozenset()
    infos = [assignment.info for assignment in simulation.job.assignments]
    text = "encoder_hidden_states" in next(iter(rows.values())).condition
    time = embedding_projections(infos) if stages.time.epochs else []
    critical = critical_layers(infos, stages.critical.layers, text=text) if stages.critical.epochs else []
    tune_parts(layers[name] for name in dict.fromkeys((*time, *critical)))
    student = Student(denoise_with(calibration.adapter, simulation.model), layers)
    outside = [info.name for info in infos if info.role not in EMBEDDING_ROLES] if stages.critical.epochs else []
    tuning = _Tuning(student, stages, _Chosen(tuple(time), tuple(critical), tuple(outside)), calibration.device)
    _announce(simulation, tuning)
    pieces = [*tuning.time_pieces(rows), *tuning.critical_pieces(rows)]
    path = calibration.work / PROGRESS_FILE
    done, momentum = load_progress(path, layers)
    if 0 < done < len(pieces) and pieces[done].descent is pieces[done - 1].descent:
        pieces[done].descent.load(momentum)
    calibration.progress.start("fine-tune", len(pieces))
    for number, piece in enumerate(pieces):
        if number >= done:
            calibration.progress.note(f"{piece.title}: error of the model's output {piece.work()}")
            save_progress(path, layers, piece.descent.state(), number + 1)
        calibration.progress.advance()
    return frozenset((*time, *critical))


class Piece(NamedTuple):
    """Work between two checkpoints; it says how the error of the model's output went."""

    title: str
    work: Callable[[], str]
    descent: Descent  # of its stage


class _Chosen(NamedTuple):
    """Layers by what is trained: weights and scales (time), weights (critical), scales outside the time path."""

    time: tuple[str, ...]
    critical: tuple[str, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class _Tuning:
    """Both stages as pieces of work."""

    student: Student
    stages: Stages
    chosen: _Chosen
    device: str

    def time_pieces(self, rows: Mapping[float, Record]) -> list[Piece]:
        """One for each timestep."""
        names, settings = self.chosen.time, self.stages.time
        if not names:
            return []
        descent = self._descent(names, names, settings)
        records = {t: record.part(0, settings.samples) for t, record in rows.items()}
        return [
            Piece(f"align time, t = {t:g}", partial(self._align_time, record, descent), descent)
            for t, record in records.items()
        ]

    def critical_pieces(self, rows: Mapping[float, Record]) -> list[Piece]:
        """One for each epoch."""
        settings = self.stages.critical
        descent = self._descent(self.chosen.critical, self.chosen.outside, settings)
        if not descent.weights and not descent.scales:
            return []
        epoch = partial(self._align_critical, rows, descent)
        return [Piece(f"align critical layers, epoch {i + 1}", epoch, descent) for i in range(settings.epochs)]

    def _align_time(self, record: Record, descent: Descent) -> str:
        """The projections at one timestep; their targets fit in memory."""
        objective, settings = time_objective(self.chosen.time, self.stages.mode), self.stages.time
        steps = [(len(p.t), list(self._batches(p, objective))) for p in split_record(record, settings.step_samples)]
        means: list[float] = []
        descent.begin_timestep()
        with descent.open():
            for _ in range(settings.epochs):
                errors = [take_step(self.student, batches, objective, descent, count) for count, batches in steps]
                means.append(sum(errors) / len(errors))
        return f"{means[0]:.4g} -> {means[-1]:.4g}"

    def _align_critical(self, rows: Mapping[float, Record], descent: Descent) -> str:
        """One pass over all timesteps; every target is computed when it is needed."""
        objective = critical_objective(self.chosen.critical, self.stages.mode)
        settings, errors = self.stages.critical, []
        with descent.open():
            for record in rows.values():
                descent.begin_timestep()
                for part in split_record(record.part(0, settings.samples), settings.step_samples):
                    errors.append(
                        take_step(self.student, self._batches(part, objective), objective, descent, len(part.t))
                    )
        return f"{sum(errors) / len(errors):.4g}"

    def _descent(
        self, weights: Sequence[str], scales: Sequence[str], settings: TimeAlignment | CriticalAlignment
    ) -> Descent:
        """Of the weights and biases, and the input scales, of these layers."""
        biases = biases_of({name: self.student.layers[name] for name in weights})
        trained = (*self._weights(weights), *biases.values())
        return Descent(trained, self._scales(scales), settings.learning_rate, settings.scale_learning_rate)

    def _batches(self, record: Record, objective: Objective) -> Iterator[tuple[Record, Outputs]]:
        for part in split_record(record, self.stages.backward_batch):
            here = part.to(self.device)
            yield here, self.student.original(here, objective.layers)

    def _weights(self, names: Sequence[str]) -> tuple[nn.Parameter, ...]:
        parts = [part for name in names for part in self.student.layers[name].operators()]
        return tuple(part.tuned for part in parts if isinstance(part, TunedPart))

    def _scales(self, names: Sequence[str]) -> tuple[nn.Parameter, ...]:
        parts = [part for name in names for part in self.student.layers[name].operators()]
        return tuple(p.inputs.scale for p in parts if p.inputs is not None and p.inputs.scale is not None)


def time_objective(names: tuple[str, ...], mode: Mode) -> Objective:
    """L_TLA + L_G; the released code adds L_G once for each of the layers."""
    return Objective(names, 1.0, 1.0 if mode == "paper" else float(len(names)))


def critical_objective(names: tuple[str, ...], mode: Mode) -> Objective:
    """L_CMA + L_G; in the released code L_CMA is commented out, and L_G added once for each of the layers."""
    return Objective(names, 1.0, 1.0) if mode == "paper" else Objective((), 0.0, float(max(1, len(names))))


def rows_by_timestep(trajectory: Trajectory, count: int, seed: int) -> dict[float, Record]:
    """`count` logged inputs of every timestep (or all there are), by timestep in the order of sampling."""
    levels = torch.cat([load_sigma(trajectory.folder / chunk.file) for chunk in trajectory.chunks])
    wanted = min(count * len(set(levels.tolist())), len(trajectory))
    if not wanted:
        return {}
    (record,) = trajectory.select(trajectory.spread(wanted, seed, "quest"), wanted)
    return {t: _where(record, record.t == t) for t in sorted(set(record.t.tolist()), reverse=True)}


def split_record(record: Record, size: int) -> Iterator[Record]:
    """The rows of a batch, `size` at a time."""
    for first in range(0, len(record.t), size):
        yield record.part(first, first + size)


def _where(record: Record, mask: Tensor) -> Record:
    condition = {name: tensor[mask] for name, tensor in record.condition.items()}
    fields = (record.sample[mask], record.t[mask], record.sigma[mask])
    return Record(*fields, condition, record.half[mask], record.image[mask])


def _samples(stages: Stages) -> list[int]:
    used = [stages.time.samples] if stages.time.epochs else []
    return used + ([stages.critical.samples] if stages.critical.epochs else []) or [0]


def _announce(simulation: Simulation, tuning: _Tuning) -> None:
    """A line about how much is trained."""
    names = dict.fromkeys((*tuning.chosen.time, *tuning.chosen.critical))
    trained = sum(simulation.layers[name].layer.weight.numel() for name in names)
    layers = list(simulation.layers.values())
    every = sum(p.numel() for p in simulation.model.parameters())
    every -= sum(part.tuned.numel() for layer in layers for part in layer.operators() if isinstance(part, TunedPart))
    simulation.calibration.progress.note(
        f"fine-tune: weights of {len(names)} layers, {trained / max(every, 1):.1%} of the parameters"
    )

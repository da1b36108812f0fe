"""A model family whose answers are known: every class is one fixed image, so the perfect denoiser is a formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.adapter import Condition, DenoiserInputs, LayerInfo, ModelSource
from compress.models.noise import NoiseSchedule

SHAPE = (1, 3, 5)
CLASSES = 4
VP_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "timestep_spacing": "leading",
}
FLOW_CONFIG: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


class PointModel(nn.Module):
    """Perfect denoiser of data that is `targets[label]`; the last label means no class.

    It calls two layers that compute nothing new, so that there is something to hook: `mix` and, twice, `blocks.0`.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.targets: Tensor
        self.register_buffer("targets", torch.rand(CLASSES + 1, *SHAPE, generator=torch.Generator().manual_seed(5)))
        self.mix, identity = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(5, 5, bias=False)
        nn.init.ones_(self.mix.weight)
        nn.init.eye_(identity.weight)
        self.blocks = nn.ModuleList([identity])
        self.requires_grad_(False)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        x = self.blocks[0](self.blocks[0](input=self.mix(sample)))
        x0 = self.targets[class_labels]
        signal, noise = (scale.reshape(-1, 1, 1, 1) for scale in self.schedule.scales(timestep))
        epsilon = (x - signal * x0) / noise
        answers: dict[str, Tensor] = {
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - noise * x0,
            "sample": x0,
            "flow": epsilon - x0,
        }
        return answers[self.schedule.prediction]


class FakeAdapter:
    """Adapter of `PointModel`. `classes` None makes it unconditional; `null` False takes away its null class."""

    family = "fake"
    source = ModelSource("fake", ".", "", "PointModel")

    def __init__(self, config: dict[str, Any] = VP_CONFIG, *, classes: int | None = CLASSES, null: bool = True) -> None:
        self.schedule = NoiseSchedule.from_scheduler_config(config)
        self.classes, self.null = classes, null

    def skeleton(self) -> nn.Module:
        return self.load().to("meta")

    def load(self, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
        return PointModel(self.schedule).to(device)

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        return [("blocks.0", model.get_submodule("blocks.0"))]

    def layers(self, model: nn.Module) -> list[LayerInfo]:
        return []

    def example_inputs(self, batch: int, *, device: str = "cpu", seed: int = 0) -> DenoiserInputs:
        condition = {} if self.classes is None else {"class_labels": torch.zeros(batch, dtype=torch.long)}
        return DenoiserInputs(torch.zeros(batch, *SHAPE), torch.zeros(batch), condition)

    def sample_shape(self) -> tuple[int, int, int]:
        return SHAPE

    def class_count(self) -> int | None:
        return self.classes

    def class_condition(self, labels: Tensor) -> dict[str, Tensor]:
        return {"class_labels": labels}

    def null_condition(self, condition: Condition) -> dict[str, Tensor] | None:
        return {"class_labels": torch.full_like(condition["class_labels"], CLASSES)} if self.null else None

    def denoise(self, model: Any, sample: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        prediction: Tensor = model(sample, timestep, condition.get("class_labels", torch.zeros(len(sample)).long()))
        return prediction

    def noise_schedule(self) -> NoiseSchedule:
        return self.schedule


class TextFakeAdapter(FakeAdapter):
    """A family conditioned on text, with an encoder: the embedding of a text is its length, repeated twice."""

    def __init__(self) -> None:
        super().__init__(classes=None)

    def example_inputs(self, batch: int, *, device: str = "cpu", seed: int = 0) -> DenoiserInputs:
        return DenoiserInputs(torch.zeros(batch, *SHAPE), torch.zeros(batch), self.text_condition(["a"] * batch))

    def text_condition(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"text": torch.tensor([[len(text)] * 2 for text in texts], dtype=torch.float32)}

    def null_condition(self, condition: Condition) -> dict[str, Tensor] | None:
        return {"text": torch.zeros_like(condition["text"])}

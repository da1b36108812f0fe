"""Train a bundled model: `python -m compress.models.zoo.train digits-dit --data mnist.npz --output DIR`.

Every random draw of step s comes from a generator seeded by (seed, s), so a run that was stopped and continued sees the
batches and the noise of an undisturbed one. Checkpoints are safetensors; the newest complete one is continued.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.models.zoo.data import MNIST_ID, Split, load_digits

_STATE_FILE = "training.safetensors"


@dataclass(frozen=True)
class TrainSettings:
    """What determines a trained model, besides the data."""

    steps: int = 6000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    label_dropout: float = 0.1
    prediction: str = "v_prediction"  # or epsilon
    seed: int = 0
    autocast: bool = True


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one training step; large primes keep the seeds of neighbouring runs apart."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 7919 + 17)


class DenoiserTrainer:
    """State of one training run: model, moving average, optimizer, step counter."""

    def __init__(self, model: Any, alphas_cumprod: Tensor, null_class: int, settings: TrainSettings) -> None:
        from diffusers.training_utils import EMAModel

        self.model, self.settings, self.null_class, self.step = model, settings, null_class, 0
        self.alphas_cumprod = alphas_cumprod
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.0)
        self.ema = EMAModel(self.parameters, decay=settings.ema, use_ema_warmup=True, power=0.75)

    def loss(self, split: Split, generator: torch.Generator) -> Tensor:
        """Mean squared error of the prediction on one random batch."""
        s = self.settings
        pick = torch.randint(len(split.labels), (s.batch,), generator=generator)
        x0, labels = split.images[pick], split.labels[pick]
        drop = torch.rand(s.batch, generator=generator) < s.label_dropout
        labels = torch.where(drop, self.null_class, labels)
        t = torch.randint(len(self.alphas_cumprod), (s.batch,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        abar = self.alphas_cumprod[t][:, None, None, None]
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        # The flash backward of torch 2.13 on a CPU takes half the step at 64 tokens; plain matmuls a twentieth.
        with torch.autocast("cpu", torch.bfloat16, enabled=s.autocast), sdpa_kernel(SDPBackend.MATH):
            predicted = self.model(x, timestep=t, class_labels=labels, return_dict=False)[0]
        # v of Salimans and Ho 2022, appendix D. Predicting noise instead leaves the first steps of a cosine schedule,
        # where an error in the noise weighs 30 times in the image, too weak to draw clean digits.
        target = abar.sqrt() * noise - (1 - abar).sqrt() * x0 if s.prediction == "v_prediction" else noise
        return torch.nn.functional.mse_loss(predicted.float(), target)

    def train_step(self, split: Split) -> float:
        """One optimizer step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        loss = self.loss(split, step_generator(self.settings.seed, self.step))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.step += 1
        return float(loss.detach())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes during training, flat, for safetensors."""
        flat = {f"model.{i}": p.detach() for i, p in enumerate(self.parameters)}
        flat |= {f"ema.{i}": p for i, p in enumerate(self.ema.shadow_params)}
        for i, state in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{i}.{key}": value for key, value in state.items()}
        return {name: tensor.contiguous().clone() for name, tensor in flat.items()}

    def load_tensors(self, flat: dict[str, Tensor], step: int) -> None:
        """The inverse of `tensors`."""
        with torch.no_grad():
            for i, p in enumerate(self.parameters):
                p.copy_(flat[f"model.{i}"])
        self.ema.shadow_params = [flat[f"ema.{i}"] for i in range(len(self.parameters))]
        self.ema.optimization_step = step
        state = self.optimizer.state_dict()
        keys = ("step", "exp_avg", "exp_avg_sq")
        state["state"] = {i: {k: flat[f"optimizer.{i}.{k}"] for k in keys} for i in range(len(self.parameters))}
        self.optimizer.load_state_dict(state)
        self.step = step


def save_training(trainer: DenoiserTrainer, folder: Path, seconds: float) -> None:
    """Write the state atomically: a killed write leaves the previous one."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"step": trainer.step, "seconds": seconds, "settings": asdict(trainer.settings)}
    partial = folder / (_STATE_FILE + ".part")
    save_file(trainer.tensors(), partial, metadata={"training": json.dumps(meta)})
    os.replace(partial, folder / _STATE_FILE)


def restore_training(trainer: DenoiserTrainer, folder: Path) -> float:
    """Continue from `folder` if it holds a state of the same settings; returns the seconds already spent."""
    path = folder / _STATE_FILE
    if not path.is_file():
        return 0.0
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["training"])
    ours = asdict(trainer.settings)
    changed = sorted(k for k in ours if ours[k] != meta["settings"].get(k))
    if changed:
        raise SystemExit(f"{path} was trained with another {', '.join(changed)}; choose another --output")
    trainer.load_tensors(load_file(path), meta["step"])
    return float(meta["seconds"])


def _progress(trainer: DenoiserTrainer, split: Split, until: int) -> Iterator[tuple[int, float]]:
    while trainer.step < until:
        loss = trainer.train_step(split)
        yield trainer.step, loss


def start_from(trainer: DenoiserTrainer, init: Path) -> None:
    """Begin with the averaged weights of another training run instead of random ones."""
    flat = load_file(init / _STATE_FILE)
    with torch.no_grad():
        for i, p in enumerate(trainer.parameters):
            p.copy_(flat[f"ema.{i}"])
            trainer.ema.shadow_params[i].copy_(p)


def train_digits_dit(
    data: str, output: Path, settings: TrainSettings, save_every: int, init: Path | None = None
) -> DenoiserTrainer:
    """Train, or go on training, `digits-dit`; the state stays in `output`."""
    from diffusers import DDPMScheduler

    from compress.models.zoo import digits_dit

    split = load_digits(data, "train")
    alphas = DDPMScheduler.from_config({k: v for k, v in digits_dit.SCHEDULER_CONFIG.items()}).alphas_cumprod
    trainer = DenoiserTrainer(digits_dit.build(settings.seed), alphas, digits_dit.NULL_CLASS, settings)
    if init is not None:
        start_from(trainer, init)
    spent, start, recent = restore_training(trainer, output), time.monotonic(), []
    for step, loss in _progress(trainer, split, settings.steps):
        recent.append(loss)
        if step % 50 == 0:
            seconds = spent + time.monotonic() - start
            print(f"step {step} loss {sum(recent) / len(recent):.4f} seconds {seconds:.0f}", flush=True)
            recent.clear()
        if step % save_every == 0 or step == settings.steps:
            save_training(trainer, output, spent + time.monotonic() - start)
    return trainer


def bundle(trainer: DenoiserTrainer, given: dict[str, Any]) -> None:
    """Write the model's moving average as a bundled model with its card."""
    from compress.models.zoo import digits_dit
    from compress.models.zoo.card import write_card

    folder, machine, before = given["bundle"], given["machine"], given["before"]
    trainer.ema.copy_to(trainer.parameters)
    with safe_open(given["output"] / _STATE_FILE, "pt") as file:
        facts = json.loads(file.metadata()["training"])
    steps, minutes = facts["step"], facts["seconds"] / 60
    batch = facts["settings"]["batch"]
    facts["history"] = f"{before}{steps:,} steps of {batch} images, {minutes:.0f} minutes on {machine}"
    facts["command"] = "python -m compress.models.zoo.train " + " ".join(sys.argv[1:])
    result = write_card(trainer.model.eval(), folder, digits_dit.SCHEDULER_CONFIG, facts, given["bundle_images"])
    print(f"{folder}: class accuracy {100 * result.accuracy:.1f} % (DDIM {result.steps} steps, n = {result.n})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits-dit"])
    parser.add_argument("--data", default=MNIST_ID, help=".npz with x_train, y_train, x_test, y_test, or a datasets id")
    parser.add_argument("--output", type=Path, required=True, help="folder of the training state, continued if there")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--init", type=Path, help="folder of an earlier training, to start from its average")
    parser.add_argument("--bundle", type=Path, help="when trained, write the model, its card and its score here")
    parser.add_argument("--bundle-images", type=int, default=2000, help="images the score is measured on")
    parser.add_argument("--machine", default="2 CPU cores", help="words for the card")
    parser.add_argument("--before", default="", help="words for the card about the training that --init came from")
    for name, value in asdict(TrainSettings()).items():
        kind = (lambda text: text.lower() in ("1", "true", "yes")) if isinstance(value, bool) else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    given = vars(parser.parse_args())
    settings = TrainSettings(**{name: given[name] for name in asdict(TrainSettings())})
    trainer = train_digits_dit(given["data"], given["output"], settings, given["save_every"], given["init"])
    if given["bundle"] is not None:
        bundle(trainer, given)


if __name__ == "__main__":
    main()

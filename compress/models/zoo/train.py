"""Train a bundled model: `python -m compress.models.zoo.train digits-dit --data mnist.npz --output DIR`.

Every random draw of step s comes from a generator seeded by (seed, s), so a run that was stopped, by Ctrl-C or worse,
and started again goes on from its last saved state to the weights of an undisturbed one. With `--bundle` the trained
model is written as it ships, with a card of what was measured on it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.models.zoo import digits_dit, digits_unet
from compress.models.zoo.data import MNIST_ID, Split, load_digits

_STATE_FILE = "training.safetensors"
_PREDICTIONS = ("v_prediction", "epsilon")
_BUNDLE_IMAGES = 2000


@dataclass(frozen=True)
class TrainSettings:
    """What determines a trained model, besides the data."""

    steps: int = 6000
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    label_dropout: float = 0.1
    prediction: str = "v_prediction"  # one of _PREDICTIONS
    seed: int = 0
    autocast: bool = True


class TrainRecipe(NamedTuple):
    """How one bundled denoiser is built and trained."""

    build: Callable[[int], Any]
    scheduler_config: Mapping[str, Any]
    null_class: int
    settings: TrainSettings


RECIPES: dict[str, TrainRecipe] = {
    "digits-dit": TrainRecipe(
        digits_dit.build, digits_dit.SCHEDULER_CONFIG, digits_dit.NULL_CLASS, TrainSettings(prediction="v_prediction")
    ),
    "digits-unet": TrainRecipe(
        digits_unet.build,
        digits_unet.SCHEDULER_CONFIG,
        digits_unet.NULL_CLASS,
        TrainSettings(steps=4000, learning_rate=8e-4, prediction="epsilon"),
    ),
}


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
    """State of one training run: model, moving average, optimizer, step counter.

    Batches and noise are drawn on the CPU wherever the model is, so that every device sees the same.
    """

    def __init__(
        self, model: Any, alphas_cumprod: Tensor, null_class: int, settings: TrainSettings, device: str = "cpu"
    ) -> None:
        from diffusers.training_utils import EMAModel

        self.model, self.settings, self.null_class, self.step = model.to(device), settings, null_class, 0
        self.alphas_cumprod, self.device = alphas_cumprod, torch.device(device)
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
        x = (abar.sqrt() * x0 + (1 - abar).sqrt() * noise).to(self.device)
        t, labels = t.to(self.device), labels.to(self.device)
        # The flash backward of torch 2.13 on a CPU takes half the step at 64 tokens; plain matmuls a twentieth.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=s.autocast), sdpa_kernel(SDPBackend.MATH):
            predicted = self.model(x, timestep=t, class_labels=labels, return_dict=False)[0]
        # v of Salimans and Ho 2022, appendix D. Predicting noise instead leaves the first steps of a cosine schedule,
        # where an error in the noise weighs 30 times in the image, too weak to draw clean digits.
        target = abar.sqrt() * noise - (1 - abar).sqrt() * x0 if s.prediction == "v_prediction" else noise
        return torch.nn.functional.mse_loss(predicted.float(), target.to(self.device))

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
        self.ema.shadow_params = [flat[f"ema.{i}"].to(self.device) for i in range(len(self.parameters))]
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


def train_denoiser(
    name: str, split: Split, output: Path, settings: TrainSettings, save_every: int, device: str = "cpu"
) -> DenoiserTrainer:
    """Train, or go on training, a bundled denoiser; the state stays in `output`.

    Raises:
        SystemExit: `output` holds the state of a training with other settings.
    """
    from diffusers import DDPMScheduler

    recipe = RECIPES[name]
    alphas = DDPMScheduler.from_config(dict(recipe.scheduler_config)).alphas_cumprod
    trainer = DenoiserTrainer(recipe.build(settings.seed), alphas, recipe.null_class, settings, device)
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


def command_text(name: str, settings: TrainSettings, given: Mapping[str, Any]) -> str:
    """The command that trains and bundles the same model again; local folders are left out of it.

    Args:
        given: the command line's `data`, `threads`, `device` and `bundle_images`.
    """
    usual, data = RECIPES[name].settings, given["data"]
    words = ["--data", Path(data).name if data.endswith(".npz") else data, "--output", f"runs/{name}"]
    for key, value in asdict(settings).items():
        if value == getattr(usual, key):
            continue
        words += _option(key, value)
    for key, default in (("threads", None), ("device", "cpu"), ("bundle_images", _BUNDLE_IMAGES)):
        if given[key] != default:
            words += _option(key, given[key])
    return " ".join(["python -m compress.models.zoo.train", name, *words, "--bundle", name])


def _option(key: str, value: object) -> list[str]:
    option = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", str(value)]


def machine_words(device: str) -> str:
    """What this process trains on, for the card."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'' if threads == 1 else 's'}"


def bundle(name: str, trainer: DenoiserTrainer, images: int, given: Mapping[str, Any]) -> None:
    """Write the model's moving average as a bundled model with its card, and print what the card says of it.

    Args:
        trainer: a trained one, whose weights are replaced by their average.
        images: training images there were.
        given: the command line's options.
    """
    from compress.models.zoo.card import TrainingFacts, write_card

    trainer.ema.copy_to(trainer.parameters)
    with safe_open(given["output"] / _STATE_FILE, "pt") as file:
        state = json.loads(file.metadata()["training"])
    command = command_text(name, trainer.settings, given)
    machine = given["machine"] or machine_words(given["device"])
    facts = TrainingFacts(images, state["step"], state["seconds"], machine, command, state["settings"])
    # A model trained on another target than its recipe's must also be sampled as such.
    scheduler_config = {**RECIPES[name].scheduler_config, "prediction_type": trainer.settings.prediction}
    model = trainer.model.to("cpu").eval()
    for line in write_card(name, model, given["bundle"], scheduler_config, facts, given["bundle_images"]):
        print(line, flush=True)


def parse(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line's options by name; `settings` holds those of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--data", default=MNIST_ID, help=".npz with x_train, y_train, x_test, y_test, or a datasets id")
    parser.add_argument("--output", type=Path, required=True, help="folder of the training state, continued if there")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--bundle", type=Path, help="when trained, write the model, its card and its scores here")
    parser.add_argument("--bundle-images", type=int, default=_BUNDLE_IMAGES, help="images the scores are measured on")
    parser.add_argument("--machine", help="words for the card, if this process is not the one that trained")
    parser.add_argument("--threads", type=int, help="another count changes the rounding, hence the weights")
    parser.add_argument("--device", default="cpu", help="cuda trains on a GPU, with the CPU's batches and noise")
    for name, value in asdict(TrainSettings()).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(option, type=type(value), choices=_PREDICTIONS if name == "prediction" else None)
    given = vars(parser.parse_args(arguments))
    chosen = {key: given.pop(key) for key in asdict(TrainSettings())}
    changes = {key: value for key, value in chosen.items() if value is not None}
    return given | {"settings": replace(RECIPES[given["model"]].settings, **changes)}


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    name, output = given["model"], given["output"]
    split = load_digits(given["data"], "train")
    try:
        trainer = train_denoiser(name, split, output, given["settings"], given["save_every"], given["device"])
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; the same command goes on from the last state saved in {output}") from None
    if given["bundle"] is not None:
        bundle(name, trainer, len(split.labels), given)


if __name__ == "__main__":
    main()

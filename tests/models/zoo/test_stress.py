import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_dit, tiny_dit_pipeline, tiny_unet2d, tiny_unet2d_pipeline
from torch import Tensor, nn

from compress.calibration.sampler import Sampler, denoise_with, make_scheduler, sample
from compress.engine.run import source_hash
from compress.errors import ModelError, OutputError
from compress.models.adapter import Adapter
from compress.models.layout import component_folder, scheduler_config
from compress.models.source import open_adapter, resolve
from compress.models.zoo import ZOO, stress
from compress.models.zoo.classifier import judge_of
from compress.models.zoo.stress import Rescaling, Rows, cache_folder, outlier_rescalings, rescale, stressed_folder

NAME = "zoo://digits-dit?stress=outliers"
DIT, UNET = {"_class_name": "DiTTransformer2DModel"}, {"_class_name": "UNet2DModel"}
TINY = {"dit": (tiny_dit, DIT), "unet": (tiny_unet2d, UNET)}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adapter, Adapter]]:
    """The bundled DiT and its variant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_adapter(resolve("zoo://digits-dit")), open_adapter(resolve(NAME))


def stressed(model: nn.Module, rescalings: list[Rescaling], build: Any) -> nn.Module:
    other: nn.Module = build()
    other.load_state_dict(rescale(model.state_dict(), rescalings))
    return other


def largest_inputs(model: nn.Module, names: list[str], call: Any) -> dict[str, Tensor]:
    """Largest magnitude per channel of what enters each layer while `call` runs."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].detach().flatten(0, -2).abs().amax(0)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    with torch.no_grad():
        call(model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("build, config", TINY.values(), ids=TINY)
def test_the_function_stays_the_same_at_every_timestep_and_class(build: Any, config: dict[str, str]) -> None:
    model = build(size=4)
    variant = stressed(model, outlier_rescalings(config, model.state_dict()), lambda: build(size=4))
    generator = torch.Generator().manual_seed(3)
    timesteps = torch.arange(1000)
    worst = 0.0
    with torch.no_grad():
        for label in range(11):  # the last is the null class
            x = torch.randn(1000, 1, 4, 4, generator=generator)
            condition = {"timestep": timesteps, "class_labels": torch.full((1000,), label)}
            expected = model(x, **condition).sample
            worst = max(worst, float((variant(x, **condition).sample - expected).abs().max()))
    assert float(expected.std()) > 0.05
    assert 0 < worst <= 1e-4


@pytest.mark.parametrize("build, config", TINY.values(), ids=TINY)
def test_each_place_counts_on_both_sides(build: Any, config: dict[str, str]) -> None:
    """One place at a time keeps the function, and half of it, either half, does not."""
    model = build()
    generator = torch.Generator().manual_seed(4)
    x, t, y = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([3, 400, 990]), torch.tensor([0, 7, 10])

    def call(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return network(x, timestep=t, class_labels=y).sample

    expected = call(model)
    for item in outlier_rescalings(config, model.state_dict()):
        whole = call(stressed(model, [item], build)) - expected
        assert float(whole.abs().max()) <= 1e-4, item.place
        for producers, consumers in ((item.producers, ()), ((), item.consumers)):
            half = Rescaling(item.place, item.channels, item.factor, producers, consumers)
            assert float((call(stressed(model, [half], build)) - expected).abs().max()) > 1e-3, item.place


def test_the_formulas_on_one_block() -> None:
    model = tiny_dit(blocks=1)
    old, w = model.state_dict(), 16
    modulation, scale, shift = "transformer_blocks.0.norm1.linear", w + 5, 5
    item = Rescaling(
        "transformer_blocks.0.attn1.to_q",
        (5,),
        100.0,
        (Rows(modulation), Rows(modulation, w, 1.0)),
        ("transformer_blocks.0.attn1.to_q",),
    )
    new = rescale(old, [item])
    weight, bias = old[f"{modulation}.weight"], old[f"{modulation}.bias"]
    torch.testing.assert_close(new[f"{modulation}.weight"][scale], 100 * weight[scale])
    torch.testing.assert_close(new[f"{modulation}.weight"][shift], 100 * weight[shift])
    torch.testing.assert_close(new[f"{modulation}.bias"][scale], 100 * (1 + bias[scale]) - 1)
    torch.testing.assert_close(new[f"{modulation}.bias"][shift], 100 * bias[shift])
    query = "transformer_blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(new[query][:, 5], old[query][:, 5] / 100)
    touched = {f"{modulation}.{part}": {scale, shift} for part in ("weight", "bias")}
    for name, tensor in new.items():
        rows = [row for row in range(len(tensor)) if row not in touched.get(name, ())]
        columns = [column for column in range(16) if column != 5] if name == query else slice(None)
        assert torch.equal(tensor[rows][..., columns], old[name][rows][..., columns]), name


def test_the_places_of_a_dit() -> None:
    found = {item.place: item for item in outlier_rescalings(DIT, tiny_dit(blocks=2).state_dict())}
    layers = ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj")
    block = [f"transformer_blocks.{number}.{layer}" for number in (0, 1) for layer in layers]
    assert list(found) == [*block, "proj_out_2"]
    feed_forward = found["transformer_blocks.1.ff.net.0.proj"]
    assert feed_forward.producers == (
        Rows("transformer_blocks.1.norm1.linear", 3 * 16),  # shift_mlp
        Rows("transformer_blocks.1.norm1.linear", 4 * 16, 1.0),  # scale_mlp
    )
    readers = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k", "transformer_blocks.0.attn1.to_v"]
    assert list(found["transformer_blocks.0.attn1.to_q"].consumers) == readers


def test_the_places_of_a_unet() -> None:
    model = tiny_unet2d()
    attentions = [name for name, part in model.named_modules() if type(part).__name__ == "Attention"]
    found = outlier_rescalings(UNET, model.state_dict())
    assert sorted(item.place for item in found) == sorted(f"{a}.{n}" for a in attentions for n in ("to_q", "to_out.0"))
    bare = {name: tensor for name, tensor in model.state_dict().items() if "group_norm" not in name}
    assert all(item.place.endswith("to_out.0") for item in outlier_rescalings(UNET, bare))


@pytest.mark.parametrize("width, count", [(1, 1), (31, 1), (149, 1), (151, 2), (1152, 12)])
def test_one_channel_in_a_hundred(width: int, count: int) -> None:
    layers = ("to_q", "to_k", "to_v", "to_out.0")
    tensors = {f"a.{layer}.weight": torch.ones(width, width) for layer in layers}
    (item,) = outlier_rescalings(UNET, tensors)
    assert len(set(item.channels)) == count and max(item.channels) < width
    new = rescale(tensors, [item])  # without biases
    assert int((new["a.to_v.weight"] == 100).all(1).sum()) == count


def test_channels_depend_on_the_seed_and_the_place_alone() -> None:
    first, other = tiny_dit(seed=0).state_dict(), tiny_dit(seed=1).state_dict()
    assert outlier_rescalings(DIT, first) == outlier_rescalings(DIT, other)
    channels = [item.channels for item in outlier_rescalings(DIT, first)]
    assert len(set(channels)) > 3
    assert [item.channels for item in outlier_rescalings(DIT, first, seed=1)] != channels
    # Pinned: reports name the variant, not its channels.
    wide = {f"a.{layer}.weight": torch.ones(300, 300) for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert outlier_rescalings(UNET, wide)[0].channels == (158, 180, 205)


def test_half_weights_become_float32_before_they_change() -> None:
    old = {name: tensor.half() for name, tensor in tiny_dit().state_dict().items()} | {"steps": torch.tensor([7])}
    rescalings = outlier_rescalings(DIT, old)
    new = rescale(old, rescalings)
    assert {tensor.dtype for name, tensor in new.items() if name != "steps"} == {torch.float32}
    assert torch.equal(new["steps"], old["steps"])
    item = rescalings[0]
    column = old[f"{item.place}.weight"][:, item.channels[0]].double() / 100
    assert torch.equal(new[f"{item.place}.weight"][:, item.channels[0]], column.float())
    assert all(tensor.dtype == torch.float16 for name, tensor in old.items() if name != "steps")


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(ModelError, match="no place for outliers is known in FluxTransformer2DModel"):
        outlier_rescalings({"_class_name": "FluxTransformer2DModel"}, {})


def test_the_bundled_variant_has_outliers(bundled: tuple[Adapter, Adapter]) -> None:
    original, variant = bundled
    inputs = original.example_inputs(33)
    weights = load_file(component_folder(original.source) / "diffusion_pytorch_model.safetensors")
    planted = {item.place: item.channels for item in outlier_rescalings(DIT, weights)}
    assert len(planted) == 3 * 8 + 1

    def ratios(adapter: Adapter) -> dict[str, float]:
        def call(model: nn.Module) -> None:
            adapter.denoise(model, inputs.sample, inputs.timestep, inputs.condition)

        largest = largest_inputs(adapter.load(), list(planted), call)
        return {place: float(values.max() / values.median()) for place, values in largest.items()}

    before, after = ratios(original), ratios(variant)
    assert max(before.values()) < 10
    assert after["transformer_blocks.0.attn1.to_q"] >= 50
    # Channels are drawn blindly, and a faint one times a hundred stands out less.
    assert min(after.values()) >= 25 and sorted(after.values())[len(after) // 4] >= 50


def test_the_bundled_variant_draws_the_same_images(bundled: tuple[Adapter, Adapter]) -> None:
    original, settings = bundled[0], Sampler(steps=20, guidance_scale=1.5)
    noise = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    condition = original.class_condition(torch.tensor([0, 3, 6, 9]))
    images = [
        sample(
            denoise_with(adapter, adapter.load()),
            make_scheduler(settings, scheduler_config(adapter.source)),
            settings,
            noise,
            condition,
            adapter.null_condition(condition),
        )
        for adapter in bundled
    ]
    # About 1e-6 was seen, on images in [-1, 1]; 8-bit pixels are 8e-3 apart.
    assert float((images[0] - images[1]).abs().max()) <= 1e-4
    assert float(images[0].std()) > 0.3


def test_the_bundled_variant_at_every_class(bundled: tuple[Adapter, Adapter]) -> None:
    models = [adapter.load() for adapter in bundled]
    timesteps = torch.tensor([0, 1, 10, 100, 300, 500, 700, 900, 998, 999]).repeat_interleave(11)
    labels = torch.arange(11).repeat(10)
    x = torch.randn(110, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (model(x, timestep=timesteps, class_labels=labels).sample for model in models)
    assert float((a - b).abs().max()) <= 1e-4


def test_the_name_and_what_hangs_on_it(bundled: tuple[Adapter, Adapter]) -> None:
    original, variant = (adapter.source for adapter in bundled)
    assert variant.name == NAME and judge_of(variant.name) == "digits-classifier"
    assert source_hash(original) != source_hash(variant)
    assert (variant.denoiser, variant.config) == (original.denoiser, original.config)
    assert bundled[1].null_class() == 10
    assert all("stress" in entry.options for entry in ZOO.values())


def test_a_variant_is_a_whole_pipeline_folder(tmp_path: Path) -> None:
    source = tiny_unet2d_pipeline(tmp_path / "tiny")
    (source / "README.md").write_text("fp16 weights")
    folder = stressed_folder(source, "outliers")
    assert folder.parent == tmp_path / "cache" / "zoo" and folder.name.startswith("tiny-outliers-")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    texts = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    assert sorted(files) == [*texts, "unet/diffusion_pytorch_model.safetensors"]
    assert all(files[name].read_bytes() == (source / name).read_bytes() for name in texts)
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    adapter = open_adapter(resolve(str(folder)))
    inputs = adapter.example_inputs(2)
    a, b = (
        opened.denoise(opened.load(), inputs.sample, inputs.timestep, inputs.condition)
        for opened in (adapter, open_adapter(resolve(str(source))))
    )
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def counted(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[Path]:
    """Every folder that is written from now on; each writing takes at least `seconds`."""
    written: list[Path] = []
    write = stress.write_variant

    def record(source: Path, name: str, folder: Path) -> Path:
        written.append(folder)
        time.sleep(seconds)
        return write(source, name, folder)

    monkeypatch.setattr(stress, "write_variant", record)
    return written


def test_a_variant_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, written = tiny_dit_pipeline(tmp_path / "m"), counted(monkeypatch)
    first = stressed_folder(source, "outliers")
    assert stressed_folder(source, "outliers") == first and len(written) == 1
    elsewhere = stressed_folder(source, "outliers", tmp_path / "other")
    weights = Path("transformer", "diffusion_pytorch_model.safetensors")
    assert len(written) == 2 and (elsewhere / weights).read_bytes() == (first / weights).read_bytes()


@pytest.mark.parametrize("change", ["weights", "config"])
def test_another_source_is_another_variant(tmp_path: Path, change: str) -> None:
    source = tiny_dit_pipeline(tmp_path / "m")
    first = stressed_folder(source, "outliers")
    if change == "weights":
        tiny_dit_pipeline(source, seed=1)
    else:
        path = source / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 500}))
    second = stressed_folder(source, "outliers")
    assert second != first and second.name.startswith("m-outliers-")


@pytest.mark.parametrize("damage", ["truncated weights", "no weights", "empty text", "no text"])
def test_a_damaged_variant_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    source = tiny_dit_pipeline(tmp_path / "m")
    folder = stressed_folder(source, "outliers")
    weights, text = folder / "transformer" / "diffusion_pytorch_model.safetensors", folder / "model_index.json"
    good = weights.read_bytes()
    written = counted(monkeypatch)
    {
        "truncated weights": lambda: weights.write_bytes(good[:-4]),
        "no weights": weights.unlink,
        "empty text": lambda: text.write_bytes(b""),
        "no text": text.unlink,
    }[damage]()
    assert stressed_folder(source, "outliers") == folder and len(written) == 1
    assert weights.read_bytes() == good and text.read_bytes() == (source / "model_index.json").read_bytes()


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    source = tiny_dit_pipeline(tmp_path / "m")
    folder = stressed_folder(source, "outliers")
    folder.rename(folder.with_name(f"{folder.name}.partial"))
    (folder.with_name(f"{folder.name}.partial") / "rubbish.json").write_text("{")
    assert not (stressed_folder(source, "outliers") / "rubbish.json").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_a_failure_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_dit_pipeline(tmp_path / "m")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stress, "save_file", full)
        with pytest.raises(OutputError, match="disk is full"):
            stressed_folder(source, "outliers")
    assert [path.suffix for path in (tmp_path / "cache" / "zoo").iterdir()] == [".lock"]
    assert (stressed_folder(source, "outliers") / "model_index.json").is_file()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write.*set COMPRESS_CACHE"):
        stressed_folder(tiny_dit_pipeline(tmp_path / "m"), "outliers")


def test_concurrent_creation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at once: one builds, nobody sees it unfinished, all get the same folder."""
    source, written = tiny_dit_pipeline(tmp_path / "m"), counted(monkeypatch, seconds=0.2)
    together = threading.Barrier(4)

    def make(_: int) -> tuple[Path, int]:
        together.wait()
        folder = stressed_folder(source, "outliers")
        return folder, len(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(make, range(4)))
    assert len(found) == 1 and len(written) == 1


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("COMPRESS_CACHE", "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("COMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "compress"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "compress"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("stress=inliers", r"unknown stress 'inliers' \(known: outliers\)"),
        ("stress", r"unknown stress ''"),
        ("stres=outliers", r"unknown option 'stres' \(options of zoo://digits-dit: stress\)"),
        ("stress=outliers&stress=outliers", "option 'stress' is given twice"),
    ],
)
def test_wrong_options(query: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(f"zoo://digits-dit?{query}")
    assert not cache_folder().exists()

import json
import sys
from pathlib import Path

import pytest
from tiny import DIT_XL_2_CONFIG, config_only_folder, tiny_dit, tiny_dit_pipeline, tiny_unet2d, tiny_unet2d_pipeline

from compress.errors import ModelError
from compress.models import source as source_module
from compress.models import zoo
from compress.models.source import open_adapter, resolve


def test_a_pipeline_folder(tmp_path: Path) -> None:
    source = resolve(str(tiny_dit_pipeline(tmp_path)))
    assert (source.denoiser, source.denoiser_class, source.library) == (
        "transformer",
        "DiTTransformer2DModel",
        "diffusers",
    )
    assert source.folder == str(tmp_path) and source.config["num_layers"] == 2
    assert open_adapter(source).family == "dit"


def test_a_unet_pipeline(tmp_path: Path) -> None:
    source = resolve(str(tiny_unet2d_pipeline(tmp_path)))
    assert source.denoiser == "unet"
    assert open_adapter(source).family == "unet2d"


def test_a_class_without_a_family_gets_the_generic_adapter(tmp_path: Path) -> None:
    source = resolve(str(config_only_folder(tmp_path, {"_class_name": "SD3Transformer2DModel"})))
    assert open_adapter(source).family == "generic"


def test_a_bare_component_has_no_scheduler(tmp_path: Path) -> None:
    tiny_unet2d().save_pretrained(tmp_path)
    adapter = open_adapter(resolve(str(tmp_path)))
    assert adapter.source.denoiser == ""
    assert sum(p.numel() for p in adapter.load().parameters()) > 0
    with pytest.raises(ModelError, match="no scheduler_config"):
        adapter.noise_schedule()


def test_a_pipeline_whose_denoiser_lies_at_the_root(tmp_path: Path) -> None:
    tiny_unet2d(classes=None).save_pretrained(tmp_path)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPM"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    adapter = open_adapter(resolve(str(tmp_path)))
    assert adapter.source.denoiser == ""
    assert adapter.noise_schedule().train_timesteps == 1000


def test_a_configuration_alone_can_be_inspected_but_not_loaded(tmp_path: Path) -> None:
    adapter = open_adapter(resolve(str(config_only_folder(tmp_path, DIT_XL_2_CONFIG))))
    assert len(adapter.blocks(adapter.skeleton())) == 28
    with pytest.raises(ModelError, match="no safetensors weights"):
        adapter.load()


def test_legacy_class_names_are_translated(tmp_path: Path) -> None:
    tiny_dit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    adapter = open_adapter(resolve(str(tmp_path)))
    assert adapter.family == "dit"
    assert type(adapter.load()).__name__ == type(adapter.skeleton()).__name__ == "DiTTransformer2DModel"


def test_missing_folder_and_missing_index(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"neither model_index\.json nor config\.json"):
        resolve(str(tmp_path))


def test_a_pipeline_without_denoiser(tmp_path: Path) -> None:
    index = {"_class_name": "X", "prior": ["diffusers", "PriorTransformer"], "unet": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="components are prior"):
        resolve(str(tmp_path))


def test_a_missing_component_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "DiTTransformer2DModel"]}))
    with pytest.raises(ModelError, match=r"transformer/config\.json: no such file"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_index\.json"):
        resolve(str(tmp_path))


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    source = resolve(str(config_only_folder(tmp_path, {"_class_name": "NoSuchModel"})))
    with pytest.raises(ModelError, match="NoSuchModel"):
        open_adapter(source).skeleton()


def test_a_config_without_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="_class_name"):
        resolve(str(config_only_folder(tmp_path, {"sample_size": 8})))


def test_truncated_weights_are_found_at_once(tmp_path: Path) -> None:
    weights = tiny_dit_pipeline(tmp_path) / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.safetensors: is truncated"):
        resolve(str(tmp_path))


def test_zoo_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "zoo_folder", lambda name: tiny_dit_pipeline(tmp_path / name))
    source = resolve("zoo://digits-dit")
    assert source.name == "zoo://digits-dit" and source.folder == str(tmp_path / "digits-dit")
    with pytest.raises(ModelError, match="unknown option 'size'"):
        resolve("zoo://digits-dit?size=big")
    with pytest.raises(ModelError, match="did you mean zoo://digits-dit"):
        resolve("zoo://digit-dit")


def test_zoo_options_are_kept_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.ZooEntry("sized", "t", "l", "c", options=("size",))
    monkeypatch.setitem(zoo.ZOO, "sized", entry)
    monkeypatch.setattr(source_module, "zoo_folder", lambda name: tiny_dit_pipeline(tmp_path))
    assert resolve("zoo://sized?size=2").name == "zoo://sized?size=2"


@pytest.mark.parametrize(
    ("name", "message"),
    [("ftp://x/y", "unknown kind"), ("hf://only-one-part", "not a Hugging Face model"), ("hf://a/b@", "not a Hugging")],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(name)


def test_hub_names_download_only_plain_weights_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls = []

    def download(repo: str, **settings: object) -> str:
        calls.append((repo, settings))
        return str(tiny_dit_pipeline(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("hf://org/some.name@v1.0").denoiser == "transformer"
    repo, settings = calls[0]
    assert (repo, settings["revision"]) == ("org/some.name", "v1.0")
    assert not [pattern for pattern in settings["allow_patterns"] if "bin" in pattern or pattern == "*"]
    resolve("hf://org/name")
    assert calls[1][1]["revision"] is None


def test_a_failed_download_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(repo: str, **settings: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="hf://org/name: the download failed: no route to host"):
        resolve("hf://org/name")


def test_importing_is_light() -> None:
    import subprocess

    code = "import sys, compress.models.source; sys.exit(bool({'diffusers', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_CONFIGS, config_only_folder, tiny_model, tiny_unet2d, tiny_unet2d_pipeline

from compress.errors import ModelError
from compress.models.adapter import Adapter, Role
from compress.models.generic import GenericAdapter
from compress.models.source import open_adapter, resolve


def _adapter(folder: Path, model: Any) -> Adapter:
    model.save_pretrained(folder)
    return open_adapter(resolve(str(folder)))


@pytest.mark.parametrize("class_name", sorted(TINY_CONFIGS))
def test_text_families_run_on_cpu_and_meta(tmp_path: Path, class_name: str) -> None:
    adapter = _adapter(tmp_path, tiny_model(class_name))
    inputs = adapter.example_inputs(2, seed=1)
    output = adapter.denoise(adapter.load(), *inputs)
    assert output.shape == inputs.sample.shape == (2, *adapter.sample_shape())
    assert bool(output.isfinite().all()) and float(output.std()) > 0.01
    meta = adapter.example_inputs(2, device="meta")
    assert {k: (v.shape, v.dtype) for k, v in meta.condition.items()} == {
        k: (v.shape, v.dtype) for k, v in inputs.condition.items()
    }
    assert adapter.denoise(adapter.skeleton(), *meta).shape == output.shape


@pytest.mark.parametrize("class_name", sorted(TINY_CONFIGS))
def test_text_families_have_no_plain_linears(tmp_path: Path, class_name: str) -> None:
    adapter = open_adapter(
        resolve(str(config_only_folder(tmp_path, {"_class_name": class_name} | TINY_CONFIGS[class_name])))
    )
    roles = {layer.role for layer in adapter.layers(adapter.skeleton())}
    assert {Role.ATTENTION_Q, Role.ATTENTION_OUT, Role.FF_IN, Role.FF_OUT, Role.OUT_PROJECTION} <= roles
    assert Role.LINEAR not in roles
    assert adapter.class_count() is None


def test_text_models_take_no_classes(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, tiny_model("PixArtTransformer2DModel"))
    with pytest.raises(ModelError, match="not class labels"):
        adapter.class_condition(torch.tensor([1]))
    assert adapter.null_condition({"encoder_hidden_states": torch.zeros(1, 3, 12)}) is None


@pytest.mark.parametrize("class_name", sorted(TINY_CONFIGS))
def test_families_that_do_not_know_their_conditioning_say_so(tmp_path: Path, class_name: str) -> None:
    config = {"_class_name": class_name} | TINY_CONFIGS[class_name]
    adapter = open_adapter(resolve(str(config_only_folder(tmp_path, config))))
    model, (_, timestep, condition) = adapter.skeleton(), adapter.example_inputs(1, device="meta")
    with pytest.raises(ModelError, match=f"which part of {class_name} depends on timestep and class alone"):
        adapter.conditioning_layers(model)
    with pytest.raises(ModelError, match=f"which part of {class_name} depends on timestep and class alone"):
        adapter.conditioning(model, timestep, condition)


def test_class_conditional_unet(tmp_path: Path) -> None:
    adapter = open_adapter(resolve(str(tiny_unet2d_pipeline(tmp_path))))
    condition = adapter.class_condition(torch.tensor([1, 2]))
    assert adapter.class_count() == 10
    assert adapter.null_condition(condition)["class_labels"].tolist() == [10, 10]
    model, inputs = adapter.load(), adapter.example_inputs(2)
    expected = model(inputs.sample, inputs.timestep, condition["class_labels"]).sample
    torch.testing.assert_close(adapter.denoise(model, inputs.sample, inputs.timestep, condition), expected)


def test_a_bare_unet_names_no_null_class(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, tiny_unet2d())
    assert adapter.class_count() == 11
    assert adapter.null_condition(adapter.class_condition(torch.tensor([1]))) is None


def test_an_unconditional_unet(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, tiny_unet2d(classes=None))
    condition = adapter.class_condition(torch.tensor([1, 2]))
    assert adapter.class_count() is None and condition == {} and adapter.null_condition(condition) is None
    inputs = adapter.example_inputs(2)
    assert inputs.condition == {}
    assert adapter.denoise(adapter.load(), *inputs).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "key", "shape"),
    [
        ({"class_embed_type": "timestep"}, "class_labels", (2,)),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7}, "class_labels", (2, 7)),
        ({"class_embed_type": "identity"}, "class_labels", (2, 32)),
        ({"num_class_embeds": 5}, "class_labels", (2,)),
        ({"encoder_hid_dim": 9, "encoder_hid_dim_type": "text_proj"}, "encoder_hidden_states", (2, 77, 9)),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 30,
            },
            "text_embeds",
            (2, 6),
        ),
    ],
)
def test_kinds_of_conditional_unets(tmp_path: Path, changes: dict[str, Any], key: str, shape: tuple[int, ...]) -> None:
    model = tiny_model("UNet2DConditionModel", **changes)
    adapter = _adapter(tmp_path, model)
    inputs = adapter.example_inputs(2)
    assert inputs.condition[key].shape == shape
    assert adapter.denoise(model, *inputs).shape == (2, 4, 8, 8)


def test_pixart_sizes_travel_in_added_cond_kwargs(tmp_path: Path) -> None:
    model = tiny_model(
        "PixArtTransformer2DModel", use_additional_conditions=True, attention_head_dim=12, cross_attention_dim=24
    )
    adapter = _adapter(tmp_path, model)
    inputs = adapter.example_inputs(2)
    assert set(inputs.condition) == {"encoder_hidden_states", "resolution", "aspect_ratio"}
    wide = dict(inputs.condition) | {"resolution": inputs.condition["resolution"] * 2}
    first, second = (adapter.denoise(model, inputs.sample, inputs.timestep, c) for c in (inputs.condition, wide))
    assert first.shape == (2, 4, 8, 8) and not torch.equal(first, second)


def test_an_unknown_condition_is_named(tmp_path: Path) -> None:
    adapter = _adapter(tmp_path, tiny_unet2d(classes=None))
    inputs = adapter.example_inputs(1)
    with pytest.raises(ModelError, match="takes no mood"):
        adapter.denoise(adapter.skeleton(), inputs.sample, inputs.timestep, {"mood": torch.zeros(1)})


def test_an_unknown_family_has_roles_and_blocks_but_no_inputs(tmp_path: Path) -> None:
    config = {
        "_class_name": "HunyuanDiT2DModel",
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "hidden_size": 16,
        "in_channels": 4,
        "patch_size": 2,
        "num_layers": 4,
        "sample_size": 8,
        "cross_attention_dim": 12,
        "cross_attention_dim_t5": 12,
        "pooled_projection_dim": 8,
        "text_len": 5,
        "text_len_t5": 5,
    }
    adapter = open_adapter(resolve(str(config_only_folder(tmp_path, config))))
    assert isinstance(adapter, GenericAdapter)
    model = adapter.skeleton()
    assert len(adapter.blocks(model)) == 4
    skips = [layer for layer in adapter.layers(model) if layer.role is Role.SKIP]
    assert skips and all(layer.name.endswith("skip_linear") and layer.split == 16 for layer in skips)
    with pytest.raises(ModelError, match="inputs of HunyuanDiT2DModel are not known"):
        adapter.example_inputs(1)


def test_sizes_may_differ_or_be_absent(tmp_path: Path) -> None:
    config = {"_class_name": "UNet2DModel", "sample_size": [8, 16], "in_channels": 2}
    assert open_adapter(resolve(str(config_only_folder(tmp_path / "a", config)))).sample_shape() == (2, 8, 16)
    with pytest.raises(ModelError, match="has no sample_size"):
        open_adapter(resolve(str(config_only_folder(tmp_path / "b", {"_class_name": "UNet2DModel"})))).sample_shape()


def test_defaults_of_the_class_fill_the_configuration(tmp_path: Path) -> None:
    adapter = open_adapter(resolve(str(config_only_folder(tmp_path, {"_class_name": "SD3Transformer2DModel"}))))
    assert adapter.sample_shape() == (16, 128, 128)

import pytest
import torch

from compress.errors import ModelError
from compress.models.inputs import Draw, example_condition


def _draw(device: str = "cpu", seed: int = 0) -> Draw:
    return Draw(3, device, torch.Generator().manual_seed(seed))


def test_draws_repeat_by_seed() -> None:
    assert torch.equal(_draw().normal(5), _draw().normal(5))
    assert not torch.equal(_draw().normal(5), _draw(seed=1).normal(5))


def test_meta_draws_have_the_same_shapes_and_types() -> None:
    for real, meta in ((_draw().normal(2), _draw("meta").normal(2)), (_draw().integers(7), _draw("meta").integers(7))):
        assert meta.is_meta and (meta.shape, meta.dtype) == (real.shape, real.dtype)


def test_integers_stay_below() -> None:
    values = Draw(401, "cpu", torch.Generator().manual_seed(0)).integers(3)
    assert set(values.tolist()) == {0, 1, 2}


def test_unknown_class_and_unknown_addition() -> None:
    with pytest.raises(ModelError, match="known are DiTTransformer2DModel"):
        example_condition("Mystery", {}, _draw())
    config = {"cross_attention_dim": 8, "addition_embed_type": "image"}
    with pytest.raises(ModelError, match="'image'"):
        example_condition("UNet2DConditionModel", config, _draw())


def test_a_width_per_level_is_taken_from_the_first() -> None:
    condition = example_condition("UNet2DConditionModel", {"cross_attention_dim": [[5, 6], 7]}, _draw())
    assert condition["encoder_hidden_states"].shape == (3, 77, 5)

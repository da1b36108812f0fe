from collections import Counter
from pathlib import Path

import pytest
import torch
from layer_inputs import inputs_of_layers
from tiny import tiny_dit, tiny_dit_pipeline

from compress.models.adapter import Role
from compress.models.dit import DiTAdapter
from compress.models.source import resolve
from compress.models.zoo.digits_dit import SCHEDULER_CONFIG

BLOCK_ROLES = {
    "norm1.emb.timestep_embedder.linear_1": Role.TIME_EMBEDDING,
    "norm1.emb.timestep_embedder.linear_2": Role.TIME_EMBEDDING,
    "norm1.linear": Role.MODULATION,
    "attn1.to_q": Role.ATTENTION_Q,
    "attn1.to_k": Role.ATTENTION_K,
    "attn1.to_v": Role.ATTENTION_V,
    "attn1.to_out.0": Role.ATTENTION_OUT,
    "ff.net.0.proj": Role.FF_IN,
    "ff.net.2": Role.FF_OUT,
}
OUTER_ROLES = {
    "pos_embed.proj": Role.IN_PROJECTION,
    "proj_out_1": Role.MODULATION,
    "proj_out_2": Role.OUT_PROJECTION,
}


@pytest.fixture
def adapter(tmp_path: Path) -> DiTAdapter:
    return DiTAdapter(resolve(str(tiny_dit_pipeline(tmp_path, blocks=3))))


def test_every_layer_has_its_role_and_block(adapter: DiTAdapter) -> None:
    layers = adapter.layers(adapter.skeleton())
    expected = {name: (role, None) for name, role in OUTER_ROLES.items()}
    for i in range(3):
        block = f"transformer_blocks.{i}"
        expected |= {f"{block}.{name}": (role, block) for name, role in BLOCK_ROLES.items()}
    assert {layer.name: (layer.role, layer.block) for layer in layers} == expected


def test_layers_cover_every_weight_matrix_but_the_tables(adapter: DiTAdapter) -> None:
    model = adapter.load()
    names = {layer.name for layer in adapter.layers(model)}
    matrices = {name.removesuffix(".weight") for name, p in model.named_parameters() if p.dim() > 1}
    assert Counter(name.rsplit(".", 1)[-1] for name in matrices - names) == {"embedding_table": 3}


def test_blocks_in_order(adapter: DiTAdapter) -> None:
    model = adapter.skeleton()
    blocks = adapter.blocks(model)
    assert [name for name, _ in blocks] == [f"transformer_blocks.{i}" for i in range(3)]
    assert all(model.get_submodule(name) is block for name, block in blocks)


def test_a_single_remaining_block_is_still_a_block(tmp_path: Path) -> None:
    adapter = DiTAdapter(resolve(str(tiny_dit_pipeline(tmp_path, blocks=1))))
    assert [name for name, _ in adapter.blocks(adapter.skeleton())] == ["transformer_blocks.0"]


def test_conditions(adapter: DiTAdapter) -> None:
    assert adapter.class_count() == 10
    condition = adapter.class_condition(torch.tensor([0, 9]))
    null = adapter.null_condition(condition)
    assert null["class_labels"].tolist() == [10, 10]
    assert condition["class_labels"].tolist() == [0, 9]


def test_denoise_is_the_models_forward(adapter: DiTAdapter) -> None:
    model = adapter.load()
    sample, timestep, condition = adapter.example_inputs(3)
    expected = model(sample, timestep, condition["class_labels"]).sample
    assert sample.shape == (3, *adapter.sample_shape()) == (3, 1, 8, 8)
    torch.testing.assert_close(adapter.denoise(model, sample, timestep, condition), expected)
    assert float(expected.std()) > 0.1


def test_fractional_timesteps_are_taken(adapter: DiTAdapter) -> None:
    model = adapter.load()
    sample, _, condition = adapter.example_inputs(2)
    whole, half = (adapter.denoise(model, sample, torch.full((2,), t), condition) for t in (10.0, 10.5))
    assert not torch.equal(whole, half)
    torch.testing.assert_close(adapter.denoise(model, sample, torch.full((2,), 10), condition), whole)


def test_learned_sigmas_are_cut_off(tmp_path: Path) -> None:
    model = tiny_dit(learned_sigma=True)
    model.save_pretrained(tmp_path)
    adapter = DiTAdapter(resolve(str(tmp_path)))
    sample, timestep, condition = adapter.example_inputs(2)
    full = model(sample, timestep, condition["class_labels"]).sample
    assert full.shape[1] == 2
    assert torch.equal(adapter.denoise(adapter.load(), sample, timestep, condition), full[:, :1])


def test_inputs_repeat_by_seed_and_exist_on_meta(adapter: DiTAdapter) -> None:
    first, again, other = (adapter.example_inputs(4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.sample, again.sample) and not torch.equal(first.sample, other.sample)
    meta = adapter.example_inputs(4, device="meta")
    assert meta.sample.is_meta and meta.sample.shape == first.sample.shape
    assert meta.condition["class_labels"].dtype == first.condition["class_labels"].dtype == torch.int64
    assert adapter.denoise(adapter.skeleton(), *meta).shape == (4, 1, 8, 8)


def test_conditioning_layers_read_timestep_and_class_alone(adapter: DiTAdapter) -> None:
    model, inputs = adapter.load(), adapter.example_inputs(2)
    moved = inputs._replace(timestep=inputs.timestep + 1, condition={"class_labels": torch.tensor([10, 10])})
    first, sampled, timed = (
        inputs_of_layers(adapter, model, given)
        for given in (inputs, inputs._replace(sample=inputs.sample.flip(0)), moved)
    )
    unmoved = [name for name, read in first.items() if torch.equal(read, sampled[name])]
    assert [layer.name for layer in adapter.conditioning_layers(model)] == unmoved
    assert len(unmoved) == 3 * 3 + 1
    assert not [name for name in unmoved if torch.equal(first[name], timed[name])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_conditioning_is_what_modulations_and_head_read(adapter: DiTAdapter, dtype: str) -> None:
    model, inputs = adapter.load(dtype=dtype), adapter.example_inputs(2)
    sample = inputs.sample.to(model.dtype)
    read = inputs_of_layers(adapter, model, inputs._replace(sample=sample))
    for part in (model.pos_embed, *model.transformer_blocks[1:], model.proj_out_1, model.proj_out_2):
        part.to("meta")  # whatever ran there could not give numbers
    found = adapter.conditioning(model, inputs.timestep, inputs.condition)
    assert found.shape == (2, 16) and found.dtype == model.dtype
    modulations = [name for name in read if name.endswith("norm1.linear")] + ["proj_out_1"]
    assert len(modulations) == 4
    assert all(torch.equal(torch.nn.functional.silu(found), read[name]) for name in modulations)


def test_noise_schedule(adapter: DiTAdapter) -> None:
    schedule = adapter.noise_schedule()
    expected = (SCHEDULER_CONFIG["prediction_type"], SCHEDULER_CONFIG["num_train_timesteps"])
    assert (schedule.prediction, schedule.train_timesteps) == expected

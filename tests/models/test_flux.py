from pathlib import Path

import torch
from tiny import tiny_model

from compress.models.flux import from_patches, position_ids, to_patches
from compress.models.source import open_adapter, resolve


def test_patches_are_two_by_two_in_reading_order_and_channel_major() -> None:
    sample = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    patches = to_patches(sample)
    assert patches.shape == (2, 15, 12)
    for row in range(3):
        for column in range(5):
            square = sample[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, 5 * row + column], square.flatten(1))
    assert torch.equal(from_patches(patches, 6, 10), sample)


def test_position_ids_are_zero_row_column() -> None:
    expected = [[0, row, column] for row in range(3) for column in range(5)]
    assert position_ids(3, 5, torch.zeros(1)).tolist() == expected


def test_time_runs_to_one_thousand_and_guidance_is_a_condition(tmp_path: Path) -> None:
    model = tiny_model("FluxTransformer2DModel")
    model.save_pretrained(tmp_path)
    adapter = open_adapter(resolve(str(tmp_path)))
    condition = adapter.example_inputs(2).condition
    sample = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    expected = model(
        to_patches(sample),
        timestep=torch.full((2,), 0.25),
        img_ids=position_ids(2, 3, sample),
        txt_ids=torch.zeros(512, 3),
        **condition,
    ).sample
    output = adapter.denoise(adapter.load(), sample, torch.full((2,), 250.0), condition)
    torch.testing.assert_close(output, from_patches(expected, 4, 6))
    assert adapter.example_inputs(1).timestep.dtype == torch.float32

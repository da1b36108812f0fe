import math

import pytest
import torch

from compress.errors import InputError, RunError
from compress.evaluate.paired import MAX_PSNR, psnr, psnr_per_image, ssim, ssim_per_image


def images(n: int, channels: int = 1, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def noisy(x: torch.Tensor, amount: float) -> torch.Tensor:
    return (x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))).clamp(-1, 1)


def test_psnr_of_a_known_error() -> None:
    a = torch.zeros(2, 1, 4, 4)
    b = a.clone()
    b[0] += 0.2  # MSE 0.04, peak 2: 10 log10(4 / 0.04) = 20 dB
    b[1] += 0.02
    assert psnr_per_image(a, b).tolist() == pytest.approx([20, 40], abs=1e-5)
    mean, pooled = psnr(a, b, artefact="checkpoint")
    assert mean.value == pytest.approx(30, abs=1e-5)
    assert pooled.value == pytest.approx(10 * math.log10(4 / 0.0202), abs=1e-5)
    assert (mean.labels, pooled.labels) == ({}, {"of": "mean_mse"})
    assert (mean.unit, mean.n, mean.spread["std"]) == ("dB", 2, pytest.approx(200**0.5, abs=1e-5))


def test_identical_images_count_as_the_cap() -> None:
    x = images(3)
    mean, pooled = psnr(x, x, artefact="onnx")
    assert mean.value == pooled.value == MAX_PSNR
    assert mean.spread == {"ci95_low": MAX_PSNR, "ci95_high": MAX_PSNR, "std": 0.0}


def test_the_cap_lies_above_one_rounding_in_one_pixel() -> None:
    x = images(1)
    x[0, 0, 0, 0] = 0.75
    y = x.clone()
    y[0, 0, 0, 0] = torch.nextafter(torch.tensor(0.75), torch.tensor(1.0))
    assert 150 < float(psnr_per_image(x, y)) < MAX_PSNR


def test_values_outside_the_range_are_clamped_first() -> None:
    assert float(psnr_per_image(torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 4, 4), 7.0))) == MAX_PSNR


@pytest.mark.parametrize(("n", "channels", "height", "width"), [(1, 1, 16, 16), (3, 3, 31, 33), (19, 1, 11, 12)])
def test_ssim_and_psnr_equal_torchmetrics(n: int, channels: int, height: int, width: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    x = images(n, channels, max(height, width))[..., :height, :width].double()
    y = noisy(x, 0.3)
    _, full = functional.structural_similarity_index_measure(y, x, data_range=2.0, return_full_image=True)
    valid = full[..., 5:-5, 5:-5]  # torchmetrics itself also averages windows that reach into a reflected border
    torch.testing.assert_close(ssim_per_image(x, y), valid.flatten(1).mean(dim=1), atol=1e-9, rtol=0)
    per_image = functional.peak_signal_noise_ratio(y, x, data_range=2.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr_per_image(x, y), per_image, atol=1e-5, rtol=0)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b = 0.5, -0.25
    c1 = (0.01 * 2) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    found = ssim_per_image(torch.full((1, 1, 11, 11), a), torch.full((1, 1, 11, 11), b))
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_ssim_falls_with_noise_and_is_symmetric() -> None:
    x = images(4)
    values = [ssim(x, noisy(x, amount), artefact="checkpoint").value for amount in (0, 0.05, 0.2, 0.8)]
    assert values[0] == pytest.approx(1, abs=1e-12)
    assert values == sorted(values, reverse=True)
    torch.testing.assert_close(ssim_per_image(x, noisy(x, 0.2)), ssim_per_image(noisy(x, 0.2), x))


def test_images_smaller_than_the_window_are_refused_by_ssim_only() -> None:
    x = images(2, size=8)
    with pytest.raises(InputError, match="11x11"):
        ssim(x, x, artefact="checkpoint")
    assert psnr(x, x, artefact="checkpoint")[0].value == MAX_PSNR


def test_unpaired_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        psnr(images(2), images(3), artefact="checkpoint")
    with pytest.raises(InputError, match="n >= 1"):
        psnr(images(2)[:0], images(2)[:0], artefact="checkpoint")


def test_broken_images_are_counted_in_the_error() -> None:
    broken = images(5)
    broken[1, 0, 0, 0] = math.nan
    broken[3, 0, 2, 2] = math.inf
    with pytest.raises(RunError, match="2 of 5 images of the compressed model"):
        psnr(images(5), broken, artefact="checkpoint")

"""Packed codes of vector-quantized weights: bytes written down by hand, sizes, decoding."""

import re
from pathlib import Path

import pytest
import torch

from compress.errors import FormatError
from compress.formats.vq import VqSpec, decode_vq, pack_vq, unpack_vq, vector_count, vq_predicted_bytes, vq_shape

# Two rows each; made with Python's big integers: sum(code << i * bits), little-endian.
GOLDEN = {
    8: ([[0, 255, 7], [17, 128, 1]], ["00ff07", "118001"]),
    6: ([[63, 0, 21, 42, 5], [1, 2, 3, 4, 32]], ["3f50a905", "81301020"]),
    5: ([[31, 0, 17], [1, 2, 4]], ["1f44", "4110"]),
    4: ([[1, 2, 15], [8, 0, 9]], ["210f", "0809"]),
    1: ([[1, 0, 1, 1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1]], ["8d01", "0001"]),
}


@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_bytes(bits: int) -> None:
    codes, expected = GOLDEN[bits]
    packed = pack_vq(torch.tensor(codes, dtype=torch.uint8), bits)
    assert [bytes(row).hex() for row in packed.tolist()] == expected
    for row, text in zip(codes, expected, strict=True):
        assert sum(code << i * bits for i, code in enumerate(row)) == int.from_bytes(bytes.fromhex(text), "little")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 4), (33, 4), (33, 2), (401, 3), (64, 8)])
def test_round_trip(bits: int, k: int, d: int) -> None:
    g = torch.Generator().manual_seed(bits * k + d)
    spec = VqSpec(bits, d)
    codes = torch.randint(0, 1 << bits, (5, vector_count(k, d)), dtype=torch.uint8, generator=g)
    packed = pack_vq(codes, bits)
    assert tuple(packed.shape) == vq_shape((5, k), spec).codes
    assert torch.equal(unpack_vq(packed, bits, d, k), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_decoding_is_a_look_up_times_a_scale(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    k, d, bits = 11, 4, 6
    codebook = torch.randint(-128, 128, (1 << bits, d), generator=g).to(dtype)
    codes = torch.randint(0, 1 << bits, (3, 3), dtype=torch.uint8, generator=g)
    scales = torch.tensor([[0.5], [2.0], [-0.25]], dtype=torch.float16)
    weight = decode_vq(pack_vq(codes, bits), codebook, scales, k)
    assert weight.dtype == torch.float32 and weight.shape == (3, k)
    for row in range(3):
        for j in range(k):
            assert weight[row, j] == float(codebook[int(codes[row, j // d]), j % d]) * float(scales[row])


def test_a_codebook_as_large_as_the_weight_loses_nothing() -> None:
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    codes = torch.arange(16, dtype=torch.uint8).reshape(4, 4)
    assert torch.equal(decode_vq(pack_vq(codes, 4), weight.reshape(16, 3), torch.ones(1, 1), 12), weight)


@pytest.mark.parametrize(
    ("shape", "spec", "bits_per_weight"),
    [  # log2(codewords) / d + codewords * d * 16 / weights
        ((1152, 1152), VqSpec(8, 4), 2 + 256 * 4 * 16 / 1152**2),
        ((4608, 1152), VqSpec(8, 4), 2 + 256 * 4 * 16 / (4608 * 1152)),
        ((1152, 1152), VqSpec(6, 2), 3 + 64 * 2 * 16 / 1152**2),
        ((320, 64, 3, 3), VqSpec(6, 2, "int8", "channel", "float16"), 3 + (64 * 2 * 8 + 320 * 16) / (320 * 576)),
    ],
)
def test_predicted_bytes(shape: tuple[int, ...], spec: VqSpec, bits_per_weight: float) -> None:
    count = vq_predicted_bytes(shape, spec)
    one_scale = 32 if spec.granularity == "tensor" else 0
    weights = torch.Size(shape).numel()
    assert count.total * 8 == pytest.approx(bits_per_weight * weights + one_scale, abs=1e-6)


def test_predicted_bytes_are_the_stored_ones() -> None:
    for spec in (
        VqSpec(6, 2, "float32"),
        VqSpec(8, 4, "int8", "channel"),
        VqSpec(3, 5, "float16", "channel", "float16"),
    ):
        shapes = vq_shape((7, 5, 3, 3), spec)
        codes = pack_vq(torch.zeros(7, vector_count(45, spec.d), dtype=torch.uint8), spec.bits)
        codebook = torch.zeros(shapes.codebook, dtype=getattr(torch, spec.codebook_dtype))
        scales = torch.zeros(shapes.scales, dtype=getattr(torch, spec.scale_dtype))
        assert tuple(t.nbytes for t in (codes, codebook, scales)) == vq_predicted_bytes((7, 5, 3, 3), spec)


def test_the_documented_bytes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text().partition("## Vector quantization")[2]
    rows = re.findall(r"^\| (\d): ([\d ]+) \| `([0-9a-f ]+)` \|", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["8", "6"]
    for bits, codes, expected in rows:
        packed = pack_vq(torch.tensor([[int(code) for code in codes.split()]], dtype=torch.uint8), int(bits))
        assert bytes(packed[0].tolist()).hex(" ") == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VqSpec(bits=9), "1 to 8 bits"),
        (lambda: VqSpec(d=0), "at least one weight"),
        (lambda: VqSpec(codebook_dtype="int4"), "'int4' is not one of float32, float16, int8"),  # type: ignore[arg-type]
        (lambda: VqSpec(granularity="group"), "not tensor or channel"),  # type: ignore[arg-type]
        (lambda: VqSpec(scale_dtype="int8"), "not float32 or float16"),  # type: ignore[arg-type]
        (lambda: vq_shape((4,), VqSpec()), "two axes or more"),
        (lambda: pack_vq(torch.zeros(2, 3, 4, dtype=torch.uint8), 8), "not \\[outputs, sub-vectors\\]"),
        (lambda: pack_vq(torch.full((1, 2), 64, dtype=torch.uint8), 6), "does not fit in 6 bits"),
        (lambda: unpack_vq(torch.zeros(2, 3, dtype=torch.uint8), 8, 4, 13), "4 codes of 8 bits are uint8"),
    ],
)
def test_what_does_not_fit_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatError, match=message):
        call()

import re
from pathlib import Path

import pytest
import torch

from compress.errors import FormatError
from compress.formats import pack_codes, packed_bytes, unpack_codes
from compress.formats.layout import from_blocks, to_blocks


def _by_hand(codes: list[int], bits: int) -> list[int]:
    stream = sum(code << i * bits for i, code in enumerate(codes))
    return list(stream.to_bytes((len(codes) * bits + 7) // 8, "little"))


def test_low_nibble_comes_first() -> None:
    assert pack_codes(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x0F]]


def test_eight_codes_of_three_bits_are_three_bytes() -> None:
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0], dtype=torch.uint8)
    assert pack_codes(codes, 3).tolist() == [0b11010001, 0b01011000, 0b00011111]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 31, 32, 33, 401])
def test_bit_stream_and_round_trip(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(bits * count)
    codes = torch.randint(0, 1 << bits, (3, 2, count), dtype=torch.uint8, generator=generator)
    packed = pack_codes(codes, bits)
    assert packed.shape == (3, 2, packed_bytes(count, bits)) and packed.dtype == torch.uint8
    assert packed[2, 1].tolist() == _by_hand(codes[2, 1].tolist(), bits)
    assert torch.equal(unpack_codes(packed, bits, count), codes)


def test_the_documented_bytes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([\d ]+) \| `([0-9a-f ]+)`", page, re.MULTILINE)
    assert [row[0] for row in rows] == ["8", "6", "4", "3", "2"]
    for bits, codes, expected in rows:
        packed = pack_codes(torch.tensor([int(code) for code in codes.split()], dtype=torch.uint8), int(bits))
        assert bytes(packed.tolist()).hex(" ") == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_survives(bits: int) -> None:
    codes = torch.arange(1 << bits, dtype=torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, len(codes)), codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_strided_input_and_fresh_output(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (17, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).T
    packed = pack_codes(codes, bits)
    assert torch.equal(packed, pack_codes(codes.contiguous(), bits))
    wide = torch.stack([packed, packed], -1)[..., 0]
    out = unpack_codes(wide, bits, 17)
    assert torch.equal(out, codes)
    out.zero_()
    assert torch.equal(unpack_codes(packed, bits, 17), codes)


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(FormatError, match="code 16 does not fit in 4 bits"):
        pack_codes(torch.tensor([16], dtype=torch.uint8), 4)
    with pytest.raises(FormatError, match=r"not torch\.uint8"):
        pack_codes(torch.tensor([1]), 4)
    with pytest.raises(FormatError, match="1 to 8 bits, not 9"):
        pack_codes(torch.tensor([1], dtype=torch.uint8), 9)
    with pytest.raises(FormatError, match=r"5 codes of 4 bits are uint8 \[\.\.\., 3\]"):
        unpack_codes(torch.zeros(2, 2, dtype=torch.uint8), 4, 5)


@pytest.mark.parametrize(("k", "block"), [(1, 1), (33, 32), (32, 32), (5, 5), (401, 64)])
def test_blocks_pad_with_zeros_and_come_back(k: int, block: int) -> None:
    rows = torch.arange(1, 2 * k + 1, dtype=torch.float32).reshape(2, k)
    blocks = to_blocks(rows, block)
    assert blocks.shape == (2, -(-k // block), block)
    assert torch.equal(from_blocks(blocks, k), rows)
    assert float(blocks.sum()) == float(rows.sum())

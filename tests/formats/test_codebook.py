import pytest
import torch

from compress.errors import FormatError
from compress.formats import FORMATS, get_format
from compress.formats.codebook import look_up, nearest_codes, nearest_values

FLOATS = [name for name, fmt in FORMATS.items() if fmt.kind == "float"]
CASTS = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def _probes(name: str) -> torch.Tensor:
    """Every value of the format, every midpoint, a hair on either side of both, and values beyond the ends."""
    table = torch.tensor(sorted(set(FORMATS[name].values or ())), dtype=torch.float64)
    points = torch.cat([table, (table[1:] + table[:-1]) / 2]).float()
    up, down = torch.nextafter(points, torch.tensor(torch.inf)), torch.nextafter(points, torch.tensor(-torch.inf))
    return torch.cat([points, up, down, torch.tensor([1e30, -1e30, 0.0, -0.0])])


def test_unknown_format_suggests_the_nearest_name() -> None:
    with pytest.raises(FormatError, match="did you mean 'fp8_e4m3'"):
        get_format("fp8_e4m3fn")
    with pytest.raises(FormatError, match="formats: int8, "):
        get_format("zzz")


@pytest.mark.parametrize(
    ("name", "largest", "codes"),
    [("int8", 127, (-128, 127)), ("int4", 7, (-8, 7)), ("int2", 1, (-2, 1)), ("uint8", 255, (0, 255))],
)
def test_integer_ranges(name: str, largest: float, codes: tuple[int, int]) -> None:
    assert (get_format(name).max_value, get_format(name).code_range) == (largest, codes)
    assert get_format(name).table() is None


@pytest.mark.parametrize("name", FLOATS)
def test_tables_are_finite_complete_and_reach_the_largest_value(name: str) -> None:
    fmt = get_format(name)
    table = fmt.table()
    assert table is not None and table.shape == (1 << fmt.bits,)
    assert torch.isfinite(table).all()
    assert float(table.abs().max()) == fmt.max_value


@pytest.mark.parametrize("name", FLOATS)
def test_codes_decode_to_the_nearest_value(name: str) -> None:
    fmt, x = get_format(name), _probes(name)
    table = fmt.table()
    assert table is not None
    got = look_up(table, nearest_codes(x, fmt))
    best = (x.double()[:, None] - table.double()).abs().amin(1)
    assert torch.equal((x.double() - got.double()).abs(), best)
    assert torch.equal(nearest_values(x, fmt), got)


@pytest.mark.parametrize("name", CASTS)
def test_fp8_is_torchs_cast_with_saturation(name: str) -> None:
    fmt, x = (
        get_format(name),
        torch.cat([_probes(name), torch.randn(10_000, generator=torch.Generator().manual_seed(0))]),
    )
    cast = x.clamp(-fmt.max_value, fmt.max_value).to(CASTS[name])
    table = fmt.table()
    assert table is not None
    codes = nearest_codes(x, fmt)
    assert torch.equal(look_up(table, codes), cast.float())
    assert torch.equal(codes[cast.float() != 0], cast.view(torch.uint8)[cast.float() != 0])


@pytest.mark.parametrize("name", CASTS)
def test_fp8_tables_are_torchs(name: str) -> None:
    decoded = torch.arange(256, dtype=torch.uint8).view(CASTS[name]).float()
    table = get_format(name).table()
    finite = torch.isfinite(decoded)
    assert table is not None and torch.equal(table[finite], decoded[finite])


@pytest.mark.parametrize("name", CASTS)
def test_the_search_agrees_with_the_cast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, x = get_format(name), _probes(name)
    with_cast = nearest_codes(x, fmt)
    monkeypatch.setattr("compress.formats.codebook._TORCH_CASTS", {})
    assert torch.equal(nearest_codes(x, fmt), with_cast)


def test_e2m1_thresholds_go_to_the_even_code() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, -0.25, -0.75, -5.0])
    assert nearest_codes(x, get_format("fp4_e2m1")).tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 0, 10, 14]


def test_nf4_is_qloras_table() -> None:
    """As published; between them the 16 values have a zero, and -1 and 1."""
    table = get_format("nf4").table()
    assert table is not None and table[7] == 0 and table[0] == -1 and table[15] == 1
    assert table.tolist()[8:12] == [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    assert table.tolist()[5:7] == [-0.18477343022823334, -0.09105003625154495]
    assert bool((table.diff() > 0).all())


def test_known_fp8_bytes() -> None:
    e4m3, e5m2 = get_format("fp8_e4m3"), get_format("fp8_e5m2")
    assert nearest_codes(torch.tensor([0.1, 448.0, 464.0, 2.0**-9]), e4m3).tolist() == [0x1D, 0x7E, 0x7E, 0x01]
    assert nearest_codes(torch.tensor([0.1, 57344.0, 1e9, 2.0**-16]), e5m2).tolist() == [0x2E, 0x7B, 0x7B, 0x01]


def test_integer_formats_have_no_table_codes() -> None:
    with pytest.raises(FormatError, match="int4 is an integer format"):
        nearest_codes(torch.zeros(3), get_format("int4"))

"""The ctypes mirror against the C header, field by field and argument by argument."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest

from compress.kernels import cpu_abi
from compress.kernels.schema import ACTIVATIONS

HEADER = Path(cpu_abi.__file__).parent / "cpu" / "include" / "compress_kernels.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
SCALARS: dict[str, Any] = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    "compress_status": ctypes.c_int32,
}
STRUCTURES: dict[str, Any] = {
    "compress_weight": cpu_abi.Weight,
    "compress_vectors": cpu_abi.Vectors,
    "compress_options": cpu_abi.Options,
    "compress_geometry": cpu_abi.Geometry,
}


def c_type(declaration: str, inside: bool = False) -> tuple[str, Any]:
    """Name and ctypes type of `const float* x`, `int64_t kernel[2]`; inside structures pointers are plain addresses."""
    found = re.fullmatch(r"(?:const )?(\w+)( ?\*)? ?(\w+)(?:\[(\d)\])?", declaration.strip())
    assert found, declaration
    base, pointer, name, length = found.groups()
    if not pointer:
        kind = SCALARS[base]
        return name, kind * int(length) if length else kind
    if base == "char":
        return name, ctypes.c_char_p
    if not inside and base in STRUCTURES:
        return name, ctypes.POINTER(STRUCTURES[base])
    return name, ctypes.POINTER(ctypes.c_double) if base == "double" else ctypes.c_void_p


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_have_the_header_s_fields(name: str) -> None:
    found = re.search(r"typedef struct \{([^}]*)\} " + name + ";", TEXT)
    assert found
    expected = []
    for statement in filter(str.strip, found[1].split(";")):
        first, *more = statement.split(",")
        expected.append(c_type(first.strip(), inside=True))
        base = first.split()[0]
        expected += [c_type(f"{base} {other.strip()}", inside=True) for other in more]
    assert list(STRUCTURES[name]._fields_) == expected


def test_functions_have_the_header_s_arguments() -> None:
    declared = {}
    for result, name, arguments in re.findall(r"COMPRESS_API ((?:const )?\w+[ *]+)(\w+)\(([^)]*)\);", TEXT):
        kinds = () if arguments == "void" else tuple(c_type(" ".join(a.split()))[1] for a in arguments.split(","))
        if result.strip() == "void":
            declared[name] = (None, kinds)
        else:
            declared[name] = (c_type(f"{result.strip()} result")[1], kinds)
    assert declared == cpu_abi._PROTOTYPES


def test_constants_are_the_header_s() -> None:
    assert f"#define COMPRESS_KERNELS_ABI {cpu_abi.ABI}\n" in TEXT
    constants = {name: int(value) for name, value in re.findall(r"(COMPRESS_\w+) = (\d+)", TEXT)}
    statuses = {"OK": cpu_abi.OK, "INVALID": cpu_abi.INVALID, "UNSUPPORTED": cpu_abi.UNSUPPORTED}
    assert constants == {
        **{f"COMPRESS_{name}": value for name, value in {**statuses, "NO_MEMORY": cpu_abi.NO_MEMORY}.items()},
        **{f"COMPRESS_ACTIVATION_{name.upper()}": value for name, value in cpu_abi.ACTIVATIONS.items()},
        **{f"COMPRESS_MODE_{name.upper()}": value for name, value in cpu_abi.MODES.items()},
    }
    assert tuple(cpu_abi.ACTIVATIONS) == ACTIVATIONS

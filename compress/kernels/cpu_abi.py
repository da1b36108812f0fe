"""The C interface of `cpu/include/compress_kernels.h` for ctypes: structures and signatures (a test compares them)."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, Final

ABI: Final = 1
OK, INVALID, UNSUPPORTED, NO_MEMORY = range(4)
ACTIVATIONS: Final = {"none": 0, "gelu_tanh": 1, "silu": 2}
MODES: Final = {"exact": 0, "folded": 1}


class Weight(Structure):
    """`compress_weight`."""

    _fields_ = (
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("zero_points", c_void_p),
        ("table", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("block_size", c_int64),
        ("scale_rows", c_int64),
        ("scale_columns", c_int64),
        ("zero_rows", c_int64),
        ("zero_columns", c_int64),
        ("bits", c_int32),
        ("mode", c_int32),
    )


class Vectors(Structure):
    """`compress_vectors`."""

    _fields_ = (
        ("codes", c_void_p),
        ("codebook", c_void_p),
        ("scales", c_void_p),
        ("n", c_int64),
        ("k", c_int64),
        ("d", c_int64),
        ("scale_rows", c_int64),
        ("bits", c_int32),
        ("mode", c_int32),
    )


class Options(Structure):
    """`compress_options`."""

    _fields_ = (
        ("smooth", c_void_p),
        ("act_scale", c_void_p),
        ("act_zero_point", c_void_p),
        ("act_scale_rows", c_int64),
        ("act_zero_rows", c_int64),
        ("act_low", c_int32),
        ("act_high", c_int32),
        ("act_max", c_float),
        ("bias", c_void_p),
        ("low_rank_a", c_void_p),
        ("low_rank_b", c_void_p),
        ("rank", c_int64),
        ("residual", c_void_p),
        ("activation", c_int32),
    )


class Geometry(Structure):
    """`compress_geometry`."""

    _fields_ = (
        ("batch", c_int64),
        ("channels", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("kernel", c_int64 * 2),
        ("stride", c_int64 * 2),
        ("padding", c_int64 * 2),
        ("dilation", c_int64 * 2),
        ("groups", c_int64),
    )


_OPTIONS = POINTER(Options)
_MESSAGE = (c_char_p, c_size_t)
_CALL = (_OPTIONS, c_void_p, c_void_p, *_MESSAGE)  # options, y, runner
_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "compress_qmatmul": (c_int32, (c_void_p, c_int64, POINTER(Weight), *_CALL)),
    "compress_vqmatmul": (c_int32, (c_void_p, c_int64, POINTER(Vectors), *_CALL)),
    "compress_qconv2d": (c_int32, (c_void_p, POINTER(Geometry), POINTER(Weight), *_CALL)),
    "compress_vqconv2d": (c_int32, (c_void_p, POINTER(Geometry), POINTER(Vectors), *_CALL)),
    "compress_qmatmul_supported": (c_int32, (POINTER(Weight), _OPTIONS, *_MESSAGE)),
    "compress_vqmatmul_supported": (c_int32, (POINTER(Vectors), _OPTIONS, *_MESSAGE)),
    "compress_qconv2d_supported": (c_int32, (POINTER(Geometry), POINTER(Weight), _OPTIONS, *_MESSAGE)),
    "compress_vqconv2d_supported": (c_int32, (POINTER(Geometry), POINTER(Vectors), _OPTIONS, *_MESSAGE)),
    "compress_kernels_abi": (c_int32, ()),
    "compress_isa": (c_char_p, ()),
    "compress_isas": (c_char_p, ()),
    "compress_use_isa": (c_int32, (c_char_p,)),
    "compress_pool_create": (c_void_p, (c_int32,)),
    "compress_pool_destroy": (None, (c_void_p,)),
    "compress_openmp_create": (c_void_p, (c_void_p, c_int32)),
    "compress_openmp_destroy": (None, (c_void_p,)),
    "compress_peak_gops": (c_double, (c_int32, c_double)),
    "compress_time_qmatmul": (
        c_int32,
        (c_void_p, c_int64, POINTER(Weight), _OPTIONS, c_void_p, c_void_p, POINTER(c_double), *_MESSAGE),
    ),
}


def declare(library: ctypes.CDLL) -> None:
    """Gives every function of the library its result and argument types. AttributeError when one is missing."""
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments

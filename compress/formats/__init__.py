"""Number formats, byte layouts and quantized tensors: bit-exact, documented in docs/formats.md, pinned by golden bytes.

Pure torch; knows nothing of modules.
"""

from compress.formats.activations import dynamic_scale, integer_codes, quantize_dequantize
from compress.formats.codebook import FORMATS, Format, get_format
from compress.formats.layout import pack_codes, packed_bytes, unpack_codes
from compress.formats.qtensor import QTensor, decode, encode, pack_weight, quantize_weight, stored_scales
from compress.formats.scales import (
    ByteCount,
    Scales,
    WeightSpec,
    as_stored,
    code_shape,
    predicted_bytes,
    scale_shape,
    scale_values,
    weight_scales,
)

__all__ = [
    "FORMATS",
    "ByteCount",
    "Format",
    "QTensor",
    "Scales",
    "WeightSpec",
    "as_stored",
    "code_shape",
    "decode",
    "dynamic_scale",
    "encode",
    "get_format",
    "integer_codes",
    "pack_codes",
    "pack_weight",
    "packed_bytes",
    "predicted_bytes",
    "quantize_dequantize",
    "quantize_weight",
    "scale_shape",
    "scale_values",
    "stored_scales",
    "unpack_codes",
    "weight_scales",
]

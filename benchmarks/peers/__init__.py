"""Everyone who can compute a layer, one file a peer: what is measured side by side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from benchmarks.peers import onnxruntime_peers, openvino_peers, ours, torch_peers, torchao_peers
from benchmarks.peers.base import Call, ConvGeometry, Kind, Layer, Provider, Run, SelfTimed
from compress.errors import InputError

__all__ = ["PROVIDERS", "Call", "ConvGeometry", "Kind", "Layer", "Provider", "Run", "SelfTimed", "providers"]

_PARTS = (ours, torch_peers, onnxruntime_peers, openvino_peers, torchao_peers)
PROVIDERS: tuple[Provider, ...] = tuple(p for part in _PARTS for p in (*part.MATMUL, *getattr(part, "CONV", ())))


def providers(kind: Kind, names: Sequence[str] = ()) -> tuple[Provider, ...]:
    """The providers of that kind of layer, all or those named.

    Raises:
        InputError: a name is nobody's.
    """
    known = list(dict.fromkeys(provider.name for provider in PROVIDERS))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"providers: {', '.join(known)}"
            raise InputError(f"there is no provider {name!r}", hint=hint)
    return tuple(p for p in PROVIDERS if p.kind == kind and (not names or p.name in names))

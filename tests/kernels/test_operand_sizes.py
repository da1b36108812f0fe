"""Sizes and types of the optional inputs, which kernels read by address: every operator refuses what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import CASES, CHANNELS, CONV_CASES, build, build_conv
from vq_cases import VQ_CASES, VQ_CONV_CASES, build_vq, build_vq_conv

from compress.errors import FormatError
from compress.kernels import cpu_library, torch_int8, torch_ops
from compress.kernels.backends import BACKENDS, Backend
from compress.kernels.call import Call, ConvCall, MatmulCall
from compress.kernels.vq_call import VqConvCall, VqMatmulCall

assert torch_ops  # registers torch.ops.compress

RANK = 5
MAKERS: dict[str, tuple[Any, Any, Any]] = {
    "qmatmul": (MatmulCall, build, next(case for case in CASES if case.name == "w8a8")),
    "qconv2d": (ConvCall, build_conv, next(case for case in CONV_CASES if case.name == "conv_w8a8")),
    "vqmatmul": (VqMatmulCall, build_vq, next(case for case in VQ_CASES if case.name == "int8_codebook")),
    "vqconv2d": (VqConvCall, build_vq_conv, next(case for case in VQ_CONV_CASES if case.name == "conv_vq3_a8")),
}


def full_call(operator: str) -> Call:
    """A call with every vector and a low-rank branch."""
    kind, make, case = MAKERS[operator]
    x, named = make(case)
    call = kind(x, **named)
    channels = CHANNELS if operator.endswith("conv2d") else call.k
    given = {"bias": (call.n,), "smooth": (channels,), "low_rank_a": (call.k, RANK), "low_rank_b": (RANK, call.n)}
    made: Call = replace(call, **{name: torch.ones(shape) for name, shape in given.items()})
    return made


def refuse(backend: Backend, call: Call, message: str) -> None:
    """The backend, and the operator when that backend is asked for, refuse the call."""
    with pytest.raises(FormatError, match=message):
        backend(call)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("operator", MAKERS)
@pytest.mark.parametrize("name", ["bias", "smooth", "low_rank_a", "low_rank_b"])
def test_sizes_that_do_not_fit(name: str, operator: str, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend.name == "cpu" and cpu_library.library() is None:
        pytest.skip(cpu_library.reason())
    if backend.name == "torch_int8" and operator.startswith("vq"):
        pytest.skip(torch_int8.refusal(operator, full_call(operator).facts()))
    call = full_call(operator)
    value = getattr(call, name)
    wrong = [value[:-1], value[None], torch.cat([value, value]), value.to(torch.int32)]
    wrong += [value[:, :-1], value.T.contiguous()] if value.dim() == 2 else []
    for change in wrong:
        refuse(backend, replace(call, **{name: change}), rf"{name} is torch.*|low_rank_b is torch.*")  # type: ignore[type-var]
    monkeypatch.setenv("COMPRESS_KERNEL", backend.name)
    with pytest.raises(FormatError, match=f"{name} is torch"):
        inputs = {n: v for n, v in vars(replace(call, **{name: value[:-1]})).items()}  # type: ignore[type-var]
        getattr(torch.ops.compress, operator)(**inputs)


@pytest.mark.parametrize("operator", MAKERS)
def test_sizes_that_fit(operator: str) -> None:
    full_call(operator).check()
    half = {n: getattr(full_call(operator), n).half() for n in ("bias", "low_rank_a", "low_rank_b")}
    replace(full_call(operator), **half).check()  # type: ignore[type-var]


@pytest.mark.parametrize("operator", MAKERS)
@pytest.mark.parametrize("name", ["codes", "scales", "bias", "smooth", "act_scale", "residual"])
def test_tensors_on_another_device_than_x(name: str, operator: str) -> None:
    call = full_call(operator)
    value = torch.ones(call.output_shape) if name == "residual" else getattr(call, name)
    value = torch.ones(1) if value is None else value
    with pytest.raises(FormatError, match=f"{name} is on meta, x on cpu"):
        replace(call, **{name: value.to("meta")}).check()  # type: ignore[type-var]

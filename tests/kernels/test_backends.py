import pytest
import torch
from cpu_kernels import LIBRARY, PARITY
from kernel_cases import CASES, CONV_CASES, Case, build, build_conv

from compress.errors import InputError
from compress.kernels import reference
from compress.kernels.backends import BACKENDS, Backend, explain, select
from compress.kernels.call import ConvCall, Facts, MatmulCall

W8A8 = Facts(k=128, n=64, bits=8, block_size=128, act_format="int8")
INTEGERS = "cpu" if LIBRARY else "torch_int8"
WEIGHT_ONLY = Facts(k=128, n=64, bits=4, block_size=32, scale_blocks=4)


@pytest.fixture(autouse=True)
def _no_forced_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPRESS_KERNEL", raising=False)


def test_the_first_that_supports_wins_and_the_reference_is_last() -> None:
    assert [backend.name for backend in BACKENDS] == ["cpu", "torch_int8", "reference"]
    assert select("qmatmul", W8A8).name == INTEGERS
    assert select("qmatmul", WEIGHT_ONLY).name == "reference"


def test_a_kernel_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_KERNEL", "reference")
    assert select("qmatmul", W8A8).name == "reference"
    monkeypatch.setenv("COMPRESS_KERNEL", "torch_int8")
    assert select("qmatmul", W8A8).name == "torch_int8"
    assert select("qmatmul", WEIGHT_ONLY).name == "reference"
    monkeypatch.setenv("COMPRESS_KERNEL", "cpu")
    assert select("qmatmul", W8A8).name == ("cpu" if LIBRARY else "reference")
    monkeypatch.setenv("COMPRESS_KERNEL", "fastest")
    with pytest.raises(InputError, match="backends: cpu, torch_int8, reference"):
        select("qmatmul", W8A8)


def test_explanations_name_every_backend_and_reason() -> None:
    said = explain("qmatmul", WEIGHT_ONLY)
    assert list(said) == ["cpu", "torch_int8", "reference"]
    assert not said["cpu"].ok and said["cpu"].reason
    assert not said["torch_int8"].ok and said["torch_int8"].reason == "activations are floating point"
    assert said["reference"].ok


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backends_agree_with_the_reference_and_with_themselves(backend: Backend, case: Case) -> None:
    x, named = build(case)
    call = MatmulCall(x, **named)
    support = backend.supports("qmatmul", call.facts())
    if not support.ok:
        assert support.reason
        return
    y, expected = backend(call), reference.matmul(call)
    assert float((y - expected).norm() / expected.norm()) <= PARITY
    assert torch.equal(backend(call), y)


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_convolutions_agree_with_the_reference(case: Case) -> None:
    x, named = build_conv(case)
    call = ConvCall(x, **named)
    y, expected = select("qconv2d", call.facts())(call), reference.qconv2d(x, **named)
    assert float((y - expected).norm() / expected.norm()) <= 1e-5

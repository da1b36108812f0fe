import pytest

from compress.errors import InputError
from compress.evaluate.operations import LayerOperations, operation_metrics, total_bops, total_macs


def test_bit_operations_weigh_both_operands() -> None:
    layers = [LayerOperations("a", 100), LayerOperations("b", 10, 4, 8), LayerOperations("c", 1, 8)]
    assert total_macs(layers) == 111
    assert total_bops(layers) == 100 * 1024 + 10 * 32 + 1 * 256


def test_metrics_take_any_iterable() -> None:
    macs, bops = operation_metrics(iter([LayerOperations("a", 31, 4, 8)]), artefact="checkpoint")
    assert (macs.name, macs.value, bops.name, bops.value) == ("macs", 31, "bops", 992)


@pytest.mark.parametrize("layer", [LayerOperations("x", -1), LayerOperations("x", 1, 0), LayerOperations("x", 1, 4, 0)])
def test_impossible_layers_are_named(layer: LayerOperations) -> None:
    with pytest.raises(InputError, match=r"^x: impossible"):
        operation_metrics([layer], artefact="checkpoint")

from __future__ import annotations

import onnx
import pytest
from export_models import Exported

from compress.errors import ExportError
from compress.export.functions import check_functions


def test_a_node_without_its_function_is_noticed(dit: Exported) -> None:
    model = onnx.load(str(dit.result.path))
    check_functions(model)
    del model.functions[0]
    with pytest.raises(ExportError, match="has no function"):
        check_functions(model)


def test_functions_are_small_and_share_the_opset(exported: Exported) -> None:
    """Opening a session takes longer than proportionally to the number of nodes."""
    model = onnx.load(str(exported.result.path))
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for function in model.functions:
        assert len(function.node) <= 50
        assert {e.domain: e.version for e in function.opset_import} == {"": opsets[""]}
    assert model.ir_version >= 10

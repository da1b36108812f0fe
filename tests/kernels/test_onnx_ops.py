from __future__ import annotations

import inspect

import onnx
import pytest
import torch

import compress.kernels.torch_ops  # noqa: F401  registers torch.ops.compress
from compress.kernels.onnx_ops import complete_attributes, register_schemas, schema, translation_table
from compress.kernels.schema import DOMAIN, OPERATORS, QCONV2D, QMATMUL, Operator

by_name = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)


def test_registering_twice_is_harmless() -> None:
    register_schemas()
    register_schemas()
    assert all(onnx.defs.has(operator.onnx_name, domain=DOMAIN) for operator in OPERATORS)


@by_name
def test_schema_says_what_the_table_says(operator: Operator) -> None:
    rendered = schema(operator)
    option = onnx.defs.OpSchema.FormalParameterOption.Optional
    assert [(i.name, i.option == option) for i in rendered.inputs] == [(i.name, i.optional) for i in operator.inputs]
    for parameter, tensor in zip(rendered.inputs, operator.inputs, strict=True):
        assert parameter.types == set(tensor.onnx_types)
    assert rendered.outputs[0].type_str == rendered.inputs[0].type_str
    assert set(rendered.attributes) == {a.name for a in operator.attributes}
    for a in operator.attributes:
        attribute = rendered.attributes[a.name]
        assert attribute.required == (a.default is None)
        if a.default is not None:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            expected = list(a.default) if isinstance(a.default, tuple) else a.default
            assert (value.decode() if isinstance(value, bytes) else value) == expected


@by_name
def test_translation_takes_the_torch_operators_arguments(operator: Operator) -> None:
    torch_operator = getattr(torch.ops.compress, operator.name).default
    translate = translation_table()[torch_operator]
    names = [argument.name for argument in torch_operator._schema.arguments]
    assert list(inspect.signature(translate).parameters) == names


def test_attributes_are_completed_from_the_table() -> None:
    full = complete_attributes(QCONV2D, {"bits": 4, "block_size": 9, "kernel": (3, 3)})
    assert full["stride"] == [1, 1] and full["kernel"] == [3, 3] and full["act_format"] == "none"


def test_export_writes_nodes_with_every_attribute_and_no_trailing_inputs() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(0, 256, (5, 2, 4), dtype=torch.uint8))
            self.register_buffer("scales", torch.ones(5, 2))
            self.register_buffer("bias", torch.ones(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.ops.compress.qmatmul(
                x, self.codes, self.scales, bias=self.bias, bits=4, block_size=8, act_format="int8"
            )
            return y

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        program = torch.export.export(Layer(), (torch.ones(2, 16),), dynamic_shapes=shapes)
    exported = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=shapes,
        custom_translation_table=translation_table(),
    )
    assert exported is not None
    (node,) = (n for n in exported.model.graph if n.domain == DOMAIN)
    assert node.op_type == QMATMUL.onnx_name
    names = [None if value is None else value.name for value in node.inputs]
    assert names == ["x", "codes", "scales", None, None, "bias"]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes == {
        "bits": 4,
        "block_size": 8,
        "act_format": "int8",
        "act_group": 0,
        "mode": "exact",
        "activation": "none",
    }

"""The operator table as ONNX: schemas for domain `compress`, and how the exporter writes our torch operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from compress.kernels.schema import DOMAIN, OPERATORS, VERSION, Attribute, Operator

Translation = Callable[..., Any]


def register_schemas() -> None:
    """Make onnx know every operator of the table; calling it again does nothing.

    The exporter looks operators up when it emits them, so this must come before `torch.onnx.export`.
    """
    import onnx

    for operator in OPERATORS:
        if not onnx.defs.has(operator.onnx_name, domain=DOMAIN):
            onnx.defs.register_schema(schema(operator))


def schema(operator: Operator) -> Any:
    """The `onnx.defs.OpSchema` of one operator; the output has the type of the first input."""
    from onnx.defs import OpSchema

    option = OpSchema.FormalParameterOption
    inputs = [
        OpSchema.FormalParameter(
            tensor.name,
            f"T_{tensor.name}",
            description=tensor.doc,
            param_option=option.Optional if tensor.optional else option.Single,
        )
        for tensor in operator.inputs
    ]
    return OpSchema(
        operator.onnx_name,
        DOMAIN,
        VERSION,
        doc=operator.doc,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("y", f"T_{operator.inputs[0].name}")],
        type_constraints=[(f"T_{t.name}", list(t.onnx_types), f"Types of {t.name}.") for t in operator.inputs],
        attributes=[_attribute(a) for a in operator.attributes],
    )


def _attribute(attribute: Attribute) -> Any:
    import onnx
    from onnx.defs import OpSchema

    if attribute.default is None:
        kinds = {"int": OpSchema.AttrType.INT, "ints": OpSchema.AttrType.INTS, "str": OpSchema.AttrType.STRING}
        return OpSchema.Attribute(attribute.name, kinds[attribute.type], attribute.doc, required=True)
    default = onnx.helper.make_attribute(attribute.name, _plain(attribute.default))
    return OpSchema.Attribute(attribute.name, default, attribute.doc)


def complete_attributes(operator: Operator, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every attribute of a call by name: what was given, else the default of the table."""
    return {a.name: _plain(given.get(a.name, a.default)) for a in operator.attributes}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def translation_table() -> dict[Callable[..., Any], Translation]:
    """`custom_translation_table` of `torch.onnx.export`: `torch.ops.compress.<name>` to a node with all attributes.

    The torch operators must be registered (`import compress.kernels.torch_ops`).
    """
    import torch

    register_schemas()
    return {getattr(torch.ops.compress, o.name).default: _translation(o) for o in OPERATORS}


def _translation(operator: Operator) -> Translation:
    names = [tensor.name for tensor in operator.inputs]

    def translate(*args: Any, **kwargs: Any) -> Any:
        from onnxscript.values import Opset

        given = dict(zip(names, args, strict=False)) | kwargs
        tensors = [given.get(name) for name in names]
        while tensors[-1] is None:  # absent inputs at the end are left out, those in between are empty names
            tensors.pop()
        emit = getattr(Opset(DOMAIN, VERSION), operator.onnx_name)
        return emit(*tensors, **complete_attributes(operator, kwargs))

    translate.__name__ = operator.name
    translate.__signature__ = _signature(operator)  # type: ignore[attr-defined]
    return translate


def _signature(operator: Operator) -> inspect.Signature:
    """The torch operator's own parameters: the exporter reads them off the function."""
    place, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(t.name, place, default=None if t.optional else inspect.Parameter.empty)
        for t in operator.inputs
    ]
    for a in operator.attributes:
        default = inspect.Parameter.empty if a.default is None else a.default
        parameters.append(inspect.Parameter(a.name, keyword, default=default))
    return inspect.Signature(parameters)

"""What an exported graph still needs before engines run its layers in integers."""

import ast
from collections.abc import Collection

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bevquant.deploy.qdq import WEIGHT_NAME

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOVES = ("Pad", "Gather", "Reshape")
"""Operators that move elements: what they do to codes they do to the values as well. Not
Transpose, behind which OpenVINO does not find the codes."""

OPSET = (21, 10)
"""Opset that files are written in, and its IR version; it has everything but INT2."""
INT2_OPSET = (25, 13)

_PACKED = {f"{WEIGHT_NAME}4": ml_dtypes.int4, f"{WEIGHT_NAME}2": ml_dtypes.int2}
_SCOPES = "pkg.torch.onnx.name_scopes"


def finish(model: ir.Model, layers: Collection[str]) -> None:
    """Bring the graph of :func:`torch.onnx.export` into the form that is stored.

    The product of each quantized layer gets the layer's name, weights take the layout that
    their product reads and are packed, inputs are dequantized right before the product,
    and the exporter's notes go.

    Args:
        model: changed in place.
        layers: names of the quantizable layers, as module paths of the exported module.
    """
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear":
            continue
        layer = _scope(node)
        stored = node.inputs[0] is not None and node.inputs[0].is_initializer()
        last = _turn_weight(node) if stored else _sink(node)
        for product in last.outputs[0].consumers():
            # An input that two layers share is quantized once, in the code of the first.
            if layer in layers and product.op_type in PRODUCTS and product.name not in layers:
                product.name = layer
    _pack(model)
    RemoveUnusedNodesPass()(model)
    _strip(model.graph)


def widen(model: ir.Model) -> None:
    """Turn packed weights into int8, which is what engines have kernels for; exact."""
    for value in model.graph.initializers.values():
        if value.dtype in (ir.DataType.INT4, ir.DataType.INT2):
            set_constant(value, constant(value).astype(np.int8))
    model.opset_imports[""], model.ir_version = OPSET


def constant(value: ir.Value | None) -> npt.NDArray[np.generic]:
    """Return the array of an initializer."""
    assert value is not None
    assert value.const_value is not None
    array: npt.NDArray[np.generic] = value.const_value.numpy()
    return array


def set_constant(value: ir.Value, array: npt.NDArray[np.generic]) -> None:
    """Replace the array of an initializer."""
    tensor = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    value.const_value, value.dtype, value.shape = tensor, tensor.dtype, ir.Shape(array.shape)


def _scope(node: ir.Node) -> str | None:
    """Return the path of the module whose code made ``node``."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return scopes[-2] if len(scopes) > 1 else None


def _sink(node: ir.Node) -> ir.Node:
    """Move a DequantizeLinear behind the operators that only move elements.

    A sparse convolution so gathers rows of bytes; and every engine finds the step next to
    the product, where it fuses the two.

    Args:
        node: dequantizes per tensor.

    Returns:
        The DequantizeLinear in its new place, or ``node`` where it stays.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    while (mover := _only_consumer(node)) is not None and _moves(mover, node.outputs[0]):
        codes, scale, zero_point = node.inputs
        (moved,) = mover.outputs
        mover.replace_input_with(0, codes)
        if mover.op_type == "Pad":
            mover.resize_inputs(max(3, len(mover.inputs)))
            mover.replace_input_with(2, zero_point)
        after = ir.node("DequantizeLinear", [None, scale, zero_point], name=node.name)
        (values,) = after.outputs
        values.shape, values.dtype = moved.shape, ir.DataType.FLOAT
        moved.replace_all_uses_with(values)
        after.replace_input_with(0, moved)
        moved.type = codes.type if codes is not None else None
        graph.remove(node, safe=True)
        graph.insert_after(mover, after)
        node = after
    return node


def _only_consumer(node: ir.Node) -> ir.Node | None:
    consumers = list(node.outputs[0].uses())
    return consumers[0].node if len(consumers) == 1 else None


def _moves(node: ir.Node, value: ir.Value) -> bool:
    """Return whether ``node`` only moves the elements of ``value``, and adds none but zeros."""
    if node.op_type not in MOVES or node.inputs[0] is not value:
        return False
    if node.op_type != "Pad":
        return True
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    zeros = fill is None or (fill.is_initializer() and not constant(fill).any())
    return zeros and node.attributes.get_string("mode", "constant") == "constant"


def _turn_weight(node: ir.Node) -> ir.Node:
    """Apply Transpose and Reshape behind the dequantized weight to its codes.

    Returns:
        ``node``, which dequantizes the weight.
    """
    graph, weight = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    while len(weight.uses()) == 1 and (turn := _only_consumer(node)) is not None:
        codes, axis = constant(weight), node.attributes.get_int("axis")
        if turn.op_type == "Transpose":
            order = list(turn.attributes.get_ints("perm"))
            codes, axis = codes.transpose(order), order.index(axis)
        elif turn.op_type == "Reshape" and axis == 0 and _flattens(turn, codes):
            codes = codes.reshape(len(codes), -1)
        else:
            break
        set_constant(weight, codes)
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
        node.outputs[0].shape = weight.shape
        turn.outputs[0].replace_all_uses_with(node.outputs[0])
        graph.remove(turn, safe=True)
    return node


def _flattens(reshape: ir.Node, codes: npt.NDArray[np.generic]) -> bool:
    shape = reshape.outputs[0].shape
    return shape is not None and list(shape) == [len(codes), codes.size // len(codes)]


def _pack(model: ir.Model) -> None:
    """Store 4-bit weights two to a byte, 2-bit weights four to a byte, low bits first."""
    model.opset_imports[""], model.ir_version = OPSET
    for name, value in model.graph.initializers.items():
        dtype = _PACKED.get(name.rpartition(".")[2])
        if dtype is not None:
            set_constant(value, constant(value).astype(dtype))
        if dtype is ml_dtypes.int2:
            model.opset_imports[""], model.ir_version = INT2_OPSET


def _strip(graph: ir.Graph) -> None:
    """Drop what takes room and tells an engine nothing: stack traces, inner shapes."""
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            # A matrix product as a convolution needs to know how many rows there are.
            matrix = any(consumer.op_type == "MatMul" for consumer in value.consumers())
            if not matrix and not value.is_graph_output():
                value.shape = value.type = None

"""Dequantization next to the products that read it."""

import onnx_ir as ir

from bevquant.deploy.pack import constant

MOVES = ("Pad", "Gather", "Reshape")
"""Operators that move elements: what they do to codes they do to the values as well. Not
Transpose, behind which OpenVINO does not find the codes."""


def sink(node: ir.Node) -> ir.Node:
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
    while (mover := only_consumer(node)) is not None and _moves(mover, node.outputs[0]):
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


def sink_pair(node: ir.Node) -> ir.Node:
    """Move a DequantizeLinear and the QuantizeLinear before it behind such operators.

    TensorRT wants the two right behind each other, and next to the product. Where the codes
    have other readers, both stay.

    Args:
        node: dequantizes per tensor what a QuantizeLinear gives.

    Returns:
        ``node``.
    """
    graph, codes = node.graph, node.inputs[0]
    quantize = codes.producer() if codes is not None else None
    if not isinstance(graph, ir.Graph) or quantize is None or only_consumer(quantize) is not node:
        return node
    (values,) = node.outputs
    while (mover := only_consumer(node)) is not None and _moves(mover, values):
        (moved,) = mover.outputs
        mover.replace_input_with(0, quantize.inputs[0])
        moved.replace_all_uses_with(values)
        quantize.replace_input_with(0, moved)
        quantize.outputs[0].shape = values.shape = moved.shape
        for step in (node, quantize):
            graph.remove(step)
            graph.insert_after(mover, step)
    return node


def only_consumer(node: ir.Node) -> ir.Node | None:
    """Return what reads the output of ``node``, if that is one node once."""
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

"""What an exported graph still needs before engines run its layers in integers."""

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bevquant.deploy.naming import CALL, PART, node_name
from bevquant.deploy.pack import (
    NARROWED_ELEMENTS,
    Array,
    constant,
    narrow,
    pack,
    set_constant,
)
from bevquant.deploy.rules import PRODUCTS
from bevquant.deploy.sink import only_consumer, sink, sink_pair
from bevquant.deploy.split import innermost, scopes, split


def finish(
    model: ir.Model,
    layers: Collection[str],
    *,
    moves_codes: bool = True,
    main_modules: Collection[str] = (),
    widen: bool = False,
) -> list[tuple[str, ir.Model]]:
    """Bring the graph of :func:`torch.onnx.export` into the form that is stored.

    The product of each quantizable layer gets the layer's name, weights take the layout that
    their product reads and are packed, inputs are dequantized right before the product,
    and the exporter's notes go. The other nodes are named after the layer or the main module
    that made them, by which times on an engine are put down to it.

    Args:
        model: changed in place.
        layers: names of the quantizable layers, as module paths of the exported module.
        moves_codes: whether operators that only move elements are to move codes.
        main_modules: module paths to cut the graph by; one part without any.
        widen: whether weights of fewer than 8 bits are stored as int8.

    Returns:
        Name and graph of each part, in the order in which they are run.
    """
    dequantizes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    stored = [node for node in dequantizes if node.inputs[0] in model.graph.initializers.values()]
    for node in stored:
        _turn_weight(node)
    # Weights first: an input that layers share is quantized once, in the code of one of them.
    inner = [node for node in dequantizes if node not in stored]
    last = [*stored, *map(sink if moves_codes else sink_pair, inner)]
    named: dict[ir.Node, str] = {}
    of_quantized = [(node, product) for node in last for product in node.outputs[0].consumers()]
    for node, product in [*of_quantized, *((node, node) for node in model.graph)]:
        layer = innermost(node, layers)
        if product.op_type in PRODUCTS and product not in named and layer is not None:
            calls = list(named.values()).count(layer)
            product.name = f"{node_name(layer)}{CALL}{calls}" if calls else node_name(layer)
            named[product] = layer
    pack(model, widen=widen)
    narrow(model)
    RemoveUnusedNodesPass()(model)
    for number, node in enumerate(model.graph):
        if node not in named:
            owner = innermost(node, layers) or _main_module(node)
            node.name = f"{node_name(owner)}{PART}{number}"
    _shorten(model.graph)
    parts = split(model, main_modules)
    for _, part in parts:
        _strip(part)
    return parts


def _main_module(node: ir.Node) -> str:
    """Return the child of the whole network in which ``node`` was made, empty for none."""
    path = scopes(node)
    return path[1] if len(path) > 2 else ""


def _turn_weight(node: ir.Node) -> None:
    """Apply Transpose and Reshape behind the dequantized weight to its codes."""
    graph, weight = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    while len(weight.uses()) == 1 and (turn := only_consumer(node)) is not None:
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


def _flattens(reshape: ir.Node, codes: Array) -> bool:
    shape = reshape.outputs[0].shape
    return shape is not None and list(shape) == [len(codes), codes.size // len(codes)]


def _shorten(graph: ir.Graph) -> None:
    """Number tensors: names of most would take more room than what they name."""
    kept = {*graph.inputs, *graph.outputs}
    small = [v for v in graph.initializers.values() if constant(v).size < NARROWED_ELEMENTS]
    inner = [value for node in graph for value in node.outputs]
    for number, value in enumerate(value for value in (*small, *inner) if value not in kept):
        value.name = f"_{number}"


def _strip(model: ir.Model) -> None:
    """Drop what takes room and tells an engine nothing: stack traces, inner shapes."""
    graph = model.graph
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in graph.initializers.values():
        value.metadata_props.clear()
        value.shape = value.type = None
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            # A matrix product as a convolution needs to know how many rows there are.
            matrix = any(consumer.op_type == "MatMul" for consumer in value.consumers())
            if not matrix and not value.is_graph_output():
                value.shape = value.type = None

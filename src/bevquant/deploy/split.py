"""A graph cut into one graph for each main module."""

import ast
from collections.abc import Collection

import onnx_ir as ir

from bevquant.deploy.rules import QUANTIZERS

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules, outermost first, whose code made a node."""


def split(model: ir.Model, main_modules: Collection[str]) -> list[tuple[str, ir.Model]]:
    """Cut ``model`` so that every part needs only network inputs and earlier parts.

    A node goes with the main module whose code made it, or with the latest of the nodes it
    reads where that one comes later: so the parts have an order, whatever the network's
    code does between its main modules. Between parts tensors are float: engines find an
    integer layer by the QuantizeLinear before it, so that each has one in its own part.

    Args:
        model: with the exporter's notes; changed.
        main_modules: their names in the exported module.

    Returns:
        Name and graph of each part, in the order in which they are run.
    """
    if not main_modules:
        return [("", model)]
    graph = model.graph
    _unshare(graph)
    order: dict[str, int] = {}
    place: dict[ir.Node, int] = {}
    for node in graph:
        owner = next((scope for scope in scopes(node) if scope in main_modules), None)
        read = [value.producer() for value in node.inputs if value is not None]
        earlier = max((place[producer] for producer in read if producer is not None), default=0)
        place[node] = max(earlier, order.setdefault(owner, len(order)) if owner else 0)
    codes: set[ir.Node] = set()  # nodes whose output is codes on the way to a DequantizeLinear
    for node in reversed(graph):
        readers = list(node.outputs[0].consumers())
        if readers and all(
            reader.op_type == "DequantizeLinear"
            or (reader in codes and reader.op_type != "QuantizeLinear")
            for reader in readers
        ):
            codes.add(node)
        if node in codes or node.op_type == "DequantizeLinear":
            place[node] = min((place[reader] for reader in readers), default=place[node])
    names = list(order) or [""]
    return [(names[part], _part(model, place, part)) for part in sorted(set(place.values()))]


def scopes(node: ir.Node) -> list[str]:
    """Return the paths of the modules whose code made ``node``, then a name of its own."""
    found: list[str] = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return found


def innermost(node: ir.Node, layers: Collection[str]) -> str | None:
    """Return the innermost of ``layers`` in whose code ``node`` was made."""
    return next((scope for scope in reversed(scopes(node)[:-1]) if scope in layers), None)


def _unshare(graph: ir.Graph) -> None:
    """Give each reader of a quantized activation steps of its own."""
    for node in reversed(list(graph)):
        if node.op_type not in QUANTIZERS or (node.inputs[0] and node.inputs[0].is_initializer()):
            continue
        (output,) = node.outputs
        for number, use in enumerate(list(output.uses())[1:]):
            copy = ir.node(node.op_type, node.inputs, node.attributes, name=f"{node.name}_{number}")
            copy.metadata_props.update(node.metadata_props)
            (value,) = copy.outputs
            value.name, value.type, value.shape = (
                f"{output.name}_{number}",
                output.type,
                output.shape,
            )
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, value)


def _part(model: ir.Model, place: dict[ir.Node, int], part: int) -> ir.Model:
    inputs: dict[ir.Value, None] = {}
    outputs: dict[ir.Value, None] = {}
    for node in model.graph:
        if place[node] != part:
            continue
        for value in node.inputs:
            if value is None or value.is_initializer():
                continue
            producer = value.producer()
            if producer is None or place[producer] != part:
                inputs[value] = None
        for value in node.outputs:
            leaves = any(place[reader] != part for reader in value.consumers())
            if leaves or value.is_graph_output():
                outputs[value] = None
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    graph.opset_imports.update(model.graph.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version)

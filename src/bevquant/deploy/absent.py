"""Why a layer of a network has no product in its exported file."""

from collections.abc import Collection, Mapping

import onnx_ir as ir
import torch
from torch import nn

from bevquant.deploy.split import innermost
from bevquant.quant.inventory import macs_of
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantModule


def traced_layers(model: ir.Model, layers: Collection[str]) -> dict[str, bool]:
    """Return the layers that are part of a graph, and whether what they compute varies.

    Args:
        model: of :func:`torch.onnx.export`, not optimised yet, with the exporter's notes.
        layers: names of the quantizable layers.

    Returns:
        For each layer that the graph has nodes of, whether any depends on the inputs.
    """
    varying = set(model.graph.inputs)
    found: dict[str, bool] = {}
    for node in model.graph:
        varies = not varying.isdisjoint(value for value in node.inputs if value is not None)
        if varies:
            varying.update(node.outputs)
        layer = innermost(node, layers)
        if layer is not None:
            found[layer] = found.get(layer, False) or varies
    return found


def why_absent(
    module: nn.Module,
    layers: Collection[str],
    traced: Mapping[str, bool],
    present: Collection[str],
) -> dict[str, str]:
    """Return the layers that a file does not have, each with the reason in a few words.

    Args:
        module: that was exported.
        layers: names of the quantizable layers.
        traced: see :func:`traced_layers`.
        present: those of ``layers`` that the file has.
    """
    called = macs_of(module) or {}
    absent = {}
    for name in layers:
        if name in present:
            continue
        layer = module.get_submodule(name)
        others = {other: module.get_submodule(other) for other in present}
        same = next((other for other, each in others.items() if each is layer), None)
        equal = next((other for other, each in others.items() if _equal(layer, each)), None)
        if same is not None:
            absent[name] = f"another name of {same}, by which the file has it"
        elif name in traced and not traced[name]:
            absent[name] = "computed once, at export: its inputs are constants"
        elif name in traced and equal is not None:
            absent[name] = f"merged with {equal}: the same weights on the same input"
        elif name in traced:
            absent[name] = "merged with an equal product, or nothing reads its result"
        elif called.get(name):
            absent[name] = "nothing reads its result in the exported forward pass"
        else:
            absent[name] = "never called in the exported forward pass"
    return absent


def _equal(layer: nn.Module, other: nn.Module) -> bool:
    """Return whether two layers have the same weights."""
    both = [each for each in (layer, other) if isinstance(each, QuantModule)]
    if len(both) < 2 or any(each.kind.weight_axis is None for each in both):
        return False
    return torch.equal(*(weight_of(each.wrapped) for each in both))

"""Whether an engine computes from a file what was simulated, layer by layer.

End to end, an engine and a simulation drift apart: a rounding that falls the other way grows
from layer to layer. So where the outputs differ, every quantized layer gets the very inputs
that it had in the simulation, all in one run of one graph, and what is computed from them is
held against the inputs that the next layers had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from bevquant.deploy.artefact import Artefact, read
from bevquant.deploy.compiled import Array
from bevquant.deploy.engines import EngineName, compile_artefact, open_engine
from bevquant.deploy.lint import products_of
from bevquant.deploy.naming import CALL
from bevquant.deploy.pack import constant
from bevquant.deploy.simulation import Call, arrays, simulate
from bevquant.errors import BevquantError
from bevquant.nn import Einsum
from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.layers import QuantModule

CLOSE = 1e-4
"""Outputs that differ by less, relative to their norm, need no second look."""

ROUNDING = 0.01
"""What roundings may do to the output of one layer, relative to its norm."""


@dataclass(frozen=True)
class Deviation:
    """A layer that an engine computes otherwise than the simulation.

    Attributes:
        layer: its name; several joined by ``" or "`` where they share an output, empty if
            nothing is known but that the outputs of the network differ.
        error: norm of the difference over the norm of what was simulated.
    """

    layer: str
    error: float


def deviations(
    path: Path, module: nn.Module, inputs: Sequence[Any], engine: EngineName
) -> list[Deviation]:
    """Return the layers of a file that ``engine`` computes otherwise than was simulated.

    Args:
        path: what ``module`` was exported to.
        module: the network, quantized as it was then.
        inputs: its arguments.
        engine: to open the file with.

    Returns:
        In the order in which they are run; differences by no more than rounding are none.

    Raises:
        BevquantError: the engine is not installed, or cannot run the file.
    """
    opened = open_engine(path, engine)
    kept_float, fed = opened.card.kept_float, arrays(inputs)
    wanted = simulate(module, inputs, kept_float=kept_float, calls=False).outputs
    error = max(map(_error, opened(fed), wanted), default=0.0)
    if error <= CLOSE:
        return []
    artefact = read(path)
    calls = simulate(module, inputs, kept_float=kept_float, calls=True).calls
    cuts = _cut(artefact, module, calls)
    try:
        cut_up = compile_artefact(_with_ends(artefact, cuts), engine)
        results = cut_up([*fed, *(cut.given for cut in cuts)])
    except Exception:  # whatever an engine makes of a graph that it cannot run
        return [Deviation("", error)] if error > ROUNDING else []
    found = []
    for cut, values in zip(cuts, results[len(wanted) :], strict=True):
        if not (off := cut.error(values)) <= ROUNDING:
            found.append(Deviation(cut.behind, off))
    for name, y, expected in zip(artefact.outputs, results, wanted, strict=False):
        if not (off := _error(y, expected)) <= ROUNDING:
            (value,) = [v for _, m in artefact.parts for v in m.graph.outputs if v.name == name]
            found.append(Deviation(_makers(value, artefact), off))
    return [one for i, one in enumerate(found) if one.layer not in {x.layer for x in found[:i]}]


@dataclass(frozen=True)
class _Cut:
    """A place where a layer's input is replaced by what it was in the simulation.

    Attributes:
        given: what the layer gets.
        taken: input of the graph that takes it.
        shown: what the network itself would have given the layer, rounded to its grid; an
            output of the graph.
        behind: the layers that make it.
        grid: of the layer's input.
        scale: of it in the file.
    """

    given: Array
    taken: ir.Value
    shown: ir.Value
    behind: str
    grid: QuantParams
    scale: float

    def error(self, values: Array) -> float:
        """Return how far rounded ``values`` are off; the neighbouring code is not."""
        low, high = self.grid.scalar_bounds or (0.0, 0.0)
        steps = np.rint(values.astype(np.float64) / self.scale).clip(low, high)
        wanted = affine.quantize(torch.from_numpy(self.given), self.grid) - self.grid.zero_point
        expected = wanted.numpy().astype(np.float64)
        beyond = np.maximum(np.abs(steps - expected) - 1, 0)
        return float(np.linalg.norm(beyond) / max(float(np.linalg.norm(expected)), 1.0))


def _cut(artefact: Artefact, module: nn.Module, calls: dict[str, list[Call]]) -> list[_Cut]:
    """Cut the graphs of ``artefact`` before every quantized input of a layer."""
    products = {node: layer for layer, nodes in products_of(artefact).items() for node in nodes}
    counts = {layer: len(nodes) for layer, nodes in products_of(artefact).items()}
    cuts: list[_Cut] = []
    for _, model in artefact.parts:
        done: set[ir.Node] = set()
        for node in list(model.graph):
            layer = products.get(node)
            if layer is None or len(calls.get(layer, ())) != counts[layer]:
                continue
            quantized = module.get_submodule(layer)
            assert isinstance(quantized, QuantModule)
            if isinstance(quantized.wrapped, Einsum):  # its operands may have changed places
                continue
            call = int((node.name or "").partition(CALL)[2] or 0)
            steps = [step for value in node.inputs[:2] if (step := _quantize(value)) is not None]
            given = zip(steps, calls[layer][call], quantized.input_params, strict=False)
            for step, x, grid in given:
                source = step.inputs[0]
                if step not in done and source is not None and source.name not in artefact.inputs:
                    done.add(step)
                    name = f"cut/{len(cuts)}"
                    cuts.append(_cut_at(artefact, model.graph, step, name, x.numpy(), grid))
    return cuts


def _cut_at(
    artefact: Artefact, graph: ir.Graph, step: ir.Node, name: str, given: Array, grid: QuantParams
) -> _Cut:
    source = step.inputs[0]
    assert source is not None
    kind = ir.TensorType(ir.DataType.FLOAT)
    taken = ir.Value(name=name, type=kind, shape=ir.Shape(given.shape))
    graph.inputs.append(taken)
    again = ir.node("QuantizeLinear", step.inputs, step.attributes, name=f"{name}/q")
    back = ir.node("DequantizeLinear", [again.outputs[0], *step.inputs[1:]], name=f"{name}/d")
    shown = back.outputs[0]
    again.outputs[0].name, shown.name, shown.type = f"{name}/codes", f"{name}/shown", kind
    graph.insert_after(step, [again, back])
    graph.outputs.append(shown)
    behind = _makers(source, artefact)
    step.replace_input_with(0, taken)
    scale = float(constant(step.inputs[1]))
    return _Cut(given, taken, shown, behind, grid, scale)


def _quantize(value: ir.Value | None) -> ir.Node | None:
    """Return the QuantizeLinear that an operand of a product comes from, if it does."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type != "QuantizeLinear":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _makers(value: ir.Value, artefact: Artefact) -> str:
    """Return the layers whose products are the nearest ones before ``value``."""
    ends = {v.name: v for _, model in artefact.parts for v in model.graph.outputs}
    found: dict[str, None] = {}
    seen: set[ir.Value | None] = set()
    pending: list[ir.Value | None] = [value]
    while pending:
        current = pending.pop()
        if current is not None and current.producer() is None:
            current = ends.get(current.name)  # what an earlier part makes
        node = current.producer() if current is not None else None
        if node is None or current in seen:
            continue
        seen.add(current)
        layer = (node.name or "").split(CALL)[0]
        if layer in artefact.card.layers:
            found[layer] = None
        else:
            pending.extend(node.inputs)
    return " or ".join(found)


def _with_ends(artefact: Artefact, cuts: list[_Cut]) -> Artefact:
    taken = tuple(str(cut.taken.name) for cut in cuts)
    shown = tuple(str(cut.shown.name) for cut in cuts)
    return replace(artefact, inputs=artefact.inputs + taken, outputs=artefact.outputs + shown)


def _error(y: Array, wanted: Array) -> float:
    """Return the norm of the difference over that of ``wanted``; other types are not compared."""
    if y.shape != wanted.shape:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return 0.0
    same = (y == wanted) | (np.isnan(y) & np.isnan(wanted))
    apart = np.where(same, 0.0, y.astype(np.float64) - wanted)
    norm = float(np.linalg.norm(wanted[np.isfinite(wanted)].astype(np.float64)))
    return float(np.linalg.norm(apart)) / (norm or 1.0)


def compare(path: Path, module: nn.Module, inputs: Sequence[Any], engine: EngineName) -> str | None:
    """Return what is to be said of how ``engine`` computes ``path``; ``None`` if all is well.

    Arguments are those of :func:`deviations`.
    """
    try:
        found = deviations(path, module, inputs, engine)
    except BevquantError as error:
        return f"{path}: not compared with the simulation: {error}"
    if not found:
        return None
    first = found[0]
    what = f"{first.layer} is" if first.layer else "the output is"
    more = f", and {len(found) - 1} more after it" if len(found) > 1 else ""
    return (
        f"{path}: {engine} does not compute what was simulated: {what} off by "
        f"{first.error:.2g} of its norm on the sample{more}; keep it float, or export for "
        "another target"
    )

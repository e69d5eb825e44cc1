"""What one engine on one kind of processor needs done to a graph before it is fast."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from bevquant.deploy.graph import PART
from bevquant.deploy.pack import constant

CHANNELS_FIRST = (0, 3, 1, 2)
CHANNELS_LAST = (0, 2, 3, 1)


def has_vnni() -> bool:
    """Return whether this processor multiplies and sums 8-bit integers in one instruction."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(key) for key in ("avx512_vnni", "avx_vnni", "amx_int8"))


def linear_as_convolution(model: ir.Model) -> None:
    """Write matrix products with an int8 weight as 1 x 1 convolutions; same arithmetic.

    Without VNNI, OpenVINO 2026.4 runs 8-bit matrix products slower than float ones, but
    8-bit convolutions about twice as fast.
    """
    for product in list(model.graph):
        if product.op_type in ("MatMul", "Gemm"):
            _replace(model.graph, product)
    RemoveUnusedNodesPass()(model)


def _replace(graph: ir.Graph, product: ir.Node) -> None:
    rows, matrix = product.inputs[:2]
    assert rows is not None
    assert matrix is not None
    weight = matrix.producer()
    if weight is None or weight.op_type != "DequantizeLinear":
        return
    codes, scale = weight.inputs[:2]
    if codes is None or not codes.is_initializer() or codes.dtype != ir.DataType.INT8:
        return
    sizes = [size for size in (rows.shape or ())[:-1] if isinstance(size, int)]
    static = rows.shape is not None and len(sizes) == len(rows.shape) - 1
    if not static and product.op_type == "MatMul":
        return

    output, bias = _with_bias(product)
    tape = Tape()

    def stored(name: str, array: npt.NDArray[Any]) -> ir.Value:
        return tape.initializer(ir.Tensor(array, name=f"{product.outputs[0].name}/{name}"))

    def part(name: str) -> str:
        return f"{product.name}{PART}{name}"

    table = constant(codes)
    if weight.attributes.get_int("axis") == 1:
        table = table.T
    channels_out, channels_in = table.shape
    kernel = stored("kernel", np.ascontiguousarray(table)[:, :, None, None])
    kernel = tape.op("DequantizeLinear", [kernel, scale], {"axis": 0})
    if static:
        # A map of one row that holds all the tokens.
        before, after = [1, 1, math.prod(sizes), channels_in], [*sizes, channels_out]
        x = tape.op("Reshape", [rows, stored("before", np.array(before))], name=part("rows"))
        x = tape.op("Transpose", [x], {"perm": CHANNELS_FIRST}, name=part("to"))
    else:
        # A map per row, as OpenVINO does not elide the transposition of unknown sizes.
        before, after = [-1, channels_in, 1, 1], [-1, channels_out]
        x = tape.op("Reshape", [rows, stored("before", np.array(before))], name=part("rows"))
    x = tape.op("Conv", [x, kernel, *bias], {"kernel_shape": (1, 1)}, name=product.name)
    if static:
        x = tape.op("Transpose", [x], {"perm": CHANNELS_LAST}, name=part("from"))
    x = tape.op("Reshape", [x, stored("after", np.array(after))], name=part("maps"))

    for value in tape.initializers:
        graph.register_initializer(value)
    graph.insert_before(product, tape.nodes)
    output.replace_all_uses_with(x, replace_graph_outputs=True)


def _with_bias(product: ir.Node) -> tuple[ir.Value, list[ir.Value]]:
    """Return the value that has the bias in it, and the bias if there is one."""
    (output,) = product.outputs
    if product.op_type == "Gemm" and len(product.inputs) > 2 and product.inputs[2] is not None:
        return output, [product.inputs[2]]
    uses = list(output.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add":
        other = uses[0].node.inputs[1 - uses[0].idx]
        if other is not None and other.is_initializer() and len(other.shape or ()) == 1:
            return uses[0].node.outputs[0], [other]
    return output, []

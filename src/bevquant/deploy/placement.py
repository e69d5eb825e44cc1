"""What one engine on one kind of processor needs done to a graph before it is fast."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape
from onnxscript.optimizer import fold_constants as fold

from bevquant.deploy.naming import PART
from bevquant.deploy.pack import constant, set_constant
from bevquant.deploy.rules import PRODUCTS, QUANTIZERS, WIDE, product_of

_ANY_SIZE = 1 << 40
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


def unsigned_codes(model: ir.Model) -> None:
    """Write signed activations as unsigned ones with zero point 128; same numbers.

    ONNX Runtime on x86 merges no convolution of signed activations, and without VNNI
    OpenVINO 2026.4 computes some of them wrongly: their sums saturate.
    """
    zero_points = {
        node.inputs[2]
        for node in model.graph
        if node.op_type in QUANTIZERS
        and len(node.inputs) > 2
        and node.inputs[0] is not None
        and not node.inputs[0].is_initializer()
    }
    for value in zero_points:
        if value is not None and value.dtype == ir.DataType.INT8:
            set_constant(value, (constant(value).astype(np.int16) + 128).astype(np.uint8))


def fold_constants(model: ir.Model) -> None:
    """Compute what depends on constants alone; the weights of other layers stay integers.

    OpenVINO 2026.4 fails to load some integer products of constants, such as layers that
    encode positions or queries.
    """
    known: set[ir.Node] = set()
    for node in model.graph:
        values = [value for value in node.inputs if value is not None]
        if values and all(v.is_initializer() or v.producer() in known for v in values):
            known.add(node)

    def should_fold(node: ir.Node) -> bool:
        readers = {reader for value in node.outputs for reader in value.consumers()}
        return node in known and (node.op_type != "DequantizeLinear" or readers <= known)

    fold(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=should_fold)


def gemm_as_product(model: ir.Model) -> None:
    """Write Gemm with an integer weight as MatMul and Add; same arithmetic.

    ONNX Runtime runs a product of integers with a float result, but no Gemm.
    """
    for gemm in list(model.graph):
        if gemm.op_type != "Gemm" or not _is_plain(gemm):
            continue
        rows, matrix, *bias = gemm.inputs
        dequantize = matrix.producer() if matrix is not None else None
        codes = dequantize.inputs[0] if dequantize is not None else None
        if dequantize is None or codes is None or not codes.is_initializer():
            continue
        tape = Tape()
        (output,) = gemm.outputs
        turned = bool(gemm.attributes.get_int("transB", 0))
        table = constant(codes)
        stored = tape.initializer(
            ir.Tensor(np.ascontiguousarray(table.T if turned else table), name=f"{output.name}/w")
        )
        axis = dequantize.attributes.get_int("axis", 1)
        weight = tape.op(
            "DequantizeLinear",
            [stored, *dequantize.inputs[1:]],
            {"axis": 1 - axis if turned else axis},
        )
        y = tape.op("MatMul", [rows, weight], name=gemm.name)
        if bias:
            y = tape.op("Add", [y, bias[0]])
        model.graph.register_initializer(stored)
        model.graph.insert_before(gemm, tape.nodes)
        output.replace_all_uses_with(y, replace_graph_outputs=True)
    RemoveUnusedNodesPass()(model)


def wide_layers_as_float(model: ir.Model) -> bool:
    """Put the float weights in the place of integer ones in 16-bit layers; same numbers.

    ONNX Runtime has no integer kernels for weights or activations of 16 bits. Left to
    itself, it gives a layer with either and a bias a 32-bit bias that overflows, and with
    VNNI it rounds the 16-bit activations of matrix products to 8 bits.

    Returns:
        Whether there are such layers.
    """
    found = False
    for product in list(model.graph):
        if product.op_type not in PRODUCTS:
            continue
        rows, weight = product_of(product).operands
        wide = any(operand and operand.codes in WIDE for operand in (rows, weight))
        if wide and weight is not None and weight.weight:
            _float_weight(model.graph, product)
            found = True
    RemoveUnusedNodesPass()(model)
    return found


def integer_biases(model: ir.Model) -> None:
    """Store the bias of each integer convolution as int32, as ONNX Runtime does by itself.

    What does that in ONNX Runtime also turns float weights behind 16-bit activations into
    8-bit integers, and so has to be off where a model has such layers.
    """
    for product in list(model.graph):
        if product.op_type != "Conv" or len(product.inputs) < 3 or product.inputs[2] is None:
            continue
        rows, weight = (value.producer() if value else None for value in product.inputs[:2])
        if rows is None or weight is None or not product.inputs[2].is_initializer():
            continue
        if {rows.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        bias = constant(product.inputs[2]).astype(np.float64)
        scales = (constant(node.inputs[1]).astype(np.float32) for node in (rows, weight))
        step = math.prod(scales, start=np.float32(1))
        tape, name = Tape(), product.outputs[0].name
        codes = tape.initializer(ir.Tensor(np.rint(bias / step).astype(np.int32), name=f"{name}/b"))
        scale = tape.initializer(
            ir.Tensor(np.broadcast_to(step, bias.shape).copy(), name=f"{name}/s")
        )
        product.replace_input_with(2, tape.op("DequantizeLinear", [codes, scale], {"axis": 0}))
        for value in tape.initializers:
            model.graph.register_initializer(value)
        model.graph.insert_before(product, tape.nodes)


def _float_weight(graph: ir.Graph, product: ir.Node) -> None:
    """Let ``product`` read its weight as a float constant."""
    dequantized = product.inputs[1]
    assert dequantized is not None
    node = dequantized.producer()
    assert node is not None
    scale = constant(node.inputs[1]).astype(np.float32)
    table = constant(node.inputs[0]).astype(np.float32)
    shape = [1] * table.ndim
    shape[node.attributes.get_int("axis", 1)] = -1
    value = ir.Value(name=f"{product.outputs[0].name}/float")
    set_constant(value, table * scale.reshape(shape))
    graph.register_initializer(value)
    product.replace_input_with(1, value)


def _is_plain(gemm: ir.Node) -> bool:
    attributes = gemm.attributes
    return attributes.get_float("alpha", 1.0) == attributes.get_float(
        "beta", 1.0
    ) == 1.0 and not attributes.get_int("transA", 0)

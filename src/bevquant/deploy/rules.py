"""What an engine wants of a product before it runs it in integers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bevquant.deploy.pack import constant

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
CLIPS = ("Relu", "Clip")
PASSES = (*CLIPS, "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""What ONNX Runtime merges into the convolution before it, or moves a QuantizeLinear over."""

WIDE = (ir.DataType.INT16, ir.DataType.UINT16)


@dataclass(frozen=True)
class Operand:
    """A quantized operand of a product.

    Attributes:
        codes: type of its codes, as stored.
        weight: whether the codes are in the file.
        zero_point: whether any zero point is not 0.
        scales: how many there are.
    """

    codes: ir.DataType
    weight: bool
    zero_point: bool
    scales: int


@dataclass(frozen=True)
class Product:
    """A product of a quantizable layer.

    Attributes:
        node: in the graph.
        operands: the two that are multiplied; ``None`` where one is float.
    """

    node: ir.Node
    operands: tuple[Operand | None, Operand | None]


Rule = Callable[[Product], str | None]
"""Why an engine would not run a product in integers; ``None`` if not for this reason."""


def product_of(node: ir.Node) -> Product:
    """Return what rules look at."""
    first, second, *_ = node.inputs
    return Product(node, (_operand(first), _operand(second)))


def quantized(product: Product) -> str | None:
    """Both operands are quantized."""
    return "its operands are float" if None in product.operands else None


def at_most_8_bits(product: Product) -> str | None:
    """No engine has kernels for 16-bit integers."""
    for operand in filter(None, product.operands):
        if operand.codes in WIDE:
            what = "weights" if operand.weight else "activations"
            return f"16-bit {what} have no integer kernel"
    return None


def one_weight(product: Product) -> str | None:
    """OpenVINO on x86 runs products of two activations in float, merged with a softmax or not."""
    weights = [operand for operand in product.operands if operand and operand.weight]
    return None if weights else "products of two activations run in float"


def transposed_from_zero(product: Product) -> str | None:
    """OpenVINO has integer transposed convolutions only of inputs that are nowhere negative.

    Signed codes are turned into unsigned ones with a zero point when a file is loaded.
    """
    rows = product.operands[0]
    shifted = rows is not None and (rows.zero_point or rows.codes == ir.DataType.INT8)
    if product.node.op_type == "ConvTranspose" and shifted:
        return "a transposed convolution of an input with a zero point; ReLU before it, or unsigned"
    return None


def not_transposed(product: Product) -> str | None:
    """ONNX Runtime has no transposed convolution of integers."""
    transposed = product.node.op_type == "ConvTranspose"
    return "there is no integer ConvTranspose" if transposed else None


def quantized_output(product: Product) -> str | None:
    """ONNX Runtime merges a convolution only together with the quantization of its output.

    A ReLU between the two must be what the grid does anyway: its zero point is 0.
    """
    if product.node.op_type != "Conv":
        return None
    (output,) = product.node.outputs
    readers, clipped = list(output.consumers()), False
    while len(readers) == 1 and readers[0].op_type in PASSES:
        clipped |= readers[0].op_type in CLIPS
        (output,) = readers[0].outputs
        readers = list(output.consumers())
    if all(reader.op_type == "QuantizeLinear" for reader in readers):
        grids = {tuple(_number(value) for value in reader.inputs[1:]) for reader in readers}
        if len(grids) == 1 and not output.is_graph_output():
            zero_point = readers[0].inputs[2]
            unsigned = zero_point is not None and zero_point.dtype == ir.DataType.UINT8
            if clipped and not (unsigned and _number(zero_point) == 0):
                return "its output is quantized with a zero point in spite of a ReLU"
            return None
    return "its output is not quantized: what reads it is no quantized layer, or several grids"


def symmetric(product: Product) -> str | None:
    """TensorRT knows signed codes without zero points only."""
    for operand in filter(None, product.operands):
        if operand.zero_point or operand.codes == ir.DataType.UINT8:
            return "unsigned codes or zero points; export with target 'tensorrt'"
    return None


def int8_weights(product: Product) -> str | None:
    """TensorRT takes 4-bit weights only where activations are float, 2-bit ones nowhere."""
    for operand in filter(None, product.operands):
        if operand.codes in (ir.DataType.INT2, ir.DataType.INT4):
            return "packed weights with quantized activations; export with target 'tensorrt'"
    return None


def adjacent_pairs(product: Product) -> str | None:
    """TensorRT wants QuantizeLinear and DequantizeLinear right behind each other."""
    for value in product.node.inputs[:2]:
        dequantize = value.producer() if value is not None else None
        codes = dequantize.inputs[0] if dequantize is not None else None
        quantize = codes.producer() if codes is not None else None
        if quantize is not None and quantize.op_type != "QuantizeLinear":
            return "its codes are moved between Q and DQ; export with target 'tensorrt'"
    return None


def never(product: Product) -> str | None:
    """The reference executes every step in float."""
    return "every Q and DQ is executed in float"


def reason(product: Product, rules: Sequence[Rule]) -> str | None:
    """Return why the first rule that objects does so."""
    return next((why for rule in rules if (why := rule(product)) is not None), None)


def _operand(value: ir.Value | None) -> Operand | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale, *rest = node.inputs
    assert codes is not None
    zero_point = rest[0] if rest else None
    weight = codes.is_initializer()
    dtype = codes.dtype if weight or zero_point is None else zero_point.dtype
    assert dtype is not None
    shifted = zero_point is not None and bool(constant(zero_point).any())
    return Operand(dtype, weight, shifted, int(constant(scale).size))


def _number(value: ir.Value | None) -> float:
    return float(constant(value)) if value is not None else 0.0

"""A quantized network as torch.onnx.export must see it: integer weights, explicit steps.

While :func:`integer_form` holds, every quantized layer computes what it simulated, but
from its integer weight and through two operators of our own, which the exporter
translates into ONNX's QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import TensorProto, helper
from onnxscript.onnx_opset import opset21
from torch import Tensor, nn

from bevquant.deploy.pack import WEIGHT_NAME
from bevquant.deploy.ranges import INTEGER_BITS, fit_bias, product_objection, sum_objection
from bevquant.deploy.targets import Target
from bevquant.errors import BevquantError
from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.layers import QuantLayer, QuantModule

# Opset21's stubs want eager tensors; in a translation its methods take graph values.
op: Any = opset21

FLOAT = "float"
"""Precision of a quantizable layer that is not quantized."""

ACTIVATION_TYPES = {
    (4, False): TensorProto.UINT8,
    (8, False): TensorProto.UINT8,
    (16, False): TensorProto.UINT16,
    (8, True): TensorProto.INT8,
}
"""By bits, and whether codes are signed. No engine has 4-bit activations: they are bytes."""


@torch.library.custom_op("bevquant::quantize_dequantize", mutates_args=())
def quantize_dequantize(
    x: Tensor, scale: float, zero_point: int, bits: int, signed: bool
) -> Tensor:
    """Round ``x`` to the grid of all codes of ``bits`` bits, per tensor."""
    low = -(2 ** (bits - 1)) if signed else 0
    grid = QuantParams(torch.tensor(scale), torch.tensor(zero_point), low, low + 2**bits - 1)
    return affine.simulate(x, grid)


@torch.library.custom_op("bevquant::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Return signed ``codes`` times a ``scale`` [C] along ``axis``."""
    return codes * scale.view(-1, *(1,) * (codes.ndim - axis - 1))


@quantize_dequantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, bits: int, signed: bool) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


def _onnx_quantize_dequantize(
    x: Any, scale: float, zero_point: int, bits: int, signed: bool
) -> Any:
    step = op.Constant(value=helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]))
    dtype = ACTIVATION_TYPES[bits, signed]
    zero = op.Constant(value=helper.make_tensor("zero_point", dtype, [], [zero_point]))
    codes = op.QuantizeLinear(x, step, zero)
    if bits < 8:  # of the integers, so that engines still find Q, product and DQ
        ends = [helper.make_tensor("end", dtype, [], [end]) for end in (0, 2**bits - 1)]
        codes = op.Clip(codes, *(op.Constant(value=end) for end in ends))
    return op.DequantizeLinear(codes, step, zero)


def _onnx_dequantize(codes: Any, scale: Any, axis: int) -> Any:
    return op.DequantizeLinear(codes, scale, axis=axis)


TRANSLATION: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.bevquant.quantize_dequantize.default: _onnx_quantize_dequantize,
    torch.ops.bevquant.dequantize.default: _onnx_dequantize,
}
"""For the argument ``custom_translation_table`` of :func:`torch.onnx.export`."""


class _IntegerLayer(nn.Module):
    """Stands for a :class:`QuantLayer`."""

    learned_bias: Tensor | None

    def __init__(self, layer: QuantLayer, target: Target) -> None:
        super().__init__()
        self.wrapped = layer.wrapped
        self.axis = layer.weight_axis
        self.input = _input_grids(layer, target)[0]
        grid, codes = layer.weight_params, layer.weight_codes
        if grid.scale.numel() != codes.shape[self.axis] or grid.zero_point.any():
            raise BevquantError(
                f"{layer.name}: weights with zero points, or with a scale for the whole tensor or "
                f"for groups of inputs, are not exported; quantize with {_scheme(target)}"
            )
        bits = next((n for n in target.weight_bits if grid.quant_max < 2 ** (n - 1)), None)
        if bits is None:
            raise BevquantError(
                f"{layer.name}: {target.name} has no integers for {layer.precision}; give the "
                f"layer at most {target.weight_bits[-1]} bits, or None for float"
            )
        scale = grid.scale.flatten()
        if _in_integers(layer):
            bias = layer.learned_bias
            bias = layer.wrapped._parameters.get("bias") if bias is None else bias
            (input_grid,) = layer.input_params
            codes, scale = fit_bias(codes, scale, self.axis, input_grid, bias)
        self.weight_name = f"{WEIGHT_NAME}{bits}"
        self.register_buffer(self.weight_name, codes.to(torch.int8 if bits <= 8 else torch.int16))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("learned_bias", layer.learned_bias)
        self.run = layer.run

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        codes, scale = self.get_buffer(self.weight_name), self.get_buffer("weight_scale")
        weight = dequantize(codes, scale, self.axis)
        quantized = quantize_dequantize(input, *self.input)
        return self.run(weight, quantized, *args, bias=self.learned_bias, **kwargs)


class _IntegerMatMul(nn.Module):
    """Stands for a product of two quantized activations."""

    def __init__(self, layer: QuantModule, target: Target) -> None:
        super().__init__()
        self.wrapped = layer.wrapped
        self.a, self.b = _input_grids(layer, target)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.wrapped(quantize_dequantize(a, *self.a), quantize_dequantize(b, *self.b))


def _input_grids(layer: QuantModule, target: Target) -> list[tuple[float, int, int, bool]]:
    """Return scale, zero point, bits and signedness of each input."""
    signed = target.scheme.activations.symmetric
    grids = []
    for grid in layer.input_params:
        bits = (grid.quant_max - grid.quant_min + 1).bit_length() - (not signed)
        if grid.scale.ndim or (grid.quant_min < 0) != signed:
            raise BevquantError(
                f"{layer.name}: {target.name} takes activations "
                f"{'signed, without zero points' if signed else 'unsigned'}, one scale per "
                f"tensor; quantize with {_scheme(target)}"
            )
        if (bits, signed) not in ACTIVATION_TYPES:
            raise BevquantError(
                f"{layer.name}: {target.name} has no activations of {bits} bits; give the "
                "layer 8, or None for float"
            )
        # The edge of a signed range lies between codes -127 and -128, of which simulation has
        # the first only and QuantizeLinear both: a hair more, and it is the first in both.
        scale = grid.scale.item() * (1 + 2**-22 if signed else 1)
        grids.append((scale, int(grid.zero_point), bits, signed))
    return grids


def _scheme(target: Target) -> str:
    return f"the scheme {target.scheme_name}"


@dataclass(frozen=True)
class IntegerForm:
    """What became of the quantizable layers, by their names in the model.

    Attributes:
        precisions: ``"W8A8"`` or ``"float"`` of each.
        kept_float: why a layer is float although the model has it quantized.
    """

    precisions: dict[str, str] = field(default_factory=dict)
    kept_float: dict[str, str] = field(default_factory=dict)


Shapes = Mapping[nn.Module, tuple[torch.Size, ...]]
"""Of the inputs of products of activations, as one run of the model saw them."""


@contextmanager
def integer_form(model: nn.Module, target: Target, shapes: Shapes) -> Iterator[IntegerForm]:
    """Put every quantized layer of ``model`` into its integer form, for a while.

    Layers without a precision or a calibration stay the ``"float"`` layers they are, and so
    do those whose sums can overflow in an engine.

    Args:
        model: changed until the ``with`` block ends.
        target: the engine.
        shapes: of the operands of products of activations.

    Raises:
        BevquantError: a layer is quantized in a way that no engine runs in integers.
    """
    form = IntegerForm()
    swapped: list[tuple[nn.Module, str, QuantModule]] = []
    bypassed: list[QuantModule] = []
    try:
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if not isinstance(module, QuantModule):
                continue
            form.precisions[name] = str(module.precision) if module.quantized else FLOAT
            if not module.quantized:
                continue
            integer = (
                _IntegerLayer(module, target)
                if isinstance(module, QuantLayer)
                else _IntegerMatMul(module, target)
            )
            objection = _objection(module, shapes)
            if objection is not None:
                form.precisions[name], form.kept_float[name] = FLOAT, objection
                bypassed.append(module)
                continue
            parent, _, child = name.rpartition(".")
            owner = model.get_submodule(parent)
            swapped.append((owner, child, module))
            owner.add_module(child, integer)
        for module in bypassed:
            module.bypass = True
        yield form
    finally:
        for owner, child, module in swapped:
            owner.add_module(child, module)
        for module in bypassed:
            module.bypass = False


def _objection(layer: QuantModule, shapes: Shapes) -> str | None:
    """Return why an engine cannot compute ``layer`` in integers."""
    if not _in_integers(layer):
        return None
    if isinstance(layer, QuantLayer):
        (grid,) = layer.input_params
        return sum_objection(layer.weight_codes, layer.weight_axis, grid)
    return product_objection(layer, *shapes[layer]) if layer in shapes else None


def _in_integers(layer: QuantModule) -> bool:
    """Return whether there are engines that compute ``layer`` in integers."""
    precision = layer.precision
    return precision is not None and max(precision.weights, precision.activations) <= INTEGER_BITS

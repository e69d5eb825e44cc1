"""What a quantized model takes to store, byte by byte."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantModule, quant_modules
from bevquant.quant.spec import Precision

STORED_BITS = (2, 4, 8, 16)
"""Codes are stored in these; 3 and 6 bits take the room of 4 and 8."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Size:
    """Bytes, by what they are for.

    Attributes:
        weights: of the quantizable layers, packed, or float where a layer is float.
        scales: scales and zero points of their weights and inputs.
        rest: biases, norms, embeddings, tables: all numbers that are never quantized.
        graph: description of what is done with them; 0 for a model that is no file.
    """

    weights: int
    scales: int
    rest: int
    graph: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.scales + self.rest + self.graph


def stored_bits(bits: int) -> int:
    """Return the bits that a code of ``bits`` bits, 2..16, is stored in."""
    return next(stored for stored in STORED_BITS if stored >= bits)


def weight_bytes(weights: int, precision: Precision | None) -> int:
    """Return the bytes of one layer's ``weights`` codes, rounded up to whole ones."""
    if precision is None:
        return weights * FLOAT_BYTES
    return math.ceil(weights * stored_bits(precision.weights) / 8)


def scale_bytes(layer: QuantModule, precision: Precision | None) -> int:
    """Return the bytes of one layer's scales and zero points.

    A scale is a float; a zero point is a code. Symmetric weights have no zero points; each
    input has one scale and one zero point, as in a file.
    """
    if precision is None:
        return 0
    inputs = len(layer.inputs) * (FLOAT_BYTES + stored_bits(max(8, precision.activations)) // 8)
    axis, scheme = layer.kind.weight_axis, layer.scheme.weights
    if axis is None:
        return inputs
    shape = weight_of(layer.wrapped).shape
    grids = shape[axis] if scheme.per_channel else 1
    if scheme.group_size is not None:
        grids *= math.ceil(shape[layer.kind.input_axis] / scheme.group_size)
    zero_point = 0 if scheme.symmetric else math.ceil(stored_bits(precision.weights) / 8)
    return inputs + grids * (FLOAT_BYTES + zero_point)


def rest_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and persistent buffers but quantizable weights."""
    weights = {
        id(weight_of(layer.wrapped))
        for layer in quant_modules(model)
        if layer.kind.weight_axis is not None
    }
    state = {
        id(value): value for value in (*nn.Module.parameters(model), *_persistent_buffers(model))
    }
    return sum(v.numel() * v.element_size() for key, v in state.items() if key not in weights)


def model_size(model: nn.Module) -> Size:
    """Return the size of a quantized model at its present precisions.

    An exported file has these weights to the byte, and these scales but for equal ones,
    which it may store once; its rest lacks what a forward pass does not use, and has the
    tables that the code itself makes.
    """
    layers = quant_modules(model)
    return Size(
        weights=sum(
            weight_bytes(weight_of(layer.wrapped).numel(), layer.precision)
            for layer in layers
            if layer.kind.weight_axis is not None
        ),
        scales=sum(scale_bytes(layer, layer.precision) for layer in layers),
        rest=rest_bytes(model),
    )


def _persistent_buffers(model: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in nn.Module.modules(model)
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]

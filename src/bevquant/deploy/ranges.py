"""The integers that engines keep, and how a layer stays within their 32 bits.

An engine multiplies codes and sums the products as int32, corrects the sum for the zero
points, and ONNX Runtime also stores the bias as int32, in steps of input scale times weight
scale. Where one of them overflows it wraps around without a word. All bounds follow from the
codes that a file stores and hold for any input.
"""

import math

import torch
from torch import Tensor

from bevquant.nn import Einsum
from bevquant.quant.affine import QuantParams
from bevquant.quant.layers import QuantModule

LIMIT = 2**31 - 1
"""Largest int32."""

ROOM = 2**30
"""What a channel whose scale has to be raised may take: half of the integers."""

SMALLEST_STEP = 2.0**-120
"""Input scale times weight scale: with less, float32 multipliers lose digits or become 0."""

INTEGER_BITS = 8
"""Layers with more bits are executed in float by every engine: no integer can overflow."""


def sum_bounds(codes: Tensor, axis: int, grid: QuantParams) -> Tensor:
    """Return the largest magnitude that the sums of each output channel can take, float64 [C].

    The larger one of the sum of codes and of the sum after its correction for the zero point
    of the input; symmetric codes are summed as unsigned ones with zero point 128.

    Args:
        codes: of the weight.
        axis: of the output channels in ``codes``.
        grid: of the input, per tensor.
    """
    channels = codes.double().movedim(axis, 0).flatten(1)
    above, below = channels.clamp(min=0).sum(1), -channels.clamp(max=0).sum(1)
    low, high = _span(grid)
    raw = (high - low) * torch.maximum(above, below)
    corrected = torch.maximum(high * above - low * below, high * below - low * above)
    return torch.maximum(raw, corrected)


def fit_bias(
    codes: Tensor, scale: Tensor, axis: int, grid: QuantParams, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return ``codes`` and ``scale``, coarser for channels whose bias would leave int32.

    Beside such a bias the products are small: what the coarser steps change is at most
    K * 2**-23 of the bias, for K products a sum, about what float32 loses of them anyway.
    Other channels stay as they are, to the bit.

    Args:
        codes: of the weight, int32.
        scale: of the output channels, float32 [C].
        axis: of the output channels in ``codes``.
        grid: of the input, per tensor.
        bias: float [C], of a transposed convolution in groups [groups * C], or ``None``.
    """
    step = scale.double() * grid.scale.double()
    offset = torch.zeros_like(step)
    if bias is not None:
        # A transposed convolution in groups has a bias for each group, and a scale for all of them.
        offset = bias.detach().cpu().double().abs().view(-1, len(step)).amax(0)
    sums = sum_bounds(codes, axis, grid)
    overflows = (offset / step + sums > LIMIT) & (sums <= LIMIT) & offset.isfinite()
    wanted = torch.where(overflows, (offset / step + sums) / ROOM, 1.0)
    factor = torch.maximum(wanted, SMALLEST_STEP / step)
    if not bool((factor > 1).any()):
        return codes, scale
    raised = torch.where(factor > 1, scale.double() * factor, scale.double()).float()
    shape = [1] * codes.ndim
    shape[axis] = -1
    coarser = (codes * (scale.double() / raised.double()).view(shape)).round().to(codes.dtype)
    return coarser, raised


def sum_objection(codes: Tensor, axis: int, grid: QuantParams) -> str | None:
    """Return why a layer cannot run in integers: its sums, if they can leave int32."""
    largest = float(sum_bounds(codes, axis, grid).max())
    products = codes.numel() // codes.shape[axis]
    return _objection(largest, products)


def product_objection(layer: QuantModule, a: torch.Size, b: torch.Size) -> str | None:
    """Return why a product of activations shaped ``a`` and ``b`` cannot run in integers."""
    terms = _terms(layer, a, b)
    largest = float(terms)
    for grid in layer.input_params:
        low, high = _span(grid)
        largest *= high - low
    return _objection(largest, terms)


def _objection(largest: float, terms: int) -> str | None:
    if largest <= LIMIT:
        return None
    return (
        f"sums of {terms} products of its codes can reach 2^{math.log2(largest):.1f}, "
        "and engines keep 32 bits"
    )


def _span(grid: QuantParams) -> tuple[float, float]:
    """Return the smallest and the largest ``code - zero_point`` that engines may meet."""
    if grid.quant_min < 0:
        return -128.0, 127.0
    zero_point = float(grid.zero_point)
    return grid.quant_min - zero_point, grid.quant_max - zero_point


def _terms(layer: QuantModule, a: torch.Size, b: torch.Size) -> int:
    """Return how many products one element of the result is the sum of."""
    if not isinstance(layer.wrapped, Einsum):
        return a[-1]
    inputs, _, output = layer.wrapped.equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, shape in zip(inputs.split(","), (a, b), strict=True):
        before, dots, after = term.partition("...")
        sizes |= dict(zip(before, shape, strict=False))
        if dots and after:
            sizes |= dict(zip(after, shape[-len(after) :], strict=True))
    labels = inputs.replace(",", "").replace("...", "")
    summed = set(labels) - set(output) if output else {x for x in labels if labels.count(x) > 1}
    return math.prod(sizes[label] for label in summed)

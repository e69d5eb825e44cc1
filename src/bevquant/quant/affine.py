"""The arithmetic of affine quantization, in one place.

``code = clamp(round(x / scale) + zero_point, quant_min, quant_max)`` and
``x ~ scale * (code - zero_point)``, where ``round`` takes halves to the even neighbour and
the division is one of float32: bit for bit ONNX's QuantizeLinear and DequantizeLinear, so
that what is simulated is what a deployed layer computes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bevquant.quant.spec import QuantSpec


class Range(NamedTuple):
    """The values of a tensor: float32 extremes that broadcast against it.

    Attributes:
        minimum: shape ``[]`` for the whole tensor or ``[C, 1, ...]`` for each channel.
        maximum: same shape.
    """

    minimum: Tensor
    maximum: Tensor

    @property
    def finite(self) -> bool:
        """Whether neither NaN nor infinity is among the values."""
        return bool(self.minimum.isfinite().all() and self.maximum.isfinite().all())

    def union(self, other: "Range") -> "Range":
        """Return the range that covers both."""
        return Range(
            torch.minimum(self.minimum, other.minimum), torch.maximum(self.maximum, other.maximum)
        )

    def scaled(self, factor: Tensor | float) -> "Range":
        """Return the range with both extremes multiplied by a positive ``factor``."""
        return Range(self.minimum * factor, self.maximum * factor)

    def to(self, device: torch.device | str) -> "Range":
        """Return the same range on ``device``."""
        return Range(self.minimum.to(device), self.maximum.to(device))


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of a tensor's integer grid.

    Attributes:
        scale: float32, positive; shape ``[]`` for the whole tensor or ``[C, 1, ...]``, which
            broadcasts against the tensor, for each channel.
        zero_point: int32, same shape: the code of real 0, within the codes.
        quant_min: smallest code.
        quant_max: largest code.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest ``code - zero_point``, float32, shaped like ``scale``."""
        low, high = self.quant_min - self.zero_point, self.quant_max - self.zero_point
        return low.to(self.scale.dtype), high.to(self.scale.dtype)

    @cached_property
    def scalar_bounds(self) -> tuple[float, float] | None:
        """:attr:`bounds` as numbers if they are those of the whole tensor, else ``None``."""
        low, high = self.bounds
        return (float(low), float(high)) if self.scale.ndim == 0 else None


def params_from_range(values: Range, spec: QuantSpec) -> QuantParams:
    """Return the grid that covers a finite range and has a code for 0.

    Asymmetric: the extremes fall on the outermost codes (Jacob et al., CVPR 2018). 0 is
    always taken into the range, so that zero padding is exact; a range that is nowhere
    negative has zero point 0.

    Symmetric: the smallest scale at which no value lies more than half a step beyond the
    outermost code. Rounding costs at most half a step anywhere, as with the common
    ``max|x| / quant_max``, but steps are finer where there are few of them; and it gives
    the lopsided 2-bit grid {-2, -1, 0, 1} a scale that uses all four levels.

    A range of nothing but 0 gets scale 1.

    Args:
        values: the range; finite.
        spec: the codes.
    """
    low, high = values.minimum.double().clamp(max=0), values.maximum.double().clamp(min=0)
    if spec.symmetric:
        scale = torch.maximum(low / (spec.quant_min - 0.5), high / (spec.quant_max + 0.5))
    else:
        scale = (high - low) / (spec.quant_max - spec.quant_min)
    scale = scale.float()
    scale = scale.where(scale >= torch.finfo(torch.float32).tiny, torch.ones_like(scale))
    if spec.symmetric:
        zero_point = torch.zeros_like(scale)
    else:
        zero_point = (spec.quant_min - low / scale).round_()
    zero_point = zero_point.clamp_(spec.quant_min, spec.quant_max).to(torch.int32)
    return QuantParams(scale, zero_point, spec.quant_min, spec.quant_max)


def _steps(x: Tensor, params: QuantParams) -> Tensor:
    """Return ``code - zero_point`` as a new float tensor; ``x`` is left alone."""
    steps = x.float().div(params.scale).round_()
    if params.scalar_bounds is not None:
        return steps.clamp_(*params.scalar_bounds)
    low, high = params.bounds  # as arguments of clamp_ they make it several times slower
    return steps.clamp_min_(low).clamp_max_(high)


@torch.no_grad()
def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Return the int32 codes of ``x``."""
    return _steps(x, params).to(torch.int32).add_(params.zero_point)


def dequantize(codes: Tensor, params: QuantParams) -> Tensor:
    """Return the float32 values that ``codes`` stand for."""
    return (codes - params.zero_point).to(params.scale.dtype).mul_(params.scale)


def simulate(x: Tensor, params: QuantParams) -> Tensor:
    """Return ``dequantize(quantize(x))`` in the dtype of ``x``, without integers on the way.

    Where gradients are wanted they pass straight through inside the range and are 0
    outside (the straight-through estimator, Bengio et al., arXiv 1308.3432).
    """
    if torch.is_grad_enabled() and x.requires_grad:
        straight_through: Tensor = _StraightThrough.apply(x, params)  # type: ignore[no-untyped-call]
        return straight_through
    return _steps(x, params).mul_(params.scale).to(x.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, params: QuantParams) -> Tensor:
        low, high = params.bounds
        steps = x / params.scale
        ctx.save_for_backward((steps >= low - 0.5) & (steps <= high + 0.5))
        return simulate(x, params)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None

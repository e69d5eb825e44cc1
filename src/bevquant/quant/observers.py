"""What is watched while a network runs: statistics that stream, in memory for one batch."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.quant.affine import Range
from bevquant.quant.spec import ACTIVATION_BITS, Granularity, PerGroup, PerTensor, TensorScheme


def min_max(x: Tensor, granularity: Granularity) -> Range:
    """Return the extremes of a tensor that has elements; NaN anywhere makes them NaN."""
    if isinstance(granularity, PerTensor):
        low, high = torch.aminmax(x)
    elif isinstance(granularity, PerGroup):
        axis, inputs = granularity.axis % x.ndim, granularity.input_axis % x.ndim
        others = [other for other in range(x.ndim) if other not in (axis, inputs)]
        low, high = (x.amin(others, True), x.amax(others, True)) if others else (x, x)
        lows, highs = (torch.split(end, granularity.size, inputs) for end in (low, high))
        low = torch.cat([group.amin(inputs, True).expand_as(group) for group in lows], inputs)
        high = torch.cat([group.amax(inputs, True).expand_as(group) for group in highs], inputs)
    else:
        others = [axis for axis in range(-x.ndim, 0) if axis != granularity.axis]
        low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        shape = (-1, *(1,) * (-granularity.axis - 1))
        low, high = low.reshape(shape), high.reshape(shape)
    return Range(low.float(), high.float())


class Statistic(Protocol):
    """What has been seen of one input of one layer so far."""

    def update(self, x: Tensor, values: Range) -> None:
        """Take one more tensor into account.

        Args:
            x: finite, with elements.
            values: the extremes of ``x``, on the CPU.
        """

    def ranges(self) -> dict[int, Range]:
        """Return the range for each number of bits; empty before any data."""


class Observer(Protocol):
    """How the ranges of activations are found: :class:`MinMax` and its like."""

    def watch(self, scheme: TensorScheme, channel_axis: int | None) -> Statistic:
        """Return the statistic of an input with channels along ``channel_axis``."""


@dataclass(frozen=True)
class MinMax:
    """The extremes of all that is seen: nothing is clipped."""

    def watch(self, scheme: TensorScheme, channel_axis: int | None) -> Statistic:
        """Return the statistic of one input."""
        return _Extremes(None)


@dataclass(frozen=True)
class MovingAverage:
    """Exponential moving average of the extremes of each batch (Jacob et al., CVPR 2018).

    Attributes:
        momentum: share of the latest batch, 0..1; the first batch is taken whole.

    Raises:
        BevquantError: a momentum out of range.
    """

    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise BevquantError(f"MovingAverage: momentum {self.momentum} is not within 0..1")

    def watch(self, scheme: TensorScheme, channel_axis: int | None) -> Statistic:
        """Return the statistic of one input."""
        return _Extremes(self.momentum)


MIN_MAX = MinMax()


class _Extremes:
    def __init__(self, momentum: float | None) -> None:
        self._momentum = momentum
        self._range: Range | None = None

    def update(self, x: Tensor, values: Range) -> None:
        if self._range is None:
            self._range = values
        elif self._momentum is None:
            self._range = self._range.union(values)
        else:
            pairs = zip(self._range, values, strict=True)
            self._range = Range(*(old.lerp(new, self._momentum) for old, new in pairs))

    def ranges(self) -> dict[int, Range]:
        return {} if self._range is None else dict.fromkeys(ACTIVATION_BITS, self._range)

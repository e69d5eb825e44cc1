"""Observers that clip: ranges within the extremes, chosen from a histogram of all values."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.errors import BevquantError
from bevquant.quant.affine import QuantParams, Range, params_from_range
from bevquant.quant.histogram import Histogram
from bevquant.quant.observers import Statistic
from bevquant.quant.spec import ACTIVATION_BITS, QuantSpec, TensorScheme

Choice = Callable[[Histogram, QuantSpec], tuple[Tensor, Tensor]]
"""Returns the ends of each row's range, float64 [rows]."""

Cost = Callable[[QuantParams], Tensor]
"""What the values of each row lose on a grid for each row, float64 [rows]."""

_COARSE = torch.linspace(1 / 32, 1, 32, dtype=torch.float64)
"""Shares of the extremes that are tried, and steps that are then tried from the best one."""
_FINE = torch.linspace(-1 / 32, 1 / 32, 11, dtype=torch.float64)


@dataclass(frozen=True)
class Percentile:
    """Leaves out the same share of the values at either end.

    Attributes:
        percentile: of the values that the upper end is not below, 50..100; as many are
            not below the lower end.
        bins: of the histogram of a tensor, or of each channel.

    Raises:
        BevquantError: a percentile or a number of bins out of range.
    """

    percentile: float = 99.99
    bins: int = 2048

    def __post_init__(self) -> None:
        if not (50 <= self.percentile <= 100 and self.bins > 1):
            raise BevquantError(f"{self}: give a percentile of 50..100 and at least 2 bins")

    def watch(self, scheme: TensorScheme, channel_axis: int | None) -> Statistic:
        """Return the statistic of one input."""
        return _Clipped(self.bins, self._choose, scheme, channel_axis)

    def _choose(self, seen: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
        counts, edges = seen.counts.double(), seen.edges
        enough = counts.sum(1, keepdim=True) * (self.percentile / 100)
        high = (counts.cumsum(1) < enough).sum(1, keepdim=True) + 1
        low = seen.bins - 1 - (counts.flip(1).cumsum(1) < enough).sum(1, keepdim=True)
        ends = (edges.gather(1, index.clamp(0, seen.bins)).squeeze(1) for index in (low, high))
        return next(ends).maximum(seen.minimum), next(ends).minimum(seen.maximum)


@dataclass(frozen=True)
class MSE:
    """Least mean squared error of quantization, or another power of it.

    Within a bin values are taken to be spread evenly; on that assumption the error is an
    integral in closed form. With no fewer codes than bins nothing is clipped.

    Attributes:
        power: of the error that is summed; 2 for squares, lower for less weight on outliers.
        bins: of the histogram of a tensor, or of each channel.

    Raises:
        BevquantError: a power or a number of bins out of range.
    """

    power: float = 2.0
    bins: int = 2048

    def __post_init__(self) -> None:
        if not (self.power > 0 and self.bins > 1):
            raise BevquantError(f"{self}: give a positive power and at least 2 bins")

    def watch(self, scheme: TensorScheme, channel_axis: int | None) -> Statistic:
        """Return the statistic of one input."""
        return _Clipped(self.bins, self._choose, scheme, channel_axis)

    def _choose(self, seen: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
        counts, edges, width = seen.counts.double(), seen.edges, seen.width[:, None]
        after = self.power + 1
        cell = 2 * 0.5**after / after  # integral of |u - round(u)|^power over one step

        def cost(grid: QuantParams) -> Tensor:
            scale, low, high = (x.double()[:, None] for x in (grid.scale, *grid.bounds))
            u = edges / scale
            code = u.round().clamp(low, high)
            rest = u - code
            integral = code * cell + rest.sign() * rest.abs() ** after / after
            error: Tensor = counts * integral.diff(dim=1) * scale**after / width
            return error.sum(1)

        return _search(seen, spec, cost)


@dataclass(frozen=True)
class Entropy:
    """Least Kullback-Leibler divergence of the quantized values from the float ones.

    As in S. Migacz, 8-bit inference with TensorRT (GTC 2017), at either end and for any
    grid: what is clipped is added to the outermost bins of the reference, not to those of
    the quantized distribution. The bin that holds 0 is left out, as 0 is exact on every
    grid. With no fewer codes than bins nothing is clipped.

    Attributes:
        bins: of the histogram of a tensor, or of each channel.

    Raises:
        BevquantError: fewer than 2 bins.
    """

    bins: int = 2048

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise BevquantError(f"{self}: give at least 2 bins")

    def watch(self, scheme: TensorScheme, channel_axis: int | None) -> Statistic:
        """Return the statistic of one input."""
        return _Clipped(self.bins, self._choose, scheme, channel_axis)

    def _choose(self, seen: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
        levels = spec.quant_max - spec.quant_min + 1
        edges = seen.edges
        centres = edges[:, :-1] + seen.width[:, None] / 2
        counts = seen.counts.double().where((edges[:, :-1] > 0) | (edges[:, 1:] <= 0), 0)

        def cost(grid: QuantParams) -> Tensor:
            scale, low, high = (x.double()[:, None] for x in (grid.scale, *grid.bounds))
            steps = (centres / scale).round()
            inside = (steps >= low) & (steps <= high)
            kept = counts * inside
            code = (steps.clamp(low, high) - low).long()
            table = counts.new_zeros(len(counts), levels)
            mass = table.scatter_add(1, code, kept)
            bins = table.scatter_add(1, code, (kept > 0).double())
            quantized = (mass / bins).gather(1, code).where(kept > 0, 0)
            position = torch.arange(seen.bins)
            first = position.where(inside, seen.bins).amin(1, keepdim=True)
            last = position.where(inside, -1).amax(1, keepdim=True)
            below, above = counts * (steps < low), counts * (steps > high)
            reference = kept + below.sum(1, keepdim=True) * (position == first)
            reference += above.sum(1, keepdim=True) * (position == last)
            p = reference / reference.sum(1, keepdim=True)
            q = quantized / quantized.sum(1, keepdim=True)
            return torch.where(p > 0, p * (p / q).log(), 0).sum(1)

        return _search(seen, spec, cost)


class _Clipped:
    """A histogram of one input, and the ranges that are chosen from it."""

    def __init__(
        self, bins: int, choose: Choice, scheme: TensorScheme, channel_axis: int | None
    ) -> None:
        self._seen = Histogram(bins)
        self._choose = choose
        self._scheme, self._axis = scheme, channel_axis
        self._shape = torch.Size()

    def update(self, x: Tensor, values: Range) -> None:
        self._shape = values.minimum.shape
        by_channel = len(self._shape) > 0 and self._axis is not None
        rows = x.movedim(self._axis or 0, 0) if by_channel else x
        low, high = (end.flatten() for end in values)
        self._seen.update(rows.reshape(len(low), -1), low, high)

    def ranges(self) -> dict[int, Range]:
        if len(self._seen.counts) == 0:
            return {}
        found = {}
        for bits in ACTIVATION_BITS:
            ends = self._choose(self._seen, self._scheme.spec(bits, self._axis))
            found[bits] = Range(*(end.float().view(self._shape) for end in ends))
        return found


def _search(seen: Histogram, spec: QuantSpec, cost: Cost) -> tuple[Tensor, Tensor]:
    """Return the ends of least cost: both ends together, then one at a time, then finer."""
    if spec.quant_max - spec.quant_min + 1 >= seen.bins:
        return seen.minimum, seen.maximum
    extremes = seen.minimum.clamp(max=0), seen.maximum.clamp(min=0)
    best = [torch.ones_like(end) for end in extremes]
    least = cost(params_from_range(Range(*extremes), spec))

    def sweep(ends: tuple[int, ...], shares: Tensor, around: bool = False) -> None:
        nonlocal least
        start = list(best)
        for share in shares:
            trial = list(start)
            for end in ends:
                trial[end] = ((start[end] if around else 0) + share).expand_as(least).clamp(0, 1)
            values = Range(*(e * t for e, t in zip(extremes, trial, strict=True)))
            found = cost(params_from_range(values, spec))
            better = found < least
            least = found.where(better, least)
            best[:] = [new.where(better, old) for new, old in zip(trial, best, strict=True)]

    two_sided = not spec.symmetric and all(end.any() for end in extremes)
    sweep((0, 1), _COARSE)
    for end in (1, 0, 1) if two_sided else ():
        sweep((end,), _COARSE)
    for ends in ((1,), (0,)) if two_sided else ((0, 1),):
        sweep(ends, _FINE, around=True)
    low, high = (e * t for e, t in zip(extremes, best, strict=True))
    return low, high

"""A histogram of a stream of unknown range, in memory that does not grow."""

import torch
from torch import Tensor

_CHUNK = 1 << 20
"""Values that are sorted into bins at a time."""

_MANTISSA_BITS = 22
"""Bins are no finer than the spacing of float32 at the largest value, so indices are exact."""

_FINEST = -149
"""Nor finer than 2 to this power, of which every float32 is a multiple; 0 alone has it, too."""


class Histogram:
    """Counts of values in bins of equal width; a row for the tensor or for each channel.

    Bin edges are multiples of a width that is a power of two. Values beyond the last bin
    double the width as often as needed: neighbouring bins then merge, so that counts stay
    exact, and do not depend on how the stream was cut. The width is the smallest at which
    all values fit.

    Attributes:
        counts: int64 [rows, bins].
        minimum: smallest value of each row, float64 [rows].
        maximum: largest value, same shape.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.counts = torch.zeros(0, bins, dtype=torch.int64)
        self.minimum = self.maximum = torch.zeros(0, dtype=torch.float64)
        self._exponent = self._first = torch.zeros(0, dtype=torch.int64)

    @property
    def width(self) -> Tensor:
        """Width of a bin of each row, float64 [rows]."""
        return torch.ldexp(torch.ones_like(self.minimum), self._exponent)

    @property
    def edges(self) -> Tensor:
        """Edges of the bins, float64 [rows, bins + 1]."""
        steps = torch.arange(self.bins + 1)
        return (self._first[:, None] + steps).double() * self.width[:, None]

    def update(self, rows: Tensor, minimum: Tensor, maximum: Tensor) -> None:
        """Count more values.

        Args:
            rows: [rows, N], finite, rounded to float32 as the extremes are; N at least 1.
            minimum: smallest value of each row, [rows].
            maximum: largest value, same shape.
        """
        minimum, maximum = minimum.double(), maximum.double()
        if len(self.counts) == 0:
            self.counts = torch.zeros(len(rows), self.bins, dtype=torch.int64)
            self.minimum, self.maximum = minimum, maximum
            self._exponent = torch.full((len(rows),), -(1 << 10))
            self._first = torch.zeros(len(rows), dtype=torch.int64)
        self._widen(torch.minimum(self.minimum, minimum), torch.maximum(self.maximum, maximum))
        offset = torch.arange(len(rows))[:, None] * self.bins - self._first[:, None]
        inverse = 1 / self.width[:, None]
        columns = max(1, _CHUNK // len(rows))
        for start in range(0, rows.shape[1], columns):
            chunk = rows[:, start : start + columns]
            index = (chunk.cpu().float().double() * inverse).floor_().to(torch.int64).add_(offset)
            new = torch.bincount(index.flatten(), minlength=self.counts.numel())
            self.counts += new.view_as(self.counts)

    def _widen(self, minimum: Tensor, maximum: Tensor) -> None:
        """Make all values from ``minimum`` to ``maximum`` fit."""
        self.minimum, self.maximum = minimum, maximum
        largest = torch.maximum(minimum.abs(), maximum.abs())
        finest = torch.frexp(largest).exponent.long() - 1 - _MANTISSA_BITS
        finest = finest.where(largest > 0, _FINEST).clamp(min=_FINEST)  # frexp calls 0 large
        exponent = torch.maximum(self._exponent, finest)
        while True:
            width = torch.ldexp(torch.ones_like(minimum), exponent)
            first = (minimum / width).floor().long()
            full = (maximum / width).floor().long() - first >= self.bins
            if not full.any():
                break
            exponent = exponent + full
        if torch.equal(exponent, self._exponent) and torch.equal(first, self._first):
            return
        shift = (exponent - self._exponent).clamp(max=62)[:, None]
        old = self._first[:, None] + torch.arange(self.bins)
        # Bins outside the extremes are empty: where they go does not matter.
        index = ((old >> shift) - first[:, None]).clamp_(0, self.bins - 1)
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, index, self.counts)
        self._exponent, self._first = exponent, first

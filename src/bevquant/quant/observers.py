"""What is watched while a network runs: statistics that stream, in memory for one batch."""

import torch
from torch import Tensor

from bevquant.quant.affine import Range
from bevquant.quant.spec import Granularity, PerTensor


def min_max(x: Tensor, granularity: Granularity) -> Range:
    """Return the extremes of a tensor that has elements; NaN anywhere makes them NaN."""
    if isinstance(granularity, PerTensor):
        low, high = torch.aminmax(x)
    else:
        others = [axis for axis in range(-x.ndim, 0) if axis != granularity.axis]
        low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        shape = (-1, *(1,) * (-granularity.axis - 1))
        low, high = low.reshape(shape), high.reshape(shape)
    return Range(low.float(), high.float())


class MinMax:
    """Extremes over all tensors seen.

    Attributes:
        granularity: of the range.
        range: on the CPU; ``None`` before any data.
    """

    def __init__(self, granularity: Granularity) -> None:
        self.granularity = granularity
        self.range: Range | None = None

    def update(self, x: Tensor) -> None:
        """Take one more tensor into account; a tensor without elements says nothing."""
        if x.numel() == 0:
            return
        new = min_max(x.detach(), self.granularity).to("cpu")
        old = self.range or new
        self.range = Range(
            torch.minimum(old.minimum, new.minimum), torch.maximum(old.maximum, new.maximum)
        )

"""What is watched while a network runs: statistics that stream, in memory for one batch."""

import torch
from torch import Tensor

from bevquant.quant.spec import Granularity, PerTensor


def min_max(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Return the float32 extremes of ``x``, shaped to broadcast against it.

    Shape ``[]`` per tensor, ``[C, 1, ...]`` per channel; NaN anywhere makes them NaN.
    """
    if isinstance(granularity, PerTensor):
        low, high = torch.aminmax(x)
    else:
        axis = granularity.axis
        others = [dim for dim in range(-x.ndim, 0) if dim != axis]
        low, high = (x.amin(others), x.amax(others)) if others else (x, x)
        shape = (-1, *(1,) * (-axis - 1))
        low, high = low.reshape(shape), high.reshape(shape)
    return low.float(), high.float()


class MinMax:
    """Smallest and largest value over all batches seen.

    Attributes:
        minimum: float32 on the CPU, as :func:`min_max` shapes it; ``None`` before any data.
        maximum: likewise.
    """

    def __init__(self, granularity: Granularity) -> None:
        self.granularity = granularity
        self.minimum: Tensor | None = None
        self.maximum: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take one more tensor into account; a tensor without elements says nothing."""
        if x.numel() == 0:
            return
        low, high = (bound.cpu() for bound in min_max(x.detach(), self.granularity))
        self.minimum = low if self.minimum is None else torch.minimum(self.minimum, low)
        self.maximum = high if self.maximum is None else torch.maximum(self.maximum, high)

"""What is watched while a network runs: statistics that stream, in memory for one batch."""

import torch
import torch.nn.functional as F
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


def pair_sums(weight: Tensor, output_axis: int, channels_last: bool) -> Tensor:
    """Return the sums of the weights of neighbouring inputs, 2i and 2i + 1.

    Without VNNI, x86 processors multiply unsigned 8-bit activations by signed 8-bit
    weights, and add the products of two neighbouring inputs, in a 16-bit register that
    saturates (vpmaddubsw). OpenVINO and ONNX Runtime use it; what they compute is exact
    as long as no two neighbouring weights have codes that add up to more than 128. A scale
    that covers these sums like weights ensures that, and costs a fraction of the bit that
    codes of 7 bits would.

    Args:
        weight: at least two axes.
        output_axis: axis of the output channels.
        channels_last: the inputs of a product are all other axes, the last one fastest
            (linear, sparse); otherwise they are the first of the other axes (convolutions,
            one product per kernel position).

    Returns:
        [P, C, 1, ...], the output channels as far from the end as in ``weight``.
    """
    rows = weight.movedim(output_axis, 0)
    rows = rows.flatten(1) if channels_last else rows.movedim(1, -1)
    rows = F.pad(rows, (0, rows.shape[-1] % 2))
    sums = rows.reshape(*rows.shape[:-1], -1, 2).sum(-1).flatten(1)
    return sums.t().reshape(-1, len(sums), *(1,) * (weight.ndim - output_axis - 1))


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
        self.range = self.range.union(new) if self.range else new

"""Neighbouring 8-bit weights, whose products share a 16-bit register on many processors.

Without VNNI, x86 processors multiply unsigned 8-bit activations by signed 8-bit weights, and
add the products of two neighbouring inputs, 2i and 2i + 1, in a 16-bit register that saturates
(vpmaddubsw). OpenVINO and ONNX Runtime use it; what they compute is exact as long as no two
neighbouring weights have codes that add up to more than :data:`LARGEST`.

The inputs of a product are all axes but that of the output channels, the last one fastest
(``channels_last``: linear, sparse), or the first of the other axes (convolutions, one product
per kernel position).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bevquant.quant.spec import PerGroup, QuantSpec

LARGEST = 128
"""255 times as much fits 16 bits."""


def limited(spec: QuantSpec) -> bool:
    """Whether codes of neighbouring weights are limited: where engines multiply 8-bit weights."""
    return spec.symmetric and spec.bits == 8 and not isinstance(spec.granularity, PerGroup)


def pair_sums(weight: Tensor, output_axis: int, channels_last: bool) -> Tensor:
    """Return the sums of the weights of neighbouring inputs.

    A scale that covers these sums like weights keeps the codes within the limit, and costs a
    fraction of the bit that codes of 7 bits would.

    Args:
        weight: at least two axes.
        output_axis: axis of the output channels.
        channels_last: see above.

    Returns:
        [P, C, 1, ...], the output channels as far from the end as in ``weight``.
    """
    sums = _pairs(weight, output_axis, channels_last).sum(-1).flatten(1)
    return sums.t().reshape(-1, len(sums), *(1,) * (weight.ndim - output_axis - 1))


def pair_excess(codes: Tensor, output_axis: int, channels_last: bool) -> Tensor:
    """Return what has to be taken off codes so that all neighbours keep the limit.

    Half of a pair's excess from each of the two; shaped like ``codes``.
    """
    sums = _pairs(codes, output_axis, channels_last).sum(-1)
    excess = sums - sums.clamp(-LARGEST, LARGEST)
    first = (excess / 2).trunc().to(excess.dtype)
    rows = torch.stack((first, excess - first), -1).flatten(-2)
    moved = codes.movedim(output_axis, 0)
    if channels_last:
        rows = rows[:, : moved[0].numel()].reshape(moved.shape)
    else:
        rows = rows[..., : moved.shape[1]].movedim(-1, 1)
    return rows.movedim(0, output_axis)


def _pairs(weight: Tensor, output_axis: int, channels_last: bool) -> Tensor:
    """Return neighbours side by side, [C, ..., pairs, 2]."""
    rows = weight.movedim(output_axis, 0)
    rows = rows.flatten(1) if channels_last else rows.movedim(1, -1)
    rows = F.pad(rows, (0, rows.shape[-1] % 2))
    return rows.reshape(*rows.shape[:-1], -1, 2)

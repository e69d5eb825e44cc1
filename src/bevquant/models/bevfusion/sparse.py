"""Sparse 3-D convolution as a neighbour table, one gather and one matrix product.

A table int64 [sites out, kx * ky * kz] says, for each output site and kernel position,
which input row is there; the number of input rows itself stands for "none". The tables
hold everything that depends on the data, so the layers themselves are tensor arithmetic
that any engine runs, and exact with any number of threads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.models.bevfusion.config import Triple


class Sites(NamedTuple):
    """Active sites of a sparse grid.

    Attributes:
        keys: int64 [V], ascending: ((frame * X + x) * Y + y) * Z + z.
        shape: X, Y, Z.
        batch: frames.
    """

    keys: Tensor
    shape: Triple
    batch: int


class SparseConv3d(nn.Module):
    """Convolution of the rows that a neighbour table points at.

    The weight has the layout of spconv 2: [out, kx, ky, kz, in]. The same class serves
    submanifold and strided convolutions; the table makes the difference.
    """

    quant_weight_axis = 0

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, *kernel, in_channels))
        # Of the positions of a 3 x 3 x 3 kernel only about a third are occupied.
        fan_in = in_channels * kernel[0] * kernel[1] * kernel[2] / 3
        nn.init.normal_(self.weight, std=(2 / fan_in) ** 0.5)

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        """Convolve features [V, in] by a table [V', kx * ky * kz] into [V', out]."""
        features = F.pad(features, (0, 0, 0, 1))
        gathered = features.index_select(0, table.flatten()).view(table.shape[0], -1)
        return F.linear(gathered, self.weight.flatten(1))


def submanifold_table(sites: Sites, kernel: Triple) -> Tensor:
    """Return the table of a convolution whose output sites are its input sites."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return neighbour_table(sites, sites, kernel, (1, 1, 1), padding)


def downsample(
    sites: Sites, kernel: Triple, stride: Triple, padding: Triple
) -> tuple[Sites, Tensor]:
    """Return the output sites of a strided convolution (all that any input reaches), and its table."""
    shape = tuple((sites.shape[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(3))
    frame, position = _coordinates(sites)
    size_x, size_y, size_z = shape
    reached = torch.zeros(
        sites.batch * size_x * size_y * size_z, dtype=torch.bool, device=sites.keys.device
    )
    per_axis = [
        [
            (shifted // stride[axis], (shifted % stride[axis] == 0) & (shifted >= 0))
            for shifted in (position[axis] + padding[axis] - k for k in range(kernel[axis]))
        ]
        for axis in range(3)
    ]
    limits = shape
    for x, valid_x in per_axis[0]:
        for y, valid_y in per_axis[1]:
            for z, valid_z in per_axis[2]:
                valid = valid_x & valid_y & valid_z
                valid = valid & (x < limits[0]) & (y < limits[1]) & (z < limits[2])
                reached[(((frame * size_x + x) * size_y + y) * size_z + z)[valid]] = True
    outputs = Sites(reached.nonzero().squeeze(1), (size_x, size_y, size_z), sites.batch)
    return outputs, neighbour_table(sites, outputs, kernel, stride, padding)


def neighbour_table(
    inputs: Sites, outputs: Sites, kernel: Triple, stride: Triple, padding: Triple
) -> Tensor:
    """Find the input row at each kernel position of each output site.

    Returns:
        int64 [outputs, kx * ky * kz] in the order of the weight; rows of ``inputs``, or
        the number of inputs where there is none.
    """
    none = len(inputs.keys)
    frame, (x, y, z) = _coordinates(outputs)
    size_x, size_y, size_z = inputs.shape
    device = inputs.keys.device
    offset_x = torch.arange(kernel[0], device=device).repeat_interleave(kernel[1])
    offset_y = torch.arange(kernel[1], device=device).repeat(kernel[0])
    column_x = (x * stride[0] - padding[0])[:, None] + offset_x
    column_y = (y * stride[1] - padding[1])[:, None] + offset_y
    first_z = (z * stride[2] - padding[2])[:, None]
    inside = (column_x >= 0) & (column_x < size_x) & (column_y >= 0) & (column_y < size_y)
    wanted = ((frame[:, None] * size_x + column_x) * size_y + column_y) * size_z + first_z
    keys = torch.cat((inputs.keys, inputs.keys.new_full((1,), torch.iinfo(torch.int64).max)))
    # The kernel's positions along z are neighbours in key order: one search serves all.
    row = torch.searchsorted(inputs.keys, wanted)
    table = row.new_empty(len(outputs.keys), kernel[0] * kernel[1], kernel[2])
    for k in range(kernel[2]):
        found = keys[row] == wanted + k
        here = found & inside & (first_z + k >= 0) & (first_z + k < size_z)
        table[:, :, k] = torch.where(here, row, none)
        row = row + found
    return table.flatten(1)


def _coordinates(sites: Sites) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    size_x, size_y, size_z = sites.shape
    column = sites.keys // size_z
    row = column // size_y
    return row // size_x, (row % size_x, column % size_y, sites.keys % size_z)

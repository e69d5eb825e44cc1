"""Sparse 3-D convolution without a sparse library.

Which input row meets which kernel position at which output row depends only on where
the voxels are. That is worked out once per frame, as :class:`Pairs`, with the data; the
layers themselves are gathers, matrix products and sums of rows: exact with any number of
threads. The same pairs as a dense neighbour table (:meth:`Pairs.table`) make a layer one
gather and one matrix product, the form that inference engines run; on a CPU it costs
several times more, because most kernel positions of a LiDAR voxel are empty.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bevquant.models.bevfusion.config import Triple


class Sites(NamedTuple):
    """Active sites of a sparse grid.

    Attributes:
        keys: int64 [V], ascending: ((frame * X + x) * Y + y) * Z + z.
        shape: X, Y, Z.
    """

    keys: Tensor
    shape: Triple

    def coordinates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return frame, x, y, z of each site, int64 [V] each."""
        size_x, size_y, size_z = self.shape
        column = self.keys // size_z
        row = column // size_y
        return row // size_x, row % size_x, column % size_y, self.keys % size_z


class Rows(NamedTuple):
    """A grouping of P pairs by the row that they share.

    Attributes:
        pairs: int64 [P], the pairs, those of row 0 first.
        starts: int64 [rows], where the pairs of each row begin.
    """

    pairs: Tensor
    starts: Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """Who meets whom in a sparse convolution with K kernel positions.

    Attributes:
        inputs: int64 [P], input row of each pair; the pairs of kernel position 0 first.
        outputs: int64 [P], its output row.
        counts: int64 [K], pairs per kernel position (kx, ky, kz; kz runs fastest).
        num_inputs: input rows.
        num_outputs: output rows.
    """

    inputs: Tensor
    outputs: Tensor
    counts: Tensor
    num_inputs: int
    num_outputs: int

    # Sorted when they are asked for: the table, all that an engine is given, needs neither.
    @cached_property
    def by_input(self) -> Rows:
        """The pairs grouped by input row."""
        return _group(self.inputs, self.num_inputs)

    @cached_property
    def by_output(self) -> Rows:
        """The pairs grouped by output row."""
        return _group(self.outputs, self.num_outputs)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split ``values`` [P, ...] by kernel position."""
        return torch.split(values, self.counts.tolist())

    def table(self, rows: Tensor | None = None) -> Tensor:
        """Return int64 [P, K]: the input row, or the number of inputs where none is.

        Args:
            rows: int64 [P], different output rows, or ``None`` for all.
        """
        inputs, outputs = self.inputs, self.outputs
        positions, size = len(self.counts), self.num_outputs
        position = torch.arange(positions, device=inputs.device).repeat_interleave(self.counts)
        if rows is not None:
            place = inputs.new_full((size,), -1)
            place[rows] = torch.arange(len(rows), device=inputs.device)
            wanted = place[outputs] >= 0
            inputs, outputs, position = inputs[wanted], place[outputs[wanted]], position[wanted]
            size = len(rows)
        table = inputs.new_full((size * positions,), self.num_inputs)
        table[outputs * positions + position] = inputs
        return table.view(size, positions)


class SparseConv3d(nn.Module):
    """Convolution over given pairs; submanifold or strided, the pairs tell.

    The weight has the layout of spconv 2: [out, kx, ky, kz, in]; cross-correlation.
    """

    quant_weight_axis = 0

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, *kernel, in_channels))
        # Kaiming, for a kernel of which only about a quarter meets an occupied voxel.
        positions = max(1, kernel[0] * kernel[1] * kernel[2] // 4)
        nn.init.normal_(self.weight, std=(2 / (in_channels * positions)) ** 0.5)

    def forward(self, features: Tensor, rule: "Pairs | Tensor") -> Tensor:
        """Convolve features [V, in] into [V', out].

        Args:
            features: [V, in].
            rule: the pairs, or their table.
        """
        if isinstance(rule, Pairs):
            # torch declares no types for Function.apply.
            out: Tensor = _PairConvolution.apply(features, self.weight, rule)  # type: ignore[no-untyped-call]
            return out
        return F.linear(_gather(features, rule), self.weight.flatten(1))

    def inputs_of(self, rows: Tensor, features: Tensor, rule: "Pairs | Tensor") -> Tensor:
        """Return what the output rows [P] are linear in: [P, kx * ky * kz * in].

        ``inputs_of(rows, *inputs) @ weight.flatten(1).T`` is ``forward(*inputs)[rows]``.
        """
        table = rule.table(rows) if isinstance(rule, Pairs) else rule[rows]
        return _gather(features, table)


def _gather(features: Tensor, table: Tensor) -> Tensor:
    """Return the features of each row's neighbours side by side, 0 where there is none."""
    # Not len(table): an export would take it for a constant.
    padded = F.pad(features, (0, 0, 0, 1))
    return padded.index_select(0, table.flatten()).view(table.shape[0], -1)


class _PairConvolution(torch.autograd.Function):
    """One matrix product per kernel position; autograd alone would scatter row by row.

    Rows are gathered position by position too: what is gathered stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        products = features.new_empty(len(pairs.inputs), weight.shape[0])
        for inputs, product, matrix in zip(
            pairs.split(pairs.inputs), pairs.split(products), _per_position(weight), strict=True
        ):
            torch.mm(features.index_select(0, inputs), matrix, out=product)
        return _sum_rows(products, pairs.by_output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        features, weight = ctx.saved_tensors
        pairs: Pairs = ctx.pairs
        products = gradient.new_empty(len(pairs.inputs), weight.shape[-1])
        to_weight = []
        for inputs, outputs, product, matrix in zip(
            pairs.split(pairs.inputs),
            pairs.split(pairs.outputs),
            pairs.split(products),
            _per_position(weight),
            strict=True,
        ):
            rows = gradient.index_select(0, outputs)
            torch.mm(rows, matrix.t(), out=product)
            to_weight.append(rows.t() @ features.index_select(0, inputs))
        to_features = _sum_rows(products, pairs.by_input)
        return to_features, torch.stack(to_weight, 1).view_as(weight), None


def _per_position(weight: Tensor) -> Tensor:
    """Reorder [out, kx, ky, kz, in] to [K, in, out]."""
    return weight.flatten(1, 3).permute(1, 2, 0)


def _sum_rows(products: Tensor, rows: Rows) -> Tensor:
    return F.embedding_bag(rows.pairs, products, rows.starts, mode="sum")


def submanifold_pairs(sites: Sites) -> Pairs:
    """Pair the sites with their neighbours in a 3 x 3 x 3 kernel; outputs are the inputs."""
    frame, x, y, z = sites.coordinates()
    size_x, size_y, size_z = (size + 2 for size in sites.shape)
    # A margin of one cell: what lies outside the grid is then simply never found.
    keys = ((frame * size_x + x + 1) * size_y + y + 1) * size_z + z + 1
    # Half of the neighbours suffice, the others are the same pairs the other way round.
    columns = keys.new_tensor((1, size_y - 1, size_y, size_y + 1)) * size_z
    wanted = keys + columns[:, None] - 1
    row = torch.searchsorted(keys, wanted)
    bounded = torch.cat((keys, keys.new_full((1,), -1)))
    above = bounded[1:] == keys + 1
    own = torch.arange(len(keys), device=keys.device)
    found, rows = [above], [own + 1]
    hits = []
    for k in range(3):
        # Neighbours along z are neighbours in key order: one search serves three cells.
        hit = bounded.index_select(0, row.flatten()).view_as(row) == wanted + k
        hits.append((hit, row))
        row = row + hit
    found += [hit[column] for column in range(4) for hit, _ in hits]
    rows += [row[column] for column in range(4) for _, row in hits]
    met = torch.stack(found)
    index = met.flatten().nonzero().squeeze(1)
    output, neighbour = index % len(keys), torch.stack(rows).flatten().index_select(0, index)
    counts = met.sum(1)
    return Pairs(
        torch.cat((output.flip(0), own, neighbour)),
        torch.cat((neighbour.flip(0), own, output)),
        torch.cat((counts.flip(0), counts.new_tensor((len(keys),)), counts)),
        len(keys),
        len(keys),
    )


def strided_pairs(
    sites: Sites, kernel: Triple, stride: Triple, padding: Triple
) -> tuple[Sites, Pairs]:
    """Pair the sites with all outputs of a strided convolution that any of them reaches.

    Returns:
        The output sites, and the pairs.
    """
    frame, *position = sites.coordinates()
    shape = output_shape(sites.shape, kernel, stride, padding)
    reach, target = [], []
    for axis in range(3):
        offset = torch.arange(kernel[axis], device=frame.device)[:, None]
        shifted = position[axis] + padding[axis] - offset
        cell = shifted // stride[axis]
        reach.append((cell * stride[axis] == shifted) & (cell >= 0) & (cell < shape[axis]))
        target.append(cell)
    to_x, to_y, to_z = reach
    met = to_x[:, None, None] & to_y[:, None] & to_z
    index = met.flatten().nonzero().squeeze(1)
    inputs, offset = index % len(frame), index // len(frame)
    counts = met.flatten(0, 2).sum(1)
    x = _pick(target[0], offset // (kernel[1] * kernel[2]), inputs)
    y = _pick(target[1], offset // kernel[2] % kernel[1], inputs)
    z = _pick(target[2], offset % kernel[2], inputs)
    keys = ((frame.index_select(0, inputs) * shape[0] + x) * shape[1] + y) * shape[2] + z
    unique, outputs = torch.unique(keys, return_inverse=True)
    pairs = Pairs(inputs, outputs, counts, len(frame), len(unique))
    return Sites(unique, shape), pairs


def output_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Return the grid after a strided convolution."""
    x, y, z = ((shape[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(3))
    return x, y, z


def _pick(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return table.flatten().index_select(0, row * table.shape[1] + column)


def _group(rows: Tensor, num_rows: int) -> Rows:
    counts = torch.bincount(rows, minlength=num_rows)
    # int32 halves the passes of the radix sort.
    return Rows(torch.sort(rows.int(), stable=True).indices, counts.cumsum(0) - counts)

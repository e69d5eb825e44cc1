"""BEV pooling: sum the lifted image features of each ground cell.

The feature of a frustum point is (probability of its depth bin) x (context of its
pixel). Writing these products out needs points x channels floats (0.6 GB in the public
network); summing cell by cell needs none of it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bevquant.models.bevfusion.layers import zeros


def bev_pool(
    depth: Tensor,
    context: Tensor,
    *,
    points: Tensor,
    pixels: Tensor,
    cells: Tensor,
    num_cells: int,
) -> Tensor:
    """Sum ``depth[points] * context[pixels]`` over the points of each cell.

    Args:
        depth: float [n * D * h * w], probability of each frustum point.
        context: float [n * h * w, C], feature of each pixel.
        points: int64 [K], the frustum points inside the grid, ordered by cell.
        pixels: int64 [K], the pixel of each of these points.
        cells: int64 [K], the cell of each of these points, ascending.
        num_cells: cells of the grid.

    Returns:
        float [num_cells, C].
    """
    weights = depth.index_select(0, points)
    if torch.compiler.is_exporting():
        features = context.index_select(0, pixels) * weights[:, None]
        return zeros(num_cells, context, cells).index_add(0, cells, features)
    pooled = _weighted_sum(pixels, context.detach(), cells, weights, num_cells)
    # torch declares no types for Function.apply.
    route = (weights.detach(), pixels, cells)
    out: Tensor = _ContextGradient.apply(pooled, context, route)  # type: ignore[no-untyped-call]
    return out


class _ContextGradient(torch.autograd.Function):
    """Identity on ``pooled`` that adds the gradient of the context.

    It is the same pooling the other way round, cells to pixels; the gradient that
    embedding_bag itself would compute scatters row by row and takes five times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, pooled: Tensor, context: Tensor, route: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        ctx.num_pixels = len(context)
        ctx.route = route
        return pooled.view_as(pooled)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, pixels, cells = ctx.route
        # int32 halves the passes of the radix sort.
        pixels, order = torch.sort(pixels.int(), stable=True)
        to_context = _weighted_sum(
            cells.index_select(0, order),
            gradient,
            pixels,
            weights.index_select(0, order),
            ctx.num_pixels,
        )
        return gradient, to_context, None


def _weighted_sum(
    sources: Tensor, rows: Tensor, targets: Tensor, weights: Tensor, num_targets: int
) -> Tensor:
    """Sum ``weights * rows[sources]`` over equal ``targets``, which ascend."""
    every = torch.arange(num_targets, dtype=targets.dtype, device=targets.device)
    starts = torch.searchsorted(targets, every)
    return F.embedding_bag(sources, rows, starts, mode="sum", per_sample_weights=weights)

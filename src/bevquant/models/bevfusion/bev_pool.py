"""BEV pooling: sum the lifted image features of each ground cell.

The feature of a frustum point is (probability of its depth bin) x (context of its
pixel). Writing these products out needs points x channels floats (0.6 GB in the public
network); summing cell by cell needs none of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bev_pool(
    depth: Tensor, context: Tensor, points: Tensor, pixels: Tensor, cells: Tensor, num_cells: int
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
        return context.new_zeros(num_cells, context.shape[1]).index_add(0, cells, features)
    counts = torch.bincount(cells, minlength=num_cells)
    return F.embedding_bag(
        pixels, context, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weights
    )

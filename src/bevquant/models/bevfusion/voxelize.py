"""Hard voxelisation with the mean of the points as feature."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bevquant.models.bevfusion.config import EncoderConfig


class Voxels(NamedTuple):
    """Occupied voxels of one frame, in ascending order of (x, y, z).

    Attributes:
        features: float32 [V, F], mean of the kept points divided by the feature scale.
        coordinates: int64 [V, 3], x, y, z.
        counts: int64 [V], kept points.
    """

    features: Tensor
    coordinates: Tensor
    counts: Tensor


def voxelize(points: Tensor, config: EncoderConfig) -> Voxels:
    """Gather points [P, F] into voxels.

    Per voxel the first ``max_points`` points are kept, per frame the ``max_voxels``
    voxels that appear first in the order of the points.
    """
    settings = config.voxels
    low = points.new_tensor(config.point_range[:3])
    size = points.new_tensor(settings.voxel_size)
    grid = config.voxel_grid
    index = ((points[:, :3] - low) / size).floor().long()
    inside = ((index >= 0) & (index < index.new_tensor(grid))).all(1)
    keys = (index[:, 0] * grid[1] + index[:, 1]) * grid[2] + index[:, 2]
    keys, order = torch.sort(keys[inside], stable=True)
    order = inside.nonzero().squeeze(1).index_select(0, order)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    starts = counts.cumsum(0) - counts
    if len(keys) > settings.max_voxels:
        first_point = order[starts]
        admitted = torch.zeros_like(keys, dtype=torch.bool)
        admitted[first_point.argsort()[: settings.max_voxels]] = True
        order = order[admitted.repeat_interleave(counts)]
        keys, counts = keys[admitted], counts[admitted]
        starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - starts.repeat_interleave(counts)
    kept = order[rank < settings.max_points]
    counts = counts.clamp(max=settings.max_points)
    sums = F.embedding_bag(kept, points, counts.cumsum(0) - counts, mode="sum")
    scale = points.new_tensor(settings.feature_scale)
    coordinates = torch.stack(
        (keys // (grid[1] * grid[2]), keys // grid[2] % grid[1], keys % grid[2]), 1
    )
    return Voxels(sums / counts[:, None] / scale, coordinates, counts)

"""LiDAR points teach the depth network (Li et al., "BEVDepth", AAAI 2023, section 3.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bevquant.data.frame import Batch
from bevquant.models.bevdepth.config import BEVDepthConfig
from bevquant.models.bevfusion.depth_lss import depth_map


def depth_loss(logits: Tensor, batch: Batch, config: BEVDepthConfig) -> Tensor:
    """Return the binary cross-entropy of the depth bins.

    The nearest LiDAR point in a feature cell says which bin is right; cells without one do
    not count.

    Args:
        logits: [B, N, D, h, w].
        batch: with N views.
        config: of the network.
    """
    known, bins = depth_bins(batch, config, logits.shape[2])
    probability = logits.float().softmax(2).movedim(2, -1)[known]
    wanted = F.one_hot(bins[known], probability.shape[-1]).to(probability)
    # Probabilities that reach 0 or 1 in float32 would give infinite gradients.
    loss = F.binary_cross_entropy(probability.clamp(1e-6, 1 - 1e-6), wanted, reduction="sum")
    return loss / known.sum().clamp(min=1)


def depth_bins(batch: Batch, config: BEVDepthConfig, num_bins: int) -> tuple[Tensor, Tensor]:
    """Return which feature cells have a depth, bool [B, N, h, w], and its bin, int64."""
    low, high, step = config.lift.depth_bounds
    depths = depth_map(batch, config.image_size)[:, :, 0]
    far = depths.masked_fill(depths == 0, torch.inf)
    nearest = -F.max_pool2d(-far, config.stride)
    known = (nearest >= low) & (nearest < high)
    return known, ((nearest.where(known, low) - low) / step).long().clamp(max=num_bins - 1)

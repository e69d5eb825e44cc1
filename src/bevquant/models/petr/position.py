"""Where features and queries are: points in 3-D, and sines of their coordinates."""

import math

import torch
from torch import Tensor

from bevquant.data.frame import Batch
from bevquant.models.bevfusion.lift_splat import unproject
from bevquant.models.petr.config import PositionConfig

TEMPERATURE = 10_000.0
EDGE = 1e-5


def line_depths(config: PositionConfig) -> Tensor:
    """Return the depths of the points on a line of sight [D], metres.

    Neighbours are ever farther apart, by a constant more (linear-increasing discretisation,
    Reading et al., "CaDDN", CVPR 2021).
    """
    index = torch.arange(config.bins, dtype=torch.float32)
    step = (config.span[3] - config.start) / (config.bins * (config.bins + 1))
    return config.start + step * index * (index + 1)


def lines_of_sight(image_size: tuple[int, int], stride: int, config: PositionConfig) -> Tensor:
    """Return the points on each feature's line of sight, [D, h, w, 3]: pixel u, v and depth.

    The line goes through the upper left pixel of the feature's cell.
    """
    v, u = (torch.arange(0.0, size, stride) for size in image_size)
    d, v, u = torch.meshgrid(line_depths(config), v, u, indexing="ij")
    return torch.stack((u, v, d), -1)


def positions(lines: Tensor, batch: Batch, config: PositionConfig) -> Tensor:
    """Return the 3-D coordinates that a feature's position embedding is made from.

    Args:
        lines: of :func:`lines_of_sight`.
        batch: of B frames with N views.
        config: the span of the coordinates.

    Returns:
        float32 [B, N, 3 D, h, w]; x, y, z of the points one after another in the augmented
        LiDAR frame, as logits of their place in the span, cut off near its ends.
    """
    points = torch.stack(unproject(lines, batch), -1)
    low, high = points.new_tensor(config.span).view(2, 3)
    place: Tensor = ((points - low) / (high - low)).clamp(EDGE, 1 - EDGE).logit()
    return place.movedim(-1, 3).flatten(2, 3)


def sines(positions: Tensor, channels: int) -> Tensor:
    """Return sines and cosines of coordinates.

    Args:
        positions: [..., n], one period from 0 to 1.
        channels: for each of the n coordinates.

    Returns:
        [..., n * channels]; sine and cosine of each frequency side by side.
    """
    frequency = TEMPERATURE ** (
        -2 * torch.arange(channels // 2, device=positions.device) / channels
    )
    angle = 2 * math.pi * positions[..., None] * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-3)


def view_sines(views: int, size: tuple[int, int], channels: int) -> Tensor:
    """Return sines of view, row and column, each counted to 1: [views, 3 * channels, h, w]."""
    counted = [torch.arange(1.0, n + 1) / n for n in (views, *size)]
    place = torch.stack(torch.meshgrid(*counted, indexing="ij"), -1)
    return sines(place, channels).permute(0, 3, 1, 2).contiguous()

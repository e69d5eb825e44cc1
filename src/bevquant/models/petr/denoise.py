"""Extra queries near the objects, in training only: the decoder learns where to look at once.

Which learned query an object gets changes from step to step, and that is what a DETR learns
slowly from. A query that starts beside an object has to find that very object (Li et al.,
"DN-DETR", CVPR 2022; here places are noisy, not classes). Such queries go through the decoder
on their own, so that the learned ones see nothing of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.data.frame import Boxes
from bevquant.models.petr.config import PETRHeadConfig

NOISE = (2.0, 2.0, 0.5)
"""Largest distance of a query from its object along x, y, z, metres."""


@dataclass(frozen=True)
class Noisy:
    """Queries near the objects of B frames.

    Attributes:
        reference: float32 [B, Q, 3], places from 0 to 1 in the range of the head; a frame
            with fewer than Q objects has the middle of the range in the rows behind them.
        counts: objects of each frame.
    """

    reference: Tensor
    counts: tuple[int, ...]


def noisy(config: PETRHeadConfig, truths: Sequence[Boxes]) -> Noisy:
    """Return one query for each object, which must lie in range, at a random place near it."""
    low, high = truths[0].values.new_tensor(config.point_range).view(2, 3)
    counts = tuple(len(truth) for truth in truths)
    reference = low.new_full((len(truths), max(counts), 3), 0.5)
    noise = (2 * torch.rand(reference.shape, device=low.device) - 1) * low.new_tensor(NOISE)
    for places, shift, truth in zip(reference, noise, truths, strict=True):
        near = truth.values[:, :3] + shift[: len(truth)]
        places[: len(truth)] = ((near - low) / (high - low)).clamp(0, 1)
    return Noisy(reference, counts)

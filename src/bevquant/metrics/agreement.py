"""How far the labels of a quantized network are from those of the float one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.data.labels import Occupancy
from bevquant.metrics.occupancy import VoxelIoU
from bevquant.metrics.segmentation import MapIoU

CERTAIN = 0.5
"""Probability from which the float network's cell has a class."""


@dataclass(frozen=True)
class MapError:
    """1 - mIoU of a map, the float network's map taken for the truth.

    Attributes:
        decode: turns what the forward pass returns into probabilities [B, 6, X, Y].
    """

    decode: Callable[[Tensor], Tensor]

    def __call__(self, output: Tensor, reference: Tensor) -> float:
        """Return the error, 0..1."""
        metric = MapIoU()
        metric.add(self.decode(output), self.decode(reference) >= CERTAIN)
        return 1 - metric.result().mIoU


@dataclass(frozen=True)
class OccupancyError:
    """1 - mIoU of voxels, the float network's taken for the truth.

    Attributes:
        decode: turns what the forward pass returns into classes [B, X, Y, Z].
    """

    decode: Callable[[Tensor], Tensor]

    def __call__(self, output: Tensor, reference: Tensor) -> float:
        """Return the error, 0..1."""
        metric, wanted = VoxelIoU("none"), self.decode(reference)
        every = torch.ones_like(wanted, dtype=torch.bool)
        metric.add(self.decode(output), Occupancy(wanted.cpu(), every, every))
        return 1 - metric.result().mIoU

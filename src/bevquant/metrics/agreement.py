"""How far the labels of a quantized network are from those of the float one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.data.labels import Occupancy
from bevquant.metrics.occupancy import VoxelIoU

CERTAIN = 0.5
"""Probability from which a cell has a class."""


@dataclass(frozen=True)
class MapError:
    """1 - mIoU of a map, the float network's map taken for the truth.

    Of the classes that occur in either map, both cut at :data:`CERTAIN`.

    Attributes:
        decode: turns what the forward pass returns into probabilities [B, 6, X, Y].
    """

    decode: Callable[[Tensor], Tensor]

    def __call__(self, output: Tensor, reference: Tensor) -> float:
        """Return the error, 0..1."""
        found, wanted = self.decode(output) >= CERTAIN, self.decode(reference) >= CERTAIN
        both, either = (cells.sum((0, 2, 3)) for cells in (found & wanted, found | wanted))
        present = either > 0
        return 1 - (both[present] / either[present]).mean().item() if present.any() else 0.0


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

"""3-D IoU of occupancy, as Occ3D defines it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bevquant.data.labels import FREE, OCCUPANCY_CLASSES, Occupancy

Mask = Literal["camera", "lidar", "none"]
"""Which voxels count: those that a camera sees, that a LiDAR beam reached, or all."""


@dataclass(frozen=True)
class OccupancyMetrics:
    """Occupancy of one model on one split.

    Attributes:
        mIoU: mean IoU over the classes that occur in truth or prediction, ``free`` left out,
            0..1.
        per_class: class name to IoU; NaN for a class that occurs in neither.
        frames: how many samples were evaluated.
    """

    mIoU: float
    per_class: Mapping[str, float]
    frames: int

    def summary(self) -> dict[str, float]:
        """Return the mean, then the IoU of each class that occurs."""
        found = {name: value for name, value in self.per_class.items() if not math.isnan(value)}
        return {"mIoU": self.mIoU, **found}

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values, ``None`` for NaN."""
        classes = {name: None if math.isnan(v) else v for name, v in self.per_class.items()}
        return {**asdict(self), "per_class": classes}


class VoxelIoU:
    """Counts voxels over a split: the IoU is that of all frames together.

    Args:
        mask: which voxels count; the benchmark's are those of the cameras.
    """

    def __init__(self, mask: Mask = "camera") -> None:
        self._mask = mask
        classes = len(OCCUPANCY_CLASSES)
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self._frames = 0

    def add(self, classes: Tensor, truth: Occupancy) -> None:
        """Count B frames; ``classes`` is the predicted class, integer [B, X, Y, Z]."""
        count = len(OCCUPANCY_CLASSES)
        pairs = truth.semantics.long() * count + classes.cpu().long()
        counted = {"camera": truth.mask_camera, "lidar": truth.mask_lidar}.get(self._mask)
        chosen = pairs.flatten() if counted is None else pairs[counted]
        self._confusion += torch.bincount(chosen, minlength=count**2).view(count, count)
        self._frames += len(classes)

    def result(self) -> OccupancyMetrics:
        """Return the metrics of all frames so far."""
        both = self._confusion.diagonal().double()
        either = self._confusion.sum(0) + self._confusion.sum(1) - both
        iou = both / either  # 0 / 0 is NaN
        return OccupancyMetrics(
            mIoU=iou[:FREE].nanmean().item(),
            per_class=dict(zip(OCCUPANCY_CLASSES[:FREE], iou[:FREE].tolist(), strict=True)),
            frames=self._frames,
        )

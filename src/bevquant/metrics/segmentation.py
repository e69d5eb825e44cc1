"""IoU of BEV maps, as BEVFusion's public code reports it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bevquant.data.labels import MAP_CLASSES

THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
"""Probabilities from which a cell counts as having a class."""


@dataclass(frozen=True)
class SegmentationMetrics:
    """Map segmentation of one model on one split.

    Attributes:
        mIoU: mean over the classes of the best IoU over the thresholds, 0..1.
        per_class: class name to ``IoU`` (the best) and ``threshold`` (where it is best).
        frames: how many samples were evaluated.
    """

    mIoU: float
    per_class: Mapping[str, Mapping[str, float]]
    frames: int

    def summary(self) -> dict[str, float]:
        """Return the mean, then the IoU of each class."""
        return {"mIoU": self.mIoU, **{name: row["IoU"] for name, row in self.per_class.items()}}

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return asdict(self)


class MapIoU:
    """Counts cells over a split: the IoU is that of all frames together."""

    def __init__(self) -> None:
        shape = (len(MAP_CLASSES), len(THRESHOLDS))
        self._both, self._either = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
        self._frames = 0

    def add(self, probabilities: Tensor, masks: Tensor) -> None:
        """Count B frames.

        Args:
            probabilities: float [B, 6, X, Y], 0..1.
            masks: bool [B, 6, X, Y], the truth.
        """
        truth = masks.cpu()
        for index, threshold in enumerate(THRESHOLDS):
            found = probabilities.cpu() >= threshold
            self._both[:, index] += (found & truth).sum((0, 2, 3))
            self._either[:, index] += (found | truth).sum((0, 2, 3))
        self._frames += len(masks)

    def result(self) -> SegmentationMetrics:
        """Return the metrics of all frames so far; a class that is nowhere has IoU 0."""
        best, index = (self._both / self._either.clamp(min=1)).max(dim=1)
        return SegmentationMetrics(
            mIoU=best.mean().item(),
            per_class={
                name: {"IoU": iou, "threshold": THRESHOLDS[i]}
                for name, iou, i in zip(MAP_CLASSES, best.tolist(), index.tolist(), strict=True)
            },
            frames=self._frames,
        )

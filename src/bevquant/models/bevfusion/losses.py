"""Losses of the TransFusion head.

Definitions: Bai et al., "TransFusion" (CVPR 2022) in the form of mmdetection3d v1.4.0's
``TransFusionHead.loss`` for BEVFusion; focal loss from Lin et al. (ICCV 2017); Gaussian
focal loss from Law and Deng, "CornerNet" (ECCV 2018).
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion.config import HeadConfig
from bevquant.models.bevfusion.targets import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    assign,
    encode,
    gaussian_heatmaps,
    inside_grid,
)
from bevquant.models.bevfusion.transfusion import HeadOutput


class LossSettings(BaseModel):
    """Weights and target sizes; the defaults are those of the reference.

    Attributes:
        heatmap_weight: of the dense heat map's Gaussian focal loss.
        class_weight: of the queries' focal loss.
        box_weight: of the queries' L1 box loss.
        velocity_weight: of the two velocity entries inside the box loss.
        gaussian_overlap: IoU that a box shifted by its Gaussian's radius keeps.
        min_radius: least radius of a Gaussian, in BEV cells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heatmap_weight: float = Field(default=1.0, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    box_weight: float = Field(default=0.25, ge=0)
    velocity_weight: float = Field(default=0.2, ge=0)
    gaussian_overlap: float = Field(default=0.1, gt=0, lt=1)
    min_radius: int = Field(default=2, ge=0)


def losses(
    config: HeadConfig,
    output: HeadOutput,
    boxes: Sequence[Boxes],
    settings: LossSettings,
) -> dict[str, Tensor]:
    """Return the weighted terms ``heatmap``, ``class`` and ``box``, whose sum is minimised.

    Each is a sum divided by the number of objects in it (at least 1). Objects whose
    centre lies outside the BEV grid are left out; unknown (NaN) velocities cost nothing.

    Args:
        config: of the head that gave ``output``.
        output: raw output of the head for B frames.
        boxes: ground truth of the B frames.
        settings: weights and target sizes.
    """
    dense = output.dense_heatmap.float()
    logits = output.heatmap.float().transpose(1, 2)
    parts = (output.center, output.height, output.dim, output.rot, output.vel)
    codes = torch.cat(parts, dim=1).float().transpose(1, 2)
    truths = [inside_grid(truth, config) for truth in boxes]

    matches = [assign(logits[i], codes[i], truth, config) for i, truth in enumerate(truths)]
    frame = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)])
    query = torch.cat([queries for queries, _ in matches])
    pairs = list(zip(truths, (objects for _, objects in matches), strict=True))
    values = torch.cat([truth.values[objects] for truth, objects in pairs])
    labels = torch.cat([truth.labels[objects] for truth, objects in pairs])

    class_targets = torch.zeros_like(logits)
    class_targets[frame, query, labels] = 1
    count = max(len(query), 1)
    heatmaps = gaussian_heatmaps(truths, config, settings.gaussian_overlap, settings.min_radius).to(
        dense
    )
    wanted = encode(values, config).to(codes)
    box_loss = l1_loss(codes[frame, query], wanted, settings.velocity_weight)
    return {
        "heatmap": settings.heatmap_weight * gaussian_focal_loss(dense, heatmaps),
        "class": settings.class_weight * focal_loss(logits, class_targets) / count,
        "box": settings.box_weight * box_loss / count,
    }


def gaussian_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return CornerNet's focal loss (powers 2 and 4) per cell whose target is 1."""
    centers = targets == 1
    score = logits.sigmoid()
    positive = -F.logsigmoid(logits) * (1 - score).square()
    negative = -F.logsigmoid(-logits) * score.square() * (1 - targets).square().square()
    return torch.where(centers, positive, negative).sum() / centers.sum().clamp(min=1)


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the sigmoid focal loss (alpha 0.25, gamma 2) over 0/1 targets."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = (targets - logits.sigmoid()).abs()
    alpha = torch.where(targets == 1, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    return (alpha * miss.pow(FOCAL_GAMMA) * cross_entropy).sum()


def l1_loss(codes: Tensor, targets: Tensor, velocity_weight: float) -> Tensor:
    """Return the weighted sum of absolute errors of box codes [n, 10]; NaN targets cost 0."""
    weights = codes.new_ones(codes.shape[1])
    weights[8:] = velocity_weight
    known = targets.isfinite()
    return ((codes - targets.where(known, 0)).abs() * known * weights).sum()

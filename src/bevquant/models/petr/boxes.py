"""PETR's predictions: to boxes, and against true boxes.

Costs and weights of PETR's public code: focal loss for classes, L1 for box codes, the Hungarian
method between queries and objects, in every decoder layer.
"""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion.losses import focal_loss, l1_loss
from bevquant.models.bevfusion.targets import focal_cost
from bevquant.models.petr.config import PETRHeadConfig
from bevquant.models.petr.head import PETROutput

CLASS_WEIGHT = 2.0
BOX_WEIGHT = 0.25
VELOCITY_WEIGHT = 0.2

MATCHED = 8
"""Entries of a code that matching looks at: all but the velocity."""


def decode(config: PETRHeadConfig, output: PETROutput) -> list[Boxes]:
    """Turn the last layer's predictions into the best boxes, one :class:`Boxes` per frame."""
    return [
        _decode(config, logits.sigmoid(), codes)
        for logits, codes in zip(output.logits[-1], output.codes[-1], strict=True)
    ]


def encode(values: Tensor) -> Tensor:
    """Return the codes [n, 10] of boxes [n, 9], see :class:`.PETROutput`."""
    yaw = values[:, 6:7]
    parts = (values[:, :3], values[:, 3:6].log(), yaw.sin(), yaw.cos(), values[:, 7:])
    return torch.cat(parts, 1)


def assign(logits: Tensor, codes: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Match queries with objects one to one at the least total cost (Hungarian method).

    Args:
        logits: [Q, classes] of the queries.
        codes: [Q, 10] of the queries.
        labels: int64 [n] of the objects.
        wanted: codes [n, 10] of the objects.

    Returns:
        Indices of the matched queries and of their objects, int64 [min(Q, n)] each.
    """
    classes = focal_cost(logits)[:, labels.cpu()]
    found = codes.detach().cpu().double().nan_to_num(posinf=0, neginf=0)
    distance = torch.cdist(found[:, :MATCHED], wanted[:, :MATCHED].cpu().double(), p=1)
    queries, objects = linear_sum_assignment(CLASS_WEIGHT * classes + BOX_WEIGHT * distance)
    return torch.from_numpy(queries), torch.from_numpy(objects)


def losses(output: PETROutput, truths: Sequence[Boxes]) -> dict[str, Tensor]:
    """Return the terms ``class`` and ``box``, the sums of those of all layers.

    Each is divided by the number of objects; unknown (NaN) velocities cost nothing.

    Args:
        output: raw predictions for B frames.
        truths: the objects in range.
    """
    device = output.logits.device
    labels = [truth.labels.to(device) for truth in truths]
    wanted = [encode(truth.values.to(device)) for truth in truths]
    count = max(sum(len(truth) for truth in truths), 1)
    class_loss = box_loss = output.logits.new_zeros((), dtype=torch.float32)
    for layer_logits, layer_codes in zip(output.logits.float(), output.codes.float(), strict=True):
        targets = torch.zeros_like(layer_logits)
        for i, truth in enumerate(wanted):
            queries, objects = assign(layer_logits[i], layer_codes[i], labels[i], truth)
            targets[i, queries, labels[i][objects]] = 1
            box_loss = box_loss + l1_loss(layer_codes[i, queries], truth[objects], VELOCITY_WEIGHT)
        class_loss = class_loss + focal_loss(layer_logits, targets)
    return {"class": CLASS_WEIGHT * class_loss / count, "box": BOX_WEIGHT * box_loss / count}


def noisy_losses(
    output: PETROutput, counts: Sequence[int], truths: Sequence[Boxes]
) -> dict[str, Tensor]:
    """Return the terms ``noisy class`` and ``noisy box`` of queries that have their object.

    Args:
        output: predictions for B frames.
        counts: how many of a frame's queries count: the first, in order of its objects.
        truths: the objects in range.
    """
    device = output.logits.device
    count = max(sum(counts), 1)
    class_loss = box_loss = output.logits.new_zeros((), dtype=torch.float32)
    for i, (n, truth) in enumerate(zip(counts, truths, strict=True)):
        logits, codes = output.logits[:, i, :n].float(), output.codes[:, i, :n].float()
        wanted = encode(truth.values.to(device)).expand_as(codes)
        targets = torch.zeros_like(logits)
        targets[:, torch.arange(n), truth.labels.to(device)] = 1
        class_loss = class_loss + focal_loss(logits, targets)
        box_loss = box_loss + l1_loss(codes.flatten(0, 1), wanted.flatten(0, 1), VELOCITY_WEIGHT)
    return {
        "noisy class": CLASS_WEIGHT * class_loss / count,
        "noisy box": BOX_WEIGHT * box_loss / count,
    }


def _decode(config: PETRHeadConfig, scores: Tensor, codes: Tensor) -> Boxes:
    """Decode one frame: scores [Q, classes], codes [Q, 10]."""
    best, index = scores.flatten().topk(min(config.max_boxes, scores.numel()))
    code = codes[index // config.num_classes]
    yaw = torch.atan2(code[:, 6:7], code[:, 7:8])
    values = torch.cat((code[:, :3], code[:, 3:6].exp(), yaw, code[:, 8:]), 1)
    low, high = values.new_tensor(config.center_range).view(2, 3)
    kept = ((values[:, :3] >= low) & (values[:, :3] <= high)).all(1)
    return Boxes(values[kept], index[kept] % config.num_classes, best[kept])


def in_range(truth: Boxes, config: PETRHeadConfig) -> Boxes:
    """Leave out the objects whose centre no query can predict."""
    low, high = truth.values.new_tensor(config.point_range).view(2, 3)
    kept = ((truth.values[:, :3] > low) & (truth.values[:, :3] < high)).all(1)
    return Boxes(truth.values[kept], truth.labels[kept])

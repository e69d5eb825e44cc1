"""CenterPoint's heat maps and box codes: to boxes, and against true boxes.

Yin et al., CVPR 2021, with the groups, weights and suppression of BEVDepth's public code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bevquant.data.frame import Boxes
from bevquant.models.bevdepth.config import CenterHeadConfig
from bevquant.models.bevfusion.losses import gaussian_focal_loss, l1_loss
from bevquant.models.bevfusion.targets import decode as decode_codes
from bevquant.models.bevfusion.targets import encode, gaussian_heatmaps, inside_grid

BOX_WEIGHT = 0.25
VELOCITY_WEIGHT = 0.5
GAUSSIAN_OVERLAP = 0.1


def decode(config: CenterHeadConfig, heatmap: Tensor, codes: Tensor) -> list[Boxes]:
    """Turn predictions into boxes, one :class:`Boxes` per frame.

    Per group of classes the cells of the highest heat propose boxes, and the best of those
    nearer to each other than the group's radius wins.

    Args:
        config: of the head.
        heatmap: class logits [B, classes, X, Y].
        codes: [B, groups, 10, X, Y], see :meth:`.BEVDepthHead.forward`.
    """
    return [
        _decode(config, heat.sigmoid(), code) for heat, code in zip(heatmap, codes, strict=True)
    ]


def targets(config: CenterHeadConfig, boxes: Sequence[Boxes]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the head should have answered for B frames.

    Args:
        config: of the head.
        boxes: ground truth; what lies outside the grid is left out.

    Returns:
        Heat maps [B, classes, X, Y]; for n objects their places int64 [n, 4] (frame, group,
        x, y of the cell) and their codes [n, 10].
    """
    truths = [inside_grid(truth, config) for truth in boxes]
    heat = gaussian_heatmaps(truths, config, GAUSSIAN_OVERLAP, config.min_radius)
    codes = encode(torch.cat([truth.values for truth in truths]), config)
    cells = codes[:, :2].floor()
    codes[:, :2] -= cells
    frame = torch.cat([torch.full_like(truth.labels, i) for i, truth in enumerate(truths)])
    group = _group_of_class(config)[torch.cat([truth.labels for truth in truths])]
    return heat, torch.cat((frame[:, None], group[:, None], cells.long()), 1), codes


def losses(
    config: CenterHeadConfig, heatmap: Tensor, codes: Tensor, boxes: Sequence[Boxes]
) -> dict[str, Tensor]:
    """Return the terms ``heatmap`` and ``box``, each the sum of those of all groups.

    A group's term is divided by its number of objects; unknown (NaN) velocities cost nothing.

    Args:
        config: of the head.
        heatmap: class logits [B, classes, X, Y].
        codes: [B, groups, 10, X, Y].
        boxes: ground truth of the B frames.
    """
    heat, places, wanted = (part.to(heatmap.device) for part in targets(config, boxes))
    frame, group, x, y = places.unbind(1)
    found = codes[frame, group, :, x, y].float()
    heat_terms = [
        gaussian_focal_loss(logits.float(), truth)
        for logits, truth in zip(
            heatmap.split_with_sizes(config.groups, 1),
            heat.split_with_sizes(config.groups, 1),
            strict=True,
        )
    ]
    box_terms = [
        l1_loss(found[group == i], wanted[group == i], VELOCITY_WEIGHT)
        / (group == i).sum().clamp(min=1)
        for i in range(len(config.groups))
    ]
    return {
        "heatmap": torch.stack(heat_terms).sum(),
        "box": BOX_WEIGHT * torch.stack(box_terms).sum(),
    }


def _decode(config: CenterHeadConfig, heat: Tensor, codes: Tensor) -> Boxes:
    """Decode one frame: heat [classes, X, Y], codes [groups, 10, X, Y]."""
    values, labels, scores = [], [], []
    first = 0
    for group, classes in enumerate(config.groups):
        flat = heat[first : first + classes].flatten()
        score, index = flat.topk(min(config.candidates, len(flat)))
        index, score = index[score > config.score_threshold], score[score > config.score_threshold]
        cells = config.grid[0] * config.grid[1]
        cell = index % cells
        code = codes[group].flatten(1)[:, cell].t().clone()
        code[:, 0] += cell // config.grid[1]
        code[:, 1] += cell % config.grid[1]
        boxes = decode_codes(code, config)
        low, high = boxes.new_tensor(config.center_range).view(2, 3)
        inside = ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)
        kept = inside.nonzero().squeeze(1)
        kept = kept[best_nearby(boxes[kept, :2], config.suppression[group])]
        values.append(boxes[kept])
        labels.append(first + index[kept] // cells)
        scores.append(score[kept])
        first += classes
    return Boxes(torch.cat(values), torch.cat(labels), torch.cat(scores))


def best_nearby(centers: Tensor, radius: float) -> Tensor:
    """Return the indices of ``centers`` [n, 2] that no better kept one is within ``radius`` of.

    They come in falling order of score; the radius is in the unit of the centres.
    """
    near = (torch.cdist(centers.double(), centers.double()) <= radius).cpu().numpy()
    suppressed = near.diagonal() < 0
    kept = []
    for i, row in enumerate(near):
        if not suppressed[i]:
            kept.append(i)
            suppressed = suppressed | row
    return torch.tensor(kept, dtype=torch.int64, device=centers.device)


def _group_of_class(config: CenterHeadConfig) -> Tensor:
    return torch.arange(len(config.groups)).repeat_interleave(torch.tensor(config.groups))

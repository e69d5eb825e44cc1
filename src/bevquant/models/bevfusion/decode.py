"""From the head's raw output to boxes (TransFusionBBoxCoder)."""

import torch
from torch import Tensor

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion.config import HeadConfig
from bevquant.models.bevfusion.transfusion import HeadOutput


def decode(config: HeadConfig, output: HeadOutput) -> list[Boxes]:
    """Turn the head's output into one :class:`Boxes` per frame, in the order of the queries.

    No suppression and no score threshold, as in the reference; boxes whose bottom centre
    is outside ``config.center_range`` are dropped.
    """
    # Only the class that proposed a query can win; its heat scales the score.
    proposed = output.query_labels[:, None]
    confidence = output.heatmap.sigmoid() * output.query_heatmap_score
    scores = confidence.gather(1, proposed).squeeze(1)
    origin = output.center.new_tensor(config.origin)[:, None]
    size = output.dim.exp()
    yaw = torch.atan2(output.rot[:, :1], output.rot[:, 1:])
    values = torch.cat(
        (output.center * config.cell_size + origin, output.height, size, yaw, output.vel), 1
    ).transpose(1, 2)
    bottom = torch.cat((values[..., :2], values[..., 2:3] - values[..., 5:6] / 2), -1)
    limits: Tensor = values.new_tensor(config.center_range)
    kept = ((bottom >= limits[:3]) & (bottom <= limits[3:])).all(-1)
    return [
        Boxes(values[i, kept[i]], output.query_labels[i, kept[i]], scores[i, kept[i]])
        for i in range(len(values))
    ]

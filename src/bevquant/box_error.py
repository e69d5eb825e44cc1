"""How far the boxes of a quantized detector are from those of the float one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion.config import HeadConfig
from bevquant.models.bevfusion.transfusion import HeadOutput

LOST_M = 2.0
"""Error of a box without a counterpart: the distance beyond which nuScenes calls it missed."""


@dataclass(frozen=True)
class QueryBoxError:
    """Box error of a TransFusion head (thesis, ``alpha * E_center + (1 - alpha) * E_yaw+size``).

    A float query is compared with the quantized query that the same cell proposed as the same
    class; one that has no such counterpart is lost.

    Attributes:
        config: of the head.
        alpha: weight of the centres.
    """

    config: HeadConfig
    alpha: float = 0.5

    def __call__(self, output: HeadOutput, reference: HeadOutput) -> float:
        """Return the mean over the float queries, weighted by their scores; 0 or more."""
        errors, weights = [], []
        for frame in range(len(reference.query_cells)):
            theirs, scores = _boxes(self.config, reference, frame)
            ours, _ = _boxes(self.config, output, frame)
            key = _proposals(output, frame)[None] == _proposals(reference, frame)[:, None]
            pairs = [(int(i), int(key[i].int().argmax())) for i in key.any(1).nonzero()]
            errors.append(_errors(ours, theirs, pairs, self.alpha))
            weights.append(scores)
        return _weighted(torch.cat(errors), torch.cat(weights))


@dataclass(frozen=True)
class AssignedBoxError:
    """Box error of any detector: boxes of one class are assigned to each other by distance.

    The assignment is the one of the smallest sum of distances between centres; a float box
    whose partner is farther than :data:`LOST_M`, or that has none, is lost.

    Attributes:
        decode: turns what the forward pass returns into boxes, one set per frame.
        alpha: weight of the centres.
    """

    decode: Callable[[Any], Sequence[Boxes]]
    alpha: float = 0.5

    def __call__(self, output: Any, reference: Any) -> float:
        """Return the mean over the float boxes, weighted by their scores; 0 or more."""
        errors, weights = [], []
        for ours, theirs in zip(self.decode(output), self.decode(reference), strict=True):
            distance = torch.cdist(theirs.values[:, :2].double(), ours.values[:, :2].double())
            distance = distance.nan_to_num(nan=LOST_M).clamp(max=LOST_M)
            distance[theirs.labels[:, None] != ours.labels[None]] = LOST_M
            pairs = [
                (int(i), int(j))
                for i, j in np.column_stack(linear_sum_assignment(distance.cpu().numpy()))
                if distance[i, j] < LOST_M
            ]
            errors.append(_errors(ours.values, theirs.values, pairs, self.alpha))
            scores = theirs.scores
            weights.append(torch.ones(len(theirs)) if scores is None else scores)
        return _weighted(torch.cat(errors), torch.cat(weights))


def _errors(ours: Tensor, theirs: Tensor, pairs: Sequence[tuple[int, int]], alpha: float) -> Tensor:
    """Return the error of each of ``theirs`` [n, >= 7]; that of lost boxes is the greatest.

    The centre's is the distance in metres; yaw's is the angle in radians and size's the sum
    of the differences in metres (length, width, height). Each is at most :data:`LOST_M`.
    """
    errors = theirs.new_full((len(theirs),), LOST_M, dtype=torch.float64)
    if pairs:
        float_index, index = torch.tensor(pairs).unbind(1)
        a, b = ours[index].double(), theirs[float_index].double()
        centre = (a[:, :3] - b[:, :3]).norm(dim=1).clamp(max=LOST_M)
        turn = (a[:, 6] - b[:, 6]).sin().atan2((a[:, 6] - b[:, 6]).cos()).abs()
        shape = (turn + (a[:, 3:6] - b[:, 3:6]).abs().sum(1)).clamp(max=LOST_M)
        errors[float_index] = alpha * centre + (1 - alpha) * shape
    return errors.nan_to_num(nan=LOST_M)


def _weighted(errors: Tensor, weights: Tensor) -> float:
    weights = weights.to(errors)
    total = float(weights.sum())
    return float((errors * weights).sum()) / total if total > 0 else 0.0


def _boxes(config: HeadConfig, output: HeadOutput, frame: int) -> tuple[Tensor, Tensor]:
    """Return all queries of a frame as boxes [Q, 7], centres in metres, and their scores [Q]."""
    yaw = torch.atan2(output.rot[frame, :1], output.rot[frame, 1:])
    centre = output.center[frame] * config.cell_size
    values = torch.cat((centre, output.height[frame], output.dim[frame].exp(), yaw)).t()
    proposed = output.query_labels[frame][None]
    confidence = output.heatmap[frame].sigmoid() * output.query_heatmap_score[frame]
    return values, confidence.gather(0, proposed)[0]


def _proposals(output: HeadOutput, frame: int) -> Tensor:
    """Return class and cell of each query as one number [Q]."""
    cells = output.dense_heatmap.shape[-1] * output.dense_heatmap.shape[-2]
    return output.query_labels[frame] * cells + output.query_cells[frame]

"""Which objects of one frame a detector found, lost or made up."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.data.frame import Boxes


@dataclass(frozen=True)
class Matches:
    """Predictions of one frame assigned to its ground truth.

    Attributes:
        found: int64 [k, 2], index of the prediction and of its ground-truth box.
        lost: int64 [m], indices of ground-truth boxes without a prediction.
        false: int64 [n], indices of predictions without a ground-truth box.
    """

    found: Tensor
    lost: Tensor
    false: Tensor


def match(
    predictions: Boxes, truth: Boxes, *, distance: float = 2.0, minimum_score: float = 0.0
) -> Matches:
    """Assign predictions to ground truth by the rule of the nuScenes benchmark.

    Predictions choose in the order of falling scores; each takes the nearest box of its
    class that is still free, if its centre is nearer than ``distance`` on the ground.

    Args:
        predictions: boxes in the frame of reference of ``truth``; without scores they score 1.
        truth: ground-truth boxes.
        distance: in metres.
        minimum_score: predictions that score less are neither found nor false.
    """
    scores = predictions.scores
    scores = torch.ones(len(predictions)) if scores is None else scores.cpu()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] >= minimum_score]
    distances = torch.cdist(predictions.values[:, :2].cpu().double(), truth.values[:, :2].double())
    other_class = predictions.labels.cpu()[:, None] != truth.labels[None]
    distances[other_class | distances.isnan() | (distances >= distance)] = torch.inf
    found, false = [], []
    for prediction in order.tolist():
        nearest = int(distances[prediction].argmin()) if len(truth) else -1
        if nearest >= 0 and distances[prediction, nearest] < torch.inf:
            found.append((prediction, nearest))
            distances[:, nearest] = torch.inf
        else:
            false.append(prediction)
    taken = {box for _, box in found}
    lost = [box for box in range(len(truth)) if box not in taken]
    return Matches(
        found=torch.tensor(found, dtype=torch.int64).reshape(-1, 2),
        lost=torch.tensor(lost, dtype=torch.int64),
        false=torch.tensor(false, dtype=torch.int64),
    )

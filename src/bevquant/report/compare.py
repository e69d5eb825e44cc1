"""What quantization changed in one frame: the objects it lost, the false boxes it added."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bevquant.data.frame import Boxes
from bevquant.metrics.matching import match


@dataclass(frozen=True)
class Comparison:
    """One frame as two networks saw it; lost and false boxes are sorted nearest first.

    Attributes:
        truth: annotated objects.
        float_: boxes of the float network that are sure enough.
        found: annotated objects that the quantized network found.
        found_by_float: number of annotated objects that the float network found.
        lost: annotated objects that only the float network found, with its scores.
        kept: boxes of the quantized network other than ``new_false``.
        new_false: boxes of the quantized network that match no annotated object, and no
            false box of the float network either.
    """

    truth: Boxes
    float_: Boxes
    found: Boxes
    found_by_float: int
    lost: Boxes
    kept: Boxes
    new_false: Boxes


def compare(
    truth: Boxes, float_: Boxes, quantized: Boxes, min_score: float, reach: float
) -> Comparison:
    """Compare what two networks made of one frame.

    Args:
        truth: annotated objects.
        float_: boxes of the float network.
        quantized: boxes of the quantized network.
        min_score: boxes scored below do not count.
        reach: objects and boxes farther than this from the car along x or y, in metres,
            do not count.
    """
    truth = _within(truth, reach)
    float_, quantized = (_sure(_within(boxes, reach), min_score) for boxes in (float_, quantized))
    by_float, by_quantized = match(float_, truth), match(quantized, truth)
    lost = torch.isin(by_float.found[:, 1], by_quantized.lost)
    box, objects = by_float.found[lost].T
    false = by_quantized.false
    new = false[match(_take(quantized, false), _take(float_, by_float.false)).false]
    return Comparison(
        truth=truth,
        float_=float_,
        found=_take(truth, by_quantized.found[:, 1]),
        found_by_float=len(by_float.found),
        lost=_nearest_first(_take(truth, objects, _scores(float_)[box])),
        kept=_take(quantized, _others(new, len(quantized))),
        new_false=_nearest_first(_take(quantized, new)),
    )


def _within(boxes: Boxes, reach: float) -> Boxes:
    return _take(boxes, (boxes.values[:, :2].abs() < reach).all(dim=1).nonzero()[:, 0])


def _sure(boxes: Boxes, min_score: float) -> Boxes:
    return _take(boxes, (_scores(boxes) >= min_score).nonzero()[:, 0])


def _scores(boxes: Boxes) -> Tensor:
    return torch.ones(len(boxes)) if boxes.scores is None else boxes.scores


def _take(boxes: Boxes, indices: Tensor, scores: Tensor | None = None) -> Boxes:
    """Return the boxes at ``indices``, with ``scores`` in place of their own if given."""
    scores = _scores(boxes)[indices] if scores is None else scores
    return Boxes(boxes.values[indices], boxes.labels[indices], scores)


def _others(indices: Tensor, count: int) -> Tensor:
    everything = torch.arange(count)
    return everything[~torch.isin(everything, indices)]


def _nearest_first(boxes: Boxes) -> Boxes:
    return _take(boxes, torch.argsort(boxes.values[:, :2].norm(dim=1), stable=True))

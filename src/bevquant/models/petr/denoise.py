"""Extra queries near the objects, in training only: the decoder learns at once where to look.

Which learned query an object gets changes from step to step, and that is what a DETR learns
slowly from. A query that starts beside an object has to find that very object (Li et al.,
"DN-DETR", CVPR 2022; here places are noisy, not classes), and to attend to the line of sight
on which its centre lies, whatever the camera. Such queries go through the decoder on their
own, so that the learned ones see nothing of them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevquant.data.frame import Boxes
from bevquant.models.petr.config import PETRHeadConfig

NOISE = (2.0, 2.0, 0.5)
"""Largest distance of a query from its object along x, y, z, metres."""


@dataclass(frozen=True)
class Noisy:
    """Queries near the objects of B frames.

    Attributes:
        reference: float32 [B, Q, 3], places from 0 to 1 in the range of the head; a frame
            with fewer than Q objects has the middle of the range in the rows behind them.
        counts: objects of each frame.
    """

    reference: Tensor
    counts: tuple[int, ...]


def noisy(config: PETRHeadConfig, truths: Sequence[Boxes]) -> Noisy:
    """Return one query for each object, which must lie in range, at a random place near it."""
    low, high = truths[0].values.new_tensor(config.point_range).view(2, 3)
    counts = tuple(len(truth) for truth in truths)
    reference = low.new_full((len(truths), max(counts), 3), 0.5)
    noise = (2 * torch.rand(reference.shape, device=low.device) - 1) * low.new_tensor(NOISE)
    for places, shift, truth in zip(reference, noise, truths, strict=True):
        near = truth.values[:, :3] + shift[: len(truth)]
        places[: len(truth)] = ((near - low) / (high - low)).clamp(0, 1)
    return Noisy(reference, counts)


def lines_to(centers: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return which line of sight comes closest to each centre, as an angle: int64 [n].

    Args:
        centers: [n, 3], metres.
        start: [L, 3], the cameras that the lines start from.
        end: [L, 3], another point on each line, farther away.
    """
    along = nn.functional.normalize(end - start, dim=-1)
    towards = nn.functional.normalize(centers[:, None] - start, dim=-1)
    return (towards * along).sum(-1).argmax(1)


def attention_loss(scores: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean of -log of the attention that a query pays to its object's line, a scalar.

    The attention is the mean over the heads; the losses of the layers are added.

    Args:
        scores: before the softmax, of each layer [B, heads, Q, L].
        wanted: lines of each frame's objects, int64 [n].
    """
    count = max(sum(len(lines) for lines in wanted), 1)
    total = scores[0].new_zeros((), dtype=torch.float32)
    for layer in scores:
        for frame, lines in zip(layer, wanted, strict=True):
            n = torch.arange(len(lines), device=lines.device)
            paid = frame[:, : len(lines)].float().log_softmax(-1)[:, n, lines]
            total = total - (paid.logsumexp(0) - math.log(len(paid))).sum()
    return total / count


@contextmanager
def watched(products: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what ``products`` return while in a ``with`` block."""
    outputs: list[Tensor] = []
    hooks = [each.register_forward_hook(lambda _, __, y: outputs.append(y)) for each in products]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()

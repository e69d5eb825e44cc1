"""Choosing the integers of a weight for the output of its layer.

A layer y = W x + b is given quantized inputs x and is wanted to return the outputs y of the
float network. Everything that its error depends on are the second moments of x and y, so
that these are streamed and no sample is kept.
"""

import torch
from torch import Tensor

SWEEPS = 25
"""Most rounds of coordinate descent and scale refit; few layers need them all."""

FIRST_SWEEPS = 4
"""As many before each channel settles on one of its starts."""

BLOCK = 64
"""Columns after which the corrections are carried over to all others, in one product."""

STARTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
"""Factors on the scale that covers all weights: where the search for a scale starts."""


class Moments:
    """Streamed second moments of a layer's inputs and outputs, for G groups of channels.

    Sums are taken about the means of the first samples, in float64: nothing cancels.
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take samples into account.

        Args:
            x: float32 [G, P, K], inputs of a group's outputs.
            y: float32 [G, P, N], the outputs that are wanted.
        """
        if x.shape[1] == 0:
            return
        if self.count == 0:
            groups, _, inputs = x.shape
            self.x0, self.y0 = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
            self.x = self.x0.new_zeros(groups, inputs, dtype=torch.float64)
            self.y = self.x0.new_zeros(groups, y.shape[2], dtype=torch.float64)
            self.xx = self.x0.new_zeros(groups, inputs, inputs, dtype=torch.float64)
            self.xy = self.x0.new_zeros(groups, inputs, y.shape[2], dtype=torch.float64)
        x, y = x - self.x0, y - self.y0
        self.count += x.shape[1]
        self.x += x.sum(1, dtype=torch.float64)
        self.y += y.sum(1, dtype=torch.float64)
        self.xx += x.transpose(1, 2) @ x
        self.xy += x.transpose(1, 2) @ y

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of x [G, K] and of y [G, N], float64."""
        return (
            self.x0.squeeze(1).double() + self.x / self.count,
            self.y0.squeeze(1).double() + self.y / self.count,
        )

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Return cov(x, x) [G, K, K] and cov(x, y) [G, K, N], float64."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        return (
            self.xx / self.count - mean_x[:, :, None] * mean_x[:, None, :],
            self.xy / self.count - mean_x[:, :, None] * mean_y[:, None, :],
        )


def fit(
    moments: Moments, weight: Tensor, low: Tensor, high: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Find integers and scales with which a layer returns the outputs that are wanted.

    The error is ``E |y - W x - b|^2 + ridge * mean E x^2 * |W - weight|^2`` with the best b.
    The float W that minimises it is rounded column after column, each rounding error being
    made good by the columns to come (GPTQ, Frantar et al., arXiv 2210.17323). Then, in
    turns, every integer is changed to its best value, the others being fixed (coordinate
    descent), and the scale of each channel is refitted, as long as that changes anything.
    All this from several first scales; each channel keeps the best.

    Args:
        moments: of the quantized inputs and the float outputs.
        weight: [G, N, K], float weight.
        low: [G, N], smallest step (``code - zero_point``) of each output channel.
        high: [G, N], largest.
        ridge: pull towards the float weight, as a share of the mean input power.

    Returns:
        Steps [G, N, K] (whole numbers) and scales [G, N]; float32.
    """
    gram, cross = moments.covariances()
    # Inputs that are always 0 (a class that never occurs) leave their weights to the pull.
    pull = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(1e-12)
    gram = gram + pull * torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    cross = cross + pull * weight.transpose(1, 2)
    factor = torch.linalg.cholesky(gram)
    target = torch.cholesky_solve(cross, factor)

    repeats = len(STARTS)
    cover = torch.maximum(target.amax(1) / (high + 0.5), target.amin(1) / (low - 0.5)).float()
    cover = cover.where(cover > 0, 1)
    scale = torch.cat([cover * start for start in STARTS], 1)
    bounds = low.repeat(1, repeats), high.repeat(1, repeats)
    steps = _gptq(target.float().repeat(1, 1, repeats), factor, scale, *bounds)
    gram, cross = gram.float(), cross.float()
    tries = cross.repeat(1, 1, repeats)
    steps, scale = _polish(gram, tries, steps, scale, *bounds, FIRST_SWEEPS)
    choice = _error(gram, tries, steps, scale).view(len(gram), repeats, -1).argmin(1, keepdim=True)
    scale = scale.view(len(gram), repeats, -1).gather(1, choice).squeeze(1)
    at = choice[:, None].expand(-1, steps.shape[1], -1, -1)
    steps = steps.view(*steps.shape[:2], repeats, -1).gather(2, at).squeeze(2)
    steps, scale = _polish(gram, cross, steps, scale, low, high, SWEEPS)
    return steps.transpose(1, 2), scale


# Below, steps and weights are [G, K, N]: a column of the weight is a row in memory.


def _polish(
    gram: Tensor,
    cross: Tensor,
    steps: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    sweeps: int,
) -> tuple[Tensor, Tensor]:
    """Improve integers and scales in turns, until nothing changes or ``sweeps`` are over."""
    for _ in range(sweeps):
        scale = _best_scale(gram, cross, steps, scale)
        before = steps
        steps = _descend(gram, cross, steps, scale, low, high)
        if torch.equal(before, steps):
            break
    return steps, _best_scale(gram, cross, steps, scale)


def _error(gram: Tensor, cross: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    """Return the error [G, N] of ``scale * steps``, but for a constant."""
    weight = steps * scale[:, None]
    return ((gram @ weight - 2 * cross) * weight).sum(1)


def _best_scale(gram: Tensor, cross: Tensor, steps: Tensor, scale: Tensor) -> Tensor:
    """Return the best scale of each channel; the old one where that is not positive."""
    power = ((gram @ steps) * steps).sum(1)
    best = (steps * cross).sum(1) / power
    return best.where((power > 0) & (best > 0), scale)


def _descend(
    gram: Tensor, cross: Tensor, steps: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Change one integer after another to its best value; return the new steps."""
    steps = steps.clone()
    gain = gram.diagonal(dim1=1, dim2=2).reciprocal()[..., None]
    slope = cross / scale[:, None] - gram @ steps
    for start in range(0, steps.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        inner, part, new = gram[:, block, block], slope[:, block], steps[:, block]
        changes = []
        for k in range(new.shape[1]):
            wanted = torch.addcmul(new[:, k], part[:, k], gain[:, start + k])
            change = wanted.round_().clamp_(low, high).sub_(new[:, k])
            part.baddbmm_(inner[:, :, k, None], change[:, None], alpha=-1)
            new[:, k] += change
            changes.append(change)
        if start + BLOCK < steps.shape[1]:
            rest = slice(start + BLOCK, None)
            slope[:, rest] -= gram[:, rest, block] @ torch.stack(changes, 1)
    return steps


def _gptq(target: Tensor, factor: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round column after column, the rest making good what was lost; return the steps."""
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()
    rest = target.clone()
    steps = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        stop = min(start + BLOCK, rest.shape[1])
        part = rest[:, start:stop]
        errors = torch.empty_like(part)
        for k in range(start, stop):
            column = part[:, k - start]
            step = torch.div(column, scale).round_().clamp_(low, high)
            steps[:, k] = step
            error = (column - step * scale) / upper[:, k, k, None]
            errors[:, k - start] = error
            part.baddbmm_(upper[:, k, start:stop, None], error[:, None], alpha=-1)
        rest[:, stop:] -= upper[:, start:stop, stop:].transpose(1, 2) @ errors
    return steps

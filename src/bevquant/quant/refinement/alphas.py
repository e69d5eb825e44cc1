"""The search for the two factors of a layer: on the range of its weight, and of its input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import Alphas, QuantLayer, QuantMatMul
from bevquant.quant.refinement.lockstep import Call
from bevquant.quant.refinement.samples import inputs_of, linear_in_rows, positions, weight_rows
from bevquant.quant.spec import PerChannel, Precision

THESIS_ALPHAS = tuple(0.8 + 0.05 * i for i in range(9))
"""0.8 to 1.2: the thesis shows this span (figure 3.1), not its step."""

# 1 comes first: of equals the first is taken.
WEIGHT_ALPHAS = (1.0, *(0.25 + 0.05 * i for i in range(15)), 1.05, 1.1)
INPUT_ALPHAS = (1.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05)
ROUNDS = 2
"""Times that weights and inputs are searched in turns."""

MATRICES = 8
"""Matrices of a product of activations that are looked at in each batch."""


@dataclass(frozen=True)
class Found:
    """Factors of one layer at one precision, and the mean square error of its output.

    Attributes:
        alphas: the factors.
        before: the error with factors of 1.
        after: with ``alphas``; at most ``before``, but for the thesis' choice.
    """

    alphas: Alphas
    before: float
    after: float


@dataclass(frozen=True)
class _Batch:
    """What a layer is given in one batch, as far as it is looked at.

    Attributes:
        left: a QuantLayer's inputs [G, P, K], or the left operands [S, M, K].
        right: the right operands [S, K, N]; ``None`` for a QuantLayer, whose weight it is.
        channels: index of the input channel of each element of ``left``, -1 for padding, if
            channels have scales of their own; int64, same shape.
    """

    left: Tensor
    right: Tensor | None = None
    channels: Tensor | None = None


Errors = Callable[[Tensor | float, float, float], list[Tensor]]
"""Error of a layer for factors of weight, input and right operand: one tensor per batch."""


def sample(
    layer: QuantLayer | QuantMatMul, calls: Sequence[Call], samples: int, seed: int
) -> list[_Batch]:
    """Return a part of what a layer is given in each call.

    Args:
        layer: about to run, float.
        calls: its calls, at most one of each batch.
        samples: positions of the output, over all batches.
        seed: of the positions.

    Returns:
        Nothing for a layer that :mod:`bevquant.quant.refinement.samples` does not know.
    """
    if isinstance(layer, QuantLayer) and not linear_in_rows(layer):
        return []
    batches = []
    for each in calls:
        generator = torch.Generator().manual_seed((seed << 20) + each.batch)
        share = -(-samples // len(calls))
        if isinstance(layer, QuantLayer):
            batches.append(_sample_layer(layer, each, share, generator))
        else:
            a, b = (*each.args, *each.kwargs.values())
            batches.append(_sample_product(a, b, share, generator))
    return [batch for batch in batches if batch.left.numel()]


def thesis(layer: QuantLayer | QuantMatMul, precision: Precision, batches: list[_Batch]) -> Found:
    """Return the thesis' factors: each batch votes for its best pair, the mean is taken.

    One factor for the weight and one for the input; the grid is :data:`THESIS_ALPHAS`. The
    two operands of a product take the places of weight and input.
    """
    errors = _errors(layer, precision, batches)
    product = isinstance(layer, QuantMatMul)
    pairs = [(w, a) for w in THESIS_ALPHAS for a in THESIS_ALPHAS]
    each = [torch.stack(errors(1.0 if product else w, a, w if product else 1.0)) for w, a in pairs]
    votes = torch.stack([e.flatten(1).sum(1) for e in each]).argmin(0)
    first, second = torch.tensor(pairs)[votes].double().mean(0).tolist()
    alphas = (1.0, second, first) if product else (first, second, 1.0)
    return _found(layer, errors, torch.tensor(alphas[0]), alphas[1], alphas[2])


def search(layer: QuantLayer | QuantMatMul, precision: Precision, batches: list[_Batch]) -> Found:
    """Return the factors with the smallest error over all batches; 1 is among them.

    The weight's, one for each output channel if it has scales per channel, and the input's
    are searched in turns, over grids wider than the thesis'.
    """
    errors = _errors(layer, precision, _merged(batches))
    weight = torch.ones(())
    left = right = 1.0
    for _ in range(ROUNDS):
        before = weight, left, right
        if isinstance(layer, QuantLayer):
            tried = [torch.stack(errors(w, left, right)).sum(0).cpu() for w in WEIGHT_ALPHAS]
            error, shape = torch.stack(tried), layer.weight_grid(precision.weights, 1.0).scale.shape
            if shape.numel() == error.shape[1]:
                weight = torch.tensor(WEIGHT_ALPHAS)[error.argmin(0)].view(shape)
            else:
                weight = torch.tensor(WEIGHT_ALPHAS)[error.sum(1).argmin()]
        left = _best([errors(weight, a, right) for a in INPUT_ALPHAS])
        if isinstance(layer, QuantMatMul):
            right = _best([errors(weight, left, a) for a in INPUT_ALPHAS])
        if torch.equal(before[0], weight) and before[1:] == (left, right):
            break
    return _found(layer, errors, weight, left, right)


def _merged(batches: list[_Batch]) -> list[_Batch]:
    """Return the inputs of a QuantLayer as those of a single batch, for the sake of speed."""
    if batches[0].right is not None:
        return batches
    channels = [batch.channels for batch in batches if batch.channels is not None]
    left = torch.cat([batch.left for batch in batches], 1)
    return [_Batch(left, channels=torch.cat(channels, 1) if channels else None)]


def _best(errors: list[list[Tensor]]) -> float:
    """Return the one of :data:`INPUT_ALPHAS` with the least error."""
    totals = [sum(float(e.sum()) for e in batches) for batches in errors]
    return INPUT_ALPHAS[totals.index(min(totals))]


def _found(
    layer: QuantLayer | QuantMatMul, errors: Errors, weight: Tensor, left: float, right: float
) -> Found:
    inputs = (left,) if isinstance(layer, QuantLayer) else (left, right)
    before, after = (
        sum(float(error.sum()) for error in errors(*factors))
        for factors in ((1.0, 1.0, 1.0), (weight, left, right))
    )
    return Found(Alphas(weight, inputs), before, after)


def _errors(layer: QuantLayer | QuantMatMul, precision: Precision, batches: list[_Batch]) -> Errors:
    """Return the function that computes squared errors, per output channel for a QuantLayer."""
    bits, device = precision.activations, batches[0].left.device

    def operand(index: int, alpha: float, x: Tensor, channels: Tensor | None) -> Tensor:
        return affine.simulate(x, _grid(layer.inputs[index].params(bits, alpha, device), channels))

    if isinstance(layer, QuantMatMul):
        wanted = [batch.left @ batch.right for batch in batches if batch.right is not None]

        def product(_: Tensor | float, left: float, right: float) -> list[Tensor]:
            return [
                (operand(0, left, b.left, None) @ operand(1, right, b.right, None) - y)
                .square()
                .mean()[None]
                for b, y in zip(batches, wanted, strict=True)
                if b.right is not None
            ]

        return product

    weight = weight_of(layer.wrapped).detach()
    exact = weight_rows(layer, weight).float().transpose(1, 2)
    wanted = [batch.left @ exact for batch in batches]

    def linear(alpha: Tensor | float, left: float, _: float) -> list[Tensor]:
        grid = layer.weight_grid(precision.weights, alpha)
        rows = weight_rows(layer, affine.simulate(weight, grid)).float().transpose(1, 2)
        return [
            (operand(0, left, b.left, b.channels) @ rows - y).square().mean(1).flatten()
            for b, y in zip(batches, wanted, strict=True)
        ]

    return linear


def _grid(params: QuantParams, channels: Tensor | None) -> QuantParams:
    """Return the grid of each sampled element; a padding zero is exact on any."""
    if channels is None:
        return params
    at = channels.clamp_min(0)
    scale, zero_point = (x.flatten()[at] for x in (params.scale, params.zero_point))
    return replace(params, scale=scale, zero_point=zero_point)


def _sample_layer(
    layer: QuantLayer, each: Call, samples: int, generator: torch.Generator
) -> _Batch:
    x, *args = each.args
    with torch.no_grad():
        output = layer.wrapped(x, *args, **each.kwargs)
        where = positions(layer, output, samples, generator)
        rows = inputs_of(layer, where, x, *args, **each.kwargs).float()
        channels = None
        if isinstance(layer.inputs[0].granularity, PerChannel):
            axis = layer.kind.channel_axis
            assert axis is not None
            numbers = torch.arange(1.0, x.shape[axis] + 1, device=x.device)
            numbers = numbers.view(-1, *(1,) * (-axis - 1)).expand_as(x)
            channels = inputs_of(layer, where, numbers, *args, **each.kwargs).round().long() - 1
    return _Batch(rows, channels=channels)


def _sample_product(a: Tensor, b: Tensor, samples: int, generator: torch.Generator) -> _Batch:
    leading = (a[..., :1] @ b[..., :1, :]).shape[:-2]
    a = a.expand(*leading, *a.shape[-2:]).flatten(0, -3) if leading else a[None]
    b = b.expand(*leading, *b.shape[-2:]).flatten(0, -3) if leading else b[None]
    matrices = torch.randperm(len(a), generator=generator)[:MATRICES].to(a.device)
    rows = torch.randperm(a.shape[1], generator=generator)[:samples].to(a.device)
    columns = torch.randperm(b.shape[2], generator=generator)[:samples].to(a.device)
    left, right = a[matrices][:, rows], b[matrices][:, :, columns]
    return _Batch(left.float(), right.float())

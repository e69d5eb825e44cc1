"""Whether an operator commutes with scaling channels: it is tried out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

_BASE = 16
"""Ids are spelt to this base, a digit a trial."""


@dataclass(frozen=True, eq=False)
class Channels:
    """Where the channels of a tensor come from.

    Attributes:
        axis: along which they lie, counted from the front.
        ids: int64 [C], on the CPU; 0 for a channel of unknown origin.
    """

    axis: int
    ids: Tensor

    def same(self, other: "Channels | None") -> bool:
        """Return whether the same channels lie along the same axis."""
        return other is not None and self.axis == other.axis and torch.equal(self.ids, other.ids)

    def shaped(self, values: Tensor, ndim: int) -> Tensor:
        """Return ``values`` [C] such that they broadcast against a tensor of ``ndim`` axes."""
        return values.view(-1, *(1,) * (ndim - 1 - self.axis))


def propagate(
    func: Any, args: Any, kwargs: Any, known: Mapping[int, Channels]
) -> list[Channels | None] | None:
    """Return where the channels of an operator's outputs come from.

    The operator is run on random numbers in the place of the known tensors, first as they
    are, then with each channel scaled by a power of two; together these spell the ids. If
    the factors, and nothing else, are found again along an axis of the output, bit for
    bit, and those of one more draw as well, then the operator commutes with positive
    factors: ReLU, pooling, interpolation, concatenation, reshaping, gathering, a product
    with another tensor, and so on.

    Args:
        func: the operator.
        args: its arguments; left alone.
        kwargs: its keyword arguments; left alone.
        known: ``id`` of a tensor among the arguments -> its channels.

    Returns:
        The channels of each leaf of the result, ``None`` for what does not depend on the
        factors; or ``None`` if the operator does not commute.
    """
    if torch.Tag.nondeterministic_seeded in func.tags:
        return None
    ids = torch.unique(torch.cat([torch.zeros(1).long(), *(c.ids for c in known.values())]))
    trials = _trials(len(ids))

    def replace(tensor: Tensor, exponents: Tensor, sign: int) -> Tensor:
        channels = known.get(id(tensor))
        if channels is None:
            return tensor.clone() if func._schema.is_mutable else tensor
        generator = torch.Generator().manual_seed(list(known).index(id(tensor)))
        noise = torch.randn(tensor.shape, generator=generator)
        # Of many magnitudes, so that a bend or a bound somewhere is noticed.
        noise = sign * noise.sign() * torch.exp2(6 * noise.clamp(-1, 1))
        exponents = exponents[torch.searchsorted(ids, channels.ids)]
        scaled = torch.ldexp(noise, channels.shaped(exponents, noise.ndim))
        return scaled.to(tensor.device, tensor.dtype)

    def run(exponents: Tensor, sign: int) -> list[Any]:
        copies = tree_map_only(Tensor, lambda x: replace(x, exponents, sign), (args, kwargs))
        return tree_leaves(func(*copies[0], **copies[1]))

    try:  # with both signs, as either may be flattened to 0
        runs = [[*zip(run(trial, 1), run(trial, -1), strict=True)] for trial in trials]
    except (RuntimeError, IndexError):  # does not take random numbers; an index, say
        return None
    outputs = []
    for leaves in zip(*runs, strict=True):
        found = _read(leaves, trials, [channels.axis for channels in known.values()])
        if found is None:
            return None
        outputs.append(Channels(found.axis, ids[found.ids]) if found.ids.any() else None)
    return outputs


def _trials(count: int) -> list[Tensor]:
    """Return the exponents of ``count`` ids in each trial: all 0, their digits, a draw."""
    ids = torch.arange(count)
    places = 1
    while _BASE**places < count:
        places += 1
    digits = [ids // _BASE**place % _BASE for place in range(places)]
    drawn = torch.randint(-7, 8, (count,), generator=torch.Generator().manual_seed(0))
    # Digits 0, 1, 2, 3, ... become exponents 0, 1, -1, 2, ...
    spelt = [(digit + 1) // 2 * (2 * (digit % 2) - 1) for digit in digits]
    return [torch.zeros_like(ids), *spelt, drawn.where(ids > 0, 0)]


_NOWHERE = Channels(0, torch.zeros(1, dtype=torch.int64))


def _read(
    leaves: Sequence[tuple[Any, Any]], trials: Sequence[Tensor], likely: Sequence[int]
) -> Channels | None:
    """Return the channels that one output's values in all trials, with both signs, spell.

    A single channel lies along any axis: the likely ones are looked at first.
    """
    first = leaves[0][0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        same = all(_equal(a, leaves[0][0]) and _equal(b, leaves[0][1]) for a, b in leaves)
        return _NOWHERE if same else None
    if any(x.shape != first.shape for leaf in leaves for x in leaf):
        return None
    start, *others = (torch.stack(leaf, -1).cpu().double() for leaf in leaves)
    valid = start != 0
    if not all(torch.equal(other != 0, valid) for other in others):
        return None
    ratios = torch.stack(others).where(valid, 1.0) / start.where(valid, 1.0)
    mantissas, exponents = torch.frexp(ratios)
    if not (mantissas == 0.5).all():  # also if any is infinite or NaN
        return None
    *spelt, drawn = exponents - 1
    codes = sum(
        torch.where(digits > 0, 2 * digits - 1, -2 * digits).long() * _BASE**place
        for place, digits in enumerate(spelt)
    )
    assert isinstance(codes, Tensor)
    count = len(trials[0])
    for axis in sorted(range(first.ndim), key=lambda axis: axis not in likely):
        low = codes.where(valid, count).movedim(axis, 0).flatten(1).amin(1)
        high = codes.where(valid, -1).movedim(axis, 0).flatten(1).amax(1)
        silent = high < 0
        if (low.where(~silent, high) != high).any() or high.max() >= count:
            continue
        ids = high.clamp(min=0)
        # A channel that is 0 tells nothing: fine if it is padding, and no other is missing.
        if silent.any() and len(torch.unique(ids[ids > 0])) < count - 1:
            continue
        found = Channels(axis, ids)
        expected = found.shaped(trials[-1][ids], first.ndim).unsqueeze(-1)
        if (drawn == expected).logical_or(~valid).all():
            return found
    return None if codes.where(valid, 0).any() else _NOWHERE


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

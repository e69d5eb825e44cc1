"""Channels that an operator hands on, against what each operator is known to do."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from quant_nets import noise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevquant.quant.equalization.commute import Channels, propagate

X, Y = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
KNOWN = {id(X): Channels(1, torch.tensor([1, 2, 3])), id(Y): Channels(1, torch.tensor([4, 5, 6]))}
ORDER = torch.tensor([2, 0])
Found = tuple[int, list[int]] | None
SAME: Found = (1, [1, 2, 3])


class _First(TorchDispatchMode):
    """What becomes of the channels in the first operator that reads any."""

    found: list[Found] | None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        known = {id(leaf): KNOWN[id(leaf)] for leaf in leaves if id(leaf) in KNOWN}
        if known:
            outputs = propagate(func, args, kwargs or {}, known)
            self.found = outputs and [c and (c.axis, c.ids.tolist()) for c in outputs]
        return func(*args, **(kwargs or {}))


def outcome(call: Callable[[], object]) -> list[Found] | None:
    with torch.no_grad(), _First() as mode:
        call()
    return mode.found


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (X.relu, SAME),
        (lambda: F.leaky_relu(X, 0.1), SAME),
        (lambda: X * 3.0, SAME),
        (lambda: X.clamp(min=0), SAME),
        (lambda: F.avg_pool2d(X, 2), SAME),
        (lambda: F.interpolate(X, scale_factor=2, mode="bilinear"), SAME),
        (lambda: F.pad(X, (1, 1)), SAME),
        (lambda: X.mean((2, 3)), SAME),
        (lambda: X * noise(4, 4), SAME),
        (lambda: X.permute(0, 2, 3, 1), (3, [1, 2, 3])),
        (lambda: X[:, ORDER], (1, [3, 1])),
        (lambda: torch.cat([X, Y], 1), (1, [1, 2, 3, 4, 5, 6])),
        (lambda: torch.cat([noise(2, 1, 4, 4), X], 1), (1, [0, 1, 2, 3])),
        (lambda: F.pad(X, (0, 0, 0, 0, 1, 0)), (1, [0, 1, 2, 3])),
        (lambda: X.view(2, 48), (1, [1] * 16 + [2] * 16 + [3] * 16)),
        (lambda: torch.where(noise(4, 4) > 0, X, 0.0), SAME),
        (lambda: X > 0, None),
        (lambda: torch.zeros_like(X), None),
    ],
)
def test_operators_that_commute(call: Callable[[], object], expected: Found) -> None:
    found = outcome(call)
    assert found is not None
    assert found[0] == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.gelu(X),
        lambda: F.silu(X),
        lambda: F.relu6(X),
        lambda: F.threshold(X, 0.1, 0.0),
        lambda: F.hardshrink(X, 0.2),
        lambda: X + 1,
        lambda: X + Y,
        lambda: X * X,
        lambda: X * Y,
        lambda: X.softmax(1),
        lambda: X.mean(1),
        lambda: X.argmax(1),
        lambda: X > 1,
        lambda: F.pad(X, (1, 1), value=1.0),
        lambda: torch.cat([X, Y], 0),
        lambda: F.layer_norm(X, (4,)),
        lambda: F.conv2d(X, noise(3, 3, 1, 1)),
        lambda: torch.native_dropout(X, 0.5, True),
    ],
)
def test_operators_that_do_not(call: Callable[[], object]) -> None:
    assert outcome(call) is None


def test_indices_of_the_largest_do_not_depend_on_factors() -> None:
    assert outcome(lambda: F.max_pool2d(X, 2, return_indices=True)) == [SAME, None]


def test_many_channels_are_told_apart() -> None:
    x = noise(3, 700)
    channels = Channels(1, torch.arange(5, 705))
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    func = torch.ops.aten.index_select.default
    found = propagate(func, (x, 1, order), {}, {id(x): channels})
    assert found is not None
    assert found[0] is not None
    assert torch.equal(found[0].ids, order + 5)


def test_half_precision() -> None:
    x: Tensor = noise(2, 3, 4).half()
    channels = {id(x): Channels(1, torch.tensor([1, 2, 3]))}
    found = propagate(torch.ops.aten.relu.default, (x,), {}, channels)
    assert found is not None and found[0] is not None
    assert found[0].ids.tolist() == [1, 2, 3]
    assert propagate(torch.ops.aten.gelu.default, (x,), {}, channels) is None

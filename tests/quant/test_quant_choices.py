from collections.abc import Callable

import pytest
import torch
from quant_nets import noise
from torch import Tensor

from bevquant.quant.choices import Recorded, Replayed

CHOOSERS: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": lambda x: x.topk(3, dim=1).indices,
    "torch.topk": lambda x: torch.topk(x, 2, 0)[1],
    "sort": lambda x: x.sort(descending=True)[1],
    "torch.sort": lambda x: torch.sort(x, stable=True, dim=0).indices,
    "argsort": lambda x: x.argsort(),
    "argmax": lambda x: x.argmax(-1),
    "argmin": torch.argmin,
}


@pytest.mark.parametrize("name", CHOOSERS)
def test_the_first_networks_choice_is_made_again(name: str) -> None:
    choose = CHOOSERS[name]
    first, second = noise(4, 5, seed=1), noise(4, 5, seed=2)
    with Recorded() as recorded:
        chosen = choose(first)
    with Replayed(recorded.choices):
        again = choose(second)
    assert torch.equal(again, chosen)
    assert not torch.equal(choose(second), chosen)


def test_values_are_those_at_the_replayed_indices() -> None:
    first, second = noise(2, 6, seed=1), noise(2, 6, seed=2)
    with Recorded() as recorded:
        first.topk(2)
    with Replayed(recorded.choices):
        values, indices = second.topk(2)
    assert torch.equal(values, second.gather(1, indices))


def test_another_shape_or_one_call_more_is_left_alone() -> None:
    with Recorded() as recorded:
        noise(6).topk(2)
    x = noise(9, seed=3)
    with Replayed(recorded.choices):
        assert torch.equal(x.topk(4).indices, torch.topk(x, 4).indices)
        assert x.argmax() == x.numpy().argmax()

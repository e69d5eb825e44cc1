import threading

import pytest
import torch
from quant_nets import noise
from torch import Tensor, nn

from bevquant.quant.refinement.lockstep import lockstep
from bevquant.quant.running import call


class Branching(nn.Module):
    """Batches with a negative sum take another branch; ``twice`` is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = (nn.Linear(3, 3) for _ in range(3))
        self.twice, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.left if x.sum() < 0 else self.right
        return self.twice(self.twice(branch(self.first(x))))


def layers_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_each_layer_is_yielded_once_with_the_inputs_that_changed_layers_before_it_give() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = [noise(5, 3, seed=i) for i in range(3)]
    order = []
    with torch.no_grad():
        for layer, calls in lockstep(model, layers_of(model), batches, call):
            order.append(layer)
            assert [each.batch for each in calls] == [0, 1, 2]
            if layer is model[2]:
                for each in calls:
                    assert torch.equal(each.args[0], model[:2](batches[each.batch]))
            layer.weight.mul_(-2)
    assert order == [model[0], model[2]]


def test_batches_that_take_other_branches() -> None:
    model = Branching()
    batches = [torch.ones(1, 3), -torch.ones(1, 3), 2 * torch.ones(1, 3)]
    seen = {
        name: [each.batch for each in calls]
        for layer, calls in lockstep(model, layers_of(model), batches, call)
        for name, module in model.named_modules()
        if module is layer
    }
    assert seen == {"first": [0, 1, 2], "right": [0, 2], "left": [1], "twice": [0, 2]}


def test_an_error_in_a_forward_pass_is_raised_and_no_thread_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="shapes"):
        for _ in lockstep(model, layers_of(model), [noise(2, 3), noise(2, 3)], call):
            pass
    assert threading.active_count() == before
    assert not any(layer._forward_pre_hooks for layer in layers_of(model))


def test_the_loop_may_be_left_early() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = threading.active_count()
    steps = lockstep(model, layers_of(model), [noise(2, 3)], call)
    next(steps)
    steps.close()
    assert threading.active_count() == before


def test_gradients_are_as_the_caller_has_them() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for layer, calls in lockstep(model, layers_of(model), [noise(2, 3)], call):
                if layer is model[1]:
                    assert calls[0].args[0].requires_grad is enabled

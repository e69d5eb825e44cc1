"""Gradients of several threads are those of one."""

import pytest
import torch
from torch import Tensor, nn

from bevquant.train.parallel import Replicas


def squared(model: nn.Module, part: Tensor) -> dict[str, Tensor]:
    output = model(part)
    return {"square": output.square().mean(), "first": output[:, 0].mean()}


@pytest.mark.parametrize("count", [1, 3])
def test_gradients_are_those_of_the_whole_batch(count: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    batch = torch.randn(6, 4)
    terms = squared(model, batch)
    expected = torch.autograd.grad(sum(terms.values(), torch.zeros(())), list(model.parameters()))
    mean = Replicas(model, count, squared).backward(batch.chunk(count))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert mean["square"].item() == pytest.approx(terms["square"].item(), rel=1e-5)


def test_copies_follow_the_parameters_and_keep_their_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    replicas = Replicas(model, 2, squared)
    replicas.backward((torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [30.0]])))
    with torch.no_grad():
        model[1].weight.add_(1)
    assert torch.equal(replicas.models[1][1].weight, model[1].weight)
    assert model[0].running_mean.item() == pytest.approx(0.1 * 1)
    assert replicas.models[1][0].running_mean.item() == pytest.approx(0.1 * 20)

"""Kept answers change what training costs, not what it comes to."""

import pytest
import torch
from quant_nets import ResNet, noise
from torch import Tensor, nn

import bevquant as bq
from bevquant.ptqat.objective import distance, objective
from bevquant.ptqat.settings import Training
from bevquant.ptqat.task import Task
from bevquant.ptqat.teacher import taught
from bevquant.ptqat.train import train
from bevquant.quant.layers import QuantLayer, floating, quant_modules

BATCHES = [noise(2, 3, 8, 8, seed=seed) for seed in range(3)]


class Forward:
    """Runs a model and counts how often quantized and how often not."""

    def __init__(self) -> None:
        self.quantized = self.float = 0

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(batch, Tensor)
        layer = next(x for x in quant_modules(model) if isinstance(x, QuantLayer))
        if layer.quantized:
            self.quantized += 1
        else:
            self.float += 1
        output: Tensor = model(batch)
        return output


def network() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet().eval()
    bq.fold_batchnorm(model, BATCHES[0])
    bq.quantize(model, bq.W2A8)
    bq.calibrate(model, BATCHES)
    return model


def test_the_same_weights_without_asking_again() -> None:
    settings = Training(steps=5, lr=0.01, checks=2)
    forward = Forward()
    task = Task(BATCHES, forward, validation=BATCHES[:1])
    found = []
    for prepared in (task, taught(network(), task)):
        forward.float = 0
        model = network()
        bq.ptqat(model, prepared, training=settings)
        found.append([x.weight_codes for x in quant_modules(model) if isinstance(x, QuantLayer)])
        assert (forward.float == 0) == (prepared is not task)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_elements_count_by_the_float_networks_weights() -> None:
    model = network()
    seen = []

    def weights(model: nn.Module, output: Tensor) -> list[Tensor]:
        seen.append(output)
        return [output.abs()]

    task = Task(BATCHES, weights=weights)
    with torch.no_grad(), floating(model):
        float_ = model(BATCHES[0])
    found = distance(model, task, BATCHES[0])
    (output,) = seen
    assert torch.equal(output, float_)
    error = float_.abs() * (model(BATCHES[0]) - float_).square()
    torch.testing.assert_close(found, error.sum() / float_.abs().pow(3).sum())
    kept = taught(model, task)
    assert torch.equal(distance(model, kept, kept.batches[0]), found)


def test_labels_are_seen_as_ever() -> None:
    model = network()
    task = Task(BATCHES, loss=lambda model, batch: model(batch).square().mean())
    kept = taught(model, task)
    for batch, lesson in zip(task.batches, kept.batches, strict=True):
        assert torch.equal(objective(model, task, batch, 0), objective(model, kept, lesson, 0))
        assert torch.equal(objective(model, task, batch, 2), objective(model, kept, lesson, 2))


def test_answers_of_former_weights_are_refused() -> None:
    model = network()
    kept = taught(model, Task(BATCHES))
    settings = Training(steps=1, lr=0.01)
    train(model, ["head"], kept, settings)
    model.head.wrapped.weight.data.mul_(2)
    with pytest.raises(bq.BevquantError, match="call taught again"):
        train(model, ["head"], kept, settings)
    with pytest.warns(UserWarning, match="head: its weight or bias has changed"):
        train(model, ["head"], taught(model, Task(BATCHES)), settings)

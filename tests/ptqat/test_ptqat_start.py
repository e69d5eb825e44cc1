from pathlib import Path

import pytest
import torch
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

import bevquant as bq
from bevquant.ptqat.cuts import Budget, Theta
from bevquant.ptqat.promise import promises
from bevquant.ptqat.selection import EVERYTHING, PAPER, PROMISING, Rule
from bevquant.ptqat.settings import Training
from bevquant.ptqat.start import ptqat
from bevquant.ptqat.task import Task
from bevquant.quant.layers import QuantLayer, quant_modules

SHORT = Training(steps=3, lr=0.01)


def quantized(model: nn.Module, batches: list) -> nn.Module:
    bq.fold_batchnorm(model, batches[0])
    bq.quantize(model, bq.W2A8)
    bq.calibrate(model, batches)
    return model


def trained(model: nn.Module) -> list[str]:
    layers = [x for x in quant_modules(model) if isinstance(x, QuantLayer)]
    return [layer.name for layer in layers if layer.rounded]


def test_from_the_rule_to_the_integers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [noise(2, 3, 8, 8, seed=seed) for seed in range(2)]
    torch.manual_seed(0)
    model = quantized(ResNet().eval(), batches)
    found = bq.ptqat(model, Task(batches), PROMISING, SHORT, tmp_path)
    assert sorted(trained(model)) == sorted(found.selection.layers) == sorted(found.trained.layers)
    assert 0 < found.trained.parameters <= found.selection.parameters / 2
    assert found.trained.parameters == found.selection.trained_parameters
    assert f"{len(found.selection.layers)} of 8 layers are trained" in capsys.readouterr().out
    names = {"selection.png", "curves.png", "curves.jsonl", "checkpoint.pt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_the_papers_rule_trains_what_is_below_theta() -> None:
    batches = [noise(2, 6, 8, seed=seed) for seed in range(2)]
    model = quantized(seeded(nn.Sequential(ViTBlock(), ViTBlock())), batches)
    errors = {row.layer: row.score("mse") for row in bq.precheck(model, batches)}
    theta = sorted(errors.values())[1] * 1.001
    found = ptqat(model, Task(batches), Rule(Theta(theta)), SHORT)
    assert sorted(found.trained.layers) == sorted(n for n, e in errors.items() if e < theta)
    assert len(found.trained.layers) == 2


def test_a_network_of_dictionaries_with_a_layer_that_is_never_called() -> None:
    batches = [two_sensor_batch(seed) for seed in range(2)]
    model = quantized(seeded(TwoSensors()), batches)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch)["fused"].square().mean()

    found = ptqat(model, Task(batches, loss=loss), EVERYTHING, SHORT)
    assert found.trained.parameters == found.selection.parameters
    assert sorted(trained(model)) == ["camera.0", "fuse", "voxels"]


def test_nothing_left_to_train_is_refused() -> None:
    batches = [noise(4, 5)]
    model = quantized(seeded(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))), batches)
    with pytest.raises(bq.BevquantError, match=r"nothing to train \(mse < 1e-09\): mse goes from"):
        ptqat(model, Task(batches), Rule(Theta(1e-9)), SHORT)
    refusal = r"nothing to train \(highest promise that fits into 10%"
    with pytest.raises(bq.BevquantError, match=refusal):
        ptqat(model, Task(batches), Rule(Budget(0.1), "promise", lowest=False), SHORT)
    with pytest.raises(bq.BevquantError, match="no layer is quantized"):
        ptqat(seeded(nn.Sequential(nn.Linear(5, 4))), Task(batches), PAPER, SHORT)


def test_promise_of_a_layer_is_its_gradient_times_its_error() -> None:
    batches = [noise(8, 5, seed=seed) for seed in range(2)]
    model = quantized(seeded(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))), batches)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum()

    found = {x.layer: x for x in promises(model, Task(batches, loss=loss), batches, 0.0)}
    layer = model[1]
    hidden: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: hidden.append(args[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    # The gradient of the sum of outputs by a weight is the sum of the inputs it meets; the
    # straight-through estimator lets none pass to weights beyond the grid.
    gradient = sum(layer.quantize_inputs(x)[0].sum(0) for x in hidden).expand(2, 4)
    grid = layer.weight_params
    steps = layer.weight.detach() / grid.scale
    gradient = gradient * ((steps >= grid.quant_min - 0.5) & (steps <= grid.quant_max + 0.5))
    error = layer.weight_codes * grid.scale - layer.weight.detach()
    assert found["1"].score == pytest.approx(float((gradient * error).abs().mean()), rel=1e-5)
    assert found["1"].parameters == 8 + 2
    assert all(type(x) is QuantLayer for x in quant_modules(model))

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from quant_nets import ResNet, noise, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bevquant as bq
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.ptqat.layers import training
from bevquant.ptqat.objective import distance
from bevquant.ptqat.settings import Training
from bevquant.ptqat.steps import indices
from bevquant.ptqat.task import Task
from bevquant.ptqat.train import train
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantLayer, quant_modules

BATCHES = [noise(2, 3, 8, 8, seed=seed) for seed in range(4)]
CHOSEN = ("stem.0", "body.1.conv1", "up.0")
SHORT = Training(steps=6, lr=0.02, checkpoint_steps=2)


def reconstructed() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet().eval()
    bq.fold_batchnorm(model, BATCHES[0])
    bq.quantize(model, bq.BitPolicy({"*": bq.W2A8, "head": bq.W8A8}))
    bq.calibrate(model, BATCHES)
    bq.reconstruct(model, BATCHES)
    return model


@pytest.fixture(scope="module")
def prototype() -> nn.Module:
    return reconstructed()


@pytest.fixture
def model(prototype: nn.Module) -> nn.Module:
    return copy.deepcopy(prototype)


def codes(model: nn.Module) -> dict[str, Tensor]:
    return {x.name: x.weight_codes for x in quant_modules(model) if isinstance(x, QuantLayer)}


def learned(model: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    return {
        x.name: (x.weight_codes, x.weight_params.scale, x.weight_params.zero_point, x.learned_bias)
        for x in quant_modules(model)
        if isinstance(x, QuantLayer) and x.learned_bias is not None
    }


def same(a: dict[str, tuple[Tensor, ...]], b: dict[str, tuple[Tensor, ...]]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True)
    )


def test_frozen_layers_hold_their_integers_in_every_step(model: nn.Module) -> None:
    before = learned(model)
    seen = 0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal seen
        seen += torch.is_grad_enabled()
        for name, found in learned(model).items():
            if name not in CHOSEN:
                assert all(torch.equal(x, y) for x, y in zip(found, before[name], strict=True))
        wanted = [f"{x}.{what}" for x in sorted(CHOSEN) for what in ("latent", "shift")]
        assert sorted(n for n, p in model.named_parameters() if p.requires_grad) == wanted
        return model(batch).square().mean()

    found = train(model, CHOSEN, Task(BATCHES, loss=loss), SHORT)
    assert seen == SHORT.steps
    after = learned(model)
    assert not same(before, after)
    assert same(*({n: x[n] for n in x if n not in CHOSEN} for x in (before, after)))
    assert found.layers == CHOSEN
    layers = [model.get_submodule(name) for name in CHOSEN]
    assert found.parameters == sum(x.weight.numel() + x.learned_bias.numel() for x in layers)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_trained_layers_take_optimizer_memory(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    adam = torch.optim.Adam
    monkeypatch.setattr(
        torch.optim, "Adam", lambda *args, **kw: made.append(adam(*args, **kw)) or made[-1]
    )
    found = train(model, CHOSEN, Task(BATCHES), SHORT)
    moments = [v for state in made[0].state.values() for v in state.values() if v.ndim]
    assert sum(moment.numel() for moment in moments) == 2 * found.parameters


@pytest.mark.parametrize("extra", [{}, {"learn_scale": True}, {"bfloat16": True}])
def test_distillation_brings_the_outputs_closer(model: nn.Module, extra: dict[str, Any]) -> None:
    task = Task(BATCHES)

    def error() -> float:  # as the model runs afterwards, whatever it is trained in
        with torch.no_grad():
            return sum(float(distance(model, task, batch)) for batch in BATCHES) / len(BATCHES)

    before, scales = error(), model.get_submodule("up.0").weight_params.scale
    found = train(model, CHOSEN, task, Training(steps=30, lr=0.01, **extra))
    assert found.before == pytest.approx(before, rel=1e-5)
    assert found.after == pytest.approx(error(), rel=1e-5)
    assert error() < 0.9 * before
    moved = not torch.equal(scales, model.get_submodule("up.0").weight_params.scale)
    assert moved == ("learn_scale" in extra)


def test_a_layer_starts_from_what_it_computes_now(model: nn.Module) -> None:
    with torch.no_grad():
        before = model(BATCHES[0])
        with training(model, list(codes(model)), learn_scale=True):
            assert torch.equal(model(BATCHES[0]), before)
            assert torch.equal(model(BATCHES[0].clone().requires_grad_()), before)
        assert torch.equal(model(BATCHES[0]), before)


def test_training_only_ranges_and_layers_without_bias() -> None:
    model = bq.quantize(
        seeded(nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 2))), bq.W4A8
    )
    batches = [noise(8, 5)]
    bq.calibrate(model, batches)
    with torch.no_grad():
        before = model(batches[0])
    # So low a rate changes no integer.
    train(model, ["0", "1"], Task(batches), Training(steps=1, lr=1e-9))
    with torch.no_grad():
        torch.testing.assert_close(model(batches[0]), before)


def test_what_is_left_is_an_ordinary_quantized_model(
    model: nn.Module, prototype: nn.Module, tmp_path: Path
) -> None:
    train(model, CHOSEN, Task(BATCHES), SHORT)
    assert all(type(x) is QuantLayer for x in quant_modules(model))
    with torch.no_grad():
        expected = model(BATCHES[0])

    bq.save_calibration(model, tmp_path / "trained.safetensors")
    other = copy.deepcopy(prototype)
    bq.load_calibration(other, tmp_path / "trained.safetensors")
    with torch.no_grad():
        assert torch.equal(other(BATCHES[0]), expected)

    export_module(model, [BATCHES[0]], tmp_path / "trained.onnx")
    (deployed,) = open_engine(tmp_path / "trained.onnx", "literal")([BATCHES[0].numpy()])
    torch.testing.assert_close(torch.from_numpy(deployed), expected, rtol=0, atol=2e-6)

    bq.restore(model)
    torch.manual_seed(0)
    before, after = ResNet().state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_are_loaded_after_training_are_used(
    model: nn.Module, prototype: nn.Module
) -> None:
    train(model, CHOSEN, Task(BATCHES), SHORT)
    state = {name: -value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    other = copy.deepcopy(prototype)
    for layer in quant_modules(other):
        layer.forget()
    other.load_state_dict(state)
    with torch.no_grad(), pytest.warns(UserWarning, match="has changed since") as caught:
        assert torch.equal(model(BATCHES[0]), other(BATCHES[0]))
    assert len(caught) == 1


def test_killed_and_resumed_to_the_same_weights(
    model: nn.Module, prototype: nn.Module, tmp_path: Path
) -> None:
    script = "import sys, test_ptqat_train as t; t.die_in_step(5, sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    lines = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert len(lines) == 5  # the start, and four steps

    found = train(model, CHOSEN, Task(BATCHES), SHORT, tmp_path)
    other = copy.deepcopy(prototype)
    expected = train(other, CHOSEN, Task(BATCHES), SHORT)
    assert same(learned(model), learned(other))
    assert (found.before, found.after) == (expected.before, expected.after)
    rows = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert rows[:5] == lines
    assert [json.loads(row)["step"] for row in rows] == list(range(SHORT.steps + 1))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

    with pytest.raises(bq.BevquantError, match="differs in model, layers"):
        train(model, CHOSEN[:1], Task(BATCHES), SHORT, tmp_path)


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (Task(BATCHES[1:] + BATCHES[:1]), "batches;"),
        (Task(BATCHES, validation=BATCHES), "validation;"),
        (Task(BATCHES, loss=lambda model, batch: model(batch).square().mean()), "loss;"),
    ],
)
def test_the_folder_of_another_task_is_refused(
    task: Task, what: str, model: nn.Module, prototype: nn.Module, tmp_path: Path
) -> None:
    train(model, CHOSEN, Task(BATCHES), SHORT, tmp_path)
    with pytest.raises(bq.BevquantError, match=f"differs in {what}"):
        train(copy.deepcopy(prototype), CHOSEN, task, SHORT, tmp_path)


def test_interrupted_and_called_again_on_the_same_model(
    model: nn.Module, prototype: nn.Module, tmp_path: Path
) -> None:
    passes = 0

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal passes
        passes += torch.is_grad_enabled()
        if passes == 5:
            raise KeyboardInterrupt
        return model(batch)

    before = learned(model)
    with pytest.raises(KeyboardInterrupt):
        train(model, CHOSEN, Task(BATCHES, forward), SHORT, tmp_path)
    assert same(before, learned(model))
    train(model, CHOSEN, Task(BATCHES), SHORT, tmp_path)
    other = copy.deepcopy(prototype)
    train(other, CHOSEN, Task(BATCHES), SHORT)
    assert same(learned(model), learned(other))


def test_neighbouring_8_bit_weights_stay_free_of_saturation(tmp_path: Path) -> None:
    net = seeded(nn.Sequential(nn.Conv2d(5, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)))
    batches = [noise(4, 5, 4, 4, seed=seed) for seed in range(2)]
    model = bq.quantize(net, bq.W8A8)
    bq.calibrate(model, batches)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 2).square().mean()

    settings = Training(steps=60, lr=0.01, distillation=0)
    train(model, ["0", "3"], Task(batches, loss=loss), settings)
    kernel, matrix = (layer.weight_codes for layer in (model[0], model[3]))
    products = kernel.movedim(1, -1).reshape(8, 9, 5)
    pairs = [products[..., :4].reshape(8, 9, 2, 2), matrix.reshape(3, 16, 2)]
    assert all(each.sum(-1).abs().max() <= 128 for each in pairs)
    assert all(each.sum(-1).abs().max() > 120 for each in pairs)
    with torch.no_grad():
        expected = model(batches[0])
    export_module(model, [batches[0]], tmp_path / "trained.onnx")
    (deployed,) = open_engine(tmp_path / "trained.onnx", "openvino")([batches[0].numpy()])
    torch.testing.assert_close(torch.from_numpy(deployed), expected, rtol=0, atol=1e-5)


def test_gradients_are_on_whatever_surrounds_the_call(model: nn.Module) -> None:
    before = learned(model)
    with torch.no_grad():
        train(model, CHOSEN, Task(BATCHES), SHORT)
    assert not same(before, learned(model))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task(BATCHES, loss=lambda m, b: m(b).mean().item()), "returns float; it must return"),
        (Task(BATCHES, loss=lambda m, b: m(b).square()), "it must return a scalar tensor"),
        (Task(BATCHES, loss=lambda m, b: m(b).mean().detach()), "without a gradient"),
        (Task(BATCHES, loss=lambda m, b: m(b).mean() * torch.nan), "before the first step is not"),
        (Task(BATCHES, lambda m, b: m(b)[:, : 1 + torch.is_grad_enabled()]), "cannot be compared"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_refused(
    task: Task, message: str, model: nn.Module
) -> None:
    with pytest.raises(bq.BevquantError, match=message):
        train(model, CHOSEN, task, SHORT)


def test_batches_without_an_index_are_refused() -> None:
    with pytest.raises(bq.BevquantError, match="must be a sequence, not DataLoader"):
        Task(DataLoader(BATCHES))  # type: ignore[arg-type]


def test_a_checkpoint_of_something_else_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(bq.BevquantError, match="not a checkpoint of ptqat"):
        train(model, CHOSEN, Task(BATCHES), SHORT, tmp_path)


def test_the_metric_is_followed(model: nn.Module, tmp_path: Path) -> None:
    seen: list[nn.Module] = []
    task = Task(BATCHES, metric=lambda each: seen.append(each) or 0.25)
    settings = SHORT.model_copy(update={"checks": 2})
    train(model, CHOSEN, task, settings, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if row.get("metric") == 0.25} == {0, 3, 6}
    assert all(each is model for each in seen)


def die_in_step(step: int, folder: str) -> None:
    """Train until the given step, and end as by kill -9 there."""
    passes = 0

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal passes
        passes += torch.is_grad_enabled()
        if passes == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return model(batch)

    train(reconstructed(), CHOSEN, Task(BATCHES, forward), SHORT, Path(folder))


def test_a_loss_that_is_not_finite_names_layer_and_step(model: nn.Module) -> None:
    spoilt = BATCHES[1].clone()
    spoilt[0, 0, 0, 0] = torch.nan
    batches = [BATCHES[0], spoilt]
    step = next(s for s in range(6) if indices(s, 2, SHORT) == [1]) + 1
    task = Task(batches, validation=BATCHES)
    with pytest.raises(
        bq.BevquantError, match=f"loss in step {step} is not finite; .* is stem.0: its input"
    ):
        train(model, CHOSEN, task, SHORT)
    with torch.no_grad():
        assert model(BATCHES[0]).isfinite().all()
    assert all(type(x) is QuantLayer for x in quant_modules(model))


def test_the_best_weights_are_kept(model: nn.Module) -> None:
    before = learned(model)
    # So high a rate only does harm.
    found = train(model, CHOSEN, Task(BATCHES), Training(steps=2, lr=100.0))
    assert found.after == found.before
    assert all(
        torch.equal(x, y) for n in before for x, y in zip(before[n], learned(model)[n], strict=True)
    )


def test_scales_have_the_gradient_of_lsq(model: nn.Module) -> None:
    with training(model, ["stem.0"], learn_scale=True) as (layer,):
        with torch.no_grad():
            layer.latent.normal_(std=0.5)
        probe = noise(*layer.latent.shape, seed=3)
        (layer.rounded_weight() * probe).sum().backward()
        # Esser et al., equations 3 and 5.
        grid = layer.weight_params
        low, high = grid.bounds
        steps = layer.latent.detach() / grid.scale
        slope = torch.where(
            steps < low, low, torch.where(steps > high, high, steps.round() - steps)
        )
        expected = (slope * grid.scale * probe).sum((1, 2, 3), keepdim=True)
        torch.testing.assert_close(layer.stretch.grad, expected, rtol=1e-4, atol=1e-5)
        passed = probe * ((steps >= low - 0.5) & (steps <= high + 0.5))
        assert torch.equal(layer.latent.grad, passed)


def test_every_epoch_sees_every_batch_once() -> None:
    settings = Training(steps=10, batch_size=3, seed=1)
    seen = [index for step in range(8) for index in indices(step, 6, settings)]
    epochs = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_weights_start_near_float_within_their_cells(model: nn.Module) -> None:
    chosen = [x for x in quant_modules(model) if isinstance(x, QuantLayer) and x.rounded]
    near = 0
    with training(model, [layer.name for layer in chosen]) as trained:
        for layer, latent in zip(chosen, (each.latent.detach() for each in trained), strict=True):
            grid, codes = layer.weight_params, layer.weight_codes
            weight = weight_of(layer.wrapped).detach()
            steps = latent / grid.scale + grid.zero_point
            assert torch.equal(steps.round().int(), codes)
            # Beyond no other place in the cell: between the float weight and its integer.
            wanted = weight / grid.scale + grid.zero_point
            inside = (wanted - codes).abs() < 0.39
            torch.testing.assert_close(steps[inside], wanted[inside], atol=1e-4, rtol=0)
            outside = (wanted - codes).abs() > 0.41
            sides = (wanted - codes)[outside].sign() * 0.4
            torch.testing.assert_close((steps - codes)[outside], sides, atol=1e-4, rtol=0)
            near += int(outside.sum())
    assert near > 0


def test_what_cannot_be_trained_is_refused(model: nn.Module) -> None:
    task = Task(BATCHES)
    for layers, batches, message in (
        ((), BATCHES, "nothing to train"),
        (CHOSEN, [], "no batch"),
        (("stem",), BATCHES, "'stem' is no quantizable layer"),
    ):
        with pytest.raises(bq.BevquantError, match=message):
            train(model, layers, Task(batches), SHORT)
    bq.apply(model, bq.BitPolicy({"*": bq.W2A8, "head": None}))
    with pytest.raises(bq.BevquantError, match="head: float or not calibrated"):
        train(model, ["head"], task, SHORT)
    with pytest.raises(bq.BevquantError, match="no floating-point tensor to distil"):
        train(model, CHOSEN, Task(BATCHES, outputs=lambda _: []), SHORT)

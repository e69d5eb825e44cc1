import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant import (
    DEPLOY,
    THESIS,
    W2A8,
    W4A8,
    W8A8,
    BevquantError,
    MatMul,
    apply,
    calibrate,
    fold_batchnorm,
    quantize,
    reconstruct,
    refine,
    restore,
)
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.layers import Alphas, QuantLayer, QuantModule, floating, quant_modules
from bevquant.quant.refinement.alphas import INPUT_ALPHAS, THESIS_ALPHAS
from bevquant.quant.spec import Precision, Scheme

ALL = 10**6
W4A4 = Precision(4, 4)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.matmul = nn.Linear(4, 4), MatMul()

    def forward(self, x: Tensor) -> Tensor:
        return self.matmul(self.left(x), x.transpose(-1, -2))


def ready(
    model: nn.Module, batches: list[Any], precision: Precision, scheme: Scheme = DEPLOY
) -> nn.Module:
    fold_batchnorm(seeded(model), batches[0])
    calibrate(quantize(model, precision, scheme), batches)
    return model


@torch.no_grad()
def measured(layer: QuantModule, inputs: list[tuple[Tensor, ...]]) -> list[float]:
    """Mean square error of a layer's output in each batch, by running it."""
    errors = []
    for args in inputs:
        error = (layer(*args) - layer.wrapped(*args)).square()
        errors.append(float(error.mean()))
    return errors


def inputs_of(model: nn.Module, layer: nn.Module, batches: list[Any]) -> list[tuple[Tensor, ...]]:
    seen: list[tuple[Tensor, ...]] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad(), floating(model):
        for batch in batches:
            model(batch)
    hook.remove()
    return seen


LAYERS = {
    "linear": (nn.Sequential(nn.Linear(6, 5)), (7, 6)),
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2)), (2, 3, 7, 7)),
    "grouped conv": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), (2, 4, 5, 5)),
    "transposed conv": (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2)), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_those_of_the_layer_and_never_rise(name: str, scheme: Scheme) -> None:
    net, shape = LAYERS[name]
    batches = [noise(*shape, seed=seed) * 2 + 0.3 for seed in range(3)]
    model = ready(net, batches, W4A4, scheme)
    layer = model[0]
    inputs = inputs_of(model, layer, batches)
    plain = sum(measured(layer, inputs)) / len(batches)
    (row,) = refine(model, batches, samples=ALL)
    channels = layer.out_channels if hasattr(layer, "out_channels") else layer.out_features
    assert row.before / channels == pytest.approx(plain, rel=1e-3)
    assert row.after / channels == pytest.approx(
        sum(measured(layer, inputs)) / len(batches), rel=1e-3
    )
    assert row.after < 0.97 * row.before
    assert row.kept
    assert len(row.weight_alphas) == channels
    restore(model)


def test_a_products_factors_are_the_best_of_all_pairs_or_nearly() -> None:
    batches = [noise(3, 6, 4, seed=seed) for seed in range(3)]
    model = ready(Product(), batches, W4A4)
    layer = model.matmul
    inputs = inputs_of(model, layer, batches)
    rows = {row.layer: row for row in refine(model, batches, samples=ALL)}
    found = sum(measured(layer, inputs))
    every = []
    for a, b in itertools.product(INPUT_ALPHAS, repeat=2):
        layer.refined[W4A4] = Alphas(torch.ones(()), (a, b))
        every.append(sum(measured(layer, inputs)))
    assert found <= 1.02 * min(every)
    assert rows["matmul"].weight_alphas == ()
    assert rows["matmul"].after <= rows["matmul"].before


def test_the_thesis_counts_the_best_pair_of_each_batch() -> None:
    batches = [noise(5, 6, seed=seed) * (1 + seed) for seed in range(4)]
    model = ready(nn.Sequential(nn.Linear(6, 5)), batches, W4A4, THESIS)
    layer = model[0]
    pairs = list(itertools.product(THESIS_ALPHAS, repeat=2))
    errors = []
    for w, a in pairs:
        layer.refined[W4A4] = Alphas(torch.tensor(w), (a,))
        errors.append(measured(layer, [(batch,) for batch in batches]))
    votes = [min(range(len(pairs)), key=lambda i: errors[i][b]) for b in range(len(batches))]
    (row,) = refine(model, batches, method="thesis", samples=ALL)
    assert row.weight_alphas[0] == pytest.approx(sum(pairs[v][0] for v in votes) / 4)
    assert row.input_alphas[0] == pytest.approx(sum(pairs[v][1] for v in votes) / 4)
    assert row.kept


@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (ResNet, lambda seed: noise(4, 3, 12, 12, seed=seed)),
        (ViTBlock, lambda seed: noise(4, 20, 8, seed=seed)),
        (TwoSensors, two_sensor_batch),
    ],
)
def test_no_main_module_gets_worse(net: Any, batch: Any) -> None:
    torch.manual_seed(0)
    batches = [batch(seed) for seed in range(4)]
    model = ready(net(), batches, W2A8)
    precisions = (W2A8, W4A8, W8A8)
    rows = refine(model, batches, precisions=precisions)
    assert any(row.kept for row in rows)
    for name, module in model.named_children():
        layers = [layer for layer in quant_modules(model) if layer.main_module == name]
        calls: list[tuple[Any, Any, Tensor]] = []
        hook = module.register_forward_hook(
            lambda _, args, kwargs, out, calls=calls: calls.append((args, kwargs, out.clone())),
            with_kwargs=True,
        )
        with torch.no_grad(), floating(model):
            for each in batches:
                model(each)
        hook.remove()
        for precision in precisions:
            apply(model, precision)
            errors = []
            for factors in (True, False):
                kept = [dict(layer.refined) for layer in layers]
                for layer in layers if not factors else ():
                    layer.refined = {}
                with torch.no_grad():
                    errors.append(
                        sum(
                            float(
                                (module(*args, **kwargs) - out).square().sum() / out.square().sum()
                            )
                            for args, kwargs, out in calls
                        )
                    )
                for layer, factor in zip(layers, kept, strict=True):
                    layer.refined = factor
            assert errors[0] <= errors[1] * (1 + 1e-6)


def test_eight_bit_weights_stay_free_of_saturation() -> None:
    batches = [noise(9, 32, seed=seed) for seed in range(2)]
    model = ready(nn.Sequential(nn.Linear(32, 4)), batches, W8A8)
    refine(model, batches)
    codes = model[0].weight_codes
    assert int((codes[:, ::2] + codes[:, 1::2]).abs().max()) <= 128


def test_saved_loaded_and_forgotten_by_a_new_calibration(tmp_path: Path) -> None:
    batches = [noise(4, 3, 12, 12, seed=seed) for seed in range(2)]
    torch.manual_seed(0)
    model = ready(ResNet(), batches, W2A8)
    plain = model(batches[0])
    refine(model, batches)
    refined = model(batches[0])
    save_calibration(model, tmp_path / "c.safetensors")
    calibrate(model, batches)
    assert torch.equal(model(batches[0]), plain)
    load_calibration(model, tmp_path / "c.safetensors")
    assert torch.equal(model(batches[0]), refined)


def test_integers_that_were_learned_for_other_factors_are_forgotten() -> None:
    batches = [noise(9, 32, seed=seed) for seed in range(2)]
    model = ready(nn.Sequential(nn.Linear(32, 4)), batches, W2A8)
    reconstruct(model, batches)
    refine(model, batches)
    layer = model[0]
    assert isinstance(layer, QuantLayer)
    assert not layer.rounded


def test_layers_that_no_batch_reaches_have_no_row() -> None:
    batches = [two_sensor_batch(0)]
    model = ready(TwoSensors(), batches, W4A8)
    assert {row.layer for row in refine(model, batches)} == {"camera.0", "voxels", "fuse"}


def test_refused_without_layers_or_batches() -> None:
    batches = [noise(9, 32)]
    model = ready(nn.Sequential(nn.Linear(32, 4)), batches, W8A8)
    with pytest.raises(BevquantError, match="no batch"):
        refine(model, [])
    with pytest.raises(BevquantError, match="no layer is quantized"):
        refine(restore(model), batches)

import warnings
from collections.abc import Callable
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
    BitPolicy,
    apply,
    calibrate,
    fold_batchnorm,
    quantize,
    reconstruct,
    refine,
    restore,
)
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.layers import QuantLayer, floating, quant_modules
from bevquant.quant.spec import Precision, Scheme

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "resnet": (ResNet, lambda seed: noise(8, 3, 12, 12, seed=seed)),
    "vit": (ViTBlock, lambda seed: noise(4, 20, 8, seed=seed)),
    "two sensors": (TwoSensors, two_sensor_batch),
}


class PicksQueries(nn.Module):
    """Like a detection head: the best rows of a score go on, in the order of the score."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score, self.out = nn.Linear(6, 12), nn.Linear(12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).relu()
        rows = self.score(features).flatten(1).topk(5, dim=1).indices
        return self.out(features.gather(1, rows[..., None].expand(-1, -1, 12)))


def output(model: nn.Module, batch: Any) -> Tensor:
    result = model(batch)
    return result["fused"] if isinstance(result, dict) else result


@torch.no_grad()
def loss(model: nn.Module, batches: list[Any]) -> float:
    """Error of the quantized outputs, as a share of the float outputs' variance."""
    total = 0.0
    for batch in batches:
        with floating(model):
            wanted = output(model, batch)
        total += float((output(model, batch) - wanted).square().mean() / wanted.var())
    return total / len(batches)


def prepared(
    name: str, precision: Precision, scheme: Scheme = DEPLOY
) -> tuple[nn.Module, list[Any]]:
    build, batch = NETS[name]
    torch.manual_seed(0)
    model = seeded(build())
    batches = [batch(seed) for seed in range(6)]
    fold_batchnorm(model, batches[0])
    calibrate(quantize(model, precision, scheme), batches)
    return model, batches


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
def test_two_bit_outputs_come_much_closer_to_float(name: str, scheme: Scheme) -> None:
    model, batches = prepared(name, W2A8, scheme)
    unseen = [NETS[name][1](seed) for seed in range(100, 104)]
    before = loss(model, unseen)
    left = reconstruct(model, batches)
    assert loss(model, unseen) < 0.8 * before
    assert left == (("up.0",) if name == "resnet" else ())


def test_eight_bit_weights_stay_and_biases_bring_the_mean_back() -> None:
    model, batches = prepared("resnet", Precision(8, 4))
    weights = {m.name: m.weight_codes for m in quant_modules(model) if isinstance(m, QuantLayer)}

    def shift() -> float:
        with torch.no_grad():
            quantized = torch.cat([model(batch) for batch in batches]).mean(0)
            with floating(model):
                wanted = torch.cat([model(batch) for batch in batches]).mean(0)
        return float((quantized - wanted).abs().max())

    before = shift()
    reconstruct(model, batches)
    assert shift() < 0.05 * before
    for layer in quant_modules(model):
        assert isinstance(layer, QuantLayer)
        assert torch.equal(layer.weight_codes, weights[layer.name])


def test_rows_are_compared_with_the_rows_that_the_float_network_picked() -> None:
    model = seeded(PicksQueries())
    batches = [noise(4, 30, 6, seed=seed) for seed in range(6)]
    calibrate(quantize(model, W2A8), batches)
    reconstruct(model, batches)
    layer = model.out
    assert isinstance(layer, QuantLayer)
    with torch.no_grad():
        features = noise(500, 12).abs()
        with floating(model):
            wanted = layer(features)
        error = (layer(features) - wanted).square().mean() / wanted.var()
    assert error < 0.5  # unrelated rows would teach the layer nothing but the mean


def test_same_seed_same_bits_and_another_seed_other_samples() -> None:
    codes = []
    for seed in (3, 3, 4):
        model, batches = prepared("resnet", W2A8)
        reconstruct(model, batches, samples=20, seed=seed)
        layers = [m for m in quant_modules(model) if isinstance(m, QuantLayer)]
        codes.append(torch.cat([layer.weight_codes.flatten() for layer in layers]))
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_kept_for_each_precision_until_calibrated_anew() -> None:
    model, batches = prepared("resnet", W2A8)
    reconstruct(model, batches)
    two = model(batches[0])
    four_plain = apply(model, W4A8)(batches[0])
    reconstruct(model, batches)
    assert not torch.equal(model(batches[0]), four_plain)
    assert torch.equal(apply(model, W2A8)(batches[0]), two)
    calibrate(model, batches)
    assert not torch.equal(model(batches[0]), two)
    assert torch.equal(apply(model, W4A8)(batches[0]), four_plain)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_several_precisions_at_once_as_if_one_layer_after_the_other_had_it_alone(name: str) -> None:
    model, batches = prepared(name, W8A8)
    reconstruct(model, batches, precisions=(W8A8, W4A8, W2A8))
    assert {layer.precision for layer in quant_modules(model)} == {W8A8}
    alone, _ = prepared(name, W8A8)
    layers = [layer for layer in quant_modules(model) if isinstance(layer, QuantLayer)]
    compared = 0
    for layer in [layer for layer in layers if layer.rounded]:
        for precision in (W4A8, W2A8):
            if precision not in layer.rounded:
                continue
            apply(alone, BitPolicy({"*": W8A8, layer.name: precision}))
            reconstruct(alone, batches)
            same = next(other for other in quant_modules(alone) if other.name == layer.name)
            assert isinstance(same, QuantLayer)
            if precision in same.rounded:  # not dropped as no better for the whole network
                assert torch.equal(same.weight_codes, layer.rounded[precision].codes)
                compared += 1
    assert compared >= len(layers)


def test_saved_and_loaded_in_another_model_to_the_same_bits(tmp_path: Path) -> None:
    model, batches = prepared("resnet", W2A8)
    reconstruct(model, batches)
    apply(model, W8A8)
    reconstruct(model, batches)
    save_calibration(model, tmp_path / "calibration.safetensors")
    other = seeded(ResNet())
    fold_batchnorm(other, batches[0])
    quantize(other, W2A8)
    load_calibration(other, tmp_path / "calibration.safetensors")
    for precision in (W2A8, W8A8):
        assert torch.equal(apply(other, precision)(batches[0]), apply(model, precision)(batches[0]))


def test_restore_gives_the_float_network_back() -> None:
    torch.manual_seed(0)
    model, batch = seeded(ResNet()), noise(2, 3, 12, 12)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(quantize(model, W2A8), [batch])
    reconstruct(model, [batch])
    restore(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_refused_without_layers_or_batches() -> None:
    model, batches = prepared("vit", W2A8)
    with pytest.raises(BevquantError, match="no batch"):
        reconstruct(model, [])
    with pytest.raises(BevquantError, match="no layer is quantized"):
        reconstruct(restore(model), batches)


@pytest.mark.parametrize("find", [refine, reconstruct])
@pytest.mark.parametrize("how", ["state", "average"])
def test_other_weights_are_used_and_what_was_found_is_forgotten(
    find: Callable[..., Any], how: str, tmp_path: Path
) -> None:
    batches = [noise(8, 3, 12, 12, seed=seed) for seed in range(2)]
    model = quantize(seeded(ResNet()), W2A8)
    calibrate(model, batches)
    with torch.no_grad():
        plain = model(batches[0])
    other = seeded(ResNet(), seed=1)
    find(model, batches)
    with torch.no_grad():
        assert not torch.equal(model(batches[0]), plain)
    names = {name: name.replace("wrapped.", "") for name in model.state_dict()}
    if how == "state":
        model.load_state_dict({name: other.state_dict()[key] for name, key in names.items()})
    else:
        for name, value in model.state_dict().items():
            value.data.copy_(other.state_dict()[names[name]])
    fresh = quantize(other, W2A8)
    ranges = {layer.name: layer for layer in quant_modules(model)}
    for layer in quant_modules(fresh):
        for mine, kept in zip(layer.inputs, ranges[layer.name].inputs, strict=True):
            mine.ranges = kept.ranges
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_calibration(model, tmp_path / "c.safetensors")  # may be the first to ask
        with torch.no_grad():
            assert torch.equal(model(batches[0]), fresh(batches[0]))
    (warning,) = caught  # one for all layers
    assert "stem.0: its weight or bias has changed" in str(warning.message)
    load_calibration(fresh, tmp_path / "c.safetensors")
    with torch.no_grad():
        assert torch.equal(model(batches[0]), fresh(batches[0]))

    find(model, batches)  # and it is found anew, for the new weights
    with torch.no_grad():
        assert not torch.equal(model(batches[0]), fresh(batches[0]))
        model.head.wrapped.weight.data.neg_()
        with pytest.warns(UserWarning, match="head: its weight or bias has changed"):
            model(batches[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("precision", [W8A8, W4A8], ids=str)
def test_never_ends_behind_where_it_started(seed: int, precision: Precision) -> None:
    """Of inputs with heavy tails, and of few of them: what is fitted to them need not help."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()
    batches = [torch.randn(1, 3, 8, 8) * torch.rand(1, 3, 1, 1).pow(-1.5) for _ in range(3)]
    with torch.no_grad():
        wanted = [model(batch) for batch in batches]
    quantize(model, precision)
    calibrate(model, batches)

    def loss() -> float:
        with torch.no_grad():
            pairs = zip(batches, wanted, strict=True)
            return sum(float((model(x) - y).square().sum() / y.square().sum()) for x, y in pairs)

    before = loss()
    reconstruct(model, batches)
    assert loss() <= before * (1 + 1e-6)


def test_a_bias_fitted_to_a_single_sample_is_not_kept() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(1, 6)
    quantize(model, W8A8)
    calibrate(model, [torch.randn(64, 6), x])
    assert reconstruct(model, [x]) == ("0",)

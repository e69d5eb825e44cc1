import copy

import pytest
import torch
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.layers import QuantLayer, QuantModule, quant_modules
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize, restore
from bevquant.quant.spec import THESIS, W2A8, W4A8, W8A8, W16A16


def error(reference: Tensor, actual: Tensor) -> float:
    return float((reference - actual).norm() / reference.norm())


@pytest.mark.parametrize("net", [ResNet, ViTBlock])
@pytest.mark.parametrize("scheme", [THESIS, None])
def test_error_falls_with_every_bit_and_16_are_nearly_float(
    net: type[nn.Module], scheme: object
) -> None:
    model = seeded(net())
    x = noise(2, 3, 8, 8) if net is ResNet else noise(2, 5, 8)
    with torch.no_grad():
        reference = model(x)
        model = quantize(model, W8A8, *([scheme] if scheme else []))
        assert torch.equal(model(x), reference)  # float until calibrated
        calibrate(model, [x])
        errors = [error(reference, apply(model, p)(x)) for p in (W2A8, W4A8, W8A8, W16A16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 1e-3
    assert errors[2] < 0.1


def test_restore_returns_the_very_same_modules_and_numbers() -> None:
    model = seeded(ResNet())
    modules = dict(model.named_modules())
    state = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    x = noise(2, 3, 8, 8)
    fold_batchnorm(model, x)
    quantize(model, W4A8)
    calibrate(model, [x])
    restore(model)
    assert all(found is modules[name] for name, found in model.named_modules())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(found is parameters[name] for name, found in model.named_parameters())
    assert not [key for key in vars(model) if "bevquant" in key]


def test_a_policy_leaves_layers_float_that_apply_can_quantize_later() -> None:
    model = seeded(ResNet())
    x = noise(2, 3, 8, 8)
    quantize(model, BitPolicy({"*": None, "head": W4A8}))
    calibrate(model, [x])
    with torch.no_grad():
        partly = model(x)
        apply(model, W4A8)
        fully = model(x)
    assert sum(layer.precision == W4A8 for layer in quant_modules(model)) == 8
    assert not torch.equal(partly, fully)


def test_a_module_under_two_names_and_called_twice_is_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first
            self.blocks = nn.ModuleList([self.first])

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.blocks[0](x) * 100)

    model = Twice()
    original = model.first
    x = noise(3, 4)
    inner = model.first(x) * 100
    quantize(model, W8A8)
    assert isinstance(model.first, QuantLayer)
    assert model.first is model.second is model.blocks[0]
    calibrate(model, [x])
    (layer,) = quant_modules(model)
    assert layer.name == "first"
    assert layer.inputs[0].ranges
    assert layer.inputs[0].ranges[8].maximum == torch.cat((x, inner)).max()
    restore(model)
    assert model.first is model.second is model.blocks[0] is original


def test_dictionaries_and_sparse_layers() -> None:
    model = seeded(TwoSensors())
    batches = [two_sensor_batch(seed) for seed in range(3)]
    with torch.no_grad():
        reference = model(batches[0])["fused"]
        quantize(model, W16A16)
        calibrate(model, batches)
        assert error(reference, model(batches[0])["fused"]) < 1e-3


def test_the_training_mode_of_each_layer_is_kept() -> None:
    model = ResNet().train()
    model.head.eval()
    quantize(model, W8A8)
    assert not model.head.training
    assert model.stem[0].training


def test_a_copy_is_independent() -> None:
    model = quantize(seeded(ResNet()), W4A8)
    x = noise(2, 3, 8, 8)
    calibrate(model, [x])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        apply(model, W2A8)
        assert torch.equal(twin(x), expected)
        restore(twin)
    assert not [m for m in twin.modules() if isinstance(m, QuantModule)]


def test_layers_know_their_main_module() -> None:
    model = quantize(seeded(ResNet()), W8A8, main_modules=("body", "body.1", "head"))
    named = {layer.name: layer.main_module for layer in quant_modules(model)}
    assert named["body.0.conv1"] == "body"
    assert named["body.1.shortcut"] == "body.1"
    assert named["head"] == "head"
    assert named["stem.0"] == ""


def test_wrong_requests() -> None:
    with pytest.raises(BevquantError, match="no layer that can be quantized"):
        quantize(nn.Sequential(nn.ReLU()), W8A8)
    with pytest.raises(BevquantError, match=r"wrap it in nn\.Sequential"):
        quantize(nn.Linear(2, 2), W8A8)
    with pytest.raises(BevquantError, match="'neck' is no module"):
        quantize(ResNet(), W8A8, main_modules=["neck"])
    with pytest.raises(BevquantError, match="call quantize first"):
        apply(ResNet(), W8A8)
    model = ResNet()
    with pytest.raises(BevquantError, match="matches no layer"):
        quantize(model, BitPolicy({"neck.*": W8A8}))
    with pytest.raises(BevquantError, match="leaves every layer float"):
        quantize(model, BitPolicy({"body.*": None}))
    assert not quant_modules(model)
    quantize(model, W8A8)
    with pytest.raises(BevquantError, match="quantized already"):
        quantize(model, W8A8)

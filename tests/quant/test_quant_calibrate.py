import pytest
import torch
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.layers import quant_modules
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.spec import DEPLOY, THESIS, W2A8, W8A8


def test_ranges_are_those_of_the_float_network_over_all_batches() -> None:
    model = seeded(ViTBlock())
    batches = [noise(2, tokens, 8, seed=tokens) for tokens in (3, 4, 5)]
    inputs: dict[str, list[Tensor]] = {}
    for name in ("qkv", "scores", "mix", "proj"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach())
        )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    expected = {name: torch.cat([x.flatten() for x in seen]) for name, seen in inputs.items()}

    quantize(model, W2A8, DEPLOY)
    calibrate(model, batches)
    for repeat in range(2):  # calibrating a quantized model must not see quantized activations
        for layer in quant_modules(model):
            values = layer.inputs[0].ranges[8]
            assert values is not None
            assert values.minimum == expected[layer.name].min()
            assert values.maximum == expected[layer.name].max()
        calibrate(model, batches) if repeat == 0 else None


def test_per_channel_ranges() -> None:
    model = quantize(seeded(ResNet()), W8A8, THESIS)
    x = noise(4, 3, 8, 8)
    calibrate(model, x.split(1))
    values = model.stem[0].inputs[0].ranges[8]
    assert torch.equal(values.minimum.flatten(), x.transpose(0, 1).flatten(1).min(1).values)
    assert values.minimum.shape == (3, 1, 1)


def test_modes_and_batch_norm_statistics_are_left_alone() -> None:
    model = seeded(ResNet()).train()
    model.body.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    quantize(model, W8A8)
    calibrate(model, [noise(2, 3, 8, 8)])
    assert all(model.get_submodule(name).training == mode for name, mode in modes.items())
    buffers = {name: value for name, value in model.state_dict().items() if "running" in name}
    assert all(torch.equal(value, before[name]) for name, value in buffers.items())


def test_a_batch_of_any_type_with_a_forward_of_ones_own() -> None:
    model = quantize(seeded(TwoSensors()), W8A8)
    batches = [(two_sensor_batch(seed), "label") for seed in range(2)]
    calibrate(model, iter(batches), lambda net, batch: net(batch[0]))
    assert model.fuse.quantized
    assert not model.auxiliary.quantized  # never called: runs float
    model.auxiliary(torch.zeros(1, 4))


def test_wrong_calibrations_change_nothing() -> None:
    model = seeded(ResNet())
    x = noise(1, 3, 8, 8)
    with pytest.raises(BevquantError, match="call quantize first"):
        calibrate(model, [x])
    quantize(model, W8A8)
    with pytest.raises(BevquantError, match="no batch"):
        calibrate(model, [])
    with pytest.raises(BevquantError, match="no quantized layer was called"):
        calibrate(model, [x], lambda net, batch: None)
    calibrate(model, [x])
    before = model.head.inputs[0].ranges[8]
    for bad in (float("nan"), float("inf")):
        poisoned = x.clone()
        poisoned[0, 0, 0, 0] = bad
        with pytest.raises(BevquantError, match=r"stem\.0: NaN or infinity in its input, batch 1"):
            calibrate(model, [x, poisoned])
    with pytest.raises(RuntimeError):
        calibrate(model, [x, noise(1, 4, 8, 8)])
    assert model.head.inputs[0].ranges[8] is before
    assert all(layer.quantized for layer in quant_modules(model))
    assert not any(layer._forward_pre_hooks for layer in quant_modules(model))


def test_a_layer_that_is_given_no_rows_has_no_range() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.all = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.rows(x[:0]).sum() + self.all(x)

    model = quantize(Empty(), W8A8)
    calibrate(model, [noise(3, 4)])
    assert not model.rows.quantized
    assert model.all.quantized


def test_other_bits_need_no_new_calibration() -> None:
    x = noise(2, 3, 8, 8)
    once = quantize(seeded(ResNet()), W8A8)
    calibrate(once, [x])
    anew = quantize(seeded(ResNet()), W2A8)
    calibrate(anew, [x])
    with torch.no_grad():
        assert torch.equal(apply(once, W2A8)(x), anew(x))

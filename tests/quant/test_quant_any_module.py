"""What people's networks do that a quantizer may trip over."""

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.quant.calibrate import calibrate
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.inventory import unquantized
from bevquant.quant.layers import QuantLayer, quant_modules
from bevquant.quant.prepare import apply, quantize, restore
from bevquant.quant.spec import DEPLOY, THESIS, W2A8, W4A8, W8A8, W16A16, Scheme


@pytest.mark.parametrize("scheme", [DEPLOY, THESIS], ids=["deploy", "thesis"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision(dtype: torch.dtype, scheme: Scheme) -> None:
    x = noise(2, 3, 8, 8)
    model = ResNet().eval()
    with torch.no_grad():
        exact = model(x)
        model.to(dtype)
        parameters = copy.deepcopy(model.state_dict())
        expected = model(x.to(dtype))
        fold_batchnorm(model, x.to(dtype))
        quantize(model, W8A8, scheme)
        calibrate(model, [x.to(dtype)])
        actual = model(x.to(dtype))
        assert actual.dtype == dtype
        for layer in quant_modules(model):
            assert layer.inputs[0].ranges[8].minimum.dtype == torch.float32
        half = (expected.float() - exact).norm()
        assert (actual.float() - exact).norm() < 5 * half + 0.05 * exact.norm()
        assert torch.equal(restore(model)(x.to(dtype)), expected)
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())


def test_a_network_cast_after_folding_comes_back_in_its_new_type() -> None:
    model = ResNet().eval()
    fold_batchnorm(model, noise(2, 3, 8, 8))
    quantize(model, W8A8)
    restore(model.double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model(noise(2, 3, 8, 8).double())


class Sample(NamedTuple):
    image: Tensor
    label: str


class Custom:
    """A batch of a class that nothing but the model knows."""

    def __init__(self, image: Tensor) -> None:
        self.image = image


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"image": x, "label": "car"},
        lambda x: (x, "car"),
        lambda x: Sample(x, "car"),
        Custom,
    ],
    ids=["dict", "tuple", "named tuple", "class"],
)
def test_a_batch_of_any_type(make: Any) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ResNet()

        def forward(self, batch: Any) -> Any:
            if isinstance(batch, dict):
                image = batch["image"]
            else:
                image = batch[0] if isinstance(batch, tuple) else batch.image
            return {"boxes": [self.net(image)]}

    def batches() -> Iterator[Any]:  # seen once, as from a loader
        for seed in range(2):
            yield make(noise(2, 3, 8, 8, seed=seed))

    model = seeded(Reader())
    assert len(fold_batchnorm(model, next(batches()))) == 6
    quantize(model, W8A8, batch=next(batches()))
    calibrate(model, batches())
    assert all(layer.quantized for layer in quant_modules(model))
    assert not [u for u in unquantized(model) if "BatchNorm" in u.kind]


def test_an_activation_in_place_after_a_quantized_layer() -> None:
    class InPlace(nn.Module):
        """The very tensor that one layer returned, and another one reads, is changed."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = self.second(y)
            y.relu_()
            z += self.third(y)
            return z

    class OutOfPlace(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + self.third(y.relu())

    x = noise(5, 6)
    outputs = []
    for net in (InPlace, OutOfPlace):
        model = quantize(seeded(net()), W4A8)
        calibrate(model, [x])
        for _ in range(2):  # nothing that is kept has been changed
            y = model(x)
            (gradient,) = torch.autograd.grad(y.square().sum(), model.second.wrapped.weight)
            with torch.no_grad():
                outputs += [y.detach(), model(x), gradient]
    first, without_gradient, gradient, *others = outputs
    assert torch.equal(first, without_gradient)
    for same, other in zip((first, first, gradient) * 3, others, strict=True):
        assert torch.equal(same, other)


def test_a_layer_that_calibration_did_not_reach() -> None:
    model = seeded(TwoSensors())
    quantize(model, W8A8)
    count = len(quant_modules(model))
    assert unquantized(model)[0].reason == f"not calibrated yet, all {count} layers: call calibrate"
    calibrate(model, [two_sensor_batch()])
    listed = {entry.name: entry.reason for entry in unquantized(model)}
    assert listed["auxiliary"].startswith("never called in calibration")
    assert "fuse" not in listed
    x = noise(3, 4)
    assert torch.equal(model.auxiliary(x), model.auxiliary.wrapped(x))


def test_shared_modules_are_quantized_once_whatever_they_hold() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            self.right = nn.Sequential(*self.left)  # other container, same layers
            self.tied = nn.Conv2d(3, 4, 3, bias=False)
            self.tied.weight = self.left[0].weight  # other layer, same weight

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.left(pair[0]) + self.right(pair[1]) + self.tied(pair[0])

    model = seeded(Siamese())
    pair = noise(2, 3, 5, 5), 3 * noise(2, 3, 5, 5, seed=1)
    with torch.no_grad():
        expected = model(pair)
        assert fold_batchnorm(model, pair) == ("left.1",)
        torch.testing.assert_close(model(pair), expected)  # the tied layer keeps its weight
        quantize(model, W16A16)
        calibrate(model, [pair])
        assert [layer.name for layer in quant_modules(model)] == ["left.0", "tied"]
        assert model.left[0].inputs[0].ranges[16].maximum == max(x.max() for x in pair)
        torch.testing.assert_close(model(pair), expected, rtol=1e-2, atol=1e-2)
        restore(model)
        assert model.tied.weight is model.left[0].weight
        assert torch.equal(model(pair), expected)


@pytest.mark.parametrize("net", [ResNet, ViTBlock])
def test_copies_pickles_and_states(net: type[nn.Module]) -> None:
    x = noise(2, 3, 8, 8) if net is ResNet else noise(2, 5, 8)
    model = seeded(net())
    with torch.no_grad():
        floats = model(x)
        fold_batchnorm(model, x)
        quantize(model, W4A8)
        calibrate(model, [x])
        expected = model(x)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), expected)
            assert not torch.equal(apply(twin, W2A8)(x), expected)
            for parameter in twin.parameters():
                parameter.zero_()
            assert torch.equal(model(x), expected)  # nothing is shared

            buffer.seek(0)
            twin.load_state_dict(torch.load(buffer, weights_only=True))
            assert torch.equal(apply(twin, W4A8)(x), expected)
            restore(twin)
            assert not [m for m in twin.modules() if isinstance(m, QuantLayer)]
        assert torch.equal(model(x), expected)
        assert torch.equal(restore(model)(x), floats)

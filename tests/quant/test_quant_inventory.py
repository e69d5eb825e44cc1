import pytest
import torch
import torch.nn.functional as F
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.inventory import layers, unquantized
from bevquant.quant.layers import QuantModule
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import quantize
from bevquant.quant.spec import W4A8, W8A8


def test_macs_are_those_of_the_formulas() -> None:
    infos = {info.name: info for info in layers(ResNet(8), noise(2, 3, 8, 8))}
    assert infos["stem.0"].macs == 2 * 8 * 8 * 8 * 3 * 9
    assert infos["body.1.conv1"].macs == 2 * 4 * 4 * 16 * 8 * 9
    assert infos["up.0"].macs == 2 * 4 * 4 * 16 * (8 // 2) * 4
    assert infos["head"].macs == 2 * 8 * 4
    assert infos["head"].weight_shape == (4, 8)
    assert infos["head"].weights == 32
    assert infos["body.1.conv1"].main_module == "body"

    vit = {info.name: info for info in layers(ViTBlock(8, 2), noise(3, 5, 8))}
    assert vit["scores"].macs == 3 * 2 * 5 * 5 * 4
    assert vit["scores"].weight_shape is None
    assert vit["qkv"].macs == 3 * 5 * 8 * 24


def test_layers_come_in_the_order_of_their_calls_and_count_every_call() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.never = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.first(x)))

    model = Reversed()
    assert [info.name for info in layers(model)] == ["last", "first", "never"]
    assert {info.macs for info in layers(model)} == {None}
    counted = [(info.name, info.macs) for info in layers(model, noise(3, 4))]
    assert counted == [("first", 96), ("last", 48), ("never", 0)]

    quantize(model, BitPolicy({"*": W8A8, "last": None}))
    calibrate(model, [noise(3, 4)])
    assert [(info.name, info.macs) for info in layers(model)] == counted
    assert [info.precision for info in layers(model)] == [W8A8, None, W8A8]


class Oddities(nn.Module):
    """One of everything that cannot be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.batch_norm = nn.BatchNorm1d(8)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.normed = weight_norm(nn.Linear(8, 8))
        self.custom = Scaled(8, 8)
        self.lazy = nn.LazyLinear(4)
        self.plain = nn.Linear(8, 8)
        self.read_only = nn.Linear(8, 8)
        self.projection = nn.Parameter(torch.randn(8, 8))
        self.products = Products()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        x, _ = self.recurrent(self.attention(x, x, x)[0])
        x = self.custom(self.normed(x)) @ self.projection
        x = self.batch_norm(F.linear(x, self.read_only.weight).transpose(1, 2)).transpose(1, 2)
        return self.plain(self.products(x))


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def test_everything_that_stays_float_is_listed_with_its_reason() -> None:
    model = Oddities().eval()
    quantize(model, W8A8)
    before = [x.reason for x in unquantized(model)]
    assert sum("not calibrated yet" in reason for reason in before) == 1
    assert any("a look-up in a table" in reason for reason in before)
    calibrate(model, [torch.arange(6).view(1, 6)])
    found = dict(entries(model))
    expected = {
        "": "its own code uses its parameters projection (768 MACs)",
        "embedding": "a look-up in a table",
        "norm": "statistics of each input",
        "batch_norm": "fold_batchnorm",
        "recurrent": "recurrent",
        "normed": "parametrization",
        "normed.parametrizations.weight": "parameters original0, original1",
        "custom": "overrides the forward of Linear",
        "lazy": "no shape yet",
        "read_only": "never called in calibration",
        "products": "products in its own code",
    }
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name], (name, found[name])


def entries(model: nn.Module) -> list[tuple[str, str]]:
    return [(entry.name, entry.reason) for entry in unquantized(model)]


def test_every_parameter_is_quantized_or_accounted_for() -> None:
    for model, batch in (
        (seeded(ResNet()), noise(1, 3, 8, 8)),
        (seeded(ViTBlock()), noise(1, 3, 8)),
        (seeded(TwoSensors()), two_sensor_batch()),
    ):
        quantize(model, W4A8)
        calibrate(model, [batch])
        listed = {entry.name for entry in unquantized(model)}
        inside = [m.wrapped for m in model.modules() if isinstance(m, QuantModule) and m.quantized]
        owners = {
            name
            for name, module in model.named_modules()
            if any(True for _ in module.parameters(recurse=False)) and module not in inside
        }
        assert {name.removesuffix(".wrapped") for name in owners} == listed


def test_a_layer_that_the_policy_leaves_float_is_listed() -> None:
    model = quantize(seeded(ViTBlock()), BitPolicy({"*": W8A8, "mix": None}))
    calibrate(model, [noise(1, 3, 8)])
    assert dict(entries(model))["mix"] == "left float by the policy (72 MACs)"


def test_layers_in_a_plain_list_are_named_as_what_they_are() -> None:
    class Unregistered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [nn.Linear(4, 4), nn.ReLU()]
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x)
            return self.last(x)

    model, x = Unregistered().eval(), torch.randn(3, 4)
    quantize(model, W8A8, batch=x)
    calibrate(model, [x])
    (found,) = unquantized(model)
    assert "attribute steps, a plain container" in found.reason
    assert "nn.ModuleList" in found.reason


def test_complex_layers_stay_float_and_are_listed() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, dtype=torch.cfloat)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.to(torch.cfloat)).abs())

    model, x = Complex().eval(), torch.randn(3, 4)
    quantize(model, W8A8)
    calibrate(model, [x])
    model(x)
    (found,) = unquantized(model)
    assert (found.name, found.reason.split(" (")[0]) == (
        "first",
        "its weight is complex64: no real numbers to round",
    )


def test_denormal_weights_and_models_of_inference_mode_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[0, 0] = 1e-40
    with pytest.warns(UserWarning, match=r"1 parameters hold denormal numbers, 0\.weight"):
        quantize(model, W8A8)
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(BevquantError, match=r"0\.weight was made inside torch\.inference_mode"):
        quantize(model, W8A8)

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quant_nets import GatherConv, ResNet, TwoSensors, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.inventory import unquantized
from bevquant.quant.prepare import quantize, restore
from bevquant.quant.spec import W8A8


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 7, 8)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 4, 7, 8)),
        (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (1, 2, 4, 5, 3)),
        (nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6), (2, 4, 3, 3)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 3, 3)),
        (nn.Linear(5, 3), nn.BatchNorm1d(3), (8, 5)),
        (nn.Linear(5, 3, bias=False), nn.SyncBatchNorm(3), (8, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_folding_keeps_the_function(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]
) -> None:
    model = seeded(nn.Sequential(layer, nn.Dropout(), norm, nn.ReLU()))
    x = noise(*shape)
    with torch.no_grad():
        expected = model(x)
        assert fold_batchnorm(model, x) == ("2",)
        assert not any(isinstance(m, type(norm)) for m in model.modules())
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        restore(model)
        assert model[2] is norm
        assert torch.equal(model(x), expected)


def test_a_whole_network() -> None:
    model = seeded(ResNet())
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert len(fold_batchnorm(model, x)) == 6
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_bias_leaves_its_share_at_the_norms_place() -> None:
    model = seeded(TwoSensors())
    batch = two_sensor_batch()
    with torch.no_grad():
        expected = model(batch)["fused"]
        assert fold_batchnorm(model, batch) == ("camera.1", "voxel_norm")
        assert model.voxel_norm.shift.shape == (4,)
        assert isinstance(model.voxels, GatherConv)
        torch.testing.assert_close(model(batch)["fused"], expected, rtol=1e-5, atol=1e-5)


class Graph(nn.Module):
    """A convolution and a norm, wired in ways that forbid folding, and one that allows it."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.second_norm = nn.BatchNorm2d(3)
        self.wiring = wiring
        self.kept: Any = None

    def forward(self, x: Tensor) -> Any:  # noqa: PLR0911
        y = self.conv(x)
        match self.wiring:
            case "alone":
                return self.norm(y.view(y.shape) if y.shape[0] == 0 else y)
            case "read elsewhere":
                return self.norm(y) + y.mean()
            case "returned":
                return {"features": y, "out": self.norm(y)}
            case "stored":
                self.kept = y
                return self.norm(y)
            case "changed in place":
                return self.norm(y.relu_())
            case "a view":
                return self.norm(y.flatten(2).unflatten(2, (-1, 1)))
            case "two norms":
                return self.norm(y) + self.second_norm(y)
            case "two layers":
                return self.norm(y) + self.norm(self.other(x))
            case "not a layer's output":
                return self.norm(y) + self.norm(x)
            case "called bare":
                return self.norm(y) + self.conv(x)
        raise ValueError(self.wiring)


@pytest.mark.parametrize(
    "wiring",
    [
        "read elsewhere",
        "returned",
        "stored",
        "changed in place",
        "a view",
        "two norms",
        "two layers",
        "not a layer's output",
        "called bare",
    ],
)
def test_what_cannot_be_folded_is_left_alone(wiring: str) -> None:
    model = seeded(Graph(wiring))
    x = noise(2, 3, 4, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold_batchnorm(model, x) == ()
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_shared_pair_is_folded_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, levels: list[Tensor]) -> Tensor:
            return sum(self.norm(self.conv(level)).mean() for level in levels)

    model, levels = seeded(Shared()), [noise(1, 3, 4, 4), noise(1, 3, 2, 2, seed=1)]
    expected = model(levels)
    assert fold_batchnorm(model, levels) == ("norm",)
    torch.testing.assert_close(model(levels), expected)


def test_one_norm_alone_on_its_layer_is_folded_shapes_read_or_not() -> None:
    assert fold_batchnorm(seeded(Graph("alone")), noise(2, 3, 4, 4)) == ("norm",)


def test_a_norm_over_another_axis_is_left_alone() -> None:
    model = seeded(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    assert fold_batchnorm(model, noise(2, 4, 5)) == ()


def test_a_norm_without_running_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    assert fold_batchnorm(model, noise(6, 5)) == ()


def test_the_mode_is_kept_and_statistics_are_not_updated() -> None:
    model = seeded(ResNet()).train()
    mean = model.stem[1].running_mean.clone()
    norm = model.stem[1]
    fold_batchnorm(model, noise(2, 3, 8, 8))
    assert model.training
    restore(model)
    assert norm.training
    assert torch.equal(norm.running_mean, mean)


def test_gradients_flow_into_the_folded_parameters() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    fold_batchnorm(model, noise(2, 3, 4, 4))
    model(noise(2, 3, 4, 4)).sum().backward()
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias"}
    assert model[0].weight.grad is not None


def test_a_quantized_model_is_refused() -> None:
    model = quantize(ResNet(), W8A8)
    with pytest.raises(BevquantError, match="fold before quantize"):
        fold_batchnorm(model, noise(1, 3, 8, 8))


def with_statistics(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.2, 3)
    return model.eval()


class ReadElsewhere(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.c, self.b, self.name = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), name

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.c(x))
        if self.name == "weight":
            return y + F.conv2d(x, self.c.weight)
        return y + self.c.bias.view(1, -1, 1, 1)


class Standardized(nn.Conv2d):
    """Changes its weight on the way to the product."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return super()._conv_forward(x, weight, bias)


def hooked(place: int, kind: str) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    if kind == "output":
        model[place].register_forward_hook(lambda _, __, output: output * 2 + 1)
    else:
        model[place].register_forward_pre_hook(lambda _, args: (args[0].abs(),))
    return model


def patched() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    forward = model[0].forward
    model[0].forward = lambda x: forward(x) * 3 + 1
    return model


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ReadElsewhere("weight"), "b"),
        (ReadElsewhere("bias"), "b"),
        (nn.Sequential(Standardized(3, 4, 3), nn.BatchNorm2d(4)), "1"),
        (hooked(0, "output"), "1"),
        (hooked(1, "output"), "1"),
        (patched(), "1"),
    ],
)
def test_what_cannot_be_kept_exact_is_left_alone_by_name(model: nn.Module, name: str) -> None:
    with_statistics(model)
    x = noise(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        with pytest.warns(UserWarning, match=f"left '{name}' alone"):
            assert fold_batchnorm(model, x) == ()
        torch.testing.assert_close(model(x), before)


def test_only_the_pair_that_is_not_exact_is_left() -> None:
    pairs = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(5)]
    model = with_statistics(nn.Sequential(*pairs[:3], ReadElsewhere("weight"), *pairs[3:]))
    x = noise(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        with pytest.warns(UserWarning, match=r"left '3\.b' alone"):
            assert fold_batchnorm(model, x) == ("0.1", "1.1", "2.1", "4.1", "5.1")
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
        restore(model)
        assert torch.equal(model(x), before)


class Aliased(nn.Module):
    """Calls its layers by a container that is no module."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        layers = list(self.encoder)
        self.steps: Any = {
            "list": layers,
            "tuple": tuple(layers),
            "dict": dict(enumerate(layers)),
            "nested": [tuple(layers[:2]), {"last": layers[2]}],
        }[kind]

    def forward(self, x: Tensor) -> Tensor:
        steps = self.steps.values() if isinstance(self.steps, dict) else self.steps
        for step in steps:
            if isinstance(step, tuple | dict):
                for inner in step.values() if isinstance(step, dict) else step:
                    x = inner(x)
            else:
                x = step(x)
        return x


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "nested"])
def test_layers_that_are_called_by_a_plain_container(kind: str) -> None:
    model = with_statistics(Aliased(kind))
    x = noise(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        assert fold_batchnorm(model, x) == ("encoder.1",)
        folded = model(x)
        torch.testing.assert_close(folded, before)
        quantize(model, W8A8)
        calibrate(model, [x])
        assert not unquantized(model)
        assert 0 < (model(x) - folded).norm() / folded.norm() < 0.05
        restore(model)
        assert torch.equal(model(x), before)


def test_a_model_with_an_attribute_called_modules() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.modules = [1]
            self.parameters = 2

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.c(x))

    model, x = Named().eval(), noise(2, 3, 6, 6)
    assert fold_batchnorm(model, x) == ("b",)
    quantize(model, W8A8)
    calibrate(model, [x])
    model(x)
    restore(model)


def test_a_norm_with_another_eps() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.5)))
    x = noise(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)
        assert fold_batchnorm(model, x) == ("1",)
        torch.testing.assert_close(model(x), before)


def test_folding_in_inference_mode_leaves_a_model_that_trains() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    x = noise(2, 3, 6, 6)
    with torch.inference_mode():
        fold_batchnorm(model, x)
        quantize(model, W8A8)
        calibrate(model, [x])
        model(x)
    model(x).sum().backward()
    assert model[0].wrapped.weight.grad.isfinite().all()

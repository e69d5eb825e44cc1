from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quant_nets import ResNet, TwoSensors, ViTBlock, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.calibrate import calibrate
from bevquant.quant.equalization.equalize import Equalized, equalize
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.prepare import quantize, restore
from bevquant.quant.spec import DEPLOY, W4A8, W8A8, Scheme, TensorScheme


def uneven(model: nn.Module, name: str) -> nn.Module:
    """Outputs of very different size, as trained networks have them."""
    layer = model.get_submodule(name)
    spread = torch.logspace(-2, 1, len(layer.bias))
    with torch.no_grad():
        layer.weight.mul_(spread.view(-1, *(1,) * (layer.weight.ndim - 1)))
        layer.bias.mul_(spread)
    return model


def done(rows: tuple[Equalized, ...]) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {row.producers: row.consumers for row in rows if row.strength is not None}


def assert_exact(model: nn.Module, batch: Any, rows: int) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        expected = model(batch)
        assert len(done(equalize(model, [batch], W8A8))) == rows
        torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
        assert rows == 0 or any(
            not torch.equal(value, state[name]) for name, value in model.state_dict().items()
        )
        restore(model)
        assert dict(model.named_parameters()).items() == parameters.items()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        torch.testing.assert_close(model(batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "between", "second", "shape"),
    [
        (nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), (2, 3, 9, 9)),
        (nn.Conv2d(3, 6, 3), nn.LeakyReLU(), nn.Conv2d(6, 4, 3, groups=2), (2, 3, 9, 9)),
        (nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, groups=6), (2, 3, 9, 9)),
        (nn.Conv2d(4, 6, 1, groups=2), nn.Dropout(), nn.ConvTranspose2d(6, 4, 2), (2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Identity(), nn.Conv2d(6, 3, 1), (1, 4, 5, 5)),
        (
            nn.Conv2d(3, 6, 3),
            nn.Sequential(nn.ReLU(), nn.Flatten()),
            nn.Linear(54, 2),
            (2, 3, 5, 5),
        ),
        (nn.Conv1d(3, 6, 3), nn.Upsample(scale_factor=2), nn.Conv1d(6, 2, 1), (2, 3, 9)),
        (nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2), (3, 4, 5)),
        (nn.LayerNorm(5), nn.Identity(), nn.Linear(5, 2), (3, 4, 5)),
        (nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 2, 3), (3, 6, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_pair_is_exact_and_reversible(
    first: nn.Module, between: nn.Module, second: nn.Module, shape: tuple[int, ...]
) -> None:
    model = seeded(nn.Sequential(first, between, second))
    if isinstance(first, (nn.LayerNorm, nn.GroupNorm)):
        with torch.no_grad():
            first.weight.copy_(torch.logspace(-2, 1, len(first.weight)))
    elif isinstance(first, nn.ConvTranspose2d):
        with torch.no_grad():
            first.weight[:2].mul_(0.01)  # the first of two groups
            first.bias[:3].mul_(0.01)
    else:
        uneven(model, "0")
    assert_exact(model, noise(*shape), rows=1)


class Graph(nn.Module):
    """Two producers and two consumers, wired in different ways."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.c, self.d = nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)
        self.wide = nn.Conv2d(12, 2, 1)
        self.wiring = wiring
        self.kept: Any = None

    def forward(self, x: Tensor) -> Any:  # noqa: PLR0911
        y = self.a(x).relu()
        match self.wiring:
            case "added":
                return self.c(y + self.b(x))
            case "two readers":
                return self.c(y) + self.d(y)
            case "concatenated":
                return self.wide(torch.cat([y, self.b(x)], 1))
            case "half of a concatenation":
                return self.wide(torch.cat([y, F.gelu(self.b(x))], 1))
            case "half of it read elsewhere":
                return self.c(y) + y[:, :3].sigmoid().sum()
            case "read elsewhere":
                return self.c(y) + y.sigmoid().sum()
            case "returned":
                return {"features": y, "out": self.c(y)}
            case "stored":
                self.kept = y
                return self.c(y)
            case "written into another tensor":
                buffer = torch.zeros_like(x).repeat(1, 2, 1, 1)
                buffer[:] = y
                return self.c(buffer)
            case "called twice":
                return self.c(y) + self.c(x.repeat(1, 2, 1, 1))
            case "multiplied":
                return self.c(torch.eye(6) @ y)
            case "bounded":
                return self.c(y.clamp(max=1e-2))
            case "weights read elsewhere":
                return self.c(y) + F.conv2d(x, self.a.weight).sum()
        raise ValueError(self.wiring)


@pytest.mark.parametrize(
    ("wiring", "producers", "consumers"),
    [
        ("added", ("a", "b"), ("c",)),
        ("two readers", ("a",), ("c", "d")),
        ("concatenated", ("a", "b"), ("wide",)),
        ("half of a concatenation", ("a",), ("wide",)),
        ("half of it read elsewhere", ("a",), ("c",)),
    ],
)
def test_branches(wiring: str, producers: tuple[str, ...], consumers: tuple[str, ...]) -> None:
    model, x = uneven(seeded(Graph(wiring)), "a"), noise(2, 3, 6, 6)
    if "b" in producers:  # the same unevenness, or what is tied cannot gain
        uneven(model, "b")
    rows = equalize(model, [x], W8A8)
    assert done(rows) == {producers: consumers}
    restore(model)
    assert_exact(model, x, rows=1)


@pytest.mark.parametrize(
    ("wiring", "reason"),
    [
        ("read elsewhere", "read by aten.sigmoid"),
        ("returned", "returned or kept"),
        ("stored", "returned or kept"),
        ("written into another tensor", "comes from no layer"),
        ("called twice", "c reads different channels in different calls"),
        ("bounded", "comes from no layer"),
        ("multiplied", "comes from no layer"),
    ],
)
def test_what_cannot_be_scaled_is_left_with_the_reason(wiring: str, reason: str) -> None:
    model, x = uneven(seeded(Graph(wiring)), "a"), noise(2, 3, 6, 6)
    rows = equalize(model, [x], W8A8)
    assert not done(rows)
    assert any(reason in row.reason for row in rows if row.consumers == ("c",))
    assert_exact(model, x, rows=0)


def test_what_operators_do_not_show_is_refused_and_nothing_is_changed() -> None:
    model, x = uneven(seeded(Graph("weights read elsewhere")), "a"), noise(2, 3, 6, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BevquantError, match="nothing was changed"):
        equalize(model, [x], W8A8)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", [W8A8, W4A8])
def test_the_quantized_output_comes_closer(precision: Any) -> None:
    x = noise(8, 3, 6, 6)

    def error(equalized: bool) -> float:
        model = uneven(
            seeded(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3))), "0"
        )
        with torch.no_grad():
            expected = model(x)
            if equalized:
                (row,) = (row for row in equalize(model, [x], precision) if row.producers)
                assert row.after < row.before
            calibrate(quantize(model, precision), [x])
            return float((model(x) - expected).square().mean())

    assert error(equalized=True) < 0.8 * error(equalized=False)


def test_predicted_errors_are_those_of_the_layer_quantized_alone() -> None:
    model = uneven(seeded(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3))), "0")
    batches = [noise(2, 3, 6, 6, seed=seed) for seed in (0, 1)]
    (row,) = (row for row in equalize(model, batches, W4A8) if row.producers)
    expected = [model(batch).detach() for batch in batches]
    calibrate(quantize(model, W4A8), batches)
    model[0].precision = None
    with torch.no_grad():
        error = sum((model(b) - y).square().sum() for b, y in zip(batches, expected, strict=True))
    energy = sum(y.square().sum() for y in expected)
    assert float(error / energy) == pytest.approx(row.after, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_is_left_alone_unless_its_error_falls(seed: int) -> None:
    """Even channels: nothing to gain but by chance."""
    model = seeded(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)), seed)
    rows = equalize(model, [noise(32, 4, seed=seed)], strengths=[0.0, 1.0])
    (row,) = (row for row in rows if row.producers)
    assert (row.strength is None) == (row.after == row.before)
    assert row.after <= row.before


def test_whole_networks() -> None:
    model, x = seeded(ResNet()), noise(2, 3, 8, 8)
    fold_batchnorm(model, x)
    with torch.no_grad():
        expected = model(x)
        assert done(equalize(model, [x]))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)
    model, tokens = seeded(ViTBlock()), noise(2, 5, 8)
    with torch.no_grad():
        expected = model(tokens)
        rows = equalize(model, [tokens])
        assert {row.consumers for row in rows if row.producers == ("norm",)} == {("qkv",)}
        assert ("proj",) in {row.consumers for row in rows if not row.producers}
        torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


def test_a_norms_shift_is_scaled_with_its_layer() -> None:
    model = TwoSensors()
    model.fuse = nn.Linear(4, 2)
    seeded(model)
    model.forward = lambda batch: model.fuse(
        model.voxel_norm(model.voxels(batch["features"], table=batch["table"])).relu()
    )
    batch = two_sensor_batch()
    fold_batchnorm(model, batch)
    original = model.voxel_norm.shift.clone()
    with torch.no_grad():
        model.voxels.weight.mul_(torch.logspace(-2, 1, 4)[:, None, None])
        expected = model(batch)
        assert done(equalize(model, [batch])) == {("voxels",): ("fuse",)}
        assert not torch.equal(model.voxel_norm.shift, original)
        torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
    restore(model)
    assert isinstance(model.voxel_norm, nn.BatchNorm1d)


def test_misuse_is_refused() -> None:
    model, x = (
        seeded(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))),
        noise(1, 3, 4, 4),
    )
    with pytest.raises(BevquantError, match="no batch"):
        equalize(model, [])
    with pytest.raises(BevquantError, match="from 0 to 1"):
        equalize(model, [x], strengths=[1.5])
    with pytest.raises(BevquantError, match="per output channel"):
        equalize(model, [x], scheme=Scheme(TensorScheme(True, False), DEPLOY.activations))
    equalize(uneven(model, "0"), [x])
    with pytest.raises(BevquantError, match="equalized already"):
        equalize(model, [x])
    with pytest.raises(BevquantError, match="fold before equalize"):
        fold_batchnorm(model, x)
    quantize(model, W8A8)
    with pytest.raises(BevquantError, match="equalize before quantize"):
        equalize(model, [x])

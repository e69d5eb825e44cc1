from typing import Any

import pytest
import torch
from quant_nets import ResNet, TwoSensors, noise, seeded, two_sensor_batch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.nn import MatMul
from bevquant.quant.calibrate import calibrate
from bevquant.quant.diagnostics.debug import DROP, FLOOR, debug, histogram
from bevquant.quant.equalization.equalize import equalize
from bevquant.quant.layers import quant_modules
from bevquant.quant.prepare import quantize, restore
from bevquant.quant.spec import W8A8

X = noise(2, 3, 8, 8)


def chain(depth: int = 5, width: int = 6) -> nn.Sequential:
    layers = [
        nn.Sequential(nn.Conv2d(3 if i == 0 else width, width, 1), nn.ReLU()) for i in range(depth)
    ]
    return seeded(nn.Sequential(*layers))


def test_a_nan_weight_is_named_in_a_float_and_in_a_quantized_model() -> None:
    model = seeded(ResNet())
    calibrate(quantize(model, W8A8), [X])
    for quantized in (True, False):
        weight = model.body[1].conv1.weight
        with torch.no_grad():
            weight[0, 0, 0, 0] = torch.nan
        found = debug(model, [X]).finding
        assert found is not None
        assert found.name == "body.1.conv1"
        assert "parameters: weight" in found.cause.replace("wrapped.", "")
        assert found.weight is not None and found.weight.not_finite == 1
        if quantized:
            restore(model)


@pytest.mark.parametrize("planted", range(1, 5))
def test_an_outlier_channel_is_named_with_its_layer(planted: int) -> None:
    """A channel a thousand times as large, which the next layer hardly looks at."""
    model = chain()
    with torch.no_grad():
        model[planted - 1][0].weight[2] *= 3000
        model[planted - 1][0].bias[2] = 3000
        model[planted][0].weight[:, 2] *= 1e-5
    calibrate(quantize(model, W8A8), [X])
    diagnosis = debug(model, [X])
    found = diagnosis.finding
    assert found is not None
    assert found.name == f"{planted}.0"
    assert "cliff" in found.problem
    assert "channel 2 of its input" in found.cause
    rows = {row.name: row for row in diagnosis.layers}
    assert rows[found.name].sqnr < FLOOR
    assert rows[found.name].sqnr < rows[found.name].input_sqnr - DROP


def test_the_mend_that_is_named_mends() -> None:
    model = chain()
    with torch.no_grad():
        model[1][0].weight[2] *= 3000
        model[1][0].bias[2] = 3000
        model[2][0].weight[:, 2] *= 1e-5
    equalize(model, [X], limit=1e5)
    calibrate(quantize(model, W8A8), [X])
    assert debug(model, [X]).finding is None


def test_an_overflow_in_half_precision_is_named() -> None:
    model = chain()
    with torch.no_grad():
        model[2][0].weight.fill_(2000)
        model[1][0].weight.abs_().mul_(100)
    assert debug(model, [X]).finding is None
    found = debug(model.half(), [X.half()]).finding
    assert found is not None
    assert found.name == "2.0"
    assert "overflows float16" in found.cause
    assert found.input.not_finite == 0


def test_what_no_module_made_is_placed_behind_the_last_one() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).abs().neg().sqrt())

    found = debug(seeded(Broken()), [noise(4, 3)]).finding
    assert found is not None
    assert found.name == "second"
    assert "became so after first" in found.cause
    found = debug(seeded(Broken()), [torch.full((4, 3), torch.inf)]).finding
    assert found is not None
    assert found.name == "first"
    assert "in the batch" in found.cause


def test_only_the_batch_that_fails_is_explained() -> None:
    model = chain()
    bad = X.clone()
    bad[0, 0, 0, 0] = torch.inf
    found = debug(model, [X, bad]).finding
    assert found is not None
    assert found.input.not_finite == 1


def test_ratios_are_those_of_the_two_networks() -> None:
    model = quantize(seeded(ResNet()), W8A8)
    calibrate(model, [X])
    seen: dict[bool, Tensor] = {}
    rows = {row.name: row for row in debug(model, [X]).layers}
    for bypass in (True, False):
        for layer in quant_modules(model):
            layer.bypass = bypass
        with torch.no_grad():
            seen[bypass] = model(X)
    noise_ = seen[False] - seen[True]
    expected = 20 * torch.log10(seen[True].norm() / noise_.norm())
    assert rows["head"].sqnr == pytest.approx(float(expected), abs=1e-3)
    assert rows["head"].precision == "W8A8"
    assert rows["stem.0"].input_sqnr == float("inf")
    assert next(iter(rows)) == "stem.0"
    assert rows["stem.1"].precision == "float"


def test_a_healthy_network_of_any_batch_and_the_text() -> None:
    model = quantize(seeded(TwoSensors()), W8A8)
    batch: Any = two_sensor_batch()
    assert "nothing to compare" in str(debug(model, [batch]))
    calibrate(model, [batch])
    text = str(debug(model, [batch]))
    assert "no layer falls off a cliff" in text
    assert "voxels (GatherConv)" in text
    with torch.no_grad():
        model.fuse.weight[0, 0] = torch.inf
    text = str(debug(model, [batch]))
    line = next(line for line in text.splitlines() if line.startswith("fuse"))
    assert line.endswith("<- here")


def test_choices_are_those_of_the_float_network() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores, self.head = nn.Linear(3, 1), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x[self.scores(x)[:, 0].topk(5).indices])

    model, x = seeded(Picks()), noise(200, 3)
    with torch.no_grad():
        model.scores.weight.mul_(1e-3)  # scores that quantization puts into another order
    quantize(model, W8A8)
    calibrate(model, [x])
    head = next(row for row in debug(model, [x]).layers if row.name == "head")
    assert head.input_sqnr == float("inf")


def test_histograms() -> None:
    values = torch.cat([torch.linspace(0, 1, 995), torch.tensor([100.0] * 4 + [torch.nan])])
    found = histogram(values)
    assert (found.low, found.high, found.not_finite) == (0.0, 100.0, 1)
    assert sum(found.counts) == 999 and found.counts[0] == 995 and found.counts[-1] == 4
    assert found.central == pytest.approx(0.01, rel=0.02)
    assert str(found).startswith("0 |█ ")
    assert histogram(torch.full((3,), torch.inf)).not_finite == 3


def test_misuse_is_refused() -> None:
    with pytest.raises(BevquantError, match="no batch"):
        debug(chain(), [])
    with pytest.raises(BevquantError, match="no module was called"):
        debug(chain(), [X], forward=lambda model, batch: None)


class Sharp(nn.Module):
    """Attention with scores so large that the softmax picks one place of many."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.scores, self.mix = MatMul(), MatMul()

    def forward(self, x: Tensor) -> Tensor:
        """Attend from [1, L, 16] to itself."""
        scores = self.scores(20 * self.query(x), self.key(x).transpose(1, 2))
        y: Tensor = self.mix(scores.softmax(-1), x)
        return y


def test_a_softmax_that_magnifies_errors_is_named() -> None:
    torch.manual_seed(0)
    model, batches = Sharp(), [torch.randn(1, 64, 16) for _ in range(2)]
    calibrate(quantize(model, W8A8), batches)
    found = debug(model, batches)
    assert found.finding is None
    health = {layer.name: layer for layer in found.layers}
    assert health["mix"].input_sqnr < health["scores"].sqnr - 10
    assert "Errors grow before mix: all outputs up to there have at least 3" in str(found)
    assert "More bits for the inputs of scores help." in str(found)
    calibrate(quantize(plain := chain(), W8A8), [X])
    assert "Errors grow" not in str(debug(plain, [X]))

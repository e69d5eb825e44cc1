import copy
from pathlib import Path

import pytest
import torch
from quant_nets import GatherConv, ViTBlock, noise, seeded
from torch import Tensor, nn

from bevquant.deploy.export import export_module
from bevquant.errors import BevquantError
from bevquant.quant.affine import QuantParams, dequantize, quantize
from bevquant.quant.calibrate import calibrate
from bevquant.quant.layers import QuantLayer, quant_modules
from bevquant.quant.prepare import quantize as quantize_model
from bevquant.quant.spec import DEPLOY, Precision, Scheme, TensorScheme

TABLE = torch.tensor([[0, 1, 5], [4, 3, 2]])


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GatherConv(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, table=TABLE)


CASES = {
    "linear": (nn.Linear(7, 6), (3, 7), (0, 1)),
    "conv2d": (nn.Conv2d(7, 6, 3), (1, 7, 5, 5), (0, 1)),
    "conv of groups": (nn.Conv1d(14, 6, 3, groups=2), (1, 14, 5), (0, 1)),
    "conv_transpose2d": (nn.ConvTranspose2d(7, 6, 2), (1, 7, 3, 3), (1, 0)),
    "sparse": (Sparse(), (5, 7), (0, 2)),
}


def grouped(size: int, symmetric: bool) -> Scheme:
    return Scheme(TensorScheme(symmetric, per_channel=True, group_size=size), DEPLOY.activations)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_run_of_inputs_has_a_scale_of_its_own(
    case: tuple[nn.Module, tuple[int, ...], tuple[int, int]], symmetric: bool, bits: int
) -> None:
    module, shape, (outputs, inputs) = case
    model = quantize_model(
        nn.Sequential(copy.deepcopy(module)), Precision(bits, 8), grouped(3, symmetric)
    )
    calibrate(model, [noise(*shape)])
    (layer,) = quant_modules(model)
    assert isinstance(layer, QuantLayer)
    weight = layer.wrapped.weight.detach().movedim((outputs, inputs), (0, 1))
    codes = layer.weight_codes.movedim((outputs, inputs), (0, 1))
    levels = 2**bits - 1
    for output in range(6):
        for start in (0, 3, 6):  # the last run has one input only
            run = weight[output, start : start + 3].double()
            low, high = float(run.min().clamp(max=0)), float(run.max().clamp(min=0))
            if symmetric:
                scale = max(-low, high) / (levels // 2 + 0.5)
                expected = (run / scale).round().clamp(-(levels // 2), levels // 2)
            else:
                scale = (high - low) / levels
                zero = round(-low / scale)
                expected = ((run / scale).round() + zero).clamp(0, levels)
            assert (codes[output, start : start + 3] - expected).abs().max() <= 1  # float32 ties
            assert (codes[output, start : start + 3] == expected).float().mean() > 0.8
    with torch.no_grad():
        y = model(noise(*shape))
        layer.wrapped.weight.copy_(dequantize(layer.weight_codes, layer.weight_params))
        layer.precision = Precision(16, 8)
        torch.testing.assert_close(y, model(noise(*shape)), rtol=1e-3, atol=1e-3)


def test_smaller_groups_lose_less() -> None:
    x = noise(2, 5, 16)
    errors = []
    for size in (16, 4, 1):
        model = seeded(ViTBlock(16))
        with torch.no_grad():
            expected = model(x)
            quantize_model(model, Precision(4, 16), grouped(size, True))
            calibrate(model, [x])
            errors.append(float((model(x) - expected).norm()))
    assert errors[0] > errors[1] > errors[2]


def test_a_group_of_all_inputs_is_a_channel() -> None:
    linear = nn.Linear(6, 4)
    grids: list[QuantParams] = []
    for weights in (DEPLOY.weights, TensorScheme(True, True, group_size=100)):
        model = nn.Sequential(linear)
        quantize_model(model, Precision(4, 8), Scheme(weights, DEPLOY.activations))
        calibrate(model, [noise(3, 6)])
        grids.append(model[0].weight_params)
    assert torch.equal(quantize(linear.weight, grids[0]), quantize(linear.weight, grids[1]))


def test_export_says_that_no_engine_runs_groups(tmp_path: Path) -> None:
    model = quantize_model(nn.Sequential(nn.Linear(6, 4)), Precision(4, 8), grouped(3, True))
    calibrate(model, [noise(3, 6)])
    with pytest.raises(BevquantError, match=r"0: .*groups of inputs.*scheme DEPLOY"):
        export_module(model, [noise(3, 6)], tmp_path / "model.onnx")


def test_schemes_that_make_no_sense_are_refused() -> None:
    for wrong in (
        lambda: TensorScheme(True, per_channel=False, group_size=32),
        lambda: TensorScheme(True, per_channel=True, group_size=0),
        lambda: Scheme(DEPLOY.weights, TensorScheme(False, True, group_size=32)),
    ):
        with pytest.raises(BevquantError, match="scheme: group_size"):
            wrong()

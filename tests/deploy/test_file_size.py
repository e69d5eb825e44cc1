import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bevquant as bq
from bevquant.deploy.export import export_module
from bevquant.quant.size import model_size

MIXED = [
    {"*": bq.W8A8},
    {"*": bq.W4A8, "0": bq.W8A8},
    {"*": bq.W2A8, "2": bq.W16A16, "6": None},
    {"*": bq.Precision(16, 8), "4": bq.Precision(3, 8), "6": bq.Precision(6, 8)},
]


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 30, 3), nn.ReLU(), nn.Conv2d(30, 61, 3), nn.Flatten(2),
        nn.Linear(36, 600), nn.GELU(), nn.Linear(600, 599, bias=False), nn.LayerNorm(599),
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 10, 10)
    return bq.quantize(model, bq.W8A8), image


@pytest.mark.parametrize("rules", MIXED, ids=str)
def test_a_file_has_the_size_that_was_computed(rules, tmp_path):
    model, image = network()
    bq.calibrate(model, [image])
    bq.apply(model, bq.BitPolicy(rules))
    path = tmp_path / "model.onnx"
    size, computed = export_module(model, [image], path), model_size(model)
    assert size.total == path.stat().st_size
    assert size.weights == computed.weights
    assert 0 <= computed.scales - size.scales <= 3  # equal zero points are stored once
    assert 0 <= size.rest - computed.rest < 200  # shapes
    assert size.total - size.graph == pytest.approx(computed.total, rel=0.003)
    assert size.total == pytest.approx(computed.total, rel=0.03)


def test_bytes_by_hand():
    model, _ = network()
    bq.apply(model, bq.BitPolicy({"0": bq.W8A8, "2": bq.W4A8, "4": bq.W2A8, "6": None}))
    size = model_size(model)
    weights = 810 + np.ceil(16470 / 2) + 21600 / 4 + 4 * 600 * 599
    scales = 4 * (30 + 61 + 600) + 3 * (4 + 1)  # of weights; of inputs, with zero points
    rest = 4 * (30 + 61 + 600 + 2 * 599)
    assert (size.weights, size.scales, size.rest) == (weights, scales, rest)
    bq.apply(model, bq.Precision(6, 16))
    assert model_size(model).weights == 810 + 16470 + 21600 + 600 * 599
    assert model_size(model).scales == 4 * (30 + 61 + 600 + 599) + 4 * (4 + 2)

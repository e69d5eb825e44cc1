"""The quantizer on the real network, small, with a synthetic batch."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bevquant.data.frame import Batch
from bevquant.models.bevfusion import SMALL, BEVFusion
from bevquant.quant.calibrate import calibrate
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.inventory import layers, unquantized
from bevquant.quant.layers import quant_modules
from bevquant.quant.prepare import apply, quantize, restore
from bevquant.quant.spec import DEPLOY, THESIS, W2A8, W8A8, W16A16, Scheme

MAIN_MODULES = [
    "img_backbone",
    "img_neck",
    "view_transform",
    "pts_middle_encoder",
    "fusion_layer",
    "pts_backbone",
    "pts_neck",
    "bbox_head",
]


@pytest.fixture(scope="module")
def batch() -> Batch:
    rig = runpy.run_path(str(Path(__file__).parents[1] / "models" / "conftest.py"))
    return rig["synthetic_batch"](SMALL)


def heatmap(model: BEVFusion, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch).dense_heatmap


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(DEPLOY, id="deploy"),
        pytest.param(THESIS, id="thesis", marks=pytest.mark.slow),
    ],
)
def test_the_whole_road(batch: Batch, scheme: Scheme) -> None:
    torch.manual_seed(0)
    model = BEVFusion(SMALL).eval()
    reference = heatmap(model, batch)

    folded = fold_batchnorm(model, batch)
    assert not [name for name, m in model.named_modules() if "BatchNorm" in type(m).__name__[:9]]
    torch.testing.assert_close(heatmap(model, batch), reference, rtol=1e-3, atol=1e-4)

    quantize(model, W8A8, scheme)
    calibrate(model, [batch])
    assert all(layer.quantized for layer in quant_modules(model))
    infos = layers(model)
    assert list(dict.fromkeys(info.main_module for info in infos)) == MAIN_MODULES
    kinds = {"conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "sparse_conv"}
    assert {info.kind for info in infos} == kinds
    assert all(info.macs for info in infos)
    listed = {entry.kind for entry in unquantized(model)}
    assert {"LayerNorm", "WindowMSA"} <= listed
    assert not listed & {"Conv2d", "Conv1d", "ConvTranspose2d", "Linear", "SparseConv3d", "MatMul"}

    spread = (reference - reference.mean()).norm()
    errors = [
        float((heatmap(apply(model, bits), batch) - reference).norm() / spread)
        for bits in (W16A16, W8A8, W2A8)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.02
    assert errors[1] < 0.2

    restore(model)
    assert torch.equal(heatmap(model, batch), reference)
    assert len(folded) == len([m for m in model.modules() if "BatchNorm" in type(m).__name__])

"""Layers that gather: where the steps of quantization go."""

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import bevquant as bq
from bevquant.deploy.engines import open_engine
from bevquant.deploy.export import export_module
from bevquant.deploy.lint import lint
from bevquant.models.bevfusion.sparse import SparseConv3d


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SparseConv3d(4, 8, (1, 1, 3))

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        return self.conv(features, table)


@pytest.mark.parametrize(
    ("target", "scheme", "gathered"),
    [("openvino", bq.DEPLOY, "Gather"), ("tensorrt", bq.SYMMETRIC, "QuantizeLinear")],
)
def test_codes_are_gathered_or_the_steps_come_after(target, scheme, gathered, tmp_path):
    torch.manual_seed(0)
    # Row 6 is none of the 6 voxels: it stands for zeros.
    model, inputs = Sparse().eval(), (torch.randn(6, 4), torch.randint(0, 7, (5, 3)))
    bq.quantize(model, bq.W8A8, scheme=scheme)
    bq.calibrate(model, [inputs], lambda model, batch: model(*batch))
    path = tmp_path / "sparse.onnx"
    rows = torch.export.Dim.AUTO
    export_module(model, inputs, path, target=target, dynamic_shapes=({0: rows}, {0: rows}))
    order = [node.op_type for node in onnx.load(path).graph.node]
    steps = [step for step in order if step in ("QuantizeLinear", "Gather")]
    assert steps[-1] == gathered
    assert [verdict.reason for verdict in lint(path)] == [None]
    expected = model(*inputs).detach().numpy()
    for engine in ("literal", "openvino"):
        (y,) = open_engine(path, engine)([x.numpy() for x in inputs])
        np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())

"""Each example runs, and its deployed file sees what its simulation saw."""

import runpy
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bevquant.deploy import open_engine

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "deployed"),
    [("plain_cnn", ("openvino", "onnxruntime")), ("vit", ("vit.onnx", "vit.json"))],
)
def test_example(name, deployed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    with torch.random.fork_rng():
        found = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](tmp_path)
    assert found["float"] > 0.8
    for station in ("simulated", *deployed):
        assert abs(found[station] - found["float"]) < 0.04
    assert "in integers" in capsys.readouterr().out


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line as it stands, on a small network with a head."""
    block = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    model = nn.Sequential(OrderedDict(body=body, head=head)).eval()
    batches = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    names = {"model": model, "batches": batches, "batch": batches[0]}
    exec(block, names)
    with torch.no_grad():
        simulated = model(batches[0])
    (output,) = open_engine(tmp_path / "model.onnx")([batches[0].numpy()])
    assert np.allclose(output, simulated, atol=1e-3)

"""Each example runs, and its deployed file sees what its simulation saw."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

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

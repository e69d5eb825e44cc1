"""The road of a public checkpoint: a file of mmdetection3d's form, measured on a real frame."""

import json
from pathlib import Path

import pytest
import torch

from bevquant.cli import main
from bevquant.models.bevfusion import FULL, BEVFusion
from bevquant.models.weights import save_weights
from bevquant.models.zoo import network


@pytest.mark.slow
def test_a_full_checkpoint_is_measured(
    real_frame: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = BEVFusion(FULL)
    # spconv 1 keeps its kernels as [kx, ky, kz, in, out].
    state = {
        name: value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value
        for name, value in model.state_dict().items()
    }
    torch.save({"state_dict": state, "meta": {"epoch": 6}}, tmp_path / "public.pth")
    save_weights(model, tmp_path / "ours.safetensors")
    first, second = (
        network("bevfusion").load(tmp_path / name).state_dict()
        for name in ("public.pth", "ours.safetensors")
    )
    assert all(torch.equal(first[name], value) for name, value in second.items())

    arguments = ["--model", "bevfusion", "--version", "v1.0-frame", "--split", "frame"]
    arguments += ["--data", str(real_frame), "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr("sys.argv", ["bevquant", "eval", str(tmp_path / "public.pth"), *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] == 1
    assert 0 <= figures["NDS"] <= 1
    assert len(figures["per_class"]) == 10

"""Weights files: exact, strict, and the conversions of public checkpoints."""

from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from torch import nn

from bevquant.errors import BevquantError
from bevquant.models.bevfusion import SMALL, BEVFusion, HeadOutput
from bevquant.models.bevfusion.decode import decode
from bevquant.models.pickled import read_state
from bevquant.models.weights import import_checkpoint, load_state, load_weights, save_weights


def other(model: BEVFusion) -> BEVFusion:
    """Return a model of the same shape with other weights."""
    copy = BEVFusion(model.config)
    assert not same(model, copy)
    return copy


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.fixture(scope="module")
def model() -> BEVFusion:
    torch.manual_seed(0)
    return BEVFusion(SMALL)


def test_round_trip(model: BEVFusion, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(model, path, {"epoch": "3"})
    copy = other(model)
    assert load_weights(copy, path) == {"epoch": "3"}
    assert same(model, copy)
    assert path.stat().st_size < 8e6


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 2)}), path)
    target = nn.ModuleDict({"a": nn.Linear(2, 4), "c": nn.Linear(2, 2)})
    with pytest.raises(BevquantError) as caught:
        load_weights(target, path)
    message = str(caught.value)
    assert "2 missing (c.weight, c.bias)" in message
    assert "2 left over (b.bias, b.weight)" in message
    assert "a.weight (3, 2) instead of (4, 2)" in message


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_damaged_files(content: bytes, tmp_path: Path, model: BEVFusion) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(BevquantError, match="damaged"):
        load_weights(model, path)
    with pytest.raises(BevquantError, match="damaged"):
        import_checkpoint(model, path)
    with pytest.raises(BevquantError, match="no such"):
        load_weights(model, tmp_path / "absent")


class HistoryBuffer:
    """Stands for mmengine's class, which is not installed where the file is read."""

    def __init__(self) -> None:
        self.values = np.arange(3.0)

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of the checkpoint was run")


def test_checkpoint_with_the_logs_of_its_training(model: BEVFusion, tmp_path: Path) -> None:
    logs = {"loss": HistoryBuffer(), "step": np.float64(3), "time": datetime.now()}
    content = {"state_dict": OrderedDict(model.state_dict()), "message_hub": logs, "meta": {}}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UnpicklingError, match="Unsupported global"):
        torch.load(tmp_path / "x.pth", weights_only=True)
    copy = other(model)
    import_checkpoint(copy, tmp_path / "x.pth")
    assert same(model, copy)


def test_checkpoint_in_the_format_before_torch_1_6(model: BEVFusion, tmp_path: Path) -> None:
    content = {"state_dict": model.state_dict()}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    copy = other(model)
    import_checkpoint(copy, tmp_path / "x.pth")
    assert same(model, copy)


def test_checkpoint_with_first_layout(model: BEVFusion, tmp_path: Path) -> None:
    state = model.state_dict()
    first = {
        name: value.permute(1, 2, 3, 4, 0).contiguous() if value.ndim == 5 else value
        for name, value in state.items()
    }
    assert first["pts_middle_encoder.conv_input.0.weight"].shape[:3] == (3, 3, 3)
    torch.save({"state_dict": first, "meta": {"epoch": 6}}, tmp_path / "x.pth")
    copy = other(model)
    import_checkpoint(copy, tmp_path / "x.pth")
    assert same(model, copy)


def boxes(model: BEVFusion, features: torch.Tensor) -> torch.Tensor:
    """Decode what the prediction branches say about given query features."""
    heads = model.bbox_head.prediction_heads[0].eval()
    names = ("center", "height", "dim", "rot", "vel", "heatmap")
    with torch.no_grad():
        raw = {name: getattr(heads, name)(features) for name in names}
    queries = features.shape[2]
    output = HeadOutput(
        **raw,
        query_heatmap_score=torch.ones(1, 10, queries),
        query_labels=torch.zeros(1, queries, dtype=torch.int64),
        query_cells=torch.zeros(1, queries, dtype=torch.int64),
        dense_heatmap=torch.empty(0),
    )
    return decode(model.config.bbox_head, output)[0].values


def test_old_boxes_are_converted(model: BEVFusion, tmp_path: Path) -> None:
    state = {
        name.replace("view_transform.", "vtransform."): v for name, v in model.state_dict().items()
    }
    torch.save(state, tmp_path / "old.pth")
    copy = other(model)
    import_checkpoint(copy, tmp_path / "old.pth")
    features = torch.randn(1, SMALL.bbox_head.hidden_channels, 20)
    old, new = boxes(model, features), boxes(copy, features)
    torch.testing.assert_close(new[:, 3:5], old[:, [4, 3]])
    turn = (new[:, 6] - (-old[:, 6] - torch.pi / 2)) / (2 * torch.pi)
    torch.testing.assert_close(turn, turn.round(), atol=1e-5, rtol=0)
    torch.testing.assert_close(new[:, [0, 1, 2, 5, 7, 8]], old[:, [0, 1, 2, 5, 7, 8]])

    import_checkpoint(copy, tmp_path / "old.pth", old_boxes=False)
    assert same(model, copy)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state", "ema", "network"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_checkpoints_of_wrappers_and_frameworks_are_understood(
    key: str | None, prefix: str, tmp_path: Path
) -> None:
    wanted = nn.Linear(3, 2).state_dict()
    state = {prefix + name: value for name, value in wanted.items()}
    torch.save(state if key is None else {"epoch": 3, key: state}, tmp_path / "c.pth")
    found = read_state(tmp_path / "c.pth")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_averaged_model_is_understood(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(3, 2))
    torch.save(average.state_dict(), tmp_path / "c.pth")
    assert set(read_state(tmp_path / "c.pth")) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "it is empty"), (b"some text", "it is no file of torch.save")],
)
def test_what_is_no_checkpoint_is_told(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(BevquantError, match=rf"c\.pth: not a readable .*\({complaint}\)"):
        read_state(tmp_path / "c.pth")


def test_keys_of_a_checkpoint_without_weights_are_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "c.pth")
    with pytest.raises(BevquantError, match=r"its keys: epoch, lr"):
        read_state(tmp_path / "c.pth")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    state = {**layer.state_dict(), "bias": torch.tensor([0.0, torch.nan])}
    with pytest.raises(BevquantError, match=r"c\.pth: bias holds NaN or infinity"):
        load_state(layer, state, tmp_path / "c.pth")

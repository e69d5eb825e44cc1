"""What a user gets for bad input: exit code 2 and one line, before any long work."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bevquant import evaluate
from bevquant.cli import main
from bevquant.models.bevfusion import BEVFusion
from bevquant.run import SHIPPED

TABLES = Path("v1.0-world")


@pytest.fixture(autouse=True)
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: object) -> None:
        raise AssertionError("a frame was predicted before the input was checked")

    monkeypatch.setattr(BEVFusion, "forward", predict)
    monkeypatch.setattr(evaluate, "submission", predict)


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["bevquant", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


def damage(path: Path, content: bytes | None) -> Path:
    path.unlink()  # the world is made of hard links
    if content is not None:
        path.write_bytes(content)
    return path


def last(world: Path, folder: str) -> Path:
    """Return a sensor file of the validation scene's last frame."""
    names = json.loads((world / TABLES / "splits.json").read_text())["world_val"]
    scenes = json.loads((world / TABLES / "scene.json").read_text())
    token = next(s["last_sample_token"] for s in scenes if s["name"] == names[-1])
    records = json.loads((world / TABLES / "sample_data.json").read_text())
    return next(
        world / record["filename"]
        for record in records
        if record["sample_token"] == token and f"samples/{folder}/" in record["filename"]
    )


def points(path: Path) -> np.ndarray:
    return np.fromfile(path, np.float32).reshape(-1, 5).copy()


def test_truncated_points(damaged_world: Path, refused: Callable[..., str]) -> None:
    path = last(damaged_world, "LIDAR_TOP")
    damage(path, path.read_bytes()[:-7])
    line = refused("eval", SHIPPED, "--data", damaged_world)
    assert f"{path}: truncated" in line and "restore" in line


def test_nan_points(damaged_world: Path, refused: Callable[..., str]) -> None:
    path = last(damaged_world, "LIDAR_TOP")
    cloud = points(path)
    cloud[3, 1] = np.nan
    damage(path, cloud.tobytes())
    assert f"{path}: 1 of {len(cloud)} points hold NaN" in refused(
        "eval", SHIPPED, "--data", damaged_world
    )


def test_no_points_in_range(damaged_world: Path, refused: Callable[..., str]) -> None:
    files = [*(damaged_world / "sweeps/LIDAR_TOP").iterdir()]
    for path in [last(damaged_world, "LIDAR_TOP"), *files]:
        damage(path, (points(path) + np.float32([500, 0, 0, 0, 0])).tobytes())
    line = refused("eval", SHIPPED, "--data", damaged_world)
    assert "LiDAR points lies in the detection range" in line and "point_range" in line


def test_missing_image(damaged_world: Path, refused: Callable[..., str]) -> None:
    path = damage(last(damaged_world, "CAM_BACK"), None)
    assert f"{path}: cannot be read" in refused("eval", SHIPPED, "--data", damaged_world)


def test_table_without_a_sensor(damaged_world: Path, refused: Callable[..., str]) -> None:
    path = damaged_world / TABLES / "sensor.json"
    records = [r for r in json.loads(path.read_text()) if r["channel"] != "CAM_FRONT"]
    damage(path, json.dumps(records).encode())
    line = refused("eval", SHIPPED, "--data", damaged_world)
    assert f"{path}: no record" in line and "calibrated_sensor.json refers" in line


def test_version_folder_that_does_not_exist(tiny_world: Path, refused: Callable[..., str]) -> None:
    line = refused("eval", SHIPPED, "--data", tiny_world, "--version", "v1.0-mini")
    assert f"{tiny_world / 'v1.0-mini'}: no such version folder; did you mean 'v1.0-world'" in line


def test_unknown_split(tiny_world: Path, refused: Callable[..., str]) -> None:
    line = refused("eval", SHIPPED, "--data", tiny_world, "--split", "val")
    assert "no split 'val'; did you mean 'world_val'" in line


def test_checkpoint_of_another_network(
    tiny_world: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"state_dict": nn.Sequential(nn.Conv2d(3, 8, 3)).state_dict()}, path)
    line = refused("eval", path, "--data", tiny_world)
    assert f"{path}: the weights of another model" in line
    assert "missing (" in line and "2 left over (0.weight, 0.bias)" in line


def test_checkpoint_of_the_other_bevfusion(tiny_world: Path, refused: Callable[..., str]) -> None:
    line = refused("eval", SHIPPED, "--data", tiny_world, "--model", "bevfusion")
    assert "the weights of another model" in line and "of another shape" in line


def test_unknown_network(tiny_world: Path, refused: Callable[..., str]) -> None:
    assert "did you mean 'bevfusion'" in refused(
        "eval", SHIPPED, "--data", tiny_world, "--model", "bevfuson"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "net.bin"), "net.bin: name it X.onnx for one file"),
        (("export", "net.onnx", "--target", "npu"), "target: 'npu' is none of openvino"),
        (("export", "net.onnx", "--precision", "W5A8"), "5 bits for weights"),
        (("export", "net.onnx", "--precision", "none.json"), "none.json: cannot be read"),
    ],
)
def test_exports_that_cannot_be(
    arguments: tuple[str, ...], message: str, tiny_world: Path, refused: Callable[..., str]
) -> None:
    assert message in refused(*arguments, "--data", tiny_world)


def test_lint_of_what_is_no_file_of_ours(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"not ours")
    assert f"{path}: truncated, changed since, or not exported by bevquant" in refused("lint", path)

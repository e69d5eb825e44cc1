"""The picture of a frame: points and boxes where the devkit and the hand put them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes.utils.geometry_utils import view_points
from PIL import Image

from bevquant.data.frame import CAMERAS, Boxes, Frame
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.errors import BevquantError
from bevquant.report.look import draw_frame, project
from bevquant.run import look_at_frame


@pytest.fixture(scope="module")
def frame(tiny_world: Path) -> Frame:
    return NuScenesDataset(tiny_world, "v1.0-world", "world_val", sweeps=0).frame(0)


def test_points_are_projected_as_the_devkit_does(frame: Frame) -> None:
    camera = CAMERAS.index("CAM_BACK_LEFT")
    height, width = frame.images[camera].shape[:2]
    matrix = np.eye(4)
    matrix[:3, :3] = frame.intrinsics[camera]
    pixels, depths = project(frame.points, matrix @ frame.lidar2camera[camera], (width, height))

    homogeneous = np.column_stack([frame.points[:, :3], np.ones(len(frame.points))])
    seen = (frame.lidar2camera[camera] @ homogeneous.T)[:3]
    expected = view_points(seen, frame.intrinsics[camera], normalize=True)[:2].T
    inside = (seen[2] > 1) & ((expected >= 0) & (expected < (width, height))).all(axis=1)
    assert 50 < inside.sum() < len(frame.points)
    np.testing.assert_allclose(pixels, expected[inside], atol=1e-6)
    np.testing.assert_allclose(depths, seen[2, inside], atol=1e-9)


def picture(frame: Frame, path: Path) -> np.ndarray:
    draw_frame(frame, path)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_box_shows_in_the_camera_that_sees_it_and_from_above(
    frame: Frame, tmp_path: Path
) -> None:
    values = torch.tensor([[0.5, 14.0, -0.8, 4.0, 2.0, 1.6, 1.5, 0.0, 0.0]])
    with_box = replace(frame, boxes=Boxes(values, torch.tensor([1])))
    without = picture(replace(frame, boxes=None), tmp_path / "a.png")
    changed = (picture(with_box, tmp_path / "b.png") != without).any(axis=2)
    height, width = changed.shape
    panels = [changed[:, int(width * a) : int(width * b)] for a, b in ((0, 0.24), (0.48, 0.7))]
    assert not any(panel[: height // 2].any() for panel in panels)  # left and right of the front
    assert not changed[height // 2 :, : int(width * 0.7)].any()  # behind
    assert changed[: height // 2, int(width * 0.24) : int(width * 0.48)].any()
    assert changed[:, int(width * 0.75) :].any()


def test_a_frame_beyond_the_split_is_refused(tiny_world: Path, tmp_path: Path) -> None:
    with pytest.raises(BevquantError, match="frame 2: split 'world_val' ends at frame 1"):
        look_at_frame(tiny_world, "v1.0-world", "world_val", 2, tmp_path / "x.png")

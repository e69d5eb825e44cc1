import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bevquant.data.frame import Frame
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import SMALL, collate
from bevquant.deploy.degraded import mend
from bevquant.errors import BevquantError


@pytest.fixture(scope="module")
def frame(tiny_world: Path) -> Frame:
    return NuScenesDataset(tiny_world, "v1.0-world", "world_val", sweeps=1).frame(0)


def without(frame: Frame, *cameras: int, image: np.ndarray | None = None) -> Frame:
    black = np.zeros_like(frame.images[0]) if image is None else image
    images = [black if i in cameras else each for i, each in enumerate(frame.images)]
    return dataclasses.replace(frame, images=tuple(images))


def test_a_whole_frame_stays_what_it_is(frame):
    mended, notes = mend(frame, SMALL)
    assert mended is frame
    assert notes == ()


@pytest.mark.parametrize("image", [None, np.empty((0, 0, 3), np.uint8)], ids=["black", "none"])
def test_a_dead_camera_shows_nothing_to_the_network(frame, image):
    mended, notes = mend(without(frame, 2, image=image), SMALL)
    assert len(notes) == 1 and "CAM_FRONT_LEFT" in notes[0]
    images = collate([mended], SMALL).images[0]
    whole = collate([frame], SMALL).images[0]
    # The mean colour is rounded to whole steps of 1/58.
    assert images[2].abs().max() < 0.5 / 57
    for camera in (0, 1, 3, 4, 5):
        assert images[camera].equal(whole[camera])


def test_without_points_one_stands_in_the_corner(frame):
    far = frame.points + np.float32([500, 0, 0, 0, 0])
    for points in (frame.points[:0], far):
        mended, notes = mend(dataclasses.replace(frame, points=points), SMALL)
        assert len(notes) == 1 and "answer is that of the cameras" in notes[0]
        (batch_points,) = collate([mended], SMALL).points
        assert len(batch_points) == 1
        assert (batch_points[0, :2] < -44).all()


def test_points_that_are_not_finite_are_left_out(frame):
    points = frame.points.copy()
    points[3, 1], points[7, 4] = np.nan, np.inf
    mended, notes = mend(dataclasses.replace(frame, points=points), SMALL)
    assert "2 points are not finite" in notes[0]
    np.testing.assert_array_equal(mended.points, np.delete(frame.points, [3, 7], axis=0))


def test_nothing_at_all_is_refused(frame):
    blind = dataclasses.replace(without(frame, *range(6)), points=frame.points[:0])
    with pytest.raises(BevquantError, match="nothing to answer from"):
        mend(blind, SMALL)
    empty = tuple(np.empty((0, 0, 3), np.uint8) for _ in frame.images)
    mended, notes = mend(dataclasses.replace(frame, images=empty), SMALL)
    assert len(notes) == 6
    assert collate([mended], SMALL).images.shape == (1, 6, 3, 128, 352)

"""Augmentation moves points, boxes and pixels together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from train_toys import PREPROCESS, ToyFrames

from bevquant.data.frame import Batch, Boxes
from bevquant.data.preprocess import collate
from bevquant.train.augment import augment, move_boxes, move_points
from bevquant.train.settings import AugmentSettings

STILL = AugmentSettings(
    flip=0, rotation=0, scale=0, image_flip=0, contrast=0, brightness=0, thin_lidar=0
)
STRONG = AugmentSettings(rotation=3.0, scale=0.3, thin_lidar=0)


def toy_batch() -> Batch:
    return collate([ToyFrames(3).frame(i) for i in range(3)], PREPROCESS)


def inside(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Return bool [P, n]: which point lies in which box."""
    values = boxes.values.double()
    offset = points[:, None, :3].double() - values[None, :, :3]
    cos, sin = values[:, 6].cos(), values[:, 6].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    local = torch.stack((along, across, offset[..., 2]), dim=-1)
    return (local.abs() <= values[:, 3:6] / 2).all(dim=-1)


def pixels(batch: Batch, frame: int) -> torch.Tensor:
    """Project a frame's points, as the network does: [cameras, P, 2] and NaN when behind."""
    undo = torch.linalg.inv(batch.lidar_augmentation[frame].double())
    points = batch.points[frame][:, :3].double()
    points = points @ undo[:3, :3].T + undo[:3, 3]
    lidar2image = batch.lidar2image[frame].double()
    projected = points @ lidar2image[:, :3, :3].mT + lidar2image[:, None, :3, 3]
    depth = projected[..., 2:]
    stored = torch.cat((projected[..., :2] / depth, torch.ones_like(depth)), dim=-1)
    augmentation = batch.image_augmentation[frame].double()
    seen = stored @ augmentation[:, :3, :3].mT + augmentation[:, None, :3, 3]
    return torch.where(depth > 0.1, seen[..., :2], torch.nan)


@examples(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_points_stay_in_their_boxes_and_on_their_pixels(seed: int) -> None:
    batch = toy_batch()
    moved = augment(batch, replace_image_flip(STRONG), np.random.default_rng(seed))
    assert batch.boxes is not None
    assert moved.boxes is not None
    for i in range(3):
        before, after = (
            inside(batch.points[i], batch.boxes[i]),
            inside(moved.points[i], moved.boxes[i]),
        )
        assert before.any()
        # Points on a face may fall on either side.
        assert (before != after).float().mean() < 0.02
        torch.testing.assert_close(
            pixels(moved, i), pixels(batch, i), rtol=1e-3, atol=0.05, equal_nan=True
        )


def replace_image_flip(settings: AugmentSettings) -> AugmentSettings:
    return settings.model_copy(update={"image_flip": 0.0})


def test_velocity_is_the_displacement_of_the_centre() -> None:
    batch = toy_batch()
    assert batch.boxes is not None
    later = replace(
        batch.boxes[0],
        values=batch.boxes[0].values
        + torch.cat((batch.boxes[0].values[:, 7:], torch.zeros(1, 7)), dim=1),
    )
    angle, scale = 1.1, 1.2
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    move = torch.eye(4)
    move[:2, :2] = turn @ torch.diag(torch.tensor([-1.0, 1.0]))
    move[:3, :3] *= scale
    now, then = move_boxes(batch.boxes[0], move), move_boxes(later, move)
    torch.testing.assert_close(then.values[:, :2] - now.values[:, :2], now.values[:, 7:])


def test_mirroring_x_turns_the_heading_round_y() -> None:
    boxes = Boxes(torch.tensor([[1.0, 2, 0, 4, 2, 1, 0.3, 5, 1]]), torch.tensor([0]))
    mirrored = move_boxes(boxes, torch.diag(torch.tensor([-1.0, 1, 1, 1])))
    expected = torch.tensor([[-1.0, 2, 0, 4, 2, 1, math.pi - 0.3, -5, 1]])
    torch.testing.assert_close(mirrored.values, expected)


def test_points_keep_intensity_and_time() -> None:
    points = torch.tensor([[1.0, 2.0, 3.0, 50.0, 0.1]])
    moved = move_points(points, torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    assert moved.tolist() == [[2.0, 4.0, 6.0, 50.0, pytest.approx(0.1)]]


def test_mirrored_image_matches_its_matrix() -> None:
    batch = toy_batch()
    always = STILL.model_copy(update={"image_flip": 1.0})
    mirrored = augment(batch, always, np.random.default_rng(0))
    # The centre of pixel column 10 moves to the centre of column 64 - 1 - 10.
    centre = torch.tensor([10.5, 3.5, 1.0, 1.0])
    matrix = mirrored.image_augmentation[0, 0] @ torch.linalg.inv(batch.image_augmentation[0, 0])
    assert (matrix @ centre)[:2].tolist() == pytest.approx([53.5, 3.5])
    assert torch.equal(mirrored.images[0, 0, :, 3, 53], batch.images[0, 0, :, 3, 10])


def test_nothing_is_changed_when_all_is_off() -> None:
    batch = toy_batch()
    same = augment(batch, STILL, np.random.default_rng(0))
    assert torch.equal(same.images, batch.images)
    assert torch.equal(same.points[1], batch.points[1])
    assert torch.equal(same.lidar_augmentation, batch.lidar_augmentation)


def test_thinned_lidar_keeps_at_most_half_of_the_points() -> None:
    batch = toy_batch()
    thin = STILL.model_copy(update={"thin_lidar": 1.0})
    thinned = augment(batch, thin, np.random.default_rng(0))
    for before, after in zip(batch.points, thinned.points, strict=True):
        assert 0 < len(after) < 0.6 * len(before)

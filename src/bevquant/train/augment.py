"""Random changes of training batches that keep images, points and boxes consistent."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from bevquant.data.frame import Batch, Boxes
from bevquant.train.settings import AugmentSettings

KEPT = (0.05, 0.5)
"""Smallest and largest part of its points that a thinned LiDAR keeps."""


def augment(batch: Batch, settings: AugmentSettings, random: np.random.Generator) -> Batch:
    """Return ``batch`` with its LiDAR frames moved and its images changed at random.

    The LiDAR frame of each sample is mirrored, turned and scaled: its points, boxes and
    velocities, and ``lidar_augmentation``, by which the network finds the pixels of a
    point again (Liu et al., "BEVFusion", ICRA 2023, section 4).
    """
    moves = [_random_move(settings, random) for _ in batch.tokens]
    points = [_thin(cloud, settings, random) for cloud in batch.points]
    moved = replace(
        batch,
        points=tuple(move_points(p, m) for p, m in zip(points, moves, strict=True)),
        lidar_augmentation=torch.stack(moves) @ batch.lidar_augmentation,
        boxes=batch.boxes
        and tuple(move_boxes(b, m) for b, m in zip(batch.boxes, moves, strict=True)),
    )
    return _change_images(moved, settings, random)


def move_points(points: Tensor, move: Tensor) -> Tensor:
    """Return points [P, 5] with x, y, z under the affine ``move`` [4, 4]."""
    position = points[:, :3] @ move[:3, :3].T + move[:3, 3]
    return torch.cat((position, points[:, 3:]), dim=1)


def move_boxes(boxes: Boxes, move: Tensor) -> Boxes:
    """Return the boxes under a ``move`` [4, 4] of mirroring, turns about z and scale."""
    linear = move[:2, :2]
    scale = linear.det().abs().sqrt()
    values = boxes.values
    heading = torch.stack((values[:, 6].cos(), values[:, 6].sin()), dim=1) @ linear.T
    parts = (
        values[:, :3] @ move[:3, :3].T + move[:3, 3],
        values[:, 3:6] * scale,
        torch.atan2(heading[:, 1:], heading[:, :1]),
        values[:, 7:] @ linear.T,
    )
    return replace(boxes, values=torch.cat(parts, dim=1))


def _random_move(settings: AugmentSettings, random: np.random.Generator) -> Tensor:
    mirror = np.where(random.random(2) < settings.flip, -1.0, 1.0)
    angle = random.uniform(-settings.rotation, settings.rotation)
    scale = 1 + random.uniform(-settings.scale, settings.scale)
    cos, sin = np.cos(angle), np.sin(angle)
    move = np.eye(4)
    move[:2, :2] = np.array([[cos, -sin], [sin, cos]]) * mirror
    move[:3, :3] *= scale
    return torch.from_numpy(move).float()


def _thin(points: Tensor, settings: AugmentSettings, random: np.random.Generator) -> Tensor:
    if random.random() >= settings.thin_lidar:
        return points
    kept = random.random(len(points)) < random.uniform(*KEPT)
    return points[torch.from_numpy(kept)]


def _change_images(batch: Batch, settings: AugmentSettings, random: np.random.Generator) -> Batch:
    """Mirror images along u, and change their contrast and brightness."""
    count = batch.images.shape[:2]
    gain = 1 + random.uniform(-settings.contrast, settings.contrast, count)
    shift = random.uniform(-settings.brightness, settings.brightness, count)
    mirrored = torch.from_numpy(random.random(count) < settings.image_flip)
    gain_, shift_ = (torch.from_numpy(v).float()[:, :, None, None, None] for v in (gain, shift))
    images = batch.images * gain_ + shift_
    images[mirrored] = images[mirrored].flip(-1)
    mirror = torch.eye(4)
    mirror[0, 0], mirror[0, 3] = -1, images.shape[-1]
    augmentation = batch.image_augmentation.clone()
    augmentation[mirrored] = mirror @ augmentation[mirrored]
    return replace(batch, images=images, image_augmentation=augmentation)

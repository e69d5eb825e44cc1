"""A synthetic surround rig, so that the networks' tests need no data set."""

import math
from collections.abc import Callable

import pytest
import torch

from bevquant.data.frame import Batch
from bevquant.models.bevfusion import BEVFusionConfig


def synthetic_batch(
    config: BEVFusionConfig, frames: int = 1, points: int = 3000, seed: int = 0
) -> Batch:
    """Six cameras 60 degrees apart, a ground plane and walls as points, noise as images."""
    generator = torch.Generator().manual_seed(seed)
    height, width = config.image_size
    scale = height / 256
    intrinsics = torch.eye(4)
    intrinsics[:3, :3] = torch.tensor([[1260.0, 0, 816], [0, 1260.0, 490], [0, 0, 1]])
    augmentation = torch.eye(4)
    augmentation[0, 0] = augmentation[1, 1] = 0.48 * scale
    augmentation[:2, 3] = torch.tensor([-32.0, -176.0]) * scale
    to_camera = []
    for i in range(6):
        angle = math.pi / 2 - i * math.pi / 3 + 0.05 * torch.rand(1, generator=generator).item()
        forward = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
        down = torch.tensor([0.0, 0.0, -1.0])
        matrix = torch.eye(4)
        matrix[:3, :3] = torch.stack((torch.linalg.cross(down, forward), down, forward))
        matrix[:3, 3] = torch.tensor([0.0, -0.33, -0.4])
        to_camera.append(matrix)
    lidar2camera = torch.stack(to_camera).expand(frames, 6, 4, 4)
    clouds = []
    for _ in range(frames):
        random = torch.rand(5, points, generator=generator)
        reach = config.point_range[3]
        radius, azimuth = reach * random[0] ** 2, 2 * math.pi * random[1]
        z = torch.where(random[2] < 0.7, -1.8, -1.8 + 4 * (random[2] - 0.7) / 0.3)
        x, y = radius * azimuth.cos(), radius * azimuth.sin()
        dt = 0.05 * (10 * random[4]).floor()
        clouds.append(torch.stack((x, y, z, (256 * random[3]).floor(), dt), 1))
    return Batch(
        images=torch.randn(frames, 6, 3, height, width, generator=generator),
        points=tuple(clouds),
        lidar2image=intrinsics @ lidar2camera,
        intrinsics=intrinsics.expand(frames, 6, 4, 4),
        camera2lidar=torch.inverse(lidar2camera),
        image_augmentation=augmentation.expand(frames, 6, 4, 4),
        lidar_augmentation=torch.eye(4).expand(frames, 4, 4),
        lidar2ego=torch.eye(4).expand(frames, 4, 4),
        tokens=tuple(str(i) for i in range(frames)),
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    return synthetic_batch

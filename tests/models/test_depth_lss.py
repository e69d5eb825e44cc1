"""Geometry of the view transform against the reference's formulas, written plainly."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from bevquant.data.frame import Batch
from bevquant.models.bevfusion import SMALL, BEVFusion
from bevquant.models.bevfusion.depth_lss import depth_map


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Two frames, the LiDAR frame rotated, scaled and moved."""
    batch = make_batch(SMALL, frames=2, points=500)
    augmentation = torch.eye(4).repeat(2, 1, 1)
    turn = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    augmentation[1, :2, :2] = 1.05 * turn
    augmentation[1, 2, 2] = 1.05
    augmentation[1, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    return dataclasses.replace(batch, lidar_augmentation=augmentation)


@pytest.fixture(scope="module")
def view() -> torch.nn.Module:
    return BEVFusion(SMALL).view_transform


def reference_geometry(view: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """DepthLSSTransform.get_geometry of mmdetection3d."""
    frames, cameras = batch.images.shape[:2]
    shape = (frames, cameras, 1, 1, 1)
    rotation, shift = batch.image_augmentation[..., :3, :3], batch.image_augmentation[..., :3, 3]
    points = view.frustum - shift.view(*shape, 3)
    points = torch.inverse(rotation).view(*shape, 3, 3).matmul(points.unsqueeze(-1))
    points = torch.cat((points[..., :2, :] * points[..., 2:3, :], points[..., 2:3, :]), 5)
    combine = batch.camera2lidar[..., :3, :3] @ torch.inverse(batch.intrinsics[..., :3, :3])
    points = combine.view(*shape, 3, 3).matmul(points).squeeze(-1)
    points += batch.camera2lidar[..., :3, 3].view(*shape, 3)
    extra = batch.lidar_augmentation.view(frames, 1, 1, 1, 1, 4, 4).repeat(
        1, cameras, 1, 1, 1, 1, 1
    )
    points = extra[..., :3, :3].matmul(points.unsqueeze(-1)).squeeze(-1)
    return points + extra[..., :3, 3]


def test_geometry_rounds_as_the_reference(view: torch.nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        ours = torch.stack(view.geometry(batch), -1)  # type: ignore[operator]
        torch.testing.assert_close(ours, reference_geometry(view, batch), atol=1e-5, rtol=1e-6)


def test_cells_truncate_toward_zero(view: torch.nn.Module, batch: Batch) -> None:
    with torch.no_grad():
        points, pixels, cells = view.pool_indices(batch)  # type: ignore[operator]
        geometry = torch.stack(view.geometry(batch), -1).flatten(0, -2)  # type: ignore[operator]
    frustum_points = len(geometry) // 2
    low, size = torch.tensor([-44.8, -44.8, -10.0]), torch.tensor([0.8, 0.8, 20.0])
    index = ((geometry - low) / size).trunc()
    limit = torch.tensor([112.0, 112.0, 1.0])
    kept = ((index > -1) & (index < limit)).all(1)
    assert torch.equal(points.sort().values, kept.nonzero().squeeze(1))
    assert (cells.diff() >= 0).all()
    x, y, _ = index[points].long().unbind(1)
    assert torch.equal(cells, ((points // frustum_points) * 112 + x) * 112 + y)
    bins, height, width, _ = view.frustum.shape
    camera = points // (bins * height * width)
    assert torch.equal(pixels, camera * height * width + points % (height * width))


def test_depth_map_keeps_the_last_point(batch: Batch) -> None:
    maps = depth_map(batch, SMALL.image_size)
    height, width = SMALL.image_size
    for frame in range(2):
        back = torch.inverse(batch.lidar_augmentation[frame].double())
        points = torch.nn.functional.pad(batch.points[frame][:, :3].double(), (0, 1), value=1.0)
        points = points @ back.T
        for camera in range(6):
            u, v, z, _ = (points @ batch.lidar2image[frame, camera].double().T).unbind(1)
            scale, shift = 0.24, torch.tensor([-16.0, -88.0])
            u, v = u / z * scale + shift[0], v / z * scale + shift[1]
            expected = torch.zeros(height, width, dtype=torch.double)
            fragile = torch.zeros(height, width, dtype=torch.bool)
            for i in ((z > 0.01) & (u >= 0) & (u < width) & (v >= 0) & (v < height)).nonzero():
                row, column = int(v[i]), int(u[i])
                expected[row, column] = z[i]
                near = min(v[i] % 1, 1 - v[i] % 1, u[i] % 1, 1 - u[i] % 1)
                fragile[row, column] |= bool(near < 1e-3)
            ours = maps[frame, camera, 0].double()
            close = (ours - expected).abs() < 1e-4
            assert (close | fragile).all()
            assert (expected > 0).sum() > 5

"""A real nuScenes frame through our pipeline, against what was counted in the reference's."""

from pathlib import Path

import pytest
import torch

from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import FULL as PREPROCESS
from bevquant.data.preprocess import collate
from bevquant.models.bevfusion import FULL
from bevquant.models.bevfusion.depth_lss import DepthLSSTransform, depth_map
from bevquant.models.bevfusion.voxelize import voxelize


@pytest.fixture(scope="module")
def batch(real_frame: Path) -> Batch:
    dataset = NuScenesDataset(real_frame, "v1.0-frame", "frame", sweeps=PREPROCESS.sweeps)
    return collate([dataset.frame(0)], PREPROCESS)


def test_points_voxels_and_pooled_frustum_points_are_as_many(batch: Batch) -> None:
    assert len(batch.points[0]) == 32_330
    assert len(voxelize(batch.points[0], FULL).counts) == 17_509
    view = DepthLSSTransform(FULL.neck_channels, FULL.view_transform, FULL.image_size)
    points, _, _ = view.pool_indices(batch)
    assert len(points) == 1_835_478
    kept_by_truncation = torch.zeros(len(view.frustum) * 6 * 32 * 88, dtype=torch.bool)
    for axis, values in enumerate(view.geometry(batch)):
        kept_by_truncation |= (values < view.bx[axis] - view.dx[axis] / 2).flatten()
    assert int(kept_by_truncation[points].sum()) == 232_806


def test_depth_map_is_that_of_points_drawn_one_after_the_other(batch: Batch) -> None:
    """In float64, point by point; a pixel border may fall to the other side in float32."""
    expected = torch.zeros(6, *FULL.image_size, dtype=torch.float64)
    homogeneous = torch.cat((batch.points[0][:, :3], torch.ones(32_330, 1)), 1).double()
    for camera in range(6):
        seen = batch.lidar2image[0, camera].double() @ homogeneous.T
        seen[:2] /= seen[2].clamp(1e-5, 1e5)
        seen[2:3].clamp_(1e-5, 1e5)
        pixels = batch.image_augmentation[0, camera].double() @ seen
        for (u, v), depth in zip(pixels[:2].T.tolist(), seen[2].tolist(), strict=True):
            if 0 <= u < 704 and 0 <= v < 256:
                expected[camera, int(v), int(u)] = depth
    differs = (depth_map(batch, FULL.image_size)[0, :, 0] - expected).abs() > 1e-3
    assert (expected > 0).sum() > 10_000
    assert differs.sum() <= 6

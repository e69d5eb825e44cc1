"""Points on a border, put where the reference put them.

Rounding decides on which side of a border a point falls that lies on it. A fixture may list
such points with the cell or pixel that the reference's rounding chose: frustum points of the
view transform, and LiDAR points in the depth maps.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevquant.data.frame import Batch
from bevquant.models.bevfusion.depth_lss import depth_map
from bevquant.models.bevfusion.lift_splat import LiftSplat

FRUSTUM_LISTS = ("fragile_idx", "fragile_cell_xyz")
DEPTH_LISTS = ("depth_fragile_cam_point", "depth_fragile_row_col")

Pooling = tuple[Tensor, Tensor, Tensor]

CELL_BORDER = 1e-3
"""How far from the reference's cell a listed point may lie, in cells: others are mistakes."""

PIXEL_BORDER = 0.01
"""The same of a pixel, in pixels."""


def listed(fixture: Any, names: tuple[str, str]) -> tuple[Any, Any] | None:
    """Return a list of points and one of places as int64, ``None`` if there are none."""
    keys = [f"out/view_transform.{name}" for name in names]
    if any(key not in fixture for key in keys) or len(fixture[keys[0]]) == 0:
        return None
    points, places = (np.asarray(fixture[key]).astype(np.int64) for key in keys)
    return points, places


def place_frustum(fixture: Any, view: LiftSplat, batch: Batch, pooling: Pooling) -> Pooling:
    """Return ``view.pool_indices(batch)``, of one frame, with the listed points in their cells."""
    lists = listed(fixture, FRUSTUM_LISTS)
    if lists is None:
        return pooling
    index, xyz = (torch.from_numpy(part) for part in lists)
    for axis, values in enumerate(view.geometry(batch)):
        low = view.bx[axis] - view.dx[axis] / 2
        cell = ((values.flatten()[index] - low) / view.dx[axis]).double()
        # Truncation toward zero: cell 0 is from -1 to 1, cell -1 from -2 to -1.
        first = xyz[:, axis] - (xyz[:, axis] <= 0).long()
        last = xyz[:, axis] + (xyz[:, axis] >= 0).long()
        assert bool((cell >= first - CELL_BORDER).all() and (cell <= last + CELL_BORDER).all())
    points, pixels, cells = pooling
    others = ~torch.isin(points, index)
    size = torch.tensor(view.grid)
    kept = ((xyz >= 0) & (xyz < size)).all(1)
    bins, height, width = view.frustum.shape[:3]
    pixel = index // (bins * height * width) * (height * width) + index % (height * width)
    points = torch.cat((points[others], index[kept]))
    pixels = torch.cat((pixels[others], pixel[kept]))
    cells = torch.cat((cells[others], (xyz[:, 0] * size[1] + xyz[:, 1])[kept]))
    order = torch.from_numpy(np.lexsort((points.numpy(), cells.numpy())))
    return points[order], pixels[order], cells[order]


def place_depths(fixture: Any, batch: Batch, maps: Tensor) -> Tensor:
    """Return ``maps``, the depth maps of one frame, with the listed points in their pixels."""
    lists = listed(fixture, DEPTH_LISTS)
    if lists is None:
        return maps
    (cameras, points), (rows, columns) = (part.T for part in lists)
    height, width = maps.shape[-2:]
    maps = maps.clone()
    for camera in np.unique(cameras):
        mine = cameras == camera
        others = torch.ones(len(batch.points[0]), dtype=torch.bool)
        others[points[mine]] = False
        rest = dataclasses.replace(batch, points=(batch.points[0][others],))
        maps[:, camera] = depth_map(rest, (height, width))[:, camera]
        u, v, depth = project(batch, int(camera), points[mine])
        for row, column, x, y, z in zip(rows[mine], columns[mine], u, v, depth, strict=True):
            if row < 0:  # off the image, or another point is in front
                continue
            assert row - PIXEL_BORDER <= y <= row + 1 + PIXEL_BORDER
            assert column - PIXEL_BORDER <= x <= column + 1 + PIXEL_BORDER
            maps[:, camera, 0, row, column] = float(z)
    return maps


def project(batch: Batch, camera: int, index: Any) -> tuple[Any, Any, Any]:
    """Return u and v in pixels of the network's image, and depths, in float64."""

    def matrix(values: Tensor) -> Any:
        return values[0].double().numpy()

    lidar = matrix(batch.lidar_augmentation)
    xyz = batch.points[0][index, :3].double().numpy().T
    xyz = np.linalg.inv(lidar[:3, :3]) @ (xyz - lidar[:3, 3:])
    projection = matrix(batch.lidar2image)[camera]
    uvz = projection[:3, :3] @ xyz + projection[:3, 3:]
    z = uvz[2].clip(1e-5, 1e5)
    augmentation = matrix(batch.image_augmentation)[camera]
    u, v, _ = augmentation[:3, :3] @ np.stack((uvz[0] / z, uvz[1] / z, z))
    return u + augmentation[0, 3], v + augmentation[1, 3], z

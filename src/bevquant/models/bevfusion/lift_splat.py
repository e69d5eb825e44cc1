"""The geometry of lift-splat: frustum points of the image features, and their BEV cells.

Philion and Fidler, ECCV 2020. The geometry keeps the reference's order of float32
operations, so that points near a cell or pixel border fall on the same side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch
from bevquant.models.bevfusion.bev_pool import bev_pool
from bevquant.models.bevfusion.config import Bounds, LiftConfig


class LiftSplat(nn.Module):
    """The frustum of one feature map and the BEV grid that it is pooled on.

    ``dx``, ``bx``, ``nx`` (cell size, centre of the first cell, cells along x, y, z) and
    ``frustum`` [D, h, w, 3] (u, v, depth) are constants that the public BEVFusion
    checkpoints hold as parameters.

    Args:
        config: bins and grid.
        image_size: height and width of the images in pixels.
        stride: pixels per cell of the features.
    """

    def __init__(self, config: LiftConfig, image_size: tuple[int, int], stride: int) -> None:
        super().__init__()
        bounds = (config.x_bounds, config.y_bounds, config.z_bounds)
        self.image_size = image_size
        size_x, size_y, size_z = (round((high - low) / step) for low, high, step in bounds)
        self.grid = (size_x, size_y, size_z)
        self.dx = _constant(torch.tensor([step for _, _, step in bounds]))
        self.bx = _constant(torch.tensor([low + step / 2 for low, _, step in bounds]))
        self.nx = _constant(torch.tensor(self.grid))
        self.frustum = _constant(frustum(config.depth_bounds, image_size, stride))
        self.num_bins = len(self.frustum)

    def splat(
        self, lifted: Tensor, frames: int, points: Tensor, pixels: Tensor, cells: Tensor
    ) -> Tensor:
        """Pool the context of every pixel on the ground, spread over its depths.

        Args:
            lifted: [B * N, D + C, h, w], logits of the depth bins, then the context.
            frames: B.
            points: int64 [K], see :meth:`pool_indices`.
            pixels: int64 [K].
            cells: int64 [K].

        Returns:
            [B, C, X, Y].
        """
        depth = lifted[:, : self.num_bins].softmax(1)
        context = lifted[:, self.num_bins :].permute(0, 2, 3, 1).flatten(0, 2)
        size_x, size_y, _ = self.grid
        pooled = bev_pool(
            depth.flatten(),
            context,
            points=points,
            pixels=pixels,
            cells=cells,
            num_cells=frames * size_x * size_y,
        )
        # Contiguous: convolutions train much faster in this layout than channels-last.
        return pooled.view(frames, size_x, size_y, -1).permute(0, 3, 1, 2).contiguous()

    def geometry(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, y, z of the frustum points in the augmented LiDAR frame.

        Each is [B, N, D, h, w], in metres.
        """
        return unproject(self.frustum, batch)

    def pool_indices(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Find the BEV cell of every frustum point.

        Returns:
            Three int64 [K], ordered by cell: flat index of the points inside the grid in
            (B, N, D, h, w), flat index of their pixels in (B, N, h, w), flat index of
            their cells in (B, X, Y).
        """
        index = []
        kept = torch.ones((), dtype=torch.bool, device=self.frustum.device)
        for axis, points in enumerate(self.geometry(batch)):
            low = self.bx[axis] - self.dx[axis] / 2.0
            # Truncation toward zero, as the reference: (-1, 0) falls into cell 0.
            cell = ((points - low) / self.dx[axis]).int()
            kept = kept & (cell >= 0) & (cell < self.grid[axis])
            index.append(cell)
        x, y, _ = index
        size_x, size_y, _ = self.grid
        frame = torch.arange(len(x), dtype=x.dtype, device=x.device)[:, None, None, None, None]
        cells = ((frame * size_x + x) * size_y + y).flatten()
        points = kept.flatten().nonzero().squeeze(1)
        cells, order = torch.sort(cells.index_select(0, points), stable=True)
        points = points.index_select(0, order)
        bins, height, width = self.frustum.shape[:3]
        image = points // (bins * height * width)
        pixels = image * (height * width) + points % (height * width)
        return points, pixels, cells.long()


def frustum(depth_bounds: Bounds, image_size: tuple[int, int], stride: int) -> Tensor:
    """Return [D, h, w, 3]: pixel u, v and depth of the points that are lifted."""
    height, width = image_size
    depths = torch.arange(*depth_bounds, dtype=torch.float)
    v = torch.linspace(0, height - 1, height // stride)
    u = torch.linspace(0, width - 1, width // stride)
    d, v, u = torch.meshgrid(depths, v, u, indexing="ij")
    return torch.stack((u, v, d), -1)


def unproject(frustum: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return where pixels of given depths are in the augmented LiDAR frame.

    Args:
        frustum: [D, h, w, 3], u and v in pixels of the network's images, depth in metres.
        batch: of B frames with N views.

    Returns:
        x, y and z in metres, each [B, N, D, h, w].
    """
    shifted = frustum - batch.image_augmentation[..., None, None, None, :3, 3]
    undo = torch.inverse(batch.image_augmentation[..., :3, :3])
    u, v, d = _rotate(undo, shifted.unbind(-1))
    to_lidar = batch.camera2lidar[..., :3, :3] @ torch.inverse(batch.intrinsics[..., :3, :3])
    points = _rotate(to_lidar, (u * d, v * d, d))
    points = _translate(batch.camera2lidar[..., :3, 3], points)
    augmentation = batch.lidar_augmentation[:, None]
    return _translate(augmentation[..., :3, 3], _rotate(augmentation[..., :3, :3], points))


def _rotate(rotation: Tensor, vector: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Apply [..., 3, 3] to (x, y, z), each [..., D, h, w].

    One product and one sum at a time, left to right: the rounding of the reference's
    batched 3 x 3 products, without their copies.
    """
    x, y, z = vector
    r = rotation[..., None, None, None]
    first, second, third = (
        r[..., i, 0, :, :, :] * x + r[..., i, 1, :, :, :] * y + r[..., i, 2, :, :, :] * z
        for i in range(3)
    )
    return first, second, third


def _translate(offset: Tensor, vector: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = vector
    t = offset[..., None, None, None]
    return x + t[..., 0, :, :, :], y + t[..., 1, :, :, :], z + t[..., 2, :, :, :]


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)

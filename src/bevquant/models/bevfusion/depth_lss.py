"""Image features to the BEV grid: lift, splat; with or without LiDAR depth as a guide.

Philion and Fidler, ECCV 2020 (lift, splat); Liu et al., ICRA 2023 (depth map as input).
The geometry keeps the reference's order of float32 operations, so that points near a
cell or pixel border fall on the same side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch
from bevquant.models.bevfusion.bev_pool import bev_pool
from bevquant.models.bevfusion.config import FEATURE_STRIDE, Bounds, ViewTransformConfig

DEPTH_LIMITS = (1e-5, 1e5)


class LSSTransform(nn.Module):
    """Predict a depth distribution per pixel, lift, and pool on the BEV grid.

    ``dx``, ``bx``, ``nx`` (cell size, centre of the first cell, cells along x, y, z) and
    ``frustum`` [D, h, w, 3] (u, v, depth) are constants that the public checkpoints hold
    as parameters.
    """

    def __init__(
        self, in_channels: int, config: ViewTransformConfig, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        bounds = (config.x_bounds, config.y_bounds, config.z_bounds)
        self.image_size = image_size
        size_x, size_y, size_z = (round((high - low) / step) for low, high, step in bounds)
        self.grid = (size_x, size_y, size_z)
        self.dx = _constant(torch.tensor([step for _, _, step in bounds]))
        self.bx = _constant(torch.tensor([low + step / 2 for low, _, step in bounds]))
        self.nx = _constant(torch.tensor(self.grid))
        self.frustum = _constant(frustum(config.depth_bounds, image_size))
        self.num_bins = len(self.frustum)
        self._add_depthnet(in_channels, config)
        out = config.out_channels
        self.downsample = nn.Sequential()
        if config.downsample > 1:
            self.downsample = nn.Sequential(
                *_conv(out, out, 3, 1, 1, bias=False),
                *_conv(out, out, 3, config.downsample, 1, bias=False),
                *_conv(out, out, 3, 1, 1, bias=False),
            )

    def _add_depthnet(self, in_channels: int, config: ViewTransformConfig) -> None:
        self.depthnet: nn.Module = nn.Conv2d(in_channels, self.num_bins + config.out_channels, 1)

    def _predict(self, features: Tensor, depth_map: Tensor) -> Tensor:
        """Return logits of the depth bins and the context [B * N, D + C, h, w]."""
        y: Tensor = self.depthnet(features)
        return y

    def forward(
        self, features: Tensor, depth_map: Tensor, points: Tensor, pixels: Tensor, cells: Tensor
    ) -> Tensor:
        """Lift and pool.

        Args:
            features: [B, N, C, h, w] of the image neck.
            depth_map: [B, N, 1, H, W] of :func:`depth_map`.
            points: int64 [K], see :meth:`pool_indices`.
            pixels: int64 [K].
            cells: int64 [K].

        Returns:
            [B, out_channels, X, Y].
        """
        batch = len(features)
        x = self._predict(features.flatten(0, 1), depth_map.flatten(0, 1))
        depth = x[:, : self.num_bins].softmax(1)
        context = x[:, self.num_bins :].permute(0, 2, 3, 1).flatten(0, 2)
        size_x, size_y, _ = self.grid
        pooled = bev_pool(
            depth.flatten(),
            context,
            points=points,
            pixels=pixels,
            cells=cells,
            num_cells=batch * size_x * size_y,
        )
        # Contiguous: convolutions train much faster in this layout than channels-last.
        pooled = pooled.view(batch, size_x, size_y, -1).permute(0, 3, 1, 2).contiguous()
        bev: Tensor = self.downsample(pooled)
        return bev

    def geometry(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, y, z of the frustum points in the augmented LiDAR frame.

        Each is [B, N, D, h, w], in metres.
        """
        shifted = self.frustum - batch.image_augmentation[..., None, None, None, :3, 3]
        undo = torch.inverse(batch.image_augmentation[..., :3, :3])
        u, v, d = _rotate(undo, shifted.unbind(-1))
        to_lidar = batch.camera2lidar[..., :3, :3] @ torch.inverse(batch.intrinsics[..., :3, :3])
        points = _rotate(to_lidar, (u * d, v * d, d))
        points = _translate(batch.camera2lidar[..., :3, 3], points)
        augmentation = batch.lidar_augmentation[:, None]
        return _translate(augmentation[..., :3, 3], _rotate(augmentation[..., :3, :3], points))

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


class DepthLSSTransform(LSSTransform):
    """The same with a LiDAR depth map as a second input of the depth network."""

    def _add_depthnet(self, in_channels: int, config: ViewTransformConfig) -> None:
        assert config.depth_channels is not None
        first, second, third = config.depth_channels
        self.dtransform = nn.Sequential(
            *_conv(1, first, 1, 1, 0),
            *_conv(first, second, 5, 4, 2),
            *_conv(second, third, 5, 2, 2),
        )
        hidden, out = config.hidden_channels, config.out_channels
        self.depthnet = nn.Sequential(
            *_conv(in_channels + third, hidden, 3, 1, 1),
            *_conv(hidden, hidden, 3, 1, 1),
            nn.Conv2d(hidden, self.num_bins + out, 1),
        )

    def _predict(self, features: Tensor, depth_map: Tensor) -> Tensor:
        y: Tensor = self.depthnet(torch.cat((self.dtransform(depth_map), features), 1))
        return y


def frustum(depth_bounds: Bounds, image_size: tuple[int, int]) -> Tensor:
    """Return [D, h, w, 3]: pixel u, v and depth of the points that are lifted."""
    height, width = image_size
    depths = torch.arange(*depth_bounds, dtype=torch.float)
    v = torch.linspace(0, height - 1, height // FEATURE_STRIDE)
    u = torch.linspace(0, width - 1, width // FEATURE_STRIDE)
    d, v, u = torch.meshgrid(depths, v, u, indexing="ij")
    return torch.stack((u, v, d), -1)


def depth_map(batch: Batch, image_size: tuple[int, int]) -> Tensor:
    """Project the points of each frame into its cameras.

    Returns:
        [B, N, 1, H, W]: depth in metres along the optical axis of the last point (in
        point order) that falls on the pixel, 0 where there is none.
    """
    height, width = image_size
    cameras = batch.images.shape[1]
    maps = batch.lidar2image.new_zeros(len(batch.points), cameras * height * width)
    for frame, points in enumerate(batch.points):
        augmentation = batch.lidar_augmentation[frame]
        projection, image_augmentation = batch.lidar2image[frame], batch.image_augmentation[frame]
        xyz = points[:, :3] - augmentation[:3, 3]
        xyz = torch.inverse(augmentation[:3, :3]).matmul(xyz.transpose(1, 0))
        uvz = projection[:, :3, :3].matmul(xyz) + projection[:, :3, 3, None]
        # Points behind the camera get a tiny depth, which throws them off the image.
        z = uvz[:, 2].clamp(*DEPTH_LIMITS)
        uvz = torch.stack((uvz[:, 0] / z, uvz[:, 1] / z, z), 1)
        uvz = image_augmentation[:, :3, :3].matmul(uvz) + image_augmentation[:, :3, 3, None]
        u, v = uvz[:, 0], uvz[:, 1]
        camera, point = ((v >= 0) & (v < height) & (u >= 0) & (u < width)).nonzero(as_tuple=True)
        row, column = v[camera, point].long(), u[camera, point].long()
        pixel = (camera * height + row) * width + column
        last = pixel.new_full((maps.shape[1],), -1)
        last.scatter_reduce_(0, pixel, torch.arange(len(pixel), device=pixel.device), "amax")
        hit = last >= 0
        maps[frame, hit] = z[camera, point][last[hit]]
    return maps.view(-1, cameras, 1, height, width)


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


def _conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    padding: int,
    *,
    bias: bool = True,
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)

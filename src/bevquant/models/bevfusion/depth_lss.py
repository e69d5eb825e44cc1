"""Image features to the BEV grid: lift, splat; with or without LiDAR depth as a guide.

Philion and Fidler, ECCV 2020 (lift, splat); Liu et al., ICRA 2023 (depth map as input).
"""

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch
from bevquant.models.bevfusion.config import FEATURE_STRIDE, ViewTransformConfig
from bevquant.models.bevfusion.lift_splat import LiftSplat

DEPTH_LIMITS = (1e-5, 1e5)


class LSSTransform(LiftSplat):
    """Predict a depth distribution per pixel, lift, and pool on the BEV grid."""

    def __init__(
        self, in_channels: int, config: ViewTransformConfig, image_size: tuple[int, int]
    ) -> None:
        super().__init__(config, image_size, FEATURE_STRIDE)
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
        lifted = self._predict(features.flatten(0, 1), depth_map.flatten(0, 1))
        pooled = self.splat(lifted, len(features), points, pixels, cells)
        bev: Tensor = self.downsample(pooled)
        return bev


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

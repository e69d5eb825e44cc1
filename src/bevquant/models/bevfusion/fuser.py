"""ConvFuser: camera and LiDAR maps become one."""

import torch
from torch import Tensor, nn


class ConvFuser(nn.Sequential):
    """Concatenate (camera first), convolve, normalise."""

    def __init__(self, camera_channels: int, lidar_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(camera_channels + lidar_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, camera: Tensor, lidar: Tensor) -> Tensor:  # type: ignore[override]
        """Fuse [B, C1, X, Y] and [B, C2, X, Y] into [B, out_channels, X, Y]."""
        conv, norm, activate = self
        y: Tensor = activate(norm(conv(torch.cat((camera, lidar), 1))))
        return y

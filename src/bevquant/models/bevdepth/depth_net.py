"""BEVDepth's depth network: what each camera is like decides how its features are read."""

import torch
from torch import Tensor, nn

from bevquant.models.bevdepth.config import DepthNetConfig
from bevquant.models.deform import DeformConv2d
from bevquant.models.resnet import BasicBlock
from bevquant.models.se_layer import SELayer

CALIBRATION = 27
"""Numbers that describe a camera, see :func:`bevquant.models.camera.calibration`."""

DILATIONS = (1, 6, 12, 18)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, channels)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, in_channels] to [n, channels]."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Dilated(nn.Module):
    """One dilated convolution of the pyramid."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        kernel, padding = (1, 0) if dilation == 1 else (3, dilation)
        self.atrous_conv = nn.Conv2d(
            channels, channels, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, C, h, w] to the same shape."""
        y: Tensor = self.relu(self.bn(self.atrous_conv(x)))
        return y


class ASPP(nn.Module):
    """Pyramid of dilated convolutions and the mean of the map (Chen et al., DeepLab v3)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.aspp1, self.aspp2, self.aspp3, self.aspp4 = (
            Dilated(channels, dilation) for dilation in DILATIONS
        )
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(5 * channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, C, h, w] to the same shape."""
        mean = self.global_avg_pool(x).expand_as(x)
        parts = (self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), mean)
        y: Tensor = self.dropout(self.relu(self.bn1(self.conv1(torch.cat(parts, 1)))))
        return y


class DepthNet(nn.Module):
    """Depth and context of each pixel (Li et al., "BEVDepth", AAAI 2023, section 3.3)."""

    def __init__(self, in_channels: int, num_bins: int, config: DepthNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.bn = nn.BatchNorm1d(CALIBRATION)
        self.context_mlp = Mlp(CALIBRATION, channels)
        self.context_se = SELayer(channels)
        self.context_conv = nn.Conv2d(channels, config.context_channels, 1)
        self.depth_mlp = Mlp(CALIBRATION, channels)
        self.depth_se = SELayer(channels)
        layers: list[nn.Module] = [BasicBlock(channels, channels) for _ in range(3)]
        layers.append(ASPP(channels, config.dropout))
        if config.deformable_groups is not None:
            layers.append(DeformConv2d(channels, config.deformable_groups))
        layers.append(nn.Conv2d(channels, num_bins, 1))
        self.depth_conv = nn.Sequential(*layers)

    def forward(self, features: Tensor, calibration: Tensor) -> Tensor:
        """Turn features [n, C, h, w] and calibration [n, 27] into [n, D + context, h, w].

        Logits of the depth bins come first.
        """
        camera = self.bn(calibration)
        x = self.reduce_conv(features)
        context = self.context_se(x, self.context_mlp(camera)[..., None, None])
        depth = self.depth_se(x, self.depth_mlp(camera)[..., None, None])
        return torch.cat((self.depth_conv(depth), self.context_conv(context)), 1)

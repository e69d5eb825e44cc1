"""ResNet (He et al., CVPR 2016), named as in torchvision and mmdetection."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.models.bevfusion.config import Config

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Residual blocks of each stage."""


class ResNetConfig(Config):
    """What a ResNet is made of.

    Attributes:
        depth: 18 with plain blocks, 50 with bottlenecks.
        in_channels: of the input.
        base_channels: of the stem; each stage after the first has twice as many as the last.
        strides: of the stages that are built.
        out_indices: stages whose output is returned.
        pooled: whether max pooling halves the map after the stem.
    """

    depth: Literal[18, 50]
    in_channels: int = 3
    base_channels: int = 64
    strides: tuple[int, ...]
    out_indices: tuple[int, ...]
    pooled: bool = True

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned maps."""
        expansion = _block(self.depth).expansion
        return tuple(expansion * self.base_channels << i for i in self.out_indices)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual connection."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, C, H, W] to [n, channels, H / stride, W / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution with a residual connection; the second strides."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, C, H, W] to [n, 4 channels, H / stride, W / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))
        return F.relu(y)


class ResNet(nn.Module):
    """The network without its classifier."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.out_indices = config.out_indices
        base, block = config.base_channels, _block(config.depth)
        self.conv1 = nn.Conv2d(config.in_channels, base, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if config.pooled else nn.Identity()
        channels = base
        for i, stride in enumerate(config.strides):
            stage = nn.Sequential()
            for j in range(BLOCKS[config.depth][i]):
                stage.append(block(channels, base << i, stride if j == 0 else 1))
                channels = block.expansion * base << i
            self.add_module(f"layer{i + 1}", stage)
        self.num_stages = len(config.strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn maps [n, C, H, W] into those of the chosen stages, finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for i in range(self.num_stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs


def _block(depth: int) -> type[BasicBlock] | type[Bottleneck]:
    return Bottleneck if depth == 50 else BasicBlock


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )

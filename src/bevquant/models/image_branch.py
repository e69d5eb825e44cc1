"""Image backbones and necks that camera-only detectors choose from."""

import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.models.bevfusion.config import Config, SecondFPNConfig, SwinConfig
from bevquant.models.bevfusion.lss_fpn import GeneralizedLSSFPN
from bevquant.models.bevfusion.second_fpn import SECONDFPN
from bevquant.models.bevfusion.swin import SwinTransformer
from bevquant.models.resnet import ResNet, ResNetConfig


class GeneralizedNeckConfig(Config):
    """BEVFusion's image neck.

    Attributes:
        channels: of its output.
    """

    channels: int


class FPNConfig(Config):
    """Feature pyramid of which only the finest map is used.

    Attributes:
        out_channels: of its output.
    """

    out_channels: int


NeckConfig = GeneralizedNeckConfig | SecondFPNConfig | FPNConfig


class CPFPN(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017), of two maps, named as in PETR's public code."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_named_conv(n, channels, 1) for n in in_channels)
        self.fpn_convs = nn.ModuleList([_named_conv(channels, channels, 3)])

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Merge maps [n, C_i, H_i, W_i], finest first, into [n, channels, H_0, W_0]."""
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], merged[i].shape[2:])
        y: Tensor = self.fpn_convs[0](merged[0])
        return y


def image_backbone(
    config: SwinConfig | ResNetConfig, image_size: tuple[int, int]
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the backbone and the channels of its maps."""
    if isinstance(config, ResNetConfig):
        return ResNet(config), config.out_channels
    return SwinTransformer(config, image_size), config.out_channels


def image_neck(config: NeckConfig, in_channels: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return the neck and the channels of its finest map."""
    if isinstance(config, SecondFPNConfig):
        return SECONDFPN(in_channels, config), sum(config.channels)
    if isinstance(config, FPNConfig):
        return CPFPN(in_channels, config.out_channels), config.out_channels
    return GeneralizedLSSFPN(in_channels, config.channels), config.channels


def image_features(backbone: nn.Module, neck: nn.Module, images: Tensor) -> Tensor:
    """Return the finest map [n, C, h, w] that the neck makes of images [n, 3, H, W]."""
    maps = neck(backbone(images))
    features: Tensor = maps if isinstance(maps, Tensor) else maps[0]
    return features


def _named_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Return a convolution under mmcv's name ``conv``."""
    named = nn.Sequential()
    named.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))
    return named

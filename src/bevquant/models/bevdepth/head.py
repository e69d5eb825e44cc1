"""CenterPoint head (Yin et al., CVPR 2021) behind a BEV backbone of its own."""

import torch
from torch import Tensor, nn

from bevquant.models.bevdepth.config import CenterHeadConfig
from bevquant.models.bevfusion.layers import ConvModule
from bevquant.models.bevfusion.second_fpn import SECONDFPN
from bevquant.models.bevfusion.transfusion import PRIOR_BIAS
from bevquant.models.resnet import ResNet

CODE = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""Branches in the order of a box code, and their channels."""


class SeparateHead(nn.Module):
    """One small branch per predicted quantity, for one group of classes."""

    def __init__(self, config: CenterHeadConfig, classes: int) -> None:
        super().__init__()
        for name, channels in {**CODE, "heatmap": classes}.items():
            self.add_module(name, _branch(config, channels))
        last = self.get_parameter("heatmap.1.bias")
        nn.init.constant_(last, PRIOR_BIAS)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Turn features [B, C, X, Y] into heat [B, classes, X, Y] and code [B, 10, X, Y]."""
        heat: Tensor = self.get_submodule("heatmap")(features)
        return heat, torch.cat([self.get_submodule(name)(features) for name in CODE], 1)


class BEVDepthHead(nn.Module):
    """BEV backbone, neck and one group of branches per group of classes."""

    def __init__(self, config: CenterHeadConfig) -> None:
        super().__init__()
        self.trunk = ResNet(config.trunk)
        channels = (config.trunk.in_channels, *config.trunk.out_channels)
        self.neck = SECONDFPN(channels, config.neck)
        self.shared_conv = _conv(sum(config.neck.channels), config.shared_channels)
        self.task_heads = nn.ModuleList(SeparateHead(config, n) for n in config.groups)

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from a BEV map [B, C, X, Y].

        Returns:
            Class logits [B, classes, X', Y'], and box codes [B, groups, 10, X', Y'] as
            :func:`~bevquant.models.bevfusion.targets.encode` makes them, but with x and y
            counted from the cell's corner.
        """
        shared = self.shared_conv(self.neck([bev, *self.trunk(bev)]))
        heats, codes = zip(*(head(shared) for head in self.task_heads), strict=True)
        return torch.cat(heats, 1), torch.stack(codes, 1)


def _conv(in_channels: int, out_channels: int) -> ConvModule:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return ConvModule(conv, nn.BatchNorm2d(out_channels))


def _branch(config: CenterHeadConfig, out_channels: int) -> nn.Sequential:
    hidden = config.branch_channels
    return nn.Sequential(
        _conv(config.shared_channels, hidden), nn.Conv2d(hidden, out_channels, 3, padding=1)
    )

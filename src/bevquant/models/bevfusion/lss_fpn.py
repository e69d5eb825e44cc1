"""GeneralizedLSSFPN: the image neck of BEVFusion (Liu et al., ICRA 2023)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.models.bevfusion.layers import ConvModule


class GeneralizedLSSFPN(nn.Module):
    """Top-down pyramid that concatenates instead of adding."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        coarser = [out_channels] * (len(in_channels) - 2) + [in_channels[-1]]
        self.lateral_convs = nn.ModuleList(
            _conv(fine + coarse, out_channels, 1)
            for fine, coarse in zip(in_channels[:-1], coarser, strict=True)
        )
        self.fpn_convs = nn.ModuleList(
            _conv(out_channels, out_channels, 3) for _ in in_channels[:-1]
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Merge maps [n, C_i, H_i, W_i], finest first.

        Returns:
            One map [n, out_channels, H_i, W_i] per input but the coarsest.
        """
        merged = list(maps)
        for i in reversed(range(len(self.lateral_convs))):
            upsampled = F.interpolate(
                merged[i + 1], merged[i].shape[2:], mode="bilinear", align_corners=False
            )
            x = self.lateral_convs[i](torch.cat((merged[i], upsampled), 1))
            merged[i] = self.fpn_convs[i](x)
        return merged[:-1]


def _conv(in_channels: int, out_channels: int, kernel: int) -> ConvModule:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return ConvModule(conv, nn.BatchNorm2d(out_channels))

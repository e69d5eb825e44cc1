"""SECONDFPN: the BEV neck; brings every stage to one grid and concatenates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevquant.models.bevfusion.config import SecondFPNConfig
from bevquant.models.bevfusion.second import NORM_EPS, NORM_MOMENTUM


class SECONDFPN(nn.Module):
    """One (transposed) convolution per stage of the backbone."""

    def __init__(self, in_channels: Sequence[int], config: SecondFPNConfig) -> None:
        super().__init__()
        stages = zip(in_channels, config.channels, config.upsample, strict=True)
        self.deblocks = nn.ModuleList(
            nn.Sequential(
                _resample(before, after, factor),
                nn.BatchNorm2d(after, NORM_EPS, NORM_MOMENTUM),
                nn.ReLU(inplace=True),
            )
            for before, after, factor in stages
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn the backbone's maps into one [B, sum of channels, X, Y]."""
        return torch.cat([block(x) for block, x in zip(self.deblocks, maps, strict=True)], 1)


def _resample(in_channels: int, out_channels: int, factor: float) -> nn.Module:
    if factor > 1:
        up = round(factor)
        return nn.ConvTranspose2d(in_channels, out_channels, up, up, bias=False)
    down = round(1 / factor)
    return nn.Conv2d(in_channels, out_channels, down, down, bias=False)

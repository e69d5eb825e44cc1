"""SECOND: the BEV backbone (Yan et al., Sensors 2018)."""

from torch import Tensor, nn

from bevquant.models.bevfusion.config import SecondConfig

NORM_EPS = 1e-3
NORM_MOMENTUM = 0.01


class SECOND(nn.Module):
    """Plain 3 x 3 convolutions in stages of falling resolution."""

    def __init__(self, in_channels: int, config: SecondConfig) -> None:
        super().__init__()
        inputs = (in_channels, *config.channels[:-1])
        stages = zip(inputs, config.channels, config.layers, config.strides, strict=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *_conv(before, after, stride),
                *(layer for _ in range(layers) for layer in _conv(after, after, 1)),
            )
            for before, after, layers, stride in stages
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Turn a map [B, C, X, Y] into one map per stage, finest first."""
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs


def _conv(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels, NORM_EPS, NORM_MOMENTUM),
        nn.ReLU(inplace=True),
    )

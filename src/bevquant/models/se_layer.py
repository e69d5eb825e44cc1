"""Maps that something else weighs, channel by channel."""

from torch import Tensor, nn


class SELayer(nn.Module):
    """Scale the channels of a map by a gate of something else (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.act1 = nn.ReLU()
        self.conv_expand = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Scale ``x`` [n, C, h, w] by what ``code`` [n, C, h or 1, w or 1] says."""
        y: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(code))))
        return x * y

"""Small building blocks that several main modules share."""

import torch
from torch import Tensor, nn


class ConvModule(nn.Sequential):
    """Convolution without bias, batch normalisation and ReLU, named as in mmcv."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.add_module("conv", conv)
        self.add_module("bn", norm)
        self.add_module("activate", nn.ReLU(inplace=True))


class FFN(nn.Module):
    """Two linear layers with a residual connection, named as in mmcv."""

    def __init__(self, channels: int, hidden_channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(channels, hidden_channels), activation),
            nn.Linear(hidden_channels, channels),
        )

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``residual + layers(x)``; both [..., channels]."""
        y: Tensor = self.layers(x)
        return residual + y


def zeros(rows: int, like: Tensor, index: Tensor) -> Tensor:
    """Return zeros [rows, channels of ``like``] that the rows of ``index`` [K] are put into.

    In an export they hang on ``index``. Otherwise an engine keeps them as a constant; those
    of the public network are larger than all its 8-bit weights together.
    """
    if not torch.compiler.is_exporting():
        return like.new_zeros(rows, like.shape[1])
    never = index.sum() < 0
    return never.to(like.dtype).expand(rows, like.shape[1])

"""Two small building blocks that several main modules share."""

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

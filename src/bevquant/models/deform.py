"""Deformable convolution (Dai et al., ICCV 2017) out of operators that everything knows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformConv2d(nn.Module):
    """3 x 3 convolution that reads where ``conv_offset`` says, stride 1, same size.

    The nine samples of each pixel are laid out as a map of three times the size, on which a
    convolution of stride 3 is what is left: a layer like any other. Its weight is what mmcv
    keeps as ``weight`` itself; the offsets have mmcv's order, (dy, dx) of each tap.
    """

    steps: Tensor

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(channels, 18, 3, padding=1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=3, groups=groups, bias=False)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)  # type: ignore[arg-type]
        taps = torch.arange(-1.0, 2.0)
        grid = torch.stack(torch.meshgrid(taps, taps, indexing="ij"), -1)
        self.register_buffer("steps", grid, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, C, H, W] to the same shape; samples between pixels are bilinear, outside 0."""
        count, _, height, width = x.shape
        offset = self.conv_offset(x).view(count, 3, 3, 2, height, width)
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        v = rows[:, None] + self.steps[..., 0, None, None] + offset[:, :, :, 0]
        u = columns + self.steps[..., 1, None, None] + offset[:, :, :, 1]
        place = torch.stack(
            (u * (2 / width) + (1 / width - 1), v * (2 / height) + (1 / height - 1)), -1
        )
        place = place.permute(0, 3, 1, 4, 2, 5).reshape(count, 3 * height, 3 * width, 2)
        y: Tensor = self.conv(F.grid_sample(x, place, align_corners=False))
        return y

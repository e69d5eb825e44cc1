"""Swin transformer (Liu et al., ICCV 2021) with the details of mmdetection's version."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.models.bevfusion.config import PATCH, SwinConfig
from bevquant.models.bevfusion.layers import FFN
from bevquant.nn import MatMul

MASKED = -100.0


class PatchEmbed(nn.Module):
    """Cut the image into patches of 4 x 4 pixels and embed each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images [n, 3, H, W] into tokens [n, H/4, W/4, C]."""
        x: Tensor = self.norm(self.projection(images).permute(0, 2, 3, 1))
        return x


class WindowMSA(nn.Module):
    """Multi-head self-attention inside windows, with a relative position bias."""

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.q_k_matmul = MatMul()
        self.attn_v_matmul = MatMul()
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: [n * windows, T, C], the windows of one image next to each other.
            mask: [windows, T, T], added to the scores, or ``None``.

        Returns:
            The shape of ``x``.
        """
        count, tokens, channels = x.shape
        heads = self.num_heads
        qkv = self.qkv(x).reshape(count, tokens, 3, heads, channels // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)
        bias = bias.permute(2, 0, 1)
        scores = self.q_k_matmul(q * self.scale, k.transpose(-2, -1)) + bias
        if mask is not None:
            # Not the sum of mask and bias: an engine would keep it, heads times the mask.
            windows = scores.view(-1, len(mask), heads, tokens, tokens)
            scores = (windows + mask[:, None]).view(count, heads, tokens, tokens)
        y = self.attn_v_matmul(scores.softmax(-1), v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(count, tokens, channels))
        return out


class ShiftWindowMSA(nn.Module):
    """Window attention on a map, padded to whole windows and cyclically shifted."""

    mask: Tensor | None

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        shift: int,
        map_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.padding = (-map_size[0] % window_size, -map_size[1] % window_size)
        self.w_msa = WindowMSA(channels, num_heads, window_size)
        padded = (map_size[0] + self.padding[0], map_size[1] + self.padding[1])
        mask = shift_mask(padded, window_size, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend on a map [n, H, W, C] of the size given at construction."""
        height, width = x.shape[1:3]
        size, shift = self.window_size, self.shift
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        count, rows, columns, channels = x.shape
        grid = (count, rows // size, size, columns // size, size, channels)
        windows = x.view(grid).transpose(2, 3).reshape(-1, size * size, channels)
        windows = self.w_msa(windows, self.mask)
        grid = (count, rows // size, columns // size, size, size, channels)
        x = windows.view(grid).transpose(2, 3).reshape(count, rows, columns, channels)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


class SwinBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, channels: int, hidden_channels: int, attention: ShiftWindowMSA) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FFN(channels, hidden_channels, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, H, W, C] to the same shape."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = self.ffn(self.norm2(x), x)
        return y


class PatchMerging(nn.Module):
    """Halve the map: 2 x 2 tokens become one with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, H, W, C] to [n, H/2, W/2, 2C]."""
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels)
        # Channel-major (C, row, column), the order of mmdetection's nn.Unfold.
        x = x.permute(0, 1, 3, 5, 2, 4).reshape(count, height // 2, width // 2, 4 * channels)
        y: Tensor = self.reduction(self.norm(x))
        return y


class SwinStage(nn.Module):
    """Blocks of one resolution, every other one shifted, and the merging after them."""

    def __init__(self, config: SwinConfig, index: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        channels, heads = config.embed_dims << index, config.num_heads[index]
        size = config.window_size
        self.blocks = nn.ModuleList()
        for i in range(config.depths[index]):
            attention = ShiftWindowMSA(channels, heads, size, (i % 2) * (size // 2), map_size)
            self.blocks.append(SwinBlock(channels, config.mlp_ratio * channels, attention))
        last = index == len(config.depths) - 1
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map after the blocks, and the merged map that the next stage reads."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class SwinTransformer(nn.Module):
    """The image backbone."""

    def __init__(self, config: SwinConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.out_indices = config.out_indices
        self.patch_embed = PatchEmbed(config.embed_dims)
        size = (image_size[0] // PATCH, image_size[1] // PATCH)
        self.stages = nn.ModuleList(
            SwinStage(config, i, (size[0] >> i, size[1] >> i)) for i in range(len(config.depths))
        )
        for i in config.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(config.embed_dims << i))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images [n, 3, H, W] into maps [n, C_i, H/s_i, W/s_i], finest first."""
        outputs = []
        x = self.patch_embed(images)
        for i, stage in enumerate(self.stages):
            y, x = stage(x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f"norm{i}")(y).permute(0, 3, 1, 2))
        return outputs


def relative_position_index(window_size: int) -> Tensor:
    """Return int64 [T, T]: the row of the bias table for each pair of tokens."""
    steps = torch.arange(window_size)
    sequence = (steps[:, None] * (2 * window_size - 1) + steps).flatten()
    return (sequence[None] + sequence[:, None]).flip(1).contiguous()


def shift_mask(map_size: tuple[int, int], window_size: int, shift: int) -> Tensor:
    """Return [windows, T, T]: -100 between tokens that the cyclic shift brought together."""
    regions = torch.zeros(map_size)
    edges = (slice(0, -window_size), slice(-window_size, -shift), slice(-shift, None))
    for i, horizontal in enumerate(edges):
        for j, vertical in enumerate(edges):
            regions[horizontal, vertical] = 3 * i + j
    rows, columns = map_size[0] // window_size, map_size[1] // window_size
    windows = regions.view(rows, window_size, columns, window_size).transpose(1, 2)
    windows = windows.reshape(rows * columns, -1)
    return (windows[:, None] != windows[:, :, None]) * MASKED


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

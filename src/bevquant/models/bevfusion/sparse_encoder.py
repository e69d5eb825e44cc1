"""BEVFusionSparseEncoder: voxels to a dense BEV map."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from bevquant.models.bevfusion.config import SparseEncoderConfig, Triple
from bevquant.models.bevfusion.layers import zeros
from bevquant.models.bevfusion.sparse import (
    Pairs,
    Sites,
    SparseConv3d,
    output_shape,
    strided_pairs,
    submanifold_pairs,
)

KERNEL = (3, 3, 3)
STRIDE = (2, 2, 2)
OUT_KERNEL = (1, 1, 3)
OUT_STRIDE = (1, 1, 2)
NO_PADDING = (0, 0, 0)
POINT_FEATURES = 5


class Rulebook(NamedTuple):
    """What the encoder must know of where the voxels are.

    Attributes:
        rules: pairs in the order in which the encoder uses them: those of the submanifold
            convolutions of the first stage, of the convolution after it, of the next
            stage, and so on.
        active: active sites of each stage, then those of the output.
    """

    rules: tuple[Pairs, ...]
    active: tuple[Sites, ...]


class SparseBasicBlock(nn.Module):
    """Residual block of two submanifold convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SparseConv3d(channels, channels, KERNEL)
        self.bn1 = _norm(channels)
        self.conv2 = SparseConv3d(channels, channels, KERNEL)
        self.bn2 = _norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, rule: Pairs | Tensor) -> Tensor:
        """Map [V, C] to [V, C]."""
        y = self.relu(self.bn1(self.conv1(x, rule)))
        out: Tensor = self.relu(self.bn2(self.conv2(y, rule)) + x)
        return out


class SparseConvModule(nn.Sequential):
    """Sparse convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple) -> None:
        super().__init__(
            SparseConv3d(in_channels, out_channels, kernel),
            _norm(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, rule: Pairs | Tensor) -> Tensor:  # type: ignore[override]
        """Map [V, in] to [V', out]."""
        conv, norm, activate = self
        y: Tensor = activate(norm(conv(x, rule)))
        return y


class BEVFusionSparseEncoder(nn.Module):
    """Stages of residual blocks; the grid is halved after each but the last.

    Axes are x, y, z throughout; the dense output has channel ``c * Z + z``.
    """

    def __init__(self, config: SparseEncoderConfig, voxel_grid: Triple) -> None:
        super().__init__()
        # One more cell in z, as in the reference: it makes 41 -> 21 -> 11 -> 5 -> 2.
        self.shape = (voxel_grid[0], voxel_grid[1], voxel_grid[2] + 1)
        self.paddings = config.paddings
        self.conv_input = SparseConvModule(POINT_FEATURES, config.channels[0], KERNEL)
        self.encoder_layers = nn.ModuleDict()
        for i, channels in enumerate(config.channels):
            layers: list[nn.Module] = [SparseBasicBlock(channels) for _ in range(config.blocks)]
            if i + 1 < len(config.channels):
                layers.append(SparseConvModule(channels, config.channels[i + 1], KERNEL))
            self.encoder_layers[f"encoder_layer{i + 1}"] = nn.Sequential(*layers)
        self.conv_out = SparseConvModule(config.channels[-1], config.out_channels, OUT_KERNEL)
        shape = self.shape
        for padding in config.paddings:
            shape = output_shape(shape, KERNEL, STRIDE, padding)
        self.out_shape = output_shape(shape, OUT_KERNEL, OUT_STRIDE, NO_PADDING)
        self.out_channels = config.out_channels * self.out_shape[2]

    def forward(
        self, features: Tensor, rules: Sequence[Pairs | Tensor], sites: Tensor, frames: int
    ) -> Tensor:
        """Encode.

        Args:
            features: [V, 5] of the voxels in the order of their keys.
            rules: see :class:`Rulebook`; pairs, or their tables.
            sites: int64 [V'], keys of the output's sites.
            frames: frames in the batch.

        Returns:
            [frames, out_channels * Z, X, Y].
        """
        *_, last = self.stages(features, rules)
        last = self.conv_out(last, rules[-1])
        size_x, size_y, size_z = self.out_shape
        dense = zeros(frames * size_x * size_y * size_z, last, sites)
        dense = dense.index_put((sites,), last).view(frames, size_x, size_y, size_z, -1)
        bev: Tensor = dense.permute(0, 4, 3, 1, 2).flatten(1, 2)
        return bev

    def stages(self, features: Tensor, rules: Sequence[Pairs | Tensor]) -> Iterator[Tensor]:
        """Yield the features [V_i, C_i] that each stage hands on."""
        features = self.conv_input(features, rules[0])
        for i, stage in enumerate(self.encoder_layers.children()):
            for layer in stage.children():
                strided = isinstance(layer, SparseConvModule)
                features = layer(features, rules[2 * i + strided])
            yield features

    def rulebook(self, keys: Tensor) -> Rulebook:
        """Work out the pairs of all layers.

        Args:
            keys: int64 [V], ascending: ((frame * X + x) * Y + y) * Z + z with the X, Y, Z
                of ``self.shape``.
        """
        sites = Sites(keys, self.shape)
        active, rules = [sites], [submanifold_pairs(sites)]
        for padding in self.paddings:
            sites, pairs = strided_pairs(sites, KERNEL, STRIDE, padding)
            active.append(sites)
            rules += [pairs, submanifold_pairs(sites)]
        sites, pairs = strided_pairs(sites, OUT_KERNEL, OUT_STRIDE, NO_PADDING)
        return Rulebook((*rules, pairs), (*active, sites))


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

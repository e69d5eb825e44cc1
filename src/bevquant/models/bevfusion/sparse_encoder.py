"""BEVFusionSparseEncoder: voxels to a dense BEV map."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevquant.models.bevfusion.config import SparseEncoderConfig, Triple
from bevquant.models.bevfusion.sparse import Sites, SparseConv3d, downsample, submanifold_table

KERNEL = (3, 3, 3)
OUT_KERNEL = (1, 1, 3)
OUT_STRIDE = (1, 1, 2)
POINT_FEATURES = 5


class Rulebook(NamedTuple):
    """What the encoder must know of where the voxels are.

    Attributes:
        tables: neighbour tables in the order in which the encoder uses them: for each
            stage that of its submanifold convolutions and that of the convolution after
            it.
        sites: sites of the output.
        active: sites before each stage, then those of the output.
    """

    tables: tuple[Tensor, ...]
    sites: Sites
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

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Map [V, C] to [V, C]."""
        y = self.relu(self.bn1(self.conv1(x, table)))
        out: Tensor = self.relu(self.bn2(self.conv2(y, table)) + x)
        return out


class SparseConvModule(nn.Sequential):
    """Sparse convolution, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple) -> None:
        super().__init__(
            SparseConv3d(in_channels, out_channels, kernel),
            _norm(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        """Map [V, in] to [V', out]."""
        conv, norm, activate = self
        y: Tensor = activate(norm(conv(x, table)))
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
        for padding in (*config.paddings,):
            shape = _halved(shape, padding)
        self.out_shape = (shape[0], shape[1], (shape[2] - OUT_KERNEL[2]) // OUT_STRIDE[2] + 1)
        self.out_channels = config.out_channels * self.out_shape[2]

    def forward(
        self, features: Tensor, tables: Sequence[Tensor], sites: Tensor, batch: int
    ) -> Tensor:
        """Encode.

        Args:
            features: [V, 5] of the voxels in the order of their keys.
            tables: see :class:`Rulebook`.
            sites: int64 [V'], keys of the output's sites.
            batch: frames.

        Returns:
            [batch, out_channels * Z, X, Y].
        """
        remaining = iter(tables)
        for x in self.stages(features, remaining):
            features = x
        features = self.conv_out(features, next(remaining))
        size_x, size_y, size_z = self.out_shape
        dense = features.new_zeros(batch * size_x * size_y * size_z, features.shape[1])
        dense = dense.index_put((sites,), features).view(batch, size_x, size_y, size_z, -1)
        return dense.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)

    def rulebook(self, keys: Tensor, batch: int) -> Rulebook:
        """Build the neighbour tables of all layers.

        Args:
            keys: int64 [V], ascending: ((frame * X + x) * Y + y) * Z + z with the X, Y, Z
                of ``self.shape``.
            batch: frames.
        """
        sites = Sites(keys, self.shape, batch)
        active, tables = [sites], [submanifold_table(sites, KERNEL)]
        for padding in self.paddings:
            sites, table = downsample(sites, KERNEL, (2, 2, 2), padding)
            active.append(sites)
            tables += [table, submanifold_table(sites, KERNEL)]
        sites, table = downsample(sites, OUT_KERNEL, OUT_STRIDE, (0, 0, 0))
        return Rulebook((*tables, table), sites, (*active, sites))

    def stages(self, features: Tensor, tables: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the features after each stage."""
        table = next(tables)
        features = self.conv_input(features, table)
        for stage in self.encoder_layers.values():
            assert isinstance(stage, nn.Sequential)
            for layer in stage:
                if isinstance(layer, SparseConvModule):
                    features = layer(features, next(tables))
                    table = next(tables)
                else:
                    features = layer(features, table)
            yield features


def _halved(shape: Triple, padding: Triple) -> Triple:
    x, y, z = ((shape[i] + 2 * padding[i] - KERNEL[i]) // 2 + 1 for i in range(3))
    return x, y, z


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)

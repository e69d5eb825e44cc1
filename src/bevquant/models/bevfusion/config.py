"""What a BEVFusion is made of: the public network (FULL) and a small one (SMALL).

Both are the same module classes; only the figures here differ. Lengths in metres.
"""

from functools import cached_property

from pydantic import BaseModel, ConfigDict, model_validator

Triple = tuple[int, int, int]
Bounds = tuple[float, float, float]
"""Lower limit, upper limit, step."""

PATCH = 4
"""Pixels along one side of the image backbone's patches."""

FEATURE_STRIDE = 8
"""Pixels per cell of the image features that are lifted (fixed by the depth branch)."""


class Config(BaseModel):
    """A part of a network's description."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SwinConfig(Config):
    """Image backbone: Swin transformer with 4 x 4 patches.

    Attributes:
        embed_dims: channels of the first stage; each further stage has twice as many.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: tokens along one side of a window.
        mlp_ratio: hidden channels of a block's feed-forward network per channel.
        out_indices: stages whose output is returned; the first has stride 8.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    mlp_ratio: int
    out_indices: tuple[int, ...]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned maps."""
        return tuple(self.embed_dims << i for i in self.out_indices)


class LiftConfig(Config):
    """Where image features are lifted to and pooled.

    Attributes:
        depth_bounds: first depth, end (exclusive) and step of the depth bins.
        x_bounds: limits and cell size of the pooled grid along x.
        y_bounds: the same along y.
        z_bounds: the same along z; one cell high.
    """

    depth_bounds: Bounds
    x_bounds: Bounds
    y_bounds: Bounds
    z_bounds: Bounds


class ViewTransformConfig(LiftConfig):
    """Lift-splat view transform, by default with the LiDAR depth map as a second input.

    Attributes:
        depth_channels: channels of the three layers that encode the depth map; ``None`` for a
            depth network of one layer that sees images only.
        hidden_channels: channels of the two inner layers of the depth network.
        out_channels: context channels, and channels of the output.
        downsample: 1, or 2 to halve the pooled grid with three convolutions.
    """

    depth_channels: Triple | None
    hidden_channels: int
    out_channels: int
    downsample: int


class VoxelConfig(Config):
    """Voxels of the point cloud.

    Attributes:
        voxel_size: side lengths along x, y, z.
        max_points: points kept per voxel, the first in point order.
        max_voxels: voxels kept per frame, the first in point order.
        feature_scale: what the means of x, y, z, intensity (0..255) and dt are divided
            by; ones in the public network, figures near the spread of each feature where
            a network learns from scratch.
    """

    voxel_size: tuple[float, float, float]
    max_points: int
    max_voxels: int
    feature_scale: tuple[float, float, float, float, float]


class SparseEncoderConfig(Config):
    """Sparse 3-D encoder of the voxels.

    Attributes:
        channels: channels of each stage; between two stages the grid is halved.
        blocks: residual blocks per stage.
        paddings: padding along x, y, z of the halving convolution after each stage but
            the last.
        out_channels: channels of the last convolution, which halves z only.
    """

    channels: tuple[int, ...]
    blocks: int
    paddings: tuple[Triple, ...]
    out_channels: int


class SecondConfig(Config):
    """BEV backbone.

    Attributes:
        channels: channels of each stage.
        layers: convolutions of each stage after its first.
        strides: stride of the first convolution of each stage.
    """

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    strides: tuple[int, ...]


class SecondFPNConfig(Config):
    """BEV neck.

    Attributes:
        channels: output channels per stage.
        upsample: factor that brings each stage to the grid of the output; one part of a
            whole number where a stage is finer.
    """

    channels: tuple[int, ...]
    upsample: tuple[int | float, ...]


class HeadGridConfig(Config):
    """The cells in which a head looks for objects.

    Cell (i, j) covers x from ``origin[0] + i * cell_size`` and y from
    ``origin[1] + j * cell_size``.

    Attributes:
        grid: cells along x and y.
        origin: x and y of the corner of cell (0, 0).
        cell_size: side of a cell.
        num_classes: object classes.
    """

    grid: tuple[int, int]
    origin: tuple[float, float]
    cell_size: float
    num_classes: int = 10


class HeadConfig(HeadGridConfig):
    """TransFusion head.

    See :class:`~bevquant.models.bevfusion.transfusion.HeadOutput` for the units of what it
    predicts.

    Attributes:
        hidden_channels: channels of the queries.
        num_proposals: queries per frame.
        num_heads: attention heads.
        ffn_channels: hidden channels of the decoder's feed-forward network.
        prediction_channels: hidden channels of the prediction branches.
        point_classes: classes so small that neighbouring cells may both be objects; the
            local-maximum suppression of the heat map spares them.
        center_range: lowest and highest x, y, z of the bottom centre of a decoded box.
    """

    hidden_channels: int
    num_proposals: int
    num_heads: int
    ffn_channels: int
    prediction_channels: int
    point_classes: tuple[int, ...] = (8, 9)
    center_range: tuple[float, float, float, float, float, float]


class EncoderConfig(Config):
    """Everything from the sensors to the BEV features; all heads share it.

    Attributes:
        image_size: height and width of the images in pixels.
        point_range: lowest x, y, z, then highest x, y, z of the points.
        neck_channels: channels of the image features that are lifted.
        fuser_channels: channels of the fused BEV map.
    """

    image_size: tuple[int, int]
    point_range: tuple[float, float, float, float, float, float]
    img_backbone: SwinConfig
    neck_channels: int
    view_transform: ViewTransformConfig
    voxels: VoxelConfig
    pts_middle_encoder: SparseEncoderConfig
    fuser_channels: int
    pts_backbone: SecondConfig
    pts_neck: SecondFPNConfig

    @cached_property
    def voxel_grid(self) -> Triple:
        """Voxels along x, y, z."""
        low, high = self.point_range[:3], self.point_range[3:]
        sides = zip(low, high, self.voxels.voxel_size, strict=True)
        x, y, z = (round((top - bottom) / size) for bottom, top, size in sides)
        return x, y, z

    @cached_property
    def bev_grid(self) -> tuple[int, int]:
        """Cells of the BEV features along x and y."""
        view = self.view_transform
        x, y = (
            round((high - low) / step) // view.downsample
            for low, high, step in (view.x_bounds, view.y_bounds)
        )
        return x, y

    @model_validator(mode="after")
    def _sizes_agree(self) -> "EncoderConfig":
        stride = 2 ** len(self.pts_middle_encoder.paddings)
        lidar = tuple(cells // stride for cells in self.voxel_grid[:2])
        if self.bev_grid != lidar:
            raise ValueError(f"the BEV grids differ: camera {self.bev_grid}, LiDAR {lidar}")
        coarsest = PATCH << (len(self.img_backbone.depths) - 1)
        if any(side % coarsest for side in self.image_size):
            raise ValueError(f"image_size {self.image_size}: use multiples of {coarsest}")
        return self


class BEVFusionConfig(EncoderConfig):
    """The detector.

    Attributes:
        bbox_head: its head.
    """

    bbox_head: HeadConfig

    @model_validator(mode="after")
    def _head_agrees(self) -> "BEVFusionConfig":
        if self.bev_grid != self.bbox_head.grid:
            raise ValueError(
                f"the BEV grids differ: features {self.bev_grid}, head {self.bbox_head.grid}"
            )
        return self


FULL = BEVFusionConfig(
    image_size=(256, 704),
    point_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    img_backbone=SwinConfig(
        embed_dims=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        mlp_ratio=4,
        out_indices=(1, 2, 3),
    ),
    neck_channels=256,
    view_transform=ViewTransformConfig(
        depth_bounds=(1.0, 60.0, 0.5),
        x_bounds=(-54.0, 54.0, 0.3),
        y_bounds=(-54.0, 54.0, 0.3),
        z_bounds=(-10.0, 10.0, 20.0),
        depth_channels=(8, 32, 64),
        hidden_channels=256,
        out_channels=80,
        downsample=2,
    ),
    voxels=VoxelConfig(
        voxel_size=(0.075, 0.075, 0.2),
        max_points=10,
        max_voxels=160_000,
        feature_scale=(1.0, 1.0, 1.0, 1.0, 1.0),
    ),
    pts_middle_encoder=SparseEncoderConfig(
        channels=(16, 32, 64, 128),
        blocks=2,
        paddings=((1, 1, 1), (1, 1, 1), (1, 1, 0)),
        out_channels=128,
    ),
    fuser_channels=256,
    pts_backbone=SecondConfig(channels=(128, 256), layers=(5, 5), strides=(1, 2)),
    pts_neck=SecondFPNConfig(channels=(256, 256), upsample=(1, 2)),
    bbox_head=HeadConfig(
        grid=(180, 180),
        origin=(-54.0, -54.0),
        cell_size=0.6,
        hidden_channels=128,
        num_proposals=200,
        num_heads=8,
        ffn_channels=256,
        prediction_channels=64,
        center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
    ),
)
"""The public lidar-camera BEVFusion (mmdetection3d v1.4.0, projects/BEVFusion)."""

SMALL = BEVFusionConfig(
    image_size=(128, 352),
    point_range=(-44.8, -44.8, -5.0, 44.8, 44.8, 3.0),
    img_backbone=SwinConfig(
        embed_dims=24,
        depths=(1, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        mlp_ratio=2,
        out_indices=(1, 2),
    ),
    neck_channels=48,
    view_transform=ViewTransformConfig(
        depth_bounds=(1.0, 45.0, 1.1),
        x_bounds=(-44.8, 44.8, 0.8),
        y_bounds=(-44.8, 44.8, 0.8),
        z_bounds=(-10.0, 10.0, 20.0),
        depth_channels=(2, 8, 16),
        hidden_channels=48,
        out_channels=24,
        downsample=1,
    ),
    voxels=VoxelConfig(
        voxel_size=(0.2, 0.2, 0.4),
        max_points=10,
        max_voxels=40_000,
        feature_scale=(16.0, 16.0, 2.0, 64.0, 0.2),
    ),
    pts_middle_encoder=SparseEncoderConfig(
        channels=(16, 24, 32),
        blocks=1,
        paddings=((1, 1, 1), (1, 1, 0)),
        out_channels=24,
    ),
    fuser_channels=48,
    pts_backbone=SecondConfig(channels=(40, 64, 128), layers=(1, 2, 2), strides=(1, 2, 2)),
    pts_neck=SecondFPNConfig(channels=(16, 16, 16), upsample=(1, 2, 4)),
    bbox_head=HeadConfig(
        grid=(112, 112),
        origin=(-44.8, -44.8),
        cell_size=0.8,
        hidden_channels=48,
        num_proposals=100,
        num_heads=3,
        ffn_channels=128,
        prediction_channels=32,
        center_range=(-51.2, -51.2, -10.0, 51.2, 51.2, 10.0),
    ),
)
"""The same classes at a size that a laptop trains: a frame in about 0.1 s on one core."""

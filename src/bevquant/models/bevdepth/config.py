"""What a BEVDepth4D is made of: the public network (FULL) and a small one (SMALL)."""

from bevquant.models.bevfusion.config import SMALL as FUSION
from bevquant.models.bevfusion.config import (
    Config,
    HeadGridConfig,
    LiftConfig,
    SecondFPNConfig,
    SwinConfig,
)
from bevquant.models.image_branch import GeneralizedNeckConfig, NeckConfig
from bevquant.models.resnet import ResNetConfig


class DepthNetConfig(Config):
    """The network that predicts depth and context.

    Attributes:
        channels: of all hidden layers.
        context_channels: of the features that are lifted.
        dropout: probability, after the pyramid of dilated convolutions.
        deformable_groups: groups of a deformable convolution before the last layer, or
            ``None`` for none.
    """

    channels: int
    context_channels: int
    dropout: float
    deformable_groups: int | None


class CenterHeadConfig(HeadGridConfig):
    """CenterPoint head on its own BEV backbone and neck.

    Attributes:
        trunk: BEV backbone.
        neck: BEV neck, over the backbone's input and its maps.
        shared_channels: of the features that all branches read.
        branch_channels: hidden channels of a branch.
        groups: how many classes, in their order, each group of branches predicts.
        suppression: radii in metres, one per group, within which the best box wins.
        min_radius: least radius of a Gaussian of the heat map, in cells.
        candidates: boxes per group before suppression.
        score_threshold: boxes below it are dropped.
        center_range: lowest and highest x, y, z of the centre of a decoded box.
    """

    trunk: ResNetConfig
    neck: SecondFPNConfig
    shared_channels: int
    branch_channels: int
    groups: tuple[int, ...] = (1, 2, 2, 1, 2, 2)
    suppression: tuple[float, ...] = (2.0, 3.46, 3.16, 1.0, 0.92, 0.42)
    min_radius: int
    candidates: int = 500
    score_threshold: float
    center_range: tuple[float, float, float, float, float, float]


class BEVDepthConfig(Config):
    """The detector.

    Attributes:
        image_size: height and width of the images in pixels.
        stride: pixels per cell of the features that are lifted.
        img_backbone: image backbone.
        img_neck: image neck.
        lift: depth bins and BEV grid.
        depth_net: depth network.
        head: everything behind the BEV maps.
    """

    image_size: tuple[int, int]
    stride: int
    img_backbone: SwinConfig | ResNetConfig
    img_neck: NeckConfig
    lift: LiftConfig
    depth_net: DepthNetConfig
    head: CenterHeadConfig


FULL = BEVDepthConfig(
    image_size=(256, 704),
    stride=16,
    img_backbone=ResNetConfig(depth=50, strides=(1, 2, 2, 2), out_indices=(0, 1, 2, 3)),
    img_neck=SecondFPNConfig(channels=(128, 128, 128, 128), upsample=(0.25, 0.5, 1, 2)),
    lift=LiftConfig(
        depth_bounds=(2.0, 58.0, 0.5),
        x_bounds=(-51.2, 51.2, 0.8),
        y_bounds=(-51.2, 51.2, 0.8),
        z_bounds=(-5.0, 3.0, 8.0),
    ),
    depth_net=DepthNetConfig(channels=512, context_channels=80, dropout=0.5, deformable_groups=4),
    head=CenterHeadConfig(
        grid=(128, 128),
        origin=(-51.2, -51.2),
        cell_size=0.8,
        trunk=ResNetConfig(
            depth=18,
            in_channels=160,
            base_channels=160,
            strides=(1, 2, 2),
            out_indices=(0, 1, 2),
            pooled=False,
        ),
        neck=SecondFPNConfig(channels=(64, 64, 64, 64), upsample=(1, 2, 4, 8)),
        shared_channels=64,
        branch_channels=64,
        min_radius=2,
        score_threshold=0.1,
        center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
    ),
)
"""The public two-frame network (``bev_depth_lss_r50_256x704_128x128_24e_2key``).

Parameter names are the public checkpoint's behind its prefix ``model.``. Not checked, for want
of the file: the 1 x 1 layers of the two necks are transposed convolutions there (kernels
[in, out, 1, 1]), the deformable kernel is ``depth_conv.4.weight`` there and ``.conv.weight``
here, and its BEV grid lies in the car's frame with y first, ours in the LiDAR's with x first,
so the kernels behind the pooling would have to be turned.
"""

SMALL = BEVDepthConfig(
    image_size=FUSION.image_size,
    stride=8,
    img_backbone=FUSION.img_backbone,
    img_neck=GeneralizedNeckConfig(channels=FUSION.neck_channels),
    lift=LiftConfig(
        depth_bounds=FUSION.view_transform.depth_bounds,
        x_bounds=FUSION.view_transform.x_bounds,
        y_bounds=FUSION.view_transform.y_bounds,
        z_bounds=FUSION.view_transform.z_bounds,
    ),
    depth_net=DepthNetConfig(channels=48, context_channels=32, dropout=0.0, deformable_groups=None),
    head=CenterHeadConfig(
        grid=(56, 56),
        origin=(-44.8, -44.8),
        cell_size=1.6,
        trunk=ResNetConfig(
            depth=18,
            in_channels=64,
            base_channels=32,
            strides=(1, 2, 2),
            out_indices=(0, 1, 2),
            pooled=False,
        ),
        neck=SecondFPNConfig(channels=(16, 24, 24, 24), upsample=(0.5, 1, 2, 4)),
        shared_channels=32,
        branch_channels=24,
        groups=(5, 5),
        suppression=(2.0, 0.9),
        min_radius=1,
        score_threshold=0.02,
        center_range=(-51.2, -51.2, -10.0, 51.2, 51.2, 10.0),
    ),
)
"""On the images of the generated world, with the small BEVFusion's image backbone and neck.

Its cells are twice as large as the public network's, and two groups of branches (vehicles; all
that is smaller) do for six: so a frame takes a CPU half a second to learn from.
"""

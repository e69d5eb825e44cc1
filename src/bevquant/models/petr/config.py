"""What a PETR is made of: the public network (FULL) and a small one (SMALL)."""

from bevquant.models.bevfusion.config import SMALL as FUSION
from bevquant.models.bevfusion.config import Config, SwinConfig
from bevquant.models.image_branch import FPNConfig, GeneralizedNeckConfig, NeckConfig
from bevquant.models.resnet import ResNetConfig

Range = tuple[float, float, float, float, float, float]
"""Lowest x, y, z, then highest x, y, z, metres."""


class PositionConfig(Config):
    """The points that stand for a feature's line of sight.

    Attributes:
        bins: points per line, at distances that grow linearly (LID).
        start: depth of the first one, metres.
        span: coordinates are counted from its lowest to its highest corner as 0..1; its
            greatest x is the end of the depths.
    """

    bins: int
    start: float
    span: Range


class PETRHeadConfig(Config):
    """Decoder and prediction branches.

    Attributes:
        channels: of queries and keys.
        num_queries: per frame.
        num_layers: of the decoder.
        num_heads: attention heads.
        ffn_channels: hidden channels of a layer's feed-forward network.
        dropout: probability, in a layer.
        placed: whether what is attended to tells its position too, and a query its own; the
            published network compares positions only, and needs far more frames to learn how
            far an object is from the query that has found it.
        offset_scale: what the box branch says of a place is multiplied by, before it moves the
            query's: 1 in the published network. One unit is up to a quarter of the range, and
            the smaller it is in metres, the less a step of training throws boxes about.
        guided_positions: whether a feature weighs the entries of its position, and so can say
            where on its line of sight it is (PETRv2, Liu et al., ICCV 2023, section 3.4).
        num_classes: object classes.
        point_range: where objects are.
        center_range: boxes with their centre outside are dropped.
        max_boxes: boxes per frame.
    """

    channels: int
    num_queries: int
    num_layers: int
    num_heads: int
    ffn_channels: int
    dropout: float
    placed: bool
    guided_positions: bool
    offset_scale: float
    num_classes: int = 10
    point_range: Range
    center_range: Range
    max_boxes: int = 300


class PETRConfig(Config):
    """The detector.

    Attributes:
        image_size: height and width of the images in pixels.
        stride: pixels per cell of the features that the decoder reads.
        img_backbone: image backbone.
        img_neck: image neck.
        position: points on the lines of sight.
        head: everything behind the image features.
    """

    image_size: tuple[int, int]
    stride: int
    img_backbone: SwinConfig | ResNetConfig
    img_neck: NeckConfig
    position: PositionConfig
    head: PETRHeadConfig


FULL = PETRConfig(
    image_size=(512, 1408),
    stride=16,
    img_backbone=ResNetConfig(depth=50, strides=(1, 2, 2, 2), out_indices=(2, 3)),
    img_neck=FPNConfig(out_channels=256),
    position=PositionConfig(bins=64, start=1.0, span=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)),
    head=PETRHeadConfig(
        channels=256,
        num_queries=900,
        num_layers=6,
        num_heads=8,
        ffn_channels=2048,
        dropout=0.1,
        placed=False,
        guided_positions=False,
        offset_scale=1.0,
        point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        center_range=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
    ),
)
"""The public network (``petr_r50dcn_gridmask_p4``) with a plain ResNet-50.

Parameter names are the public checkpoint's, but for the deformable convolutions of its last two
stages, which are plain here; its images have other means (BGR, not divided by a deviation) and
its strides lie in the first convolution of a bottleneck. The prediction branches, which all
layers share and the public file repeats six times, are there once; the rows of the last box
layer are ordered x, y, z, length, width, height, ... and not x, y, width, length, z, height.
None of this was checked against the file.
"""

SMALL = PETRConfig(
    image_size=FUSION.image_size,
    stride=8,
    img_backbone=FUSION.img_backbone,
    img_neck=GeneralizedNeckConfig(channels=FUSION.neck_channels),
    position=PositionConfig(bins=32, start=1.0, span=(-51.2, -51.2, -10.0, 51.2, 51.2, 10.0)),
    head=PETRHeadConfig(
        channels=96,
        num_queries=100,
        num_layers=3,
        num_heads=4,
        ffn_channels=192,
        dropout=0.0,
        placed=True,
        guided_positions=True,
        offset_scale=0.1,
        point_range=(-44.8, -44.8, -5.0, 44.8, 44.8, 3.0),
        center_range=(-51.2, -51.2, -10.0, 51.2, 51.2, 10.0),
    ),
)
"""On the images of the generated world, with the small BEVFusion's image backbone and neck."""

"""BEV map segmentation (Liu et al., "BEVFusion", ICRA 2023): which map classes each cell has."""

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from bevquant.data.labels import MAP_CLASSES, MapGrid
from bevquant.errors import BevquantError
from bevquant.models.bevfusion.config import FULL as DETECTOR
from bevquant.models.bevfusion.config import SMALL as SMALL_DETECTOR
from bevquant.models.bevfusion.config import EncoderConfig
from bevquant.models.dense import DenseNetwork, Labelled, middles, sampling_grid

FOCAL_GAMMA = 2.0


class MapHeadConfig(BaseModel):
    """Grid of the output, in the LiDAR frame.

    Attributes:
        reach: the map covers -reach..reach along x and y, metres.
        cell: side of a cell, metres.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reach: float
    cell: float

    @property
    def grid(self) -> MapGrid:
        """The same as the data set takes it."""
        return MapGrid(self.reach, self.cell)


class SegmentationConfig(EncoderConfig):
    """The whole network.

    Attributes:
        map_head: its head.
    """

    map_head: MapHeadConfig


class BEVSegmentationHead(nn.Module):
    """Three convolutions, named as in BEVFusion's public code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, len(MAP_CLASSES), 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Turn features [B, C, X, Y] into logits [B, 6, X, Y]."""
        y: Tensor = self.classifier(features)
        return y


class BEVSegmentation(DenseNetwork):
    """BEVFusion with a map head; a cell's logits are independent, classes overlap."""

    config: SegmentationConfig

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__(config)
        self.map_head = BEVSegmentationHead(sum(config.pts_neck.channels))

    def grid(self, lidar_augmentation: Tensor, lidar2ego: Tensor) -> Tensor:
        """Return where the map's cells lie: a constant unless the batch is augmented."""
        head = self.config.map_head
        places = middles(-head.reach, head.reach, head.grid.cells)
        return sampling_grid(places, places, lidar_augmentation, self.config)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits [B, 6, X, Y] of the classes of each cell."""
        logits: Tensor = self.map_head(features)
        return logits

    def decode(self, output: Tensor) -> Tensor:
        """Turn logits into probabilities [B, 6, X, Y]."""
        return output.sigmoid()

    def losses(self, output: Tensor, labels: Labelled) -> dict[str, Tensor]:
        """Return the focal loss of each class (mean over cells).

        Raises:
            BevquantError: the batch has no map labels.
        """
        if labels.map_masks is None:
            raise BevquantError("map_masks: the batch has none; open the data with a map_grid")
        target = labels.map_masks.to(output.device)
        cells = focal_loss(output.float(), target.float())
        return {name: cells[:, index].mean() for index, name in enumerate(MAP_CLASSES)}


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sigmoid focal loss of each element (gamma 2, classes not balanced)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = (targets - logits.sigmoid()).abs()
    return cross_entropy * miss.pow(FOCAL_GAMMA)


def _published() -> SegmentationConfig:
    fields = DETECTOR.model_dump(exclude={"bbox_head"})
    fields["point_range"] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    fields["voxels"] |= {"voxel_size": (0.1, 0.1, 0.2), "max_voxels": 120_000}
    bounds = (-51.2, 51.2, 0.4)
    fields["view_transform"] |= {"x_bounds": bounds, "y_bounds": bounds, "depth_channels": None}
    return SegmentationConfig(**fields, map_head=MapHeadConfig(reach=50.0, cell=0.5))


FULL = _published()
"""The public camera-LiDAR network (``configs/nuscenes/seg/fusion-bev256d2-lss.yaml``)."""

SMALL = SegmentationConfig(
    **SMALL_DETECTOR.model_dump(exclude={"bbox_head"}),
    map_head=MapHeadConfig(reach=40.0, cell=0.5),
)
"""The small BEVFusion's encoder with the same head."""

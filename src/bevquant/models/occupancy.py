"""3-D occupancy with FlashOcc's channel-to-height head (Yu et al., arXiv 2311.12058).

No 3-D convolution: the channels of a BEV cell become the voxels above it.
"""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from bevquant.data.labels import OCCUPANCY_CLASSES, OCCUPANCY_ORIGIN, OCCUPANCY_SHAPE, VOXEL
from bevquant.errors import BevquantError
from bevquant.models.bevfusion.config import FULL as DETECTOR
from bevquant.models.bevfusion.config import SMALL as SMALL_DETECTOR
from bevquant.models.bevfusion.config import EncoderConfig
from bevquant.models.dense import DenseNetwork, Labelled, middles, sampling_grid


class OccupancyHeadConfig(BaseModel):
    """The head; its grid and classes are Occ3D's.

    Attributes:
        channels: after the convolution; the hidden layer behind it has twice as many.
        class_weights: of the classes in the loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int
    class_weights: tuple[float, ...] = (1.0,) * len(OCCUPANCY_CLASSES)


class OccupancyConfig(EncoderConfig):
    """The whole network.

    Attributes:
        occ_head: its head.
    """

    occ_head: OccupancyHeadConfig


class BEVOCCHead2D(nn.Module):
    """One convolution, then two linear layers per cell, named as in FlashOcc's public code."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.final_conv = nn.Sequential()
        self.final_conv.add_module("conv", nn.Conv2d(in_channels, channels, 3, padding=1))
        self.final_conv.add_module("activate", nn.ReLU(inplace=True))
        self.predicter = nn.Sequential(
            nn.Linear(channels, 2 * channels),
            nn.Softplus(),
            nn.Linear(2 * channels, OCCUPANCY_SHAPE[2] * len(OCCUPANCY_CLASSES)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Turn features [B, C, X, Y] into logits [B, X, Y, Z, 18]."""
        cells = self.final_conv(features).permute(0, 2, 3, 1)
        logits: Tensor = self.predicter(cells)
        return logits.view(*logits.shape[:3], OCCUPANCY_SHAPE[2], len(OCCUPANCY_CLASSES))


class BEVOccupancy(DenseNetwork):
    """BEVFusion's encoder with FlashOcc's head, on the voxels of Occ3D."""

    config: OccupancyConfig

    def __init__(self, config: OccupancyConfig) -> None:
        super().__init__(config)
        self.occ_head = BEVOCCHead2D(sum(config.pts_neck.channels), config.occ_head.channels)

    def grid(self, lidar_augmentation: Tensor, lidar2ego: Tensor) -> Tensor:
        """Return where the columns of voxels, which go with the car, lie on the features."""
        x, y = (
            middles(low, low + cells * VOXEL, cells)
            for low, cells in zip(OCCUPANCY_ORIGIN[:2], OCCUPANCY_SHAPE[:2], strict=True)
        )
        return sampling_grid(x, y, lidar_augmentation @ torch.inverse(lidar2ego), self.config)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits [B, X, Y, Z, 18]."""
        logits: Tensor = self.occ_head(features)
        return logits

    def decode(self, output: Tensor) -> Tensor:
        """Turn logits into the class of each voxel, uint8 [B, X, Y, Z]."""
        return output.argmax(-1).to(torch.uint8)

    def losses(self, output: Tensor, labels: Labelled) -> dict[str, Tensor]:
        """Return the mean cross-entropy, weighted by class, of the voxels that a camera sees.

        Raises:
            BevquantError: the batch has no occupancy labels.
        """
        if labels.occupancy is None:
            raise BevquantError("occupancy: the batch has none; open the data with occupancy=True")
        seen = labels.occupancy.mask_camera.to(output.device)
        target = labels.occupancy.semantics.to(output.device)[seen].long()
        weights = torch.tensor(self.config.occ_head.class_weights, device=output.device)
        return {"occupancy": F.cross_entropy(output[seen].float(), target, weights)}


FULL = OccupancyConfig(
    **DETECTOR.model_dump(exclude={"bbox_head"}), occ_head=OccupancyHeadConfig(channels=256)
)
"""The public BEVFusion's encoder with the public FlashOcc's head; nobody published weights of
this pair."""

_WEIGHTS = {
    **dict.fromkeys(("barrier", "bicycle", "motorcycle", "pedestrian", "traffic_cone"), 10.0),
    **dict.fromkeys(("bus", "car", "construction_vehicle", "trailer", "truck", "vegetation"), 5.0),
    **dict.fromkeys(("driveable_surface", "sidewalk", "terrain", "manmade"), 3.0),
}
"""About the fourth root of how much rarer than free space a class is in the generated world."""

SMALL = OccupancyConfig(
    **SMALL_DETECTOR.model_dump(exclude={"bbox_head"}),
    occ_head=OccupancyHeadConfig(
        channels=32,
        class_weights=tuple(_WEIGHTS.get(name, 1.0) for name in OCCUPANCY_CLASSES),
    ),
)
"""The small BEVFusion's encoder with a head of an eighth of the channels."""

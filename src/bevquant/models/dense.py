"""Networks that label every cell of a grid from BEVFusion's BEV features."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bevquant.data.frame import Batch
from bevquant.data.labels import Occupancy
from bevquant.models.bevfusion.config import EncoderConfig
from bevquant.models.bevfusion.encoder import BEVEncoder, NetworkInput


class DenseInput(NamedTuple):
    """All that the layers need; nothing in it depends on the weights.

    Attributes:
        sensors: input of the encoder.
        grid: float32 [B, X', Y', 2], where each output cell lies on the BEV features, as
            :func:`torch.nn.functional.grid_sample` takes it (y first, -1..1).
    """

    sensors: NetworkInput
    grid: Tensor


class Labelled(Protocol):
    """Whatever carries labels, such as a :class:`~bevquant.data.frame.Batch`."""

    @property
    def map_masks(self) -> Tensor | None:
        """See :class:`~bevquant.data.frame.Batch`."""
        ...

    @property
    def occupancy(self) -> Occupancy | None:
        """See :class:`~bevquant.data.frame.Batch`."""
        ...


class DenseNetwork(BEVEncoder, ABC):
    """Encoder, features brought to the grid of the labels, head.

    The BEV features lie in the augmented LiDAR frame, the labels do not: sampling undoes the
    augmentation (BEVFusion's ``BEVGridTransform``, with the augmentation in it).
    """

    def forward(self, batch: Batch) -> Tensor:
        """Run both halves; returns raw scores of every cell."""
        return self.network(self.prepare(batch))

    @torch.no_grad()
    def prepare(self, batch: Batch) -> DenseInput:
        """Do everything that depends on where the points, the cameras and the car are."""
        grid = self.grid(batch.lidar_augmentation, batch.lidar2ego)
        return DenseInput(self.prepare_sensors(batch), grid)

    def network(self, inputs: DenseInput) -> Tensor:
        """Run the layers."""
        return self.tail(self.fused(inputs.sensors), inputs.grid)

    def tail(self, fused: Tensor, grid: Tensor) -> Tensor:
        """Run the layers behind the fused map [B, C, X, Y]."""
        features = F.grid_sample(self.refined(fused), grid, mode="bilinear", align_corners=False)
        return self.classify(features)

    @abstractmethod
    def grid(self, lidar_augmentation: Tensor, lidar2ego: Tensor) -> Tensor:
        """Return where the output cells of each frame lie on the BEV features.

        Args:
            lidar_augmentation: float32 [B, 4, 4], see :class:`~bevquant.data.frame.Batch`.
            lidar2ego: float32 [B, 4, 4].

        Returns:
            See :attr:`DenseInput.grid`.
        """

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Return raw scores from features [B, C, X', Y'] on the grid of the labels."""

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """Turn raw scores into what the metric takes."""

    @abstractmethod
    def losses(self, output: Tensor, labels: Labelled) -> dict[str, Tensor]:
        """Return the terms whose sum training minimises.

        Raises:
            BevquantError: the labels of this task are missing.
        """


def sampling_grid(x: Tensor, y: Tensor, to_features: Tensor, config: EncoderConfig) -> Tensor:
    """Return where points on the ground lie on the BEV features.

    Args:
        x: float32 [X'], coordinates of the rows of output cells, metres.
        y: float32 [Y'].
        to_features: float32 [B, 4, 4], from the frame of x and y to that of the features.
        config: of the encoder.

    Returns:
        float32 [B, X', Y', 2], y before x, -1..1 inside the features.
    """
    view = config.view_transform
    u, v = torch.meshgrid(x, y, indexing="ij")
    ground = torch.stack((u, v, torch.zeros_like(u), torch.ones_like(u)), -1)
    place = ground.to(to_features) @ to_features.transpose(1, 2)[:, None]
    scaled = [
        (place[..., axis] - low) / (high - low) * 2 - 1
        for axis, (low, high, _) in enumerate((view.x_bounds, view.y_bounds))
    ]
    return torch.stack((scaled[1], scaled[0]), -1)


def middles(low: float, high: float, cells: int) -> Tensor:
    """Return the middles of ``cells`` cells between two limits: float32 [cells]."""
    return low + (torch.arange(cells) + 0.5) * ((high - low) / cells)

"""What all detectors that see images only have in common."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch, Boxes
from bevquant.models.bevfusion.config import Config


class CameraDetector(nn.Module, ABC):
    """A detector in two halves, as :class:`~bevquant.models.bevfusion.BEVFusion`.

    :meth:`prepare` does what depends on where the cameras are; :meth:`network` holds all
    layers, and is what gets quantized.

    Attributes:
        config: what it is made of.
    """

    config: Config

    def forward(self, batch: Batch) -> Any:
        """Run both halves; returns raw predictions."""
        return self.network(self.prepare(batch))

    @property
    @abstractmethod
    def camera(self) -> nn.Module:
        """The module that holds ``img_backbone`` and ``img_neck``."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Any:
        """Return all that the layers need; nothing in it depends on the weights."""

    @abstractmethod
    def empty_input(self) -> Any:
        """Return the input of one frame as tensors on the default device, to learn shapes of."""

    @abstractmethod
    def network(self, inputs: Any) -> Any:
        """Run the layers."""

    @abstractmethod
    def decode(self, output: Any) -> list[Boxes]:
        """Turn raw predictions into boxes, one :class:`Boxes` per frame."""

    @abstractmethod
    def losses(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum training minimises.

        Raises:
            BevquantError: the batch has no boxes.
        """

    def training_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms whose sum float training minimises: :meth:`losses`, or more.

        Raises:
            BevquantError: the batch has no boxes.
        """
        return self.losses(self(batch), batch)


def calibration(batch: Batch) -> Tensor:
    """Return what BEVDepth's depth network is told of each camera, float32 [B, N, 27].

    Intrinsics, image augmentation, LiDAR augmentation, camera to LiDAR (Li et al.,
    "BEVDepth", AAAI 2023, section 3.3; there the car's frame takes the LiDAR's place).
    """
    k, image, view = batch.intrinsics, batch.image_augmentation, batch.camera2lidar
    lidar = batch.lidar_augmentation[:, None].expand_as(k)
    parts = (
        (k, ((0, 0), (1, 1), (0, 2), (1, 2))),
        (image, ((0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 3))),
        (lidar, ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))),
        (view, [(row, column) for row in range(3) for column in range(4)]),
    )
    return torch.stack([m[..., i, j] for m, places in parts for i, j in places], -1)

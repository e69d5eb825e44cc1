"""PETR: image branch and head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevquant.data.frame import CAMERAS, Batch, Boxes
from bevquant.errors import BevquantError
from bevquant.models.bevfusion.lift_splat import unproject
from bevquant.models.camera import CameraDetector
from bevquant.models.image_branch import image_backbone, image_features, image_neck
from bevquant.models.petr import boxes
from bevquant.models.petr.config import PETRConfig
from bevquant.models.petr.denoise import attention_loss, lines_to, noisy, watched
from bevquant.models.petr.head import PETRHead, PETROutput
from bevquant.models.petr.position import lines_of_sight, positions

ATTENTION_WEIGHT = 0.2


class PETRInput(NamedTuple):
    """All that the layers need; nothing in it depends on the weights.

    Attributes:
        images: float32 [B, N, 3, H, W], normalised.
        positions: float32 [B, N, 3 D, h, w], see
            :func:`~bevquant.models.petr.position.positions`.
    """

    images: Tensor
    positions: Tensor


class PETR(CameraDetector):
    """Camera-only transformer detector; main modules named as in its public code."""

    config: PETRConfig
    lines: Tensor

    def __init__(self, config: PETRConfig) -> None:
        super().__init__()
        self.config = config
        self.img_backbone, channels = image_backbone(config.img_backbone, config.image_size)
        self.img_neck, in_channels = image_neck(config.img_neck, channels)
        self.pts_bbox_head = PETRHead(in_channels, config)
        lines = lines_of_sight(config.image_size, config.stride, config.position)
        self.register_buffer("lines", lines, persistent=False)

    @property
    def camera(self) -> nn.Module:
        """The module that holds ``img_backbone`` and ``img_neck``."""
        return self

    @torch.no_grad()
    def prepare(self, batch: Batch) -> PETRInput:
        """Find out where the images' features may be in 3-D."""
        return PETRInput(batch.images, positions(self.lines, batch, self.config.position))

    def empty_input(self) -> PETRInput:
        """Return the input of one frame as tensors on the default device, to learn shapes of."""
        bins, height, width, _ = self.lines.shape
        return PETRInput(
            torch.empty(1, len(CAMERAS), 3, *self.config.image_size),
            torch.empty(1, len(CAMERAS), 3 * bins, height, width),
        )

    def network(self, inputs: PETRInput) -> PETROutput:
        """Run the layers."""
        output: PETROutput = self.pts_bbox_head(self._features(inputs), inputs.positions)
        return output

    def training_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of :meth:`losses`, and those of noisy queries, see ``denoise.py``."""
        inputs, head = self.prepare(batch), self.pts_bbox_head
        truths = self._truths(batch)
        queries = noisy(self.config.head, truths)
        key, value = head.memory(self._features(inputs), inputs.positions)
        output = head.predict(key, value, head.reference_points.weight)
        with watched(head.cross_products) as scores:
            beside = head.predict(key, value, queries.reference.to(key.device))
        return {
            **boxes.losses(output, truths),
            **boxes.noisy_losses(beside, queries.counts, truths),
            "attention": ATTENTION_WEIGHT * attention_loss(scores, self._lines_to(truths, batch)),
        }

    def _lines_to(self, truths: Sequence[Boxes], batch: Batch) -> list[Tensor]:
        """Return the cells of all cameras in which the objects of each frame have their centres."""
        ends = self.lines[:1].repeat(2, 1, 1, 1)
        ends[..., :2] += self.config.stride / 2
        ends[:, ..., 2] = torch.arange(2.0, device=ends.device)[:, None, None]
        start, end = torch.stack(unproject(ends, batch), -1).unbind(2)
        return [
            lines_to(truth.values[:, :3].to(start.device), first.flatten(0, 2), last.flatten(0, 2))
            for truth, first, last in zip(truths, start, end, strict=True)
        ]

    def _features(self, inputs: PETRInput) -> Tensor:
        return image_features(self.img_backbone, self.img_neck, inputs.images.flatten(0, 1))

    def decode(self, output: PETROutput) -> list[Boxes]:
        """Turn raw predictions into boxes, one :class:`Boxes` per frame."""
        return boxes.decode(self.config.head, output)

    def losses(self, output: PETROutput, batch: Batch) -> dict[str, Tensor]:
        """Return the terms ``class`` and ``box``, whose sum is minimised.

        Raises:
            BevquantError: the batch has no boxes.
        """
        return boxes.losses(output, self._truths(batch))

    def _truths(self, batch: Batch) -> list[Boxes]:
        if batch.boxes is None:
            raise BevquantError("boxes: the batch has none; train on an annotated split")
        return [boxes.in_range(each, self.config.head) for each in batch.boxes]

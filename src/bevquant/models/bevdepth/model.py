"""BEVDepth4D: two key frames in one BEV map."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevquant.data.frame import CAMERAS, Batch, Boxes
from bevquant.errors import BevquantError
from bevquant.models.bevdepth import centers
from bevquant.models.bevdepth.backbone import LSSFPN
from bevquant.models.bevdepth.config import BEVDepthConfig
from bevquant.models.bevdepth.depth_loss import depth_loss
from bevquant.models.bevdepth.depth_net import CALIBRATION
from bevquant.models.bevdepth.head import BEVDepthHead
from bevquant.models.camera import CameraDetector, calibration

DEPTH_WEIGHT = 3.0
NOW, BEFORE = slice(0, len(CAMERAS)), slice(len(CAMERAS), 2 * len(CAMERAS))
"""Views of the key frame, and of the one before."""

Pool = tuple[Tensor, Tensor, Tensor]
"""Points, pixels and cells, see :meth:`.LiftSplat.pool_indices`."""


class BEVDepthInput(NamedTuple):
    """All that the layers need; nothing in it depends on the weights.

    Attributes:
        images: float32 [B, N, 3, H, W], normalised, of the key frame.
        images_before: the same of the one before.
        calibration: float32 [B, N, 27], see :func:`~bevquant.models.camera.calibration`.
        pool: where the frustum points of ``images`` fall.
        pool_before: where those of ``images_before`` do, in the key frame's LiDAR frame.
    """

    images: Tensor
    images_before: Tensor
    calibration: Tensor
    pool: Pool
    pool_before: Pool


class BEVDepthOutput(NamedTuple):
    """Raw predictions.

    Attributes:
        heatmap: class logits [B, classes, X, Y].
        codes: box codes [B, groups, 10, X, Y], see :class:`.BEVDepthHead`.
        depth: logits of the depth bins of the key frame's images [B, N, D, h, w].
    """

    heatmap: Tensor
    codes: Tensor
    depth: Tensor


class BEVDepth(CameraDetector):
    """Camera-only detector that sees two key frames, half a second apart.

    The frustum points of the earlier images are moved by the ego motion between the two
    before they are pooled, so that both BEV maps lie in the key frame's LiDAR frame; this is
    exact where warping the pooled map would interpolate.
    """

    config: BEVDepthConfig

    def __init__(self, config: BEVDepthConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = LSSFPN(config)
        self.head = BEVDepthHead(config.head)

    @property
    def camera(self) -> nn.Module:
        """The module that holds ``img_backbone`` and ``img_neck``."""
        return self.backbone

    @torch.no_grad()
    def prepare(self, batch: Batch) -> BEVDepthInput:
        """Find out where the images' features fall on the BEV grid.

        Raises:
            BevquantError: the batch lacks the images of the key frame before.
        """
        if batch.images.shape[1] != BEFORE.stop:
            raise BevquantError(
                f"images: the batch has {batch.images.shape[1]} views, the network needs those of "
                "two key frames; open the data with past_images=1"
            )
        now, before = batch.views(NOW), batch.views(BEFORE)
        return BEVDepthInput(
            now.images,
            before.images,
            calibration(now),
            self.backbone.pool_indices(now),
            self.backbone.pool_indices(before),
        )

    def empty_input(self) -> BEVDepthInput:
        """Return the input of one frame as tensors on the default device, to learn shapes of."""
        images = torch.empty(1, len(CAMERAS), 3, *self.config.image_size)
        none = torch.empty(0, dtype=torch.int64)
        pool = (none, none, none)
        return BEVDepthInput(images, images, torch.empty(1, len(CAMERAS), CALIBRATION), pool, pool)

    def network(self, inputs: BEVDepthInput) -> BEVDepthOutput:
        """Run the layers; no gradient flows back in time, as in the public code."""
        now, depth = self.backbone(inputs.images, inputs.calibration, *inputs.pool)
        with torch.no_grad():
            before, _ = self.backbone(inputs.images_before, inputs.calibration, *inputs.pool_before)
        heatmap, codes = self.head(torch.cat((now, before), 1))
        return BEVDepthOutput(heatmap, codes, depth)

    def decode(self, output: BEVDepthOutput) -> list[Boxes]:
        """Turn raw predictions into boxes, one :class:`Boxes` per frame."""
        return centers.decode(self.config.head, output.heatmap, output.codes)

    def losses(self, output: BEVDepthOutput, batch: Batch) -> dict[str, Tensor]:
        """Return the terms ``heatmap``, ``box`` and ``depth``, whose sum is minimised.

        Raises:
            BevquantError: the batch has no boxes.
        """
        if batch.boxes is None:
            raise BevquantError("boxes: the batch has none; train on an annotated split")
        depth = DEPTH_WEIGHT * depth_loss(output.depth, batch.views(NOW), self.config)
        terms = centers.losses(self.config.head, output.heatmap, output.codes, batch.boxes)
        return {**terms, "depth": depth}

"""From the images of one time to a BEV map."""

from torch import Tensor

from bevquant.models.bevdepth.config import BEVDepthConfig
from bevquant.models.bevdepth.depth_net import DepthNet
from bevquant.models.bevfusion.lift_splat import LiftSplat
from bevquant.models.image_branch import image_backbone, image_features, image_neck


class LSSFPN(LiftSplat):
    """Image backbone, neck, depth network, pooling; named as in BEVDepth's public code."""

    def __init__(self, config: BEVDepthConfig) -> None:
        super().__init__(config.lift, config.image_size, config.stride)
        self.img_backbone, channels = image_backbone(config.img_backbone, config.image_size)
        self.img_neck, in_channels = image_neck(config.img_neck, channels)
        self.depth_net = DepthNet(in_channels, self.num_bins, config.depth_net)

    def forward(
        self,
        images: Tensor,
        calibration: Tensor,
        points: Tensor,
        pixels: Tensor,
        cells: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Lift and pool.

        Args:
            images: [B, N, 3, H, W].
            calibration: [B, N, 27].
            points: int64 [K], see :meth:`pool_indices`.
            pixels: int64 [K].
            cells: int64 [K].

        Returns:
            The BEV map [B, C, X, Y], and the logits of the depth bins [B, N, D, h, w].
        """
        frames, cameras = images.shape[:2]
        features = image_features(self.img_backbone, self.img_neck, images.flatten(0, 1))
        lifted = self.depth_net(features, calibration.flatten(0, 1))
        bev = self.splat(lifted, frames, points, pixels, cells)
        return bev, lifted[:, : self.num_bins].unflatten(0, (frames, cameras))

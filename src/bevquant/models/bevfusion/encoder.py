"""From the sensors to BEV features: the part of BEVFusion that all its heads share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch
from bevquant.models.bevfusion.config import EncoderConfig
from bevquant.models.bevfusion.depth_lss import DepthLSSTransform, LSSTransform, depth_map
from bevquant.models.bevfusion.fuser import ConvFuser
from bevquant.models.bevfusion.lss_fpn import GeneralizedLSSFPN
from bevquant.models.bevfusion.second import SECOND
from bevquant.models.bevfusion.second_fpn import SECONDFPN
from bevquant.models.bevfusion.sparse import Pairs
from bevquant.models.bevfusion.sparse_encoder import BEVFusionSparseEncoder
from bevquant.models.bevfusion.swin import SwinTransformer
from bevquant.models.bevfusion.voxelize import voxelize

FUSING = ("img_backbone", "img_neck", "view_transform", "pts_middle_encoder", "fusion_layer")
"""Main modules up to the fused map."""

REFINING = ("pts_backbone", "pts_neck")
"""Main modules from there to the BEV features."""


class NetworkInput(NamedTuple):
    """All that the layers need; nothing in it depends on the weights.

    Attributes:
        images: float32 [B, N, 3, H, W], normalised.
        depth_map: float32 [B, N, 1, H, W], metres, 0 where there is no point.
        pool_points: int64 [K], frustum points inside the BEV grid, flat index in
            (B, N, D, h, w), ordered by cell.
        pool_pixels: int64 [K], their pixels, flat index in (B, N, h, w).
        pool_cells: int64 [K], their cells, flat index in (B, X, Y), ascending.
        voxels: float32 [V, 5], mean features.
        rules: who meets whom in the sparse convolutions: pairs, or the same as neighbour
            tables int64 [V_i, kernel positions].
        sites: int64 [V'], output sites of the sparse encoder, flat index in (B, X, Y, Z).
    """

    images: Tensor
    depth_map: Tensor
    pool_points: Tensor
    pool_pixels: Tensor
    pool_cells: Tensor
    voxels: Tensor
    rules: tuple[Pairs | Tensor, ...]
    sites: Tensor

    def with_tables(self) -> "NetworkInput":
        """Return the same input with neighbour tables, the form that engines run."""
        tables = (rule.table() if isinstance(rule, Pairs) else rule for rule in self.rules)
        return self._replace(rules=tuple(tables))


class BEVEncoder(nn.Module):
    """Camera and LiDAR branches, fusion, BEV backbone and neck, in two halves.

    :meth:`prepare` does what depends on the data's values (voxels, neighbour tables,
    projections); the rest is plain tensor arithmetic, which is what gets quantized and
    exported.

    Attributes:
        config: what it is made of, the head of a subclass included.
    """

    config: EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        swin, view = config.img_backbone, config.view_transform
        self.img_backbone = SwinTransformer(swin, config.image_size)
        self.img_neck = GeneralizedLSSFPN(swin.out_channels, config.neck_channels)
        transform = LSSTransform if view.depth_channels is None else DepthLSSTransform
        self.view_transform = transform(config.neck_channels, view, config.image_size)
        self.pts_middle_encoder = BEVFusionSparseEncoder(
            config.pts_middle_encoder, config.voxel_grid
        )
        self.fusion_layer = ConvFuser(
            view.out_channels, self.pts_middle_encoder.out_channels, config.fuser_channels
        )
        self.pts_backbone = SECOND(config.fuser_channels, config.pts_backbone)
        self.pts_neck = SECONDFPN(config.pts_backbone.channels, config.pts_neck)

    @torch.no_grad()
    def prepare_sensors(self, batch: Batch) -> NetworkInput:
        """Do everything that depends on where the points and cameras are."""
        voxels = [voxelize(points, self.config) for points in batch.points]
        size_x, size_y, size_z = self.pts_middle_encoder.shape
        keys = torch.cat(
            [
                ((i * size_x + frame.coordinates[:, 0]) * size_y + frame.coordinates[:, 1]) * size_z
                + frame.coordinates[:, 2]
                for i, frame in enumerate(voxels)
            ]
        )
        rulebook = self.pts_middle_encoder.rulebook(keys)
        points, pixels, cells = self.view_transform.pool_indices(batch)
        return NetworkInput(
            images=batch.images,
            depth_map=depth_map(batch, self.config.image_size),
            pool_points=points,
            pool_pixels=pixels,
            pool_cells=cells,
            voxels=torch.cat([frame.features for frame in voxels]),
            rules=rulebook.rules,
            sites=rulebook.active[-1].keys,
        )

    def fused(self, inputs: NetworkInput) -> Tensor:
        """Return the fused map of camera and LiDAR features [B, fuser_channels, X, Y]."""
        frames, cameras = inputs.images.shape[:2]
        features = self.img_neck(self.img_backbone(inputs.images.flatten(0, 1)))[0]
        camera = self.view_transform(
            features.unflatten(0, (frames, cameras)),
            inputs.depth_map,
            inputs.pool_points,
            inputs.pool_pixels,
            inputs.pool_cells,
        )
        lidar = self.pts_middle_encoder(inputs.voxels, inputs.rules, inputs.sites, frames)
        bev: Tensor = self.fusion_layer(camera, lidar)
        return bev

    def refined(self, fused: Tensor) -> Tensor:
        """Return the BEV features [B, sum of the neck's channels, X, Y] of a fused map."""
        bev: Tensor = self.pts_neck(self.pts_backbone(fused))
        return bev

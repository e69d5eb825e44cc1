"""The encoder's input without numbers: what its layers compute, found out in a second."""

import torch

from bevquant.data.frame import CAMERAS
from bevquant.models.bevfusion.config import EncoderConfig
from bevquant.models.bevfusion.encoder import NetworkInput
from bevquant.models.bevfusion.sparse_encoder import KERNEL, OUT_KERNEL, POINT_FEATURES


def sensor_shapes(config: EncoderConfig) -> NetworkInput:
    """Return the input of one frame as tensors on the ``meta`` device.

    A forward pass then takes neither time nor memory, and every dense layer sees its exact
    shapes. The frame has a single voxel: what the sparse convolutions compute depends on
    where the points of a real one are.
    """
    height, width = config.image_size
    strided = len(config.pts_middle_encoder.paddings)
    kernels = [KERNEL] * (2 * strided + 1) + [OUT_KERNEL]
    with torch.device("meta"):
        none, voxel = torch.empty(0, dtype=torch.int64), torch.empty(1, dtype=torch.int64)
        return NetworkInput(
            images=torch.empty(1, len(CAMERAS), 3, height, width),
            depth_map=torch.empty(1, len(CAMERAS), 1, height, width),
            pool_points=none,
            pool_pixels=none,
            pool_cells=none,
            voxels=torch.empty(1, POINT_FEATURES),
            rules=tuple(voxel[:, None].expand(1, x * y * z) for x, y, z in kernels),
            sites=voxel,
        )

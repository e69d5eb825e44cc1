"""Frames to network input: the test pipeline of mmdetection3d's BEVFusion.

Images are resized with Pillow's bicubic filter, cropped from the bottom and normalised;
points are cut to the detection range. Resampling and crop follow ``ImageAug3D`` in test
mode (projects/BEVFusion of mmdetection3d 1.4), which aligns the crop with the image's
lower edge: the sky goes first.
"""

from collections.abc import Sequence
from math import ceil, gcd
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from bevquant.data.frame import Array, Batch, Frame
from bevquant.data.geometry import rigid_inverse
from bevquant.data.labels import Occupancy
from bevquant.errors import BevquantError

FILTER_REACH = 3
"""Rows to either side that a resized pixel depends on, in rows of the smaller image."""


class Preprocess(BaseModel):
    """What becomes of a frame before it enters a network.

    Attributes:
        image_size: height and width of the network's images, in pixels.
        image_resize: factor from the stored image to the one that is cropped.
        image_mean: of R, G, B, on the scale 0..255.
        image_std: of R, G, B, on the scale 0..255.
        point_range: x, y, z minimum, then x, y, z maximum, in metres in the LiDAR frame;
            points on the border are outside.
        sweeps: earlier LiDAR sweeps that are added to the key frame's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: tuple[int, int]
    image_resize: Annotated[float, Field(gt=0)]
    image_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    image_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    point_range: tuple[float, float, float, float, float, float]
    sweeps: Annotated[int, Field(ge=0)]


FULL = Preprocess(
    image_size=(256, 704),
    image_resize=0.48,
    point_range=(-54.0, -54.0, -5.0, 54.0, 54.0, 3.0),
    sweeps=9,
)
"""mmdetection3d's BEVFusion on nuScenes' 1600x900 images."""

SMALL = Preprocess(
    image_size=(128, 352),
    image_resize=1.0,
    point_range=(-44.8, -44.8, -5.0, 44.8, 44.8, 3.0),
    sweeps=2,
)
"""The small BEVFusion on a generated world's 352x198 images."""


def collate(frames: Sequence[Frame], preprocess: Preprocess) -> Batch:
    """Preprocess frames and stack them to a batch on the CPU.

    Raises:
        BevquantError: an image is smaller than the crop, or a frame has no point in range.
    """
    lidar2camera = np.stack([frame.lidar2camera for frame in frames])
    intrinsics = np.broadcast_to(np.eye(4), lidar2camera.shape).copy()
    intrinsics[..., :3, :3] = np.stack([frame.intrinsics for frame in frames])
    boxes = tuple(frame.boxes for frame in frames if frame.boxes is not None)
    masks = [frame.map_masks for frame in frames if frame.map_masks is not None]
    voxels = [frame.occupancy for frame in frames if frame.occupancy is not None]
    return Batch(
        images=_normalised(frames, preprocess),
        points=tuple(
            torch.from_numpy(points_in_range(frame.points, preprocess, frame.token))
            for frame in frames
        ),
        lidar2image=_float(intrinsics @ lidar2camera),
        intrinsics=_float(intrinsics),
        camera2lidar=_float(rigid_inverse(lidar2camera)),
        image_augmentation=_float(
            np.array([[_augmentation(i, preprocess) for i in frame.images] for frame in frames])
        ),
        lidar_augmentation=torch.eye(4).repeat(len(frames), 1, 1),
        lidar2ego=_float(np.stack([frame.lidar2ego for frame in frames])),
        tokens=tuple(frame.token for frame in frames),
        boxes=boxes if len(boxes) == len(frames) else None,
        map_masks=torch.from_numpy(np.stack(masks)) if len(masks) == len(frames) else None,
        occupancy=stack_occupancy(voxels) if len(voxels) == len(frames) else None,
    )


def stack_occupancy(labels: Sequence[Occupancy]) -> Occupancy:
    """Return the labels of B frames as one, with B in front."""
    return Occupancy(
        torch.stack([one.semantics for one in labels]),
        torch.stack([one.mask_lidar for one in labels]),
        torch.stack([one.mask_camera for one in labels]),
    )


def points_in_range(points: Array, preprocess: Preprocess, token: str) -> Array:
    """Return the points [P, 5] of sample ``token`` inside the detection range.

    Raises:
        BevquantError: there are none.
    """
    low, high = np.array(preprocess.point_range, dtype=np.float32).reshape(2, 3)
    x, y, z = ((points[:, :3] > low) & (points[:, :3] < high)).T
    inside: Array = points[x & y & z]  # twice as fast as all(axis=1)
    if not len(inside):
        raise BevquantError(
            f"sample {token}: none of its {len(points)} LiDAR points lies in the "
            f"detection range {preprocess.point_range}; check the LiDAR file and point_range"
        )
    return inside


def _normalised(frames: Sequence[Frame], preprocess: Preprocess) -> Tensor:
    """Return the frames' images as float32 [B, N, 3, H, W]."""
    pixels = np.array([[_crop(image, preprocess) for image in frame.images] for frame in frames])
    images = torch.from_numpy(pixels).movedim(-1, 2)
    mean, std = torch.tensor([preprocess.image_mean, preprocess.image_std])[:, :, None, None]
    return images.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def _crop(image: Array, preprocess: Preprocess) -> Array:
    """Resize and crop a uint8 [h, w, 3] image to the network's [H, W, 3]."""
    height, width = preprocess.image_size
    left, top = _corner(image, preprocess)
    if preprocess.image_resize != 1:
        new_width, new_height = _resized(image, preprocess)
        # The rows above the crop are not resized, which saves half of the time. The cut is
        # where both grids of pixels meet, beyond the filter's reach: not a bit changes.
        common = gcd(len(image), new_height)
        new_period, period = new_height // common, len(image) // common
        reach = ceil(FILTER_REACH * max(1.0, preprocess.image_resize))
        periods = max(0, top - reach) // new_period
        image, top = image[periods * period :], top - periods * new_period
        size = (new_width, new_height - periods * new_period)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return image[top : top + height, left : left + width]


def _augmentation(image: Array, preprocess: Preprocess) -> Array:
    """Return the [4, 4] map from pixels as stored to the network's: resize, then crop."""
    left, top = _corner(image, preprocess)
    matrix = np.diag([preprocess.image_resize, preprocess.image_resize, 1.0, 1.0])
    matrix[:2, 3] = -left, -top
    return matrix


def _corner(image: Array, preprocess: Preprocess) -> tuple[int, int]:
    """Return the crop's left column and top row: centred, at the lower edge."""
    height, width = preprocess.image_size
    new_width, new_height = _resized(image, preprocess)
    if new_width < width or new_height < height:
        raise BevquantError(
            f"an image of {image.shape[1]}x{image.shape[0]} resized by "
            f"{preprocess.image_resize:g} is smaller than the network's {width}x{height}; "
            "choose the preprocessing that belongs to this data (image_resize, image_size)"
        )
    return (new_width - width) // 2, new_height - height


def _resized(image: Array, preprocess: Preprocess) -> tuple[int, int]:
    """Return width and height after the resize, truncated as in the reference."""
    height, width = image.shape[:2]
    return int(width * preprocess.image_resize), int(height * preprocess.image_resize)


def _float(values: Array) -> Tensor:
    return torch.from_numpy(values).float()

"""What one key frame is, before and after preprocessing.

Frames of reference: LiDAR x to the right of the car, y forward, z up (nuScenes'
LIDAR_TOP); lengths in metres, angles in radians, speeds in metres a second.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevquant.data.labels import Occupancy

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""Camera order of every image tensor (that of mmdetection3d's info files)."""

CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""nuScenes' detection classes in the label order of BEVFusion's head."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Boxes:
    """Oriented boxes in the LiDAR frame.

    Attributes:
        values: float32 [n, 9]: x, y, z of the gravity centre, length (along the
            heading), width, height, yaw (counter-clockwise from +x), velocity x, y;
            a velocity that is unknown is NaN.
        labels: int64 [n], index into :data:`CLASSES`.
        scores: float32 [n] in 0..1, or ``None`` for ground truth.
    """

    values: Tensor
    labels: Tensor
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Frame:
    """One key frame as the sensors gave it.

    Attributes:
        token: nuScenes sample token.
        images: one uint8 [H, W, 3] RGB array per view: the cameras in the order of
            :data:`CAMERAS`, then the same cameras at earlier key frames, if asked for.
        intrinsics: float64 [N, 3, 3], of the images as stored.
        lidar2camera: float64 [N, 4, 4], from this key frame's LiDAR; ego motion between the
            two exposures included.
        points: float32 [P, 5]: x, y, z, intensity 0..255, seconds before the key frame;
            sweeps are already moved into the key frame's LiDAR frame.
        lidar2ego: float64 [4, 4].
        ego2global: float64 [4, 4], at the time of the LiDAR sweep.
        boxes: ground truth, or ``None``.
        boxes_points: int64 [n], LiDAR points inside each ground-truth box as annotated,
            or ``None``.
        map_masks: bool [6, X, Y] over a :class:`~bevquant.data.labels.MapGrid` in the LiDAR
            frame, which classes of the map each cell has, or ``None``.
        occupancy: what fills the voxels round the car, or ``None``.
    """

    token: str
    images: tuple[Array, ...]
    intrinsics: Array
    lidar2camera: Array
    points: Array
    lidar2ego: Array
    ego2global: Array
    boxes: Boxes | None = None
    boxes_points: Array | None = None
    map_masks: Array | None = None
    occupancy: Occupancy | None = None


@dataclass(frozen=True)
class Batch:
    """B preprocessed frames with N views, ready for a network.

    Attributes:
        images: float32 [B, N, 3, H, W], normalised RGB.
        points: B tensors float32 [P, 5], range-filtered: x, y, z, intensity, dt.
        lidar2image: float32 [B, N, 4, 4], LiDAR -> pixels of the image as stored.
        intrinsics: float32 [B, N, 4, 4], of the image as stored.
        camera2lidar: float32 [B, N, 4, 4].
        image_augmentation: float32 [B, N, 4, 4], pixels as stored -> network pixels
            (resize, crop, flip, rotation).
        lidar_augmentation: float32 [B, 4, 4], LiDAR frame -> augmented LiDAR frame
            (the points and boxes here are already in the augmented frame).
        lidar2ego: float32 [B, 4, 4], LiDAR frame (not augmented) -> car.
        tokens: B sample tokens.
        boxes: ground truth per frame in the augmented LiDAR frame, or ``None``.
        map_masks: bool [B, 6, X, Y], see :class:`Frame`; their grid is not augmented.
        occupancy: of the B frames, in the car's frame, or ``None``.
    """

    images: Tensor
    points: tuple[Tensor, ...]
    lidar2image: Tensor
    intrinsics: Tensor
    camera2lidar: Tensor
    image_augmentation: Tensor
    lidar_augmentation: Tensor
    lidar2ego: Tensor
    tokens: tuple[str, ...]
    boxes: tuple[Boxes, ...] | None = None
    map_masks: Tensor | None = None
    occupancy: Occupancy | None = None

    def views(self, chosen: slice) -> Self:
        """Return the same batch with some of its N views."""
        names = ("images", "lidar2image", "intrinsics", "camera2lidar", "image_augmentation")
        parts: dict[str, Any] = {name: getattr(self, name)[:, chosen] for name in names}
        return replace(self, **parts)

    def to(self, device: torch.device | str) -> Self:
        """Return the same batch with every network input on ``device``."""
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, points=tuple(p.to(device) for p in self.points), **moved)


def lidar2global(frame: Frame) -> Array:
    """Return the float64 [4, 4] transform from the LiDAR frame to the global frame."""
    return np.asarray(frame.ego2global @ frame.lidar2ego)

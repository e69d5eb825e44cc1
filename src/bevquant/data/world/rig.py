"""The car's sensors: where they are mounted and what they see.

Mounting and intrinsics are those of a nuScenes car (scene-0061 of the public mini set).
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from bevquant.data.world.geometry import Array

LIDAR = "LIDAR_TOP"

ELEVATIONS = (-30.67, 10.67)
"""Lowest and highest LiDAR beam, degrees (Velodyne HDL-32E)."""

_IMAGE = (900, 1600)


@dataclass(frozen=True)
class Mount:
    """A sensor's pose in the car's frame (x forward, y left, z up from the ground).

    Attributes:
        translation: metres.
        rotation: unit quaternion w, x, y, z, sensor -> car.
        intrinsic: (focal length, centre x, centre y) in pixels of a 1600x900 image;
            ``None`` for the LiDAR.
    """

    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    intrinsic: tuple[float, float, float] | None = None

    def camera_matrix(self, image_size: tuple[int, int]) -> Array:
        """Return the float64 [3, 3] intrinsic matrix for images of (height, width)."""
        assert self.intrinsic is not None
        focal, x, y = self.intrinsic
        down, right = image_size[0] / _IMAGE[0], image_size[1] / _IMAGE[1]
        return np.array(
            [[focal * right, 0.0, x * right], [0.0, focal * down, y * down], [0.0, 0.0, 1.0]]
        )


MOUNTS = {
    LIDAR: Mount(
        (0.943713, 0.0, 1.84023),
        (0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817),
    ),
    "CAM_FRONT": Mount(
        (1.70079118954, 0.0159456324149, 1.51095763913),
        (0.4998015430569128, -0.5030316162024876, 0.4997798114386805, -0.49737083824542755),
        (1266.417203046554, 816.2670197447984, 491.50706579294757),
    ),
    "CAM_FRONT_RIGHT": Mount(
        (1.5508477543, -0.493404796419, 1.49574800619),
        (0.2060347966337182, -0.2026940577919598, 0.6824507824531167, -0.6713610884174485),
        (1260.8474446004698, 807.968244525554, 495.3344268742088),
    ),
    "CAM_FRONT_LEFT": Mount(
        (1.52387798135, 0.494631336551, 1.50932822144),
        (0.6757265034669446, -0.6736266522251881, 0.21214015046209478, -0.21122827103904068),
        (1272.5979470598488, 826.6154927353808, 479.75165386361925),
    ),
    "CAM_BACK": Mount(
        (0.0283260309358, 0.00345136761476, 1.57910346144),
        (0.5037872666382278, -0.49740249788611096, -0.4941850223835201, 0.5045496097725578),
        (809.2209905677063, 829.2196003259838, 481.77842384512485),
    ),
    "CAM_BACK_LEFT": Mount(
        (1.03569100218, 0.484795032713, 1.59097014818),
        (0.6924185592174665, -0.7031619420114925, -0.11648342771943819, 0.11203317912370753),
        (1256.7414812095406, 792.1125740759628, 492.7757465151356),
    ),
    "CAM_BACK_RIGHT": Mount(
        (1.0148780988, -0.480568219723, 1.56239545128),
        (0.12280980120078765, -0.132400842670559, -0.7004305821388234, 0.690496031265798),
        (1259.5137405846733, 807.2529053838625, 501.19579884916527),
    ),
}
"""Every sensor of the car by its nuScenes channel."""


@dataclass(frozen=True)
class Pose:
    """A rigid transform into the parent frame.

    Attributes:
        rotation: float64 [3, 3].
        translation: float64 [3], metres.
    """

    rotation: Array
    translation: Array

    def __matmul__(self, other: "Pose") -> "Pose":
        return Pose(
            self.rotation @ other.rotation,
            self.rotation @ other.translation + self.translation,
        )

    def inverse(self, points: Array) -> Array:
        """Return points [..., 3] of the parent frame in this frame."""
        return np.asarray((points - self.translation) @ self.rotation)


def mount_pose(channel: str) -> Pose:
    """Return the pose of sensor ``channel`` in the car's frame."""
    mount = MOUNTS[channel]
    w, x, y, z = mount.rotation
    return Pose(Rotation.from_quat([x, y, z, w]).as_matrix(), np.array(mount.translation))

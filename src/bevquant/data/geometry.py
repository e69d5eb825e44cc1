"""Rigid transforms as 4x4 matrices, from and to the records of nuScenes tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from bevquant.data.frame import Array


def rotation_matrices(quaternions: Array) -> Array:
    """Turn quaternions (w, x, y, z), [..., 4], into rotation matrices, float64 [..., 3, 3]."""
    scalar_last = np.roll(np.asarray(quaternions, dtype=np.float64), -1, axis=-1)
    return np.asarray(Rotation.from_quat(scalar_last).as_matrix())


def pose_matrix(record: Mapping[str, Any]) -> Array:
    """Turn an ``ego_pose`` or ``calibrated_sensor`` record into its float64 [4, 4] transform.

    The transform leads from the record's own frame to its parent: ego to global, sensor
    to ego.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrices(record["rotation"])
    matrix[:3, 3] = record["translation"]
    return matrix


def rigid_inverse(matrix: Array) -> Array:
    """Invert rigid transforms, [..., 4, 4], exactly: (R, t) becomes (R^T, -R^T t)."""
    inverse = np.zeros_like(matrix)
    inverse[..., :3, :3] = np.swapaxes(matrix[..., :3, :3], -1, -2)
    inverse[..., :3, 3:] = -inverse[..., :3, :3] @ matrix[..., :3, 3:]
    inverse[..., 3, 3] = 1
    return inverse

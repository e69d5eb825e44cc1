"""LiDAR sweeps: the point file, and moving earlier sweeps into the key frame."""

from pathlib import Path

import numpy as np

from bevquant.data.frame import Array
from bevquant.errors import BevquantError

POINT_BYTES = 20
"""A point of a .pcd.bin file: float32 x, y, z, intensity, ring."""

MOST_BEAMS = 1024
"""No LiDAR has more; rings are counted from 0."""

EGO_RADIUS = 1.0
"""Earlier sweeps lose their points with |x| and |y| below this: the car itself, in metres."""


def read_points(path: Path) -> Array:
    """Read a nuScenes .pcd.bin file: float32 [P, 5] of x, y, z, intensity, ring.

    Raises:
        BevquantError: the file is missing, truncated, empty, or holds NaN or infinity.
            A file cut between two points is known as truncated if it was written beam by
            beam, as nuScenes writes them; if not, nothing in it tells.
    """
    try:
        values = np.fromfile(path, dtype=np.float32)
        size = path.stat().st_size
    except OSError as error:
        raise BevquantError(f"{path}: cannot be read ({error.strerror}); restore it") from error
    check_size(path, size)
    points = values.reshape(-1, 5)
    if not np.isfinite(points[:, :4]).all():
        bad = int((~np.isfinite(points[:, :4]).all(axis=1)).sum())
        raise BevquantError(
            f"{path}: {bad} of {len(points)} points hold NaN or infinity; restore the file"
        )
    rings = points[:, 4]
    if not (np.isfinite(rings) & (rings >= 0) & (rings < MOST_BEAMS)).all():
        raise BevquantError(
            f"{path}: a point's ring is no beam from 0 to {MOST_BEAMS - 1}; restore the file"
        )
    _check_firings(path, rings)
    return points


def check_size(path: Path, size: int) -> None:
    """Refuse the size of a point file that cannot hold whole points.

    Raises:
        BevquantError: ``size`` bytes are none, or no multiple of :data:`POINT_BYTES`.
    """
    if size == 0 or size % POINT_BYTES:
        raise BevquantError(
            f"{path}: truncated, {size} bytes are no whole number of points "
            f"({POINT_BYTES} bytes each); restore the file"
        )


def _check_firings(path: Path, rings: Array) -> None:
    """Refuse beams in turn, 0, 1, ..., 31, 0, 1, ..., that end in the middle of a turn."""
    beams = int(rings.max()) + 1
    if len(rings) % beams and (rings == np.arange(len(rings)) % beams).all():
        raise BevquantError(
            f"{path}: truncated, its last firing has {len(rings) % beams} points of {beams} "
            "beams; restore the file"
        )


def compensate(points: Array, sweep2key: Array, seconds: float) -> Array:
    """Move an earlier sweep into the LiDAR frame of the key frame, as mmdetection3d does.

    Points of the car itself are left out first, in the sweep's own frame; the ring column
    becomes the sweep's age.

    Args:
        points: float32 [P, 5] in the LiDAR frame at the time of the sweep.
        sweep2key: float64 [4, 4], that frame to the key frame's LiDAR frame.
        seconds: how long before the key frame the sweep was taken.

    Returns:
        float32 [p, 5] of x, y, z, intensity, ``seconds``; p <= P.
    """
    near = (np.abs(points[:, 0]) < EGO_RADIUS) & (np.abs(points[:, 1]) < EGO_RADIUS)
    moved: Array = points[~near]
    moved[:, :3] = moved[:, :3] @ sweep2key[:3, :3].T + sweep2key[:3, 3]
    moved[:, 4] = seconds
    return moved

"""Records of the nuScenes schema, field by field as in the genuine tables."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from bevquant.data.world.catalogue import KINDS
from bevquant.data.world.geometry import Array
from bevquant.data.world.rig import LIDAR, MOUNTS, Pose

Record = dict[str, Any]
Tables = dict[str, list[Record]]

TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

_ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

_VISIBILITIES = ((0, 40), (40, 60), (60, 80), (80, 100))


def token(*parts: object) -> str:
    """Return a stable 32-digit token for what ``parts`` name."""
    name = "/".join(str(part) for part in parts)
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def visibility_token(visible: int, alone: int) -> str:
    """Return the token of a visibility level from pixels seen and pixels unobstructed."""
    percent = 100.0 * visible / alone if alone else 0.0
    return str(1 + sum(percent >= low for low, _ in _VISIBILITIES[1:]))


def quaternion(rotation: Array) -> list[float]:
    """Return w, x, y, z of a rotation matrix [3, 3]."""
    x, y, z, w = Rotation.from_matrix(rotation).as_quat(canonical=True).tolist()
    return [w, x, y, z]


def yaw_quaternion(yaw: float) -> list[float]:
    """Return w, x, y, z of a turn about the vertical."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def empty() -> Tables:
    """Return all tables without records."""
    return {name: [] for name in TABLES}


def constant_tables() -> Tables:
    """Return the tables that are the same in every world."""
    tables = empty()
    categories = [kind.category for kind in KINDS if kind.category is not None]
    tables["category"] = [
        {
            "token": token("category", name),
            "name": name,
            "description": f"Generated {name}.",
            # Position in the lidarseg palette; the devkit sorts categories by it.
            "index": index,
        }
        for index, name in enumerate(categories, start=1)
    ]
    tables["attribute"] = [
        {"token": token("attribute", name), "name": name, "description": f"Generated {name}."}
        for name in _ATTRIBUTES
    ]
    tables["visibility"] = [
        {
            "token": str(index),
            "level": f"v{low}-{high}",
            "description": f"visibility of whole object is between {low} and {high}%",
        }
        for index, (low, high) in enumerate(_VISIBILITIES, start=1)
    ]
    tables["sensor"] = [
        {
            "token": token("sensor", channel),
            "channel": channel,
            "modality": "lidar" if channel == LIDAR else "camera",
        }
        for channel in MOUNTS
    ]
    return tables


def calibrated_sensor(scene: str, channel: str, image_size: tuple[int, int]) -> Record:
    """Return how ``channel`` was mounted in ``scene``."""
    mount = MOUNTS[channel]
    matrix = [] if channel == LIDAR else mount.camera_matrix(image_size).tolist()
    return {
        "token": token(scene, channel),
        "sensor_token": token("sensor", channel),
        "translation": list(mount.translation),
        "rotation": list(mount.rotation),
        "camera_intrinsic": matrix,
    }


def ego_pose(record_token: str, timestamp: int, pose: Pose) -> Record:
    """Return where the car was at ``timestamp`` (microseconds)."""
    return {
        "token": record_token,
        "timestamp": timestamp,
        "rotation": quaternion(pose.rotation),
        "translation": pose.translation.tolist(),
    }


def link(records: Sequence[Record]) -> None:
    """Chain records that follow each other in time through ``prev`` and ``next``."""
    for earlier, later in pairwise(records):
        earlier["next"] = later["token"]
        later["prev"] = earlier["token"]

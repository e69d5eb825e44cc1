"""A spinning LiDAR in the world."""

from collections.abc import Iterator

import numpy as np

from bevquant.data.world import ground
from bevquant.data.world.geometry import (
    GROUND,
    Array,
    Rays,
    Window,
    cast,
    corners,
    rotate,
)
from bevquant.data.world.rig import ELEVATIONS, LIDAR, Pose, mount_pose
from bevquant.data.world.scene import Scene, Weather
from bevquant.data.world.settings import WorldSettings

_NOISE = 0.015
_NEAREST = 1.0


def beams(settings: WorldSettings) -> Array:
    """Return the unit directions (float32 [beams, azimuths, 3]) in the sensor's frame."""
    elevation = np.radians(np.linspace(*ELEVATIONS, settings.beams))[:, None]
    step = 2 * np.pi / settings.azimuths
    azimuth = (np.arange(settings.azimuths) + 0.5) * step - np.pi
    directions = np.empty((settings.beams, settings.azimuths, 3), dtype=np.float32)
    directions[..., 0] = np.cos(elevation) * np.cos(azimuth)
    directions[..., 1] = np.cos(elevation) * np.sin(azimuth)
    directions[..., 2] = np.sin(elevation)
    return directions


def sweep(
    scene: Scene, settings: WorldSettings, time: float, ego: Pose, rng: np.random.Generator
) -> Array:
    """Return one revolution: float32 [P, 5], x, y, z (sensor's frame), intensity, ring.

    A firing is lost more often the farther away and the darker its target is, and in rain;
    rain drops return some firings early.
    """
    pose = ego @ mount_pose(LIDAR)
    local = beams(settings)
    solids = scene.solids(time)
    reach = np.sqrt(np.square(solids.half[:, :2]).sum(-1)) + settings.lidar_range
    away = np.sqrt(np.square(solids.centre[:, :2] - pose.translation[:2]).sum(-1))
    solids = solids.take(away < reach)
    points = pose.inverse(corners(solids.centre, solids.half, solids.yaw))
    hits = cast(
        Rays(pose.translation, rotate(pose.rotation, local)),
        scene.plane,
        solids,
        _windows(points, settings.azimuths),
        len(scene.actors),
    )

    distance = hits.distance.astype(np.float64)
    rows, columns = np.nonzero((distance < settings.lidar_range) & (distance > _NEAREST))
    distance = distance[rows, columns]
    solid = hits.solid[rows, columns]
    direction = local[rows, columns].astype(np.float64)
    strength = np.zeros(len(rows))
    on_solid = solid != GROUND
    strength[on_solid] = solids.intensity[solid[on_solid]]
    places = pose.translation + distance[:, None] * rotate(pose.rotation, direction)
    strength[~on_solid] = ground.intensity(
        scene.block.town, places[~on_solid, 0], places[~on_solid, 1]
    )
    rain = scene.weather is Weather.RAIN
    lost = 0.03 + 0.35 * np.square(distance / 60.0) + (0.12 + distance / 250.0) * rain
    lost += 0.1 * (strength < 12.0)
    kept = rng.random(len(rows)) > lost
    early = (rng.random(len(rows)) < 0.004) & rain
    distance = np.where(early, rng.uniform(_NEAREST, 12.0, len(rows)).clip(max=distance), distance)
    distance += rng.normal(0.0, _NOISE, len(rows))
    strength *= np.exp(-distance / 120.0) * rng.uniform(0.8, 1.2, len(rows))
    strength = np.where(early, 2.0, strength).clip(0.0, 255.0).round()
    cloud = np.column_stack([distance[:, None] * direction, strength, rows])[kept]
    return np.asarray(cloud, dtype=np.float32)


def _windows(points: Array, count: int) -> Iterator[Window]:
    """Yield, for boxes with corners ``points`` [n, 8, 3], all beams in their azimuth interval."""
    every = slice(None)
    middle = np.arctan2(points[..., 1].mean(axis=1), points[..., 0].mean(axis=1))
    offset = np.arctan2(points[..., 1], points[..., 0]) - middle[:, None]
    offset = np.mod(offset + np.pi, 2 * np.pi) - np.pi
    step = 2 * np.pi / count
    first = np.floor((middle + offset.min(axis=1) + np.pi) / step - 0.5).astype(int)
    last = np.ceil((middle + offset.max(axis=1) + np.pi) / step + 0.5).astype(int)
    for index, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if stop - start >= count // 2:
            yield index, every, every
            continue
        column = start % count
        past_seam = column + stop - start - count
        yield index, every, slice(column, min(column + stop - start, count))
        if past_seam > 0:
            yield index, every, slice(0, past_seam)

"""A pinhole camera in the world: what each pixel hits, then how that looks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bevquant.data.world import ground
from bevquant.data.world.appearance import albedo
from bevquant.data.world.geometry import (
    GROUND,
    SKY,
    Array,
    Hits,
    Rays,
    Solids,
    Window,
    cast,
    corners,
    rotate,
)
from bevquant.data.world.rig import MOUNTS, Pose, mount_pose
from bevquant.data.world.scene import Scene, Weather

_NEAR = 0.2
_FAR = 95.0

_EDGES = np.array(
    [(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit], dtype=np.int64
)


@dataclass(frozen=True)
class _Light:
    """How a kind of weather is lit.

    Attributes:
        ambient: light from everywhere.
        sun: light from the sun (or moon).
        lamps: light of street lamps and of the car's own.
        sky: colour of the sky at the horizon and above.
        clear: metres after which haze leaves 1/e of the contrast.
        noise: standard deviation of the sensor's noise.
    """

    ambient: float
    sun: float
    lamps: float
    sky: tuple[tuple[float, float, float], tuple[float, float, float]]
    clear: float
    noise: float


_LIGHTS = {
    Weather.DAY: _Light(0.62, 0.55, 0.0, ((0.78, 0.84, 0.92), (0.38, 0.58, 0.88)), 260.0, 0.012),
    Weather.RAIN: _Light(0.68, 0.08, 0.0, ((0.62, 0.64, 0.66), (0.50, 0.52, 0.55)), 120.0, 0.02),
    Weather.NIGHT: _Light(0.22, 0.06, 0.65, ((0.05, 0.05, 0.09), (0.01, 0.01, 0.03)), 220.0, 0.028),
}


@dataclass(frozen=True)
class Picture:
    """One camera image.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        depth: float32 [H, W], metres along the optical axis; infinite for the sky.
        visible: int64 [actors], pixels that show each actor.
        alone: int64 [actors], pixels that would show it were nothing else there.
    """

    image: Array
    depth: Array
    visible: Array
    alone: Array


def photograph(
    scene: Scene,
    solids: Solids,
    channel: str,
    image_size: tuple[int, int],
    ego: Pose,
    *,
    rng: np.random.Generator,
) -> Picture:
    """Take one picture with camera ``channel`` of ``scene``, whose boxes are ``solids``."""
    pose = ego @ mount_pose(channel)
    matrix = MOUNTS[channel].camera_matrix(image_size)
    rays = Rays(pose.translation, rotate(pose.rotation, pixel_rays(matrix, image_size)))
    points = pose.inverse(corners(solids.centre, solids.half, solids.yaw))
    windows = list(_windows(points, matrix, image_size))
    hits = cast(rays, scene.plane, solids, windows, len(scene.actors))
    image = _shade(scene, solids, hits, rays, rng)
    owner = np.append(solids.owner, [-1, -1])[hits.solid]
    visible = np.bincount(owner[owner >= 0], minlength=len(scene.actors))
    return Picture(image, hits.distance, visible, hits.alone)


def pixel_rays(matrix: Array, image_size: tuple[int, int]) -> Array:
    """Return each pixel's direction (float32 [H, W, 3]) in the camera's frame, z = 1."""
    height, width = image_size
    rays = np.ones((height, width, 3), dtype=np.float32)
    # Integer pixel coordinates are pixel centres, as devkit and networks take them.
    rays[..., 0] = (np.arange(width) - matrix[0, 2]) / matrix[0, 0]
    rays[..., 1] = ((np.arange(height) - matrix[1, 2]) / matrix[1, 1])[:, None]
    return rays


def _windows(points: Array, matrix: Array, image_size: tuple[int, int]) -> Iterator[Window]:
    """Yield the pixel rectangle of every box with corners ``points`` [n, 8, 3], nearest first."""
    height, width = image_size
    depth = points[..., 2]
    a, b = points[:, _EDGES[:, 0]], points[:, _EDGES[:, 1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (_NEAR - a[..., 2:]) / (b[..., 2:] - a[..., 2:])
        cut = np.where((share > 0) & (share < 1), a + share * (b - a), np.nan)
        outline = np.concatenate([np.where(depth[..., None] >= _NEAR, points, np.nan), cut], axis=1)
        x = outline[..., 0] / outline[..., 2] * matrix[0, 0] + matrix[0, 2]
        y = outline[..., 1] / outline[..., 2] * matrix[1, 1] + matrix[1, 2]
    nearest = depth.min(axis=1)
    possible = np.flatnonzero((depth.max(axis=1) > _NEAR) & (nearest < _FAR))
    left = np.floor(np.fmin.reduce(x[possible], axis=1)).clip(0, width)
    right = np.ceil(np.fmax.reduce(x[possible], axis=1) + 1).clip(0, width)
    top = np.floor(np.fmin.reduce(y[possible], axis=1)).clip(0, height)
    bottom = np.ceil(np.fmax.reduce(y[possible], axis=1) + 1).clip(0, height)
    seen = (left < right) & (top < bottom)
    order = np.flatnonzero(seen)[np.argsort(nearest[possible][seen], kind="stable")]
    for i in order.tolist():
        rows = slice(int(top[i]), int(bottom[i]))
        yield int(possible[i]), rows, slice(int(left[i]), int(right[i]))


def _shade(scene: Scene, solids: Solids, hits: Hits, rays: Rays, rng: np.random.Generator) -> Array:
    """Return the uint8 [H, W, 3] image of what the rays hit."""
    light = _LIGHTS[scene.weather]
    night = scene.weather is Weather.NIGHT
    shape = hits.solid.shape
    solid = hits.solid.ravel()
    direction = rays.direction.reshape(-1, 3)
    length = np.sqrt(sum(np.square(direction[:, i]) for i in range(3)))
    horizon, zenith = np.array(light.sky, dtype=np.float32)
    rise = (direction[:, 2] / length / 0.5).clip(0, 1)[:, None]
    image = horizon + (zenith - horizon) * rise

    lit = np.flatnonzero(solid != SKY)
    # Metres from the camera, not from the far-off map origin, keep float32 exact to 0.1 mm.
    offset = hits.distance.ravel()[lit, None] * direction[lit]
    place_x = offset[:, 0] + rays.origin[0]
    place_y = offset[:, 1] + rays.origin[1]
    colour = np.empty((len(lit), 3), dtype=np.float32)
    brightness = np.empty(len(lit), dtype=np.float32)
    glow = np.zeros(len(lit), dtype=np.float32)

    on_ground = solid[lit] == GROUND
    colour[on_ground] = ground.colour(scene.block.town, place_x[on_ground], place_y[on_ground])
    brightness[on_ground] = light.sun * float(scene.plane.normal() @ scene.sun)
    on_solid = ~on_ground
    index = solid[lit[on_solid]]
    local = _local(solids, index, offset[on_solid], rays.origin)
    half = solids.half[index].astype(np.float32)
    colour[on_solid], glow[on_solid] = albedo(
        solids.material[index], solids.colour[index], solids.accent[index], local, half, night=night
    )
    brightness[on_solid] = light.sun * _facing(solids, index, local / half, scene.sun)

    away = hits.distance.ravel()[lit] * length[lit]
    brightness += light.ambient
    if light.lamps:
        street = scene.block.town.lamplight(place_x.astype(np.float32), place_y.astype(np.float32))
        own = 1.0 / (1.0 + np.square(away / 18.0))
        brightness += light.lamps * (street + np.float32(0.8) * own)
    brightness = np.maximum(brightness, glow)
    haze = np.exp(away * np.float32(-1.0 / light.clear))[:, None]
    image[lit] = colour * brightness[:, None] * haze + horizon * (1 - haze)
    image = image.reshape(*shape, 3)
    if scene.weather is Weather.RAIN:
        image += 0.10 * _streaks(shape, rng)[..., None]
    image += rng.standard_normal(shape, dtype=np.float32)[..., None] * np.float32(light.noise)
    return np.asarray((image * 255.0).clip(0, 255).astype(np.uint8))


def _local(solids: Solids, index: Array, offset: Array, origin: Array) -> Array:
    """Return hit points (float32 [n, 3]) in the axes of the boxes they lie on."""
    relative = offset - (solids.centre - origin).astype(np.float32)[index]
    cos = np.cos(solids.yaw).astype(np.float32)[index]
    sin = np.sin(solids.yaw).astype(np.float32)[index]
    x, y = relative[:, 0], relative[:, 1]
    return np.stack([cos * x + sin * y, cos * y - sin * x, relative[:, 2]], axis=-1)


def _facing(solids: Solids, index: Array, unit: Array, sun: Array) -> Array:
    """Return the cosine between sun and face (float32 [n], 0..1) at points of the unit cube."""
    cos, sin = np.cos(solids.yaw), np.sin(solids.yaw)
    towards = np.stack(
        [cos * sun[0] + sin * sun[1], cos * sun[1] - sin * sun[0], np.full_like(cos, sun[2])],
        axis=-1,
    ).astype(np.float32)
    axis = np.abs(unit).argmax(axis=1)
    rows = np.arange(len(unit))
    return np.asarray((towards[index, axis] * np.sign(unit[rows, axis])).clip(0, 1))


def _streaks(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return where rain streaks are (bool [H, W])."""
    streaks = rng.random(shape) < 0.0015
    for _ in range(3):
        streaks[1:] |= streaks[:-1].copy()
        streaks[2:] |= streaks[:-2].copy()
    return streaks

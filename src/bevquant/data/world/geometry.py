"""Upright boxes, and what a grid of rays hits first.

Everything solid in the world is a handful of boxes that turn only about the vertical.
Pixel-sized arithmetic is written out without BLAS, so that the bytes on disk depend
neither on the BLAS library nor on its thread count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GROUND = -1
"""Index of the ground in :attr:`Hits.solid`."""

SKY = -2
"""Index of a ray that hits nothing in :attr:`Hits.solid`."""

_SIGNS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)


@dataclass(frozen=True)
class Solids:
    """``n`` upright boxes in the global frame, with what they are made of.

    Attributes:
        centre: float64 [n, 3], metres.
        half: float64 [n, 3], half the extent along the box's own x, y, z, metres.
        yaw: float64 [n], counter-clockwise from +x, radians.
        owner: int64 [n], index of the object that the box is part of, -1 for scenery.
        material: int64 [n], a :class:`~bevquant.data.world.appearance.Material`.
        colour: float32 [n, 3], main colour, 0..1.
        accent: float32 [n, 3], second colour, 0..1.
        intensity: float32 [n], LiDAR intensity at close range, 0..255.
    """

    centre: Array
    half: Array
    yaw: Array
    owner: Array
    material: Array
    colour: Array
    accent: Array
    intensity: Array

    def __len__(self) -> int:
        return len(self.yaw)

    def take(self, index: Array) -> "Solids":
        """Return the boxes at ``index`` (integers or booleans)."""
        return Solids(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def concatenate(parts: Sequence[Solids]) -> Solids:
    """Return all boxes of ``parts``, in order."""
    return Solids(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Solids)}
    )


def corners(centre: Array, half: Array, yaw: Array) -> Array:
    """Return the corners [n, 8, 3] of upright boxes (corner ``4 i + 2 j + k``: x, y, z sign)."""
    local = half[:, None, :] * _SIGNS
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    turned = np.stack(
        [
            cos * local[..., 0] - sin * local[..., 1],
            sin * local[..., 0] + cos * local[..., 1],
            local[..., 2],
        ],
        axis=-1,
    )
    return np.asarray(turned + centre[:, None, :])


def rotate(rotation: Array, vectors: Array) -> Array:
    """Return ``rotation @ v`` for every v of ``vectors`` [..., 3], in their precision."""
    r = rotation.astype(vectors.dtype)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.stack([r[i, 0] * x + r[i, 1] * y + r[i, 2] * z for i in range(3)], axis=-1)


@dataclass(frozen=True)
class Plane:
    """The ground z = ``grade_x`` x + ``grade_y`` y of the global frame.

    Attributes:
        grade: (rise per metre along x, rise per metre along y).
    """

    grade: tuple[float, float]

    def height(self, x: Array, y: Array) -> Array:
        """Return the ground's z under (x, y)."""
        return np.asarray(self.grade[0] * x + self.grade[1] * y)

    def normal(self) -> Array:
        """Return the upward unit normal [3]."""
        vector = np.array([-self.grade[0], -self.grade[1], 1.0])
        return np.asarray(vector / np.sqrt((vector**2).sum()))


@dataclass(frozen=True)
class Rays:
    """A grid of rays from one point.

    Attributes:
        origin: float64 [3], global.
        direction: float32 [H, W, 3], global, of any length.
    """

    origin: Array
    direction: Array


@dataclass(frozen=True)
class Hits:
    """What each ray of a grid hits first.

    Attributes:
        distance: float32 [H, W], in lengths of the ray's direction; infinite for the sky.
        solid: int32 [H, W], index of the box, :data:`GROUND` or :data:`SKY`.
        alone: int64 [owners], rays that would hit each object were nothing else there.
    """

    distance: Array
    solid: Array
    alone: Array


Window = tuple[int, slice, slice]
"""A box's index, and the rows and columns of the ray grid that can hit it."""


def slab(origin: Array, direction: Array, half: Array, yaw: float) -> tuple[Array, Array]:
    """Intersect rays with one upright box centred at zero.

    Args:
        origin: [3], of all rays, relative to the box's centre.
        direction: float32 [..., 3].
        half: [3].
        yaw: the box's, radians.

    Returns:
        Distances [...] where each ray enters and leaves; it misses if enter > leave.
    """
    cos, sin = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    x, y = direction[..., 0], direction[..., 1]
    axes = (cos * x + sin * y, cos * y - sin * x, direction[..., 2])
    start = (cos * origin[0] + sin * origin[1], cos * origin[1] - sin * origin[0], origin[2])
    enter: Array | None = None
    leave: Array | None = None
    for along, o, h in zip(axes, start, half, strict=True):
        # 1e-9 keeps rays parallel to a face finite without moving any hit.
        inverse = np.float32(1.0) / (along + np.float32(1e-9))
        middle = inverse * np.float32(-o)
        reach = np.abs(inverse) * np.float32(h)
        if enter is None or leave is None:
            enter, leave = middle - reach, middle + reach
        else:
            np.maximum(enter, middle - reach, out=enter)
            np.minimum(leave, middle + reach, out=leave)
    assert enter is not None
    assert leave is not None
    return enter, leave


def cast(rays: Rays, plane: Plane, solids: Solids, windows: Iterable[Window], owners: int) -> Hits:
    """Find the first hit of every ray; each box is tested only inside its windows."""
    direction = rays.direction
    normal = plane.normal()
    above = float(normal[2] * (rays.origin[2] - plane.height(*rays.origin[:2])))
    falling = -sum(np.float32(normal[i]) * direction[..., i] for i in range(3))
    with np.errstate(divide="ignore"):
        distance = np.where(falling > 0, np.float32(above) / falling, np.float32(np.inf))
    solid = np.where(np.isfinite(distance), np.int32(GROUND), np.int32(SKY))
    alone = np.zeros((owners, *distance.shape), dtype=bool)
    origins = rays.origin - solids.centre
    for index, rows, columns in windows:
        enter, leave = slab(
            origins[index], direction[rows, columns], solids.half[index], solids.yaw[index]
        )
        hit = (enter <= leave) & (enter > 0)
        owner = solids.owner[index]
        if owner >= 0:
            alone[owner, rows, columns] |= hit
        hit &= enter < distance[rows, columns]
        np.copyto(distance[rows, columns], enter, where=hit)
        np.copyto(solid[rows, columns], np.int32(index), where=hit)
    return Hits(distance, solid, alone.sum(axis=(1, 2)))

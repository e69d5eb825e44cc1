"""The streets of a town, as a function of x and y: surfaces, colours, map mask."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bevquant.data.world.geometry import Array

ROAD = 7.0
"""Half the width of a street: two lanes of 3.5 m each way."""

WALKWAY = 10.0
"""Outer edge of the walkway, metres from the middle of the street."""

FRONTAGE = 18.5
"""Where buildings begin, metres from the middle of the street."""

LANE = 1.75
"""Middle of the inner lane, metres from the middle of the street; traffic keeps right."""

LAMP_SPACING = 24.0
"""Metres between street lamps, which stand at the outer edge of the walkway."""


class Surface(IntEnum):
    """What the ground is made of."""

    GRASS = 0
    ROAD = 1
    WALKWAY = 2
    MARKING = 3
    KERB = 4


_COLOURS = np.array(
    [
        [0.30, 0.37, 0.20],
        [0.25, 0.25, 0.27],
        [0.47, 0.46, 0.44],
        [0.85, 0.85, 0.82],
        [0.58, 0.57, 0.55],
    ],
    dtype=np.float32,
)

_INTENSITIES = np.array([14.0, 7.0, 18.0, 45.0, 20.0], dtype=np.float32)

_SPECKLE = np.random.default_rng(0).uniform(0.88, 1.12, 1024).astype(np.float32)


@dataclass(frozen=True)
class Town:
    """A grid of streets.

    Attributes:
        xs: x of the middles of the streets that run along y, metres.
        ys: y of the middles of the streets that run along x, metres.
        size: the map covers 0..size along both axes, metres.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    size: float

    def offsets(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the distances to the nearest street along y and to the nearest along x."""
        return _nearest(x, self.xs), _nearest(y, self.ys)

    def surface(self, x: Array, y: Array) -> Array:
        """Return the :class:`Surface` (int8) at each (x, y)."""
        dx, dy = self.offsets(x, y)
        near = np.minimum(dx, dy)
        surface = np.full(near.shape, Surface.GRASS, dtype=np.int8)
        surface[near < WALKWAY] = Surface.WALKWAY
        surface[near < ROAD + 0.2] = Surface.KERB
        surface[near < ROAD] = Surface.ROAD
        for across, other, along, beside in ((dx, dy, y, x), (dy, dx, x, y)):
            free = other > WALKWAY + 1.0
            middle = across < 0.12
            lane = (np.abs(across - 2 * LANE) < 0.1) & (np.mod(along, 6.0) < 3.0)
            zebra = (
                (across < ROAD)
                & (other > ROAD + 0.5)
                & (other < WALKWAY)
                & (np.mod(beside, 1.2) < 0.6)
            )
            surface[(free & (middle | lane)) | zebra] = Surface.MARKING
        return surface

    def lamplight(self, x: Array, y: Array) -> Array:
        """Return the light of the street lamps at each (x, y), 1 right under a lamp."""
        dx, dy = self.offsets(x, y)
        light = np.zeros(x.shape, dtype=np.float32)
        for across, along in ((dx, y), (dy, x)):
            to_lamp = np.mod(along, LAMP_SPACING) - LAMP_SPACING / 2
            square = to_lamp**2 + (across - WALKWAY) ** 2
            np.maximum(light, np.exp(square * np.float32(-1 / 128.0)), out=light)
        return light

    def mask(self) -> Array:
        """Return the map mask (uint8, 10 pixels a metre, row 0 at the largest y).

        255 is road or walkway: nuScenes calls it the semantic prior.
        """
        middle = (np.arange(round(self.size * 10)) + 0.5) / 10
        along_y = _nearest(middle, self.xs) < WALKWAY
        along_x = _nearest(middle, self.ys)[::-1] < WALKWAY
        return np.where(along_x[:, None] | along_y[None, :], np.uint8(255), np.uint8(0))


def _nearest(value: Array, places: tuple[float, ...]) -> Array:
    distance: Array = np.abs(value - places[0])
    for place in places[1:]:
        distance = np.minimum(distance, np.abs(value - place))
    return distance


def colour(town: Town, x: Array, y: Array) -> Array:
    """Return the colour (float32 [n, 3], 0..1) of the ground at each (x, y)."""
    cell_x = np.floor(x * 3).astype(np.int64)
    cell_y = np.floor(y * 3).astype(np.int64)
    speckle = _SPECKLE[(cell_x * 7919 ^ cell_y * 104729) & 1023]
    return np.asarray(_COLOURS[town.surface(x, y)] * speckle[:, None])


def intensity(town: Town, x: Array, y: Array) -> Array:
    """Return the LiDAR intensity (float32 [n], 0..255, at close range) of the ground."""
    return np.asarray(_INTENSITIES[town.surface(x, y)])

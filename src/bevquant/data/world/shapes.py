"""The outlines of things: each shape is a few boxes inside a unit cube.

Two kinds of object that share a shape cannot be told apart by LiDAR.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from bevquant.data.world.geometry import Array


@dataclass(frozen=True)
class Part:
    """One box of a shape, in fractions of the whole.

    Attributes:
        name: what it is; a livery colours parts by name.
        low: (x, y, z) lower corner; x and y from -1 (rear, right) to 1, z from 0 to 1.
        high: upper corner.
    """

    name: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]


def _wheels(front: float, rear: float, radius: float) -> tuple[Part, Part]:
    return (
        Part("wheels", (front - 0.1, -0.96, 0.0), (front + 0.1, 0.96, radius)),
        Part("wheels", (rear - 0.1, -0.96, 0.0), (rear + 0.1, 0.96, radius)),
    )


class Shape(Enum):
    """The shapes, each a tuple of parts."""

    CAR = (
        Part("body", (-1, -1, 0.14), (1, 1, 0.56)),
        Part("cabin", (-0.85, -0.9, 0.56), (0.25, 0.9, 1)),
        *_wheels(0.65, -0.65, 0.3),
    )
    LORRY = (
        Part("cab", (0.6, -0.95, 0.13), (1, 0.95, 0.74)),
        Part("cargo", (-1, -1, 0.28), (0.5, 1, 1)),
        Part("wheels", (-0.95, -0.7, 0.13), (0.7, 0.7, 0.28)),
        *_wheels(0.75, -0.6, 0.25),
    )
    COACH = (
        Part("body", (-1, -1, 0.12), (0.8, 1, 1)),
        Part("nose", (0.8, -1, 0.12), (1, 1, 0.62)),
        *_wheels(0.6, -0.6, 0.2),
    )
    CYCLE = (
        Part("frame", (-1, -0.35, 0), (1, 0.35, 0.62)),
        Part("bar", (0.35, -1, 0.62), (0.6, 1, 1)),
        Part("seat", (-0.8, -0.4, 0.62), (-0.1, 0.4, 0.8)),
    )
    RIDDEN_CYCLE = (
        Part("frame", (-1, -0.35, 0), (1, 0.35, 0.42)),
        Part("bar", (0.35, -1, 0.42), (0.6, 1, 0.62)),
        Part("torso", (-0.5, -0.8, 0.42), (0.1, 0.8, 0.84)),
        Part("head", (-0.3, -0.4, 0.84), (0.0, 0.4, 1)),
    )
    FIGURE = (
        Part("legs", (-0.6, -0.65, 0), (0.6, 0.65, 0.47)),
        Part("torso", (-0.7, -1, 0.47), (0.7, 1, 0.84)),
        Part("head", (-0.4, -0.4, 0.84), (0.4, 0.4, 1)),
    )
    CONE = (
        Part("base", (-1, -1, 0), (1, 1, 0.1)),
        Part("lower", (-0.75, -0.75, 0.1), (0.75, 0.75, 0.55)),
        Part("upper", (-0.5, -0.5, 0.55), (0.5, 0.5, 1)),
    )
    WALL = (
        Part("foot", (-1, -1, 0), (1, 1, 0.25)),
        Part("panel", (-1, -0.55, 0.25), (1, 0.55, 1)),
    )

    def boxes(self, size: tuple[float, float, float], margin: float) -> tuple[Array, Array]:
        """Return the parts' centres [p, 3] above the ground and half extents [p, 3].

        Args:
            size: length, width, height of the annotated box, metres.
            margin: the parts keep this far inside the annotated box, metres.
        """
        low = np.array([part.low for part in self.value], dtype=np.float64)
        high = np.array([part.high for part in self.value], dtype=np.float64)
        length, width, height = size
        scale = np.array([length / 2 - margin, width / 2 - margin, height - 2 * margin])
        low, high = low * scale, high * scale
        centre = (low + high) / 2
        centre[:, 2] += margin
        return centre, (high - low) / 2

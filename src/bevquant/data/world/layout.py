"""A town block round the car's route: streets, houses, trees, lamps."""

from dataclasses import dataclass

import numpy as np

from bevquant.data.world.appearance import Material
from bevquant.data.world.geometry import Array, Plane, Solids
from bevquant.data.world.ground import FRONTAGE, LAMP_SPACING, LANE, WALKWAY, Town
from bevquant.data.world.route import Route

_BORDER = 110.0
_SIGHT = 90.0

_WALLS = (
    (0.62, 0.56, 0.47),
    (0.50, 0.37, 0.31),
    (0.55, 0.56, 0.58),
    (0.70, 0.68, 0.62),
    (0.44, 0.45, 0.42),
    (0.57, 0.50, 0.52),
    (0.36, 0.38, 0.42),
)
_LEAVES = ((0.16, 0.30, 0.10), (0.22, 0.34, 0.12), (0.13, 0.25, 0.13))
_BARK = (0.24, 0.19, 0.15)
_STEEL = (0.33, 0.34, 0.36)


@dataclass(frozen=True)
class Block:
    """Everything that does not move.

    Attributes:
        town: the streets.
        ego: the car's route.
        scenery: houses, trees and lamps.
        posts: float64 [n, 3], x, y and radius of what stands where objects could stand.
    """

    town: Town
    ego: Route
    scenery: Solids
    posts: Array


def turn_at(crossing: float, left: bool) -> tuple[float, float, float]:
    """Return (metres before the turn, angle, radius) to turn from inner lane to inner lane.

    Args:
        crossing: metres to the middle of the crossing street.
        left: which way.
    """
    radius = 12.0 if left else 8.0
    lane = LANE if left else -LANE
    return crossing + lane - radius, np.pi / 2 if left else -np.pi / 2, radius


def build(seconds: float, plane: Plane, rng: np.random.Generator) -> Block:
    """Lay out a town for a drive of ``seconds``."""
    speed = 0.0 if rng.random() < 0.1 else rng.uniform(3.0, 10.0)
    length = speed * seconds
    quarter = int(rng.integers(4))
    heading = quarter * np.pi / 2
    crossing = rng.uniform(14.0, 60.0)
    route = Route((0.0, 0.0), heading, speed)
    if speed > 0 and rng.random() < 0.4:
        left = bool(rng.random() < 0.5)
        straight = rng.uniform(-2.0, 0.8) * length if length < 10 else rng.uniform(0, 0.8) * length
        straight = max(straight, -4.0)
        crossing = straight - turn_at(0.0, left)[0]
        straight, turn, radius = turn_at(crossing, left)
        route = Route((0.0, 0.0), heading, speed, straight, turn, radius)

    places, _ = route.at(np.linspace(-1.0, seconds, 32))
    shift = _BORDER - places.min(axis=0)
    size = float(np.ceil((places.max(axis=0) - places.min(axis=0)).max() + 2 * _BORDER))
    ego = Route(
        (float(shift[0]), float(shift[1])), heading, speed, route.straight, route.turn, route.radius
    )
    ahead = np.round([np.cos(heading), np.sin(heading)])
    left_hand = np.array([-ahead[1], ahead[0]])
    corner = shift + crossing * ahead + LANE * left_hand
    town = Town(_streets(corner[0], size, rng), _streets(corner[1], size, rng), size)

    posts: list[tuple[float, float, float]] = []
    builder = _Builder(plane)
    _houses(town, builder, rng)
    _lamps_and_trees(town, builder, posts, rng)
    scenery = builder.solids()
    away = np.sqrt(np.square(scenery.centre[:, None, :2] - (places + shift)[None]).sum(-1)).min(
        axis=1
    )
    near = away - np.sqrt(np.square(scenery.half[:, :2]).sum(-1)) < _SIGHT
    return Block(town, ego, scenery.take(near), np.array(posts).reshape(-1, 3))


def _streets(through: float, size: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the places of parallel streets, one of them at ``through``."""
    places = [float(through)]
    while places[-1] < size:
        places.append(places[-1] + rng.uniform(75.0, 115.0))
    while places[0] > 0:
        places.insert(0, places[0] - rng.uniform(75.0, 115.0))
    return tuple(places)


class _Builder:
    """Collects boxes of scenery that stand on the ground."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._rows: list[tuple[Array, Array, Material, Array, float]] = []

    def add(
        self,
        centre: tuple[float, float],
        base: float,
        size: tuple[float, float, float],
        material: Material,
        colour: Array,
        intensity: float,
    ) -> None:
        """Add a box of ``size`` whose bottom is ``base`` metres above the ground."""
        height = self._plane.height(*np.array(centre)) + base + size[2] / 2
        self._rows.append(
            (np.array([*centre, height]), np.array(size) / 2, material, colour, intensity)
        )

    def solids(self) -> Solids:
        """Return all boxes added."""
        centre, half, material, colour, intensity = zip(*self._rows, strict=True)
        count = len(self._rows)
        return Solids(
            np.stack(centre),
            np.stack(half),
            np.zeros(count),
            np.full(count, -1),
            np.array(material, dtype=np.int64),
            np.float32(np.stack(colour)),
            np.zeros((count, 3), dtype=np.float32),
            np.float32(np.array(intensity)),
        )


def _shade(palette: tuple[tuple[float, float, float], ...], rng: np.random.Generator) -> Array:
    return np.asarray(np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.85, 1.15))


def _houses(town: Town, builder: _Builder, rng: np.random.Generator) -> None:
    """Line both sides of every street with houses, with gaps between them."""
    depth = 9.0
    chosen = rng.choice(len(_WALLS), 4, replace=False)
    palette = tuple(_WALLS[i] for i in chosen)
    for x0, x1 in zip(town.xs, town.xs[1:], strict=False):
        for y0, y1 in zip(town.ys, town.ys[1:], strict=False):
            for axis, start, stop, rows in (
                (0, x0 + FRONTAGE, x1 - FRONTAGE, (y0, y1)),
                (1, y0 + FRONTAGE + depth, y1 - FRONTAGE - depth, (x0, x1)),
            ):
                for row, inwards in zip(rows, (1.0, -1.0), strict=True):
                    place = start
                    while place < stop - 6.0:
                        width = min(rng.uniform(9.0, 20.0), stop - place)
                        height = rng.uniform(4.5, 15.0)
                        along = place + width / 2
                        across = row + inwards * (FRONTAGE + depth / 2)
                        place += width + rng.uniform(0.5, 6.0)
                        builder.add(
                            (along, across) if axis == 0 else (across, along),
                            -1.0,
                            (width, depth, height) if axis == 0 else (depth, width, height),
                            Material.FACADE,
                            _shade(palette, rng),
                            rng.uniform(12.0, 40.0),
                        )


def _lamps_and_trees(
    town: Town,
    builder: _Builder,
    posts: list[tuple[float, float, float]],
    rng: np.random.Generator,
) -> None:
    for axis, streets in ((1, town.xs), (0, town.ys)):
        for street in streets:
            for side in (-1.0, 1.0):
                for along in np.arange(LAMP_SPACING / 2, town.size, LAMP_SPACING):
                    for tree in (False, True):
                        if tree and rng.random() < 0.45:
                            continue
                        across = street + side * (rng.uniform(11.5, 17.0) if tree else WALKWAY)
                        place = float(along + tree * rng.uniform(2.0, LAMP_SPACING - 2.0))
                        x, y = (across, place) if axis == 1 else (place, across)
                        crossing = town.offsets(np.array(x), np.array(y))[0 if axis == 0 else 1]
                        if crossing < WALKWAY + 2.5:
                            continue
                        posts.append((x, y, 0.4))
                        if tree:
                            _tree((x, y), builder, rng)
                        else:
                            builder.add(
                                (x, y),
                                -0.2,
                                (0.2, 0.2, 6.4),
                                Material.PLAIN,
                                np.array(_STEEL),
                                30.0,
                            )


def _tree(at: tuple[float, float], builder: _Builder, rng: np.random.Generator) -> None:
    trunk = rng.uniform(2.2, 3.2)
    crown = rng.uniform(2.2, 3.6)
    builder.add(at, -0.2, (0.35, 0.35, trunk + 0.4), Material.PLAIN, np.array(_BARK), 20.0)
    leaves = _shade(_LEAVES, rng)
    builder.add(at, trunk, (crown, crown, crown * 0.7), Material.FOLIAGE, leaves, 25.0)
    builder.add(
        at, trunk + crown * 0.7, (crown * 0.6, crown * 0.6, 0.8), Material.FOLIAGE, leaves, 25.0
    )

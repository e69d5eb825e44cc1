"""Houses, street lamps and trees along the streets of a town."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bevquant.data.world.appearance import Material
from bevquant.data.world.geometry import Array, Plane, Solids
from bevquant.data.world.ground import FRONTAGE, LAMP_SPACING, WALKWAY, Town

_HOUSE_DEPTH = 9.0
_POST_RADIUS = 0.4

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
_BARK = (Material.BARK, np.array([0.24, 0.19, 0.15]))
_STEEL = (Material.PLAIN, np.array([0.33, 0.34, 0.36]))


@dataclass(frozen=True)
class Posts:
    """Lamps and trees, among which objects have to find room.

    Attributes:
        discs: float64 [n, 3], x, y and radius.
        trees: bool [n], which of them are trees.
    """

    discs: Array
    trees: Array


def build_scenery(town: Town, plane: Plane, rng: np.random.Generator) -> tuple[Solids, Posts]:
    """Build up a town: its boxes, and the posts among them."""
    builder = _Builder(plane)
    _houses(town, builder, rng)
    discs, trees = [], []
    for axis, streets in ((1, town.xs), (0, town.ys)):
        for along, across, tree in _roadside(streets, town.size, rng):
            x, y = (across, along) if axis == 1 else (along, across)
            crossing = town.offsets(np.array(x), np.array(y))[0 if axis == 0 else 1]
            if crossing < WALKWAY + 2.5:
                continue
            discs.append((x, y, _POST_RADIUS))
            trees.append(tree)
            if tree:
                _tree((x, y), builder, rng)
            else:
                builder.add((x, y), -0.2, (0.2, 0.2, 6.4), _STEEL, intensity=30.0)
    return builder.solids(), Posts(np.array(discs).reshape(-1, 3), np.array(trees, dtype=bool))


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
        paint: tuple[Material, Array],
        *,
        intensity: float,
    ) -> None:
        """Add a box of ``size`` whose bottom is ``base`` metres above the ground."""
        height = self._plane.height(*np.array(centre)) + base + size[2] / 2
        self._rows.append((np.array([*centre, height]), np.array(size) / 2, *paint, intensity))

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
            np.stack(colour).astype(np.float32),
            np.zeros((count, 3), dtype=np.float32),
            np.array(intensity, dtype=np.float32),
        )


def _shade(palette: tuple[tuple[float, float, float], ...], rng: np.random.Generator) -> Array:
    return np.asarray(np.array(palette[rng.integers(len(palette))]) * rng.uniform(0.85, 1.15))


def _houses(town: Town, builder: _Builder, rng: np.random.Generator) -> None:
    """Line both sides of every street with houses, with gaps between them."""
    chosen = rng.choice(len(_WALLS), 4, replace=False)
    palette = tuple(_WALLS[i] for i in chosen)
    for x0, x1 in pairwise(town.xs):
        for y0, y1 in pairwise(town.ys):
            for axis, start, stop, rows in (
                (0, x0 + FRONTAGE, x1 - FRONTAGE, (y0, y1)),
                (1, y0 + FRONTAGE + _HOUSE_DEPTH, y1 - FRONTAGE - _HOUSE_DEPTH, (x0, x1)),
            ):
                for row, inwards in zip(rows, (1.0, -1.0), strict=True):
                    place = start
                    while place < stop - 6.0:
                        width = min(rng.uniform(9.0, 20.0), stop - place)
                        height = rng.uniform(4.5, 15.0)
                        along = place + width / 2
                        across = row + inwards * (FRONTAGE + _HOUSE_DEPTH / 2)
                        place += width + rng.uniform(0.5, 6.0)
                        builder.add(
                            (along, across) if axis == 0 else (across, along),
                            -1.0,
                            (width, _HOUSE_DEPTH, height)
                            if axis == 0
                            else (_HOUSE_DEPTH, width, height),
                            (Material.FACADE, _shade(palette, rng)),
                            intensity=rng.uniform(12.0, 40.0),
                        )


def _roadside(
    streets: tuple[float, ...], length: float, rng: np.random.Generator
) -> Iterator[tuple[float, float, bool]]:
    """Yield (along, across, whether it is a tree) of lamps, and of trees between them."""
    for street in streets:
        for side in (-1.0, 1.0):
            for along in np.arange(LAMP_SPACING / 2, length, LAMP_SPACING):
                yield float(along), street + side * WALKWAY, False
                if rng.random() >= 0.45:
                    across = street + side * rng.uniform(11.5, 17.0)
                    yield float(along + rng.uniform(2.0, LAMP_SPACING - 2.0)), across, True


def _tree(at: tuple[float, float], builder: _Builder, rng: np.random.Generator) -> None:
    trunk, crown = rng.uniform(2.2, 3.2), rng.uniform(2.2, 3.6)
    builder.add(at, -0.2, (0.35, 0.35, trunk + 0.4), _BARK, intensity=20.0)
    leaves = (Material.FOLIAGE, _shade(_LEAVES, rng))
    builder.add(at, trunk, (crown, crown, crown * 0.7), leaves, intensity=25.0)
    top = (crown * 0.6, crown * 0.6, 0.8)
    builder.add(at, trunk + crown * 0.7, top, leaves, intensity=25.0)

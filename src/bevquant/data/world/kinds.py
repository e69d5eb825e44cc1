"""What a kind of object is: its shape, its paint, where it is found, how it moves."""

from dataclasses import dataclass

import numpy as np

from bevquant.data.world.appearance import RUBBER, Material
from bevquant.data.world.geometry import Array
from bevquant.data.world.shapes import Shape

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Paint:
    """How one part is painted: a material and the palettes its two colours are drawn from."""

    material: Material
    colours: tuple[RGB, ...]
    accents: tuple[RGB, ...] = ((0.0, 0.0, 0.0),)


@dataclass(frozen=True)
class Sites:
    """Where a kind of object is found: relative weights.

    Attributes:
        lane: driving in a lane.
        kerb: standing at the edge of the road.
        walkway: on the walkway.
        verge: between walkway and houses.
    """

    lane: float = 0.0
    kerb: float = 0.0
    walkway: float = 0.0
    verge: float = 0.0


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        name: detection class, or the lookalike's name.
        category: nuScenes category, ``None`` for a lookalike.
        shape: its parts.
        size: mean length, width, height, metres.
        spread: sizes vary by this share either way.
        paint: part name -> paint; parts that are missing here are rubber.
        sites: where it is found.
        speed: slowest and fastest when it moves, metres a second.
        reach: placed no farther than this from the car, metres.
        count: mean number near the car.
    """

    name: str
    category: str | None
    shape: Shape
    size: tuple[float, float, float]
    spread: float
    paint: dict[str, Paint]
    sites: Sites
    speed: tuple[float, float]
    reach: float
    count: float


@dataclass(frozen=True)
class Coat:
    """The paint of one individual: per part a material, a colour and an accent."""

    material: Array
    colour: Array
    accent: Array


def coat(kind: Kind, shape: Shape, rng: np.random.Generator) -> Coat:
    """Draw the colours of one object; parts with the same palettes get the same colours."""
    drawn: dict[tuple[tuple[RGB, ...], tuple[RGB, ...]], tuple[Array, Array]] = {}
    materials, colours, accents = [], [], []
    for part in shape.value:
        paint = kind.paint.get(part.name)
        if paint is None:
            materials.append(int(Material.PLAIN))
            colours.append(RUBBER)
            accents.append(RUBBER)
            continue
        palettes = (paint.colours, paint.accents)
        if palettes not in drawn:
            shade = rng.uniform(0.9, 1.05)
            first = np.array(paint.colours[rng.integers(len(paint.colours))]) * shade
            second = np.array(paint.accents[rng.integers(len(paint.accents))])
            drawn[palettes] = (first.clip(0, 1), second)
        materials.append(int(paint.material))
        colours.append(drawn[palettes][0])
        accents.append(drawn[palettes][1])
    return Coat(
        np.array(materials),
        np.stack(colours).astype(np.float32),
        np.stack(accents).astype(np.float32),
    )

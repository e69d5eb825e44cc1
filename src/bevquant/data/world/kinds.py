"""The kinds of object in the world: ten detection classes, and what looks like them to LiDAR.

Sizes and shapes are shared within each group below, and LiDAR intensity comes from one
distribution for all, so that only a camera can tell the members of a group apart:

    lorry   truck, construction vehicle, (shed)
    coach   bus, trailer
    cycle   motorcycle, bicycle
    figure  pedestrian, (statue)
    cone    traffic cone, (bollard)
    wall    barrier, (concrete block)

Those in brackets are lookalikes: part of the scenery, never annotated.
"""

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


_WHITE = (0.92, 0.92, 0.9)
_BLACK = (0.06, 0.06, 0.06)
_STONE = ((0.5, 0.5, 0.48), (0.4, 0.4, 0.4), (0.36, 0.34, 0.3))
_SKIN = Paint(Material.PLAIN, ((0.85, 0.62, 0.5), (0.6, 0.42, 0.32), (0.42, 0.29, 0.22)))
_CAR_PAINTS = (
    (0.85, 0.85, 0.85),
    (0.1, 0.1, 0.12),
    (0.45, 0.47, 0.5),
    (0.1, 0.2, 0.5),
    (0.5, 0.08, 0.1),
    (0.6, 0.57, 0.48),
    (0.12, 0.3, 0.2),
)
_DIGGER = Paint(Material.DIAGONAL, ((1.0, 0.66, 0.02), (1.0, 0.58, 0.0)), (_BLACK,))
_SHED = Paint(Material.RIBS, ((0.34, 0.24, 0.17), (0.3, 0.27, 0.23)), ((0.2, 0.15, 0.11),))
_COACH = Paint(
    Material.COACH, ((0.85, 0.1, 0.1), (0.05, 0.5, 0.2), (0.05, 0.25, 0.75), (0.0, 0.55, 0.6))
)
_TRAILER = Paint(Material.RIBS, ((0.9, 0.9, 0.88), (0.82, 0.82, 0.8)), ((0.55, 0.55, 0.56),))
_MOTORCYCLE = Paint(Material.PLAIN, ((0.85, 0.04, 0.05), (0.75, 0.02, 0.1)))
_LEATHER = Paint(Material.PLAIN, (_BLACK, (0.1, 0.05, 0.05)))
_BICYCLE = Paint(Material.PLAIN, ((0.1, 0.85, 0.85), (0.35, 0.9, 0.15)))
_JERSEY = Paint(Material.PLAIN, ((0.95, 0.95, 0.2), (0.9, 0.95, 0.95)))
_CLOTHES = Paint(
    Material.PLAIN,
    ((0.95, 0.85, 0.1), (0.9, 0.1, 0.55), (0.1, 0.4, 0.95), (0.9, 0.15, 0.1), _WHITE),
)
_JEANS = Paint(Material.PLAIN, ((0.15, 0.25, 0.6), (0.1, 0.12, 0.35)))
_STATUE = Paint(Material.PLAIN, _STONE)
_CONE = Paint(Material.BANDS, ((1.0, 0.38, 0.02),), (_WHITE,))
_BOLLARD = Paint(Material.BANDS, _STONE, ((0.3, 0.3, 0.3),))
_BARRIER = Paint(Material.BARS, ((0.9, 0.05, 0.05),), (_WHITE,))
_CONCRETE = Paint(Material.PLAIN, (*_STONE, (0.2, 0.3, 0.12)))

_LARGE_SITES = Sites(lane=0.25, kerb=0.2, verge=0.55)
_COACH_SITES = Sites(lane=0.35, kerb=0.25, verge=0.4)
_CYCLE_SITES = Sites(lane=0.5, walkway=0.35, verge=0.15)
_SMALL_SITES = Sites(kerb=0.45, walkway=0.4, verge=0.15)
_LORRY = (7.4, 2.55, 3.1)
_BUS = (10.6, 2.8, 3.4)
_CYCLE = (1.95, 0.75, 1.25)
_PERSON = (0.75, 0.75, 1.75)
_POST = (0.55, 0.55, 1.05)
_BLOCK = (2.4, 0.6, 1.05)
_PARKED = (0.0, 0.0)


KINDS = (
    Kind(
        "car",
        "vehicle.car",
        Shape.CAR,
        (4.6, 1.95, 1.7),
        0.08,
        {
            "body": Paint(Material.BODY, _CAR_PAINTS),
            "cabin": Paint(Material.CABIN, _CAR_PAINTS),
        },
        Sites(lane=0.4, kerb=0.35, verge=0.25),
        (3.0, 12.0),
        44.0,
        6.0,
    ),
    Kind(
        "truck",
        "vehicle.truck",
        Shape.LORRY,
        _LORRY,
        0.1,
        {
            "cab": Paint(Material.COACH, ((0.1, 0.25, 0.8), (0.8, 0.08, 0.08), (0.9, 0.9, 0.9))),
            "cargo": Paint(Material.PLAIN, ((0.9, 0.9, 0.9), (0.45, 0.65, 0.9), (0.15, 0.3, 0.75))),
        },
        _LARGE_SITES,
        (3.0, 10.0),
        43.0,
        2.2,
    ),
    Kind(
        "construction_vehicle",
        "vehicle.construction",
        Shape.LORRY,
        _LORRY,
        0.1,
        {"cab": _DIGGER, "cargo": _DIGGER},
        _LARGE_SITES,
        (2.0, 6.0),
        44.0,
        1.8,
    ),
    Kind(
        "shed",
        None,
        Shape.LORRY,
        _LORRY,
        0.1,
        {"cab": _SHED, "cargo": _SHED},
        Sites(kerb=0.25, verge=0.75),
        _PARKED,
        43.0,
        1.2,
    ),
    Kind(
        "bus",
        "vehicle.bus.rigid",
        Shape.COACH,
        _BUS,
        0.1,
        {"body": _COACH, "nose": _COACH},
        _COACH_SITES,
        (3.0, 10.0),
        43.0,
        1.6,
    ),
    Kind(
        "trailer",
        "vehicle.trailer",
        Shape.COACH,
        _BUS,
        0.1,
        {"body": _TRAILER, "nose": _TRAILER},
        _COACH_SITES,
        (3.0, 10.0),
        43.0,
        1.6,
    ),
    Kind(
        "motorcycle",
        "vehicle.motorcycle",
        Shape.CYCLE,
        _CYCLE,
        0.06,
        {
            "frame": _MOTORCYCLE,
            "bar": _MOTORCYCLE,
            "seat": _LEATHER,
            "torso": _LEATHER,
            "head": Paint(Material.PLAIN, ((0.85, 0.04, 0.05), _BLACK)),
        },
        _CYCLE_SITES,
        (3.0, 8.0),
        38.0,
        2.4,
    ),
    Kind(
        "bicycle",
        "vehicle.bicycle",
        Shape.CYCLE,
        _CYCLE,
        0.06,
        {
            "frame": _BICYCLE,
            "bar": _BICYCLE,
            "seat": _LEATHER,
            "torso": _JERSEY,
            "head": _SKIN,
        },
        _CYCLE_SITES,
        (3.0, 8.0),
        38.0,
        2.4,
    ),
    Kind(
        "pedestrian",
        "human.pedestrian.adult",
        Shape.FIGURE,
        _PERSON,
        0.07,
        {"legs": _JEANS, "torso": _CLOTHES, "head": _SKIN},
        Sites(walkway=0.75, verge=0.25),
        (0.8, 1.6),
        38.0,
        4.5,
    ),
    Kind(
        "statue",
        None,
        Shape.FIGURE,
        _PERSON,
        0.07,
        {"legs": _STATUE, "torso": _STATUE, "head": _STATUE},
        Sites(walkway=0.75, verge=0.25),
        _PARKED,
        38.0,
        2.2,
    ),
    Kind(
        "traffic_cone",
        "movable_object.trafficcone",
        Shape.CONE,
        _POST,
        0.05,
        {"base": _CONE, "lower": _CONE, "upper": _CONE},
        _SMALL_SITES,
        _PARKED,
        29.0,
        4.0,
    ),
    Kind(
        "bollard",
        None,
        Shape.CONE,
        _POST,
        0.05,
        {"base": _BOLLARD, "lower": _BOLLARD, "upper": _BOLLARD},
        _SMALL_SITES,
        _PARKED,
        29.0,
        2.6,
    ),
    Kind(
        "barrier",
        "movable_object.barrier",
        Shape.WALL,
        _BLOCK,
        0.05,
        {"foot": _BARRIER, "panel": _BARRIER},
        _SMALL_SITES,
        _PARKED,
        29.0,
        3.2,
    ),
    Kind(
        "concrete_block",
        None,
        Shape.WALL,
        _BLOCK,
        0.05,
        {"foot": _CONCRETE, "panel": _CONCRETE},
        _SMALL_SITES,
        _PARKED,
        29.0,
        2.0,
    ),
)
"""All kinds. Large ones come first within a scene: they are the hardest to fit in."""

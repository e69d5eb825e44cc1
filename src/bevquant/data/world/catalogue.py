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

from bevquant.data.world.appearance import Material
from bevquant.data.world.kinds import Kind, Paint, Sites
from bevquant.data.world.shapes import Shape

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
        name="car",
        category="vehicle.car",
        shape=Shape.CAR,
        size=(4.6, 1.95, 1.7),
        spread=0.08,
        paint={
            "body": Paint(Material.BODY, _CAR_PAINTS),
            "cabin": Paint(Material.CABIN, _CAR_PAINTS),
        },
        sites=Sites(lane=0.4, kerb=0.35, verge=0.25),
        speed=(3.0, 12.0),
        reach=44.0,
        count=6.0,
    ),
    Kind(
        name="truck",
        category="vehicle.truck",
        shape=Shape.LORRY,
        size=_LORRY,
        spread=0.1,
        paint={
            "cab": Paint(Material.COACH, ((0.1, 0.25, 0.8), (0.8, 0.08, 0.08), (0.9, 0.9, 0.9))),
            "cargo": Paint(Material.PLAIN, ((0.9, 0.9, 0.9), (0.45, 0.65, 0.9), (0.15, 0.3, 0.75))),
        },
        sites=_LARGE_SITES,
        speed=(3.0, 10.0),
        reach=43.0,
        count=2.2,
    ),
    Kind(
        name="construction_vehicle",
        category="vehicle.construction",
        shape=Shape.LORRY,
        size=_LORRY,
        spread=0.1,
        paint={"cab": _DIGGER, "cargo": _DIGGER},
        sites=_LARGE_SITES,
        speed=(2.0, 6.0),
        reach=44.0,
        count=1.8,
    ),
    Kind(
        name="shed",
        category=None,
        shape=Shape.LORRY,
        size=_LORRY,
        spread=0.1,
        paint={"cab": _SHED, "cargo": _SHED},
        sites=Sites(kerb=0.25, verge=0.75),
        speed=_PARKED,
        reach=43.0,
        count=1.2,
    ),
    Kind(
        name="bus",
        category="vehicle.bus.rigid",
        shape=Shape.COACH,
        size=_BUS,
        spread=0.1,
        paint={"body": _COACH, "nose": _COACH},
        sites=_COACH_SITES,
        speed=(3.0, 10.0),
        reach=43.0,
        count=1.6,
    ),
    Kind(
        name="trailer",
        category="vehicle.trailer",
        shape=Shape.COACH,
        size=_BUS,
        spread=0.1,
        paint={"body": _TRAILER, "nose": _TRAILER},
        sites=_COACH_SITES,
        speed=(3.0, 10.0),
        reach=43.0,
        count=1.6,
    ),
    Kind(
        name="motorcycle",
        category="vehicle.motorcycle",
        shape=Shape.CYCLE,
        size=_CYCLE,
        spread=0.06,
        paint={
            "frame": _MOTORCYCLE,
            "bar": _MOTORCYCLE,
            "seat": _LEATHER,
            "torso": _LEATHER,
            "head": Paint(Material.PLAIN, ((0.85, 0.04, 0.05), _BLACK)),
        },
        sites=_CYCLE_SITES,
        speed=(3.0, 8.0),
        reach=38.0,
        count=2.4,
    ),
    Kind(
        name="bicycle",
        category="vehicle.bicycle",
        shape=Shape.CYCLE,
        size=_CYCLE,
        spread=0.06,
        paint={
            "frame": _BICYCLE,
            "bar": _BICYCLE,
            "seat": _LEATHER,
            "torso": _JERSEY,
            "head": _SKIN,
        },
        sites=_CYCLE_SITES,
        speed=(3.0, 8.0),
        reach=38.0,
        count=2.4,
    ),
    Kind(
        name="pedestrian",
        category="human.pedestrian.adult",
        shape=Shape.FIGURE,
        size=_PERSON,
        spread=0.07,
        paint={"legs": _JEANS, "torso": _CLOTHES, "head": _SKIN},
        sites=Sites(walkway=0.75, verge=0.25),
        speed=(0.8, 1.6),
        reach=38.0,
        count=4.5,
    ),
    Kind(
        name="statue",
        category=None,
        shape=Shape.FIGURE,
        size=_PERSON,
        spread=0.07,
        paint={"legs": _STATUE, "torso": _STATUE, "head": _STATUE},
        sites=Sites(walkway=0.75, verge=0.25),
        speed=_PARKED,
        reach=38.0,
        count=2.2,
    ),
    Kind(
        name="traffic_cone",
        category="movable_object.trafficcone",
        shape=Shape.CONE,
        size=_POST,
        spread=0.05,
        paint={"base": _CONE, "lower": _CONE, "upper": _CONE},
        sites=_SMALL_SITES,
        speed=_PARKED,
        reach=29.0,
        count=4.0,
    ),
    Kind(
        name="bollard",
        category=None,
        shape=Shape.CONE,
        size=_POST,
        spread=0.05,
        paint={"base": _BOLLARD, "lower": _BOLLARD, "upper": _BOLLARD},
        sites=_SMALL_SITES,
        speed=_PARKED,
        reach=29.0,
        count=2.6,
    ),
    Kind(
        name="barrier",
        category="movable_object.barrier",
        shape=Shape.WALL,
        size=_BLOCK,
        spread=0.05,
        paint={"foot": _BARRIER, "panel": _BARRIER},
        sites=_SMALL_SITES,
        speed=_PARKED,
        reach=29.0,
        count=3.2,
    ),
    Kind(
        name="concrete_block",
        category=None,
        shape=Shape.WALL,
        size=_BLOCK,
        spread=0.05,
        paint={"foot": _CONCRETE, "panel": _CONCRETE},
        sites=_SMALL_SITES,
        speed=_PARKED,
        reach=29.0,
        count=2.0,
    ),
)
"""All kinds. Large ones come first within a scene: they are the hardest to fit in."""

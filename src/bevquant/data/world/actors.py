"""The objects of a scene: what they are, how they move, where they fit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevquant.data.world.geometry import Array, Plane, Solids
from bevquant.data.world.ground import LANE, ROAD, WALKWAY, Town
from bevquant.data.world.kinds import KINDS, Coat, Kind, Sites, coat
from bevquant.data.world.layout import Block, turn_at
from bevquant.data.world.route import Route
from bevquant.data.world.settings import WorldSettings
from bevquant.data.world.shapes import Shape

MARGIN = 0.05
"""Annotated boxes are this much larger than the object on every side, metres."""

_TRIES = 60
_GAP = 1.2
_CLOSEST = 5.0
_HIDDEN = 0.25


@dataclass(frozen=True)
class Actor:
    """One object.

    Attributes:
        kind: what it is.
        shape: its outline (a ridden cycle's is not that of a parked one).
        size: length, width, height of its annotated box, metres.
        coat: its colours.
        intensity: of its LiDAR returns at close range, 0..255.
        route: where it goes.
    """

    kind: Kind
    shape: Shape
    size: tuple[float, float, float]
    coat: Coat
    intensity: float
    route: Route

    @property
    def attribute(self) -> str | None:
        """The nuScenes attribute, ``None`` for barriers and cones."""
        moves = self.route.speed > 0
        match self.kind.name:
            case "pedestrian":
                return "pedestrian.moving" if moves else "pedestrian.standing"
            case "motorcycle" | "bicycle":
                return "cycle.with_rider" if moves else "cycle.without_rider"
            case "bus":
                return "vehicle.moving" if moves else "vehicle.stopped"
            case "car" | "truck" | "trailer" | "construction_vehicle":
                return "vehicle.moving" if moves else "vehicle.parked"
            case _:
                return None

    def pose(self, time: float, plane: Plane) -> tuple[Array, float]:
        """Return the centre [3] of the annotated box and its yaw at ``time`` (seconds)."""
        place, heading = self.route.at(np.array(time))
        ground = float(plane.height(place[0], place[1]))
        return np.array([place[0], place[1], ground + self.size[2] / 2]), float(heading)


def solids(actors: Sequence[Actor], time: float, plane: Plane) -> Solids:
    """Return the boxes of all ``actors`` at ``time``."""
    centres, halves, yaws, owners = [], [], [], []
    for owner, actor in enumerate(actors):
        centre, half = actor.shape.boxes(actor.size, MARGIN)
        middle, yaw = actor.pose(time, plane)
        cos, sin = np.cos(yaw), np.sin(yaw)
        x, y = centre[:, 0], centre[:, 1]
        bottom = middle[2] - actor.size[2] / 2
        centres.append(
            np.stack(
                [
                    middle[0] + cos * x - sin * y,
                    middle[1] + sin * x + cos * y,
                    bottom + centre[:, 2],
                ],
                axis=-1,
            )
        )
        halves.append(half)
        yaws.append(np.full(len(half), yaw))
        owners.append(np.full(len(half), owner))
    parts = [len(half) for half in halves]
    return Solids(
        np.concatenate(centres),
        np.concatenate(halves),
        np.concatenate(yaws),
        np.concatenate(owners),
        np.concatenate([actor.coat.material for actor in actors]),
        np.concatenate([actor.coat.colour for actor in actors]),
        np.concatenate([actor.coat.accent for actor in actors]),
        np.repeat(np.array([actor.intensity for actor in actors], dtype=np.float32), parts),
    )


class _Space:
    """Which ground is taken, and when: every object is a row of discs along its length."""

    def __init__(self, times: Array, posts: Array) -> None:
        self.times = times
        self._discs = np.repeat(posts[None, :, :2], len(times), axis=0)
        self._radii = posts[:, 2]

    def discs(self, route: Route, size: tuple[float, float, float]) -> tuple[Array, float]:
        """Return disc centres [T, k, 2] and their radius for an object on ``route``."""
        length, width, _ = size
        place, heading = route.at(self.times)
        count = max(1, int(np.ceil(length / width)))
        offsets = (np.arange(count) + 0.5) / count * length - length / 2
        ahead = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        radius = float(np.hypot(width, length / count)) / 2
        return place[:, None, :] + offsets[None, :, None] * ahead[:, None, :], radius

    def free(self, route: Route, size: tuple[float, float, float], gap: float) -> bool:
        """Whether an object on ``route`` keeps ``gap`` metres from all others at all times."""
        centres, radius = self.discs(route, size)
        apart = np.square(centres[:, :, None] - self._discs[:, None]).sum(-1)
        return bool((apart > np.square(self._radii + radius + gap)).all())

    def in_sight(self, viewer: Array, place: Array, time: float) -> bool:
        """Whether no object taken so far stands between ``viewer`` and ``place`` at ``time``."""
        discs = self._discs[int(np.abs(self.times - time).argmin())] - viewer
        away = place - viewer
        length = np.hypot(*away)
        along, across = discs @ away / length, discs @ [-away[1], away[0]] / length
        between = (along > 3.0) & (along < length - self._radii)
        return not bool((between & (np.abs(across) < self._radii)).any())

    def take(self, route: Route, size: tuple[float, float, float]) -> None:
        """Reserve the ground of an object on ``route``."""
        centres, radius = self.discs(route, size)
        self._discs = np.concatenate([self._discs, centres], axis=1)
        self._radii = np.concatenate([self._radii, np.full(centres.shape[1], radius)])


def populate(
    block: Block, seconds: float, settings: WorldSettings, rng: np.random.Generator
) -> tuple[Actor, ...]:
    """Fill a town with objects that touch neither each other nor the car.

    The mean number near the car at any time is ``Kind.count``; longer drives get more.
    """
    space = _Space(np.arange(-1.0, seconds + 0.25, 0.25), block.posts)
    space.take(block.ego, (5.5, 2.2, 1.8))
    stretch = 1.0 + block.ego.speed * seconds / 70.0
    actors = []
    for kind in sorted(KINDS, key=lambda kind: -kind.size[0] * kind.size[1]):
        factor = settings.lookalikes if kind.category is None else settings.density
        mean = kind.count * factor * stretch
        for _ in range(int(mean + rng.random())):
            actor = _place(kind, block, space, seconds, rng)
            if actor is not None:
                space.take(actor.route, actor.size)
                actors.append(actor)
    return tuple(actors)


def _place(
    kind: Kind, block: Block, space: _Space, seconds: float, rng: np.random.Generator
) -> Actor | None:
    """Find room for one more object of ``kind``; ``None`` if there is none."""
    scale = rng.uniform(1 - kind.spread, 1 + kind.spread, 3)
    length, width, height = (round(float(s * k), 3) for s, k in zip(kind.size, scale, strict=True))
    for _ in range(_TRIES):
        time = rng.uniform(0.0, seconds)
        route = _site(kind, block, time, rng)
        if route is None:
            continue
        car, place = (way.at(np.array(time))[0] for way in (block.ego, route))
        if not space.in_sight(car, place, time) and rng.random() > _HIDDEN:
            continue
        shape, size = kind.shape, (length, width, height)
        if shape is Shape.CYCLE and route.speed > 0:
            shape, size = Shape.RIDDEN_CYCLE, (length, width, round(height * 1.42, 3))
        if space.free(route, size, _GAP):
            return Actor(kind, shape, size, coat(kind, shape, rng), rng.uniform(15.0, 60.0), route)
    return None


def _site(kind: Kind, block: Block, time: float, rng: np.random.Generator) -> Route | None:
    """Draw where an object of ``kind`` is at ``time``; ``None`` where it cannot be."""
    town = block.town
    car, _ = block.ego.at(np.array(time))
    axis = int(rng.integers(2))
    streets = town.ys if axis == 0 else town.xs
    street = streets[int(np.abs(np.array(streets) - car[1 - axis]).argmin())]
    along = car[axis] + rng.uniform(-kind.reach, kind.reach)
    forward = bool(rng.random() < 0.5)
    heading = axis * np.pi / 2 + (0.0 if forward else np.pi)
    site = _choose(kind.sites, rng)
    moving = site == "lane" or (site != "kerb" and kind.name == "pedestrian" and rng.random() < 0.6)
    half_width = kind.size[1] / 2

    if site == "lane":
        lateral = (
            ROAD - 0.9 if kind.shape is Shape.CYCLE else LANE + 2 * LANE * (rng.random() < 0.4)
        )
    elif site == "kerb":
        lateral = ROAD - half_width - 0.25
    elif site == "walkway":
        lateral = rng.uniform(ROAD + 0.6, WALKWAY - 0.9)
    else:
        lateral = rng.uniform(WALKWAY + half_width + 0.6, WALKWAY + 7.5 - half_width)
    # Traffic keeps right: the right-hand side of +x is -y, that of +y is +x.
    right = -1.0 if axis == 0 else 1.0
    across = street + lateral * right * (1.0 if forward else -1.0)
    at = np.array([along, across] if axis == 0 else [across, along])
    away = float(np.hypot(*(at - car)))
    if not _CLOSEST + kind.size[0] / 3 < away < kind.reach:
        return None

    crossing = _to_crossing(town, axis, at, forward)
    if moving:
        speed = rng.uniform(*kind.speed)
        turn, straight, radius = 0.0, 0.0, 1.0
        if site == "lane" and lateral == LANE and rng.random() < 0.25:
            straight, turn, radius = turn_at(crossing, bool(rng.random() < 0.5))
            if straight < -1.0:
                turn, straight, radius = 0.0, 0.0, 1.0
        start = at - speed * time * np.array([np.cos(heading), np.sin(heading)])
        if turn != 0.0:
            straight += speed * time
        if site != "lane" and rng.random() < 0.2:
            heading += rng.uniform(-0.3, 0.3)
            start = at - speed * time * np.array([np.cos(heading), np.sin(heading)])
        return Route((float(start[0]), float(start[1])), heading, speed, straight, turn, radius)

    other = town.offsets(at[0], at[1])[axis]
    if other < WALKWAY + kind.size[0] / 2 + 1.0:
        return None
    return Route((float(at[0]), float(at[1])), _standing_yaw(kind, site, heading, rng))


def _choose(sites: Sites, rng: np.random.Generator) -> str:
    names = ("lane", "kerb", "walkway", "verge")
    weights = np.array([getattr(sites, name) for name in names])
    return names[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random()))]


def _to_crossing(town: Town, axis: int, at: Array, forward: bool) -> float:
    """Return the metres to the next crossing street ahead."""
    streets = np.array(town.xs if axis == 0 else town.ys)
    ahead = (streets - at[axis]) * (1.0 if forward else -1.0)
    ahead = ahead[ahead > 0]
    return float(ahead.min()) if len(ahead) else 1e3


def _standing_yaw(kind: Kind, site: str, heading: float, rng: np.random.Generator) -> float:
    if kind.shape in (Shape.FIGURE, Shape.CONE):
        return float(rng.uniform(-np.pi, np.pi))
    if site == "kerb":
        return heading + rng.normal(0.0, 0.03)
    yaw = heading + rng.normal(0.0, 0.12)
    # Long things stay along the street: there is no room for them across the verge.
    if kind.size[0] < 8.0 and rng.random() < (0.5 if kind.size[0] < 5.5 else 0.0):
        yaw += np.pi / 2 * (1 if rng.random() < 0.5 else -1)
    return float(yaw)

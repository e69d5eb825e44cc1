"""Find room for the objects of a scene, so that they never touch and mostly can be seen."""

from dataclasses import dataclass, replace

import numpy as np

from bevquant.data.world.actors import Actor
from bevquant.data.world.catalogue import KINDS
from bevquant.data.world.geometry import Array
from bevquant.data.world.ground import LANE, ROAD, WALKWAY, Town
from bevquant.data.world.kinds import Kind, Sites, coat
from bevquant.data.world.layout import Block, turn_at
from bevquant.data.world.route import Route
from bevquant.data.world.settings import WorldSettings
from bevquant.data.world.shapes import Shape

_TRIES = 60
_GAP = 1.2
_CLOSEST = 5.0
_HIDDEN = 0.25


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
    space = _Space(np.arange(-1.0, seconds + 0.25, 0.25), block.posts.discs)
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


@dataclass(frozen=True)
class _Side:
    """One side of a street, in the direction of its traffic, which keeps right.

    Attributes:
        town: the streets.
        axis: 0 for a street along x, 1 for one along y.
        middle: y (or x) of the street's middle, metres.
        forward: whether traffic on this side runs towards larger coordinates.
    """

    town: Town
    axis: int
    middle: float
    forward: bool

    @property
    def heading(self) -> float:
        """Direction of the traffic, radians."""
        return self.axis * np.pi / 2 + (0.0 if self.forward else np.pi)

    def at(self, along: float, lateral: float) -> Array:
        """Return (x, y) of a place ``lateral`` metres from the street's middle."""
        # The right-hand side of +x is -y, that of +y is +x.
        right = -1.0 if self.axis == 0 else 1.0
        across = self.middle + lateral * right * (1.0 if self.forward else -1.0)
        return np.array([along, across] if self.axis == 0 else [across, along])

    def to_crossing(self, place: Array) -> float:
        """Return the metres from ``place`` to the middle of the next crossing street ahead."""
        streets = np.array(self.town.xs if self.axis == 0 else self.town.ys)
        ahead = (streets - place[self.axis]) * (1.0 if self.forward else -1.0)
        return float(ahead.min(where=ahead > 0, initial=np.inf))


def _site(kind: Kind, block: Block, time: float, rng: np.random.Generator) -> Route | None:
    """Draw where an object of ``kind`` is at ``time``; ``None`` where it cannot be."""
    car, _ = block.ego.at(np.array(time))
    axis = int(rng.integers(2))
    streets = block.town.ys if axis == 0 else block.town.xs
    middle = streets[int(np.abs(np.array(streets) - car[1 - axis]).argmin())]
    along = car[axis] + rng.uniform(-kind.reach, kind.reach)
    side = _Side(block.town, axis, middle, forward=bool(rng.random() < 0.5))
    site = _choose(kind.sites, rng)
    walks = kind.name == "pedestrian" and rng.random() < 0.6
    lateral = _lateral(kind, site, rng)
    place = side.at(along, lateral)
    away = float(np.hypot(*(place - car)))
    if not _CLOSEST + kind.size[0] / 3 < away < kind.reach:
        return None
    if site == "lane":
        route = _straight(place, side.heading, rng.uniform(*kind.speed), time)
        turns = lateral == LANE and rng.random() < 0.25
        return _with_turn(route, side.to_crossing(place), time, rng) if turns else route
    if walks:
        speed = rng.uniform(*kind.speed)
        astray = rng.uniform(-0.3, 0.3) if rng.random() < 0.2 else 0.0
        return _straight(place, side.heading + astray, speed, time)
    if block.town.offsets(place[0], place[1])[axis] < WALKWAY + kind.size[0] / 2 + 1.0:
        return None
    return _straight(place, _standing_yaw(kind, site, side.heading, rng), 0.0, time)


def _lateral(kind: Kind, site: str, rng: np.random.Generator) -> float:
    """Draw the distance from the street's middle, metres."""
    half_width = kind.size[1] / 2
    match site:
        case "lane" if kind.shape is Shape.CYCLE:
            return ROAD - 0.9
        case "lane":
            return 3 * LANE if rng.random() < 0.4 else LANE
        case "kerb":
            return ROAD - half_width - 0.25
        case "walkway":
            return rng.uniform(ROAD + 0.6, WALKWAY - 0.9)
        case _:
            return rng.uniform(WALKWAY + half_width + 0.6, WALKWAY + 7.5 - half_width)


def _straight(place: Array, heading: float, speed: float, time: float) -> Route:
    """Return the straight route that passes ``place`` at ``time``."""
    start = place - speed * time * np.array([np.cos(heading), np.sin(heading)])
    return Route((float(start[0]), float(start[1])), heading, speed)


def _with_turn(route: Route, crossing: float, time: float, rng: np.random.Generator) -> Route:
    """Return ``route`` with a turn into a street ``crossing`` metres ahead of where it is now."""
    straight, turn, radius = turn_at(crossing, bool(rng.random() < 0.5))
    if straight < -1.0 or not np.isfinite(straight):
        return route
    return replace(route, straight=straight + route.speed * time, turn=turn, radius=radius)


def _choose(sites: Sites, rng: np.random.Generator) -> str:
    names = ("lane", "kerb", "walkway", "verge")
    weights = np.array([getattr(sites, name) for name in names])
    return names[int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random()))]


def _standing_yaw(kind: Kind, site: str, heading: float, rng: np.random.Generator) -> float:
    if kind.shape in (Shape.FIGURE, Shape.CONE):
        return float(rng.uniform(-np.pi, np.pi))
    if site == "kerb":
        return heading + rng.normal(0.0, 0.03)
    yaw = heading + rng.normal(0.0, 0.12)
    if kind.shape is Shape.COACH:
        return float(yaw)
    # The verge is too narrow for a lorry across it.
    if rng.random() < 0.5 and kind.shape is not Shape.LORRY:
        yaw += np.pi / 2 * (1 if rng.random() < 0.5 else -1)
    return float(yaw)

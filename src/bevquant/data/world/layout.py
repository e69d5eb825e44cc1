"""A town block round the car's route: streets, houses, trees, lamps."""

from dataclasses import dataclass, replace

import numpy as np

from bevquant.data.world.geometry import Plane, Solids
from bevquant.data.world.ground import LANE, Town
from bevquant.data.world.route import Route
from bevquant.data.world.scenery import Posts, build_scenery

_BORDER = 110.0
_SIGHT = 90.0


@dataclass(frozen=True)
class Block:
    """Everything that does not move.

    Attributes:
        town: the streets.
        ego: the car's route.
        scenery: houses, trees and lamps.
        posts: what stands where objects could stand.
    """

    town: Town
    ego: Route
    scenery: Solids
    posts: Posts


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
    route, crossing = _drive(seconds, rng)
    places, _ = route.at(np.linspace(-1.0, seconds, 32))
    shift = _BORDER - places.min(axis=0)
    places += shift
    ego = replace(route, start=(float(shift[0]), float(shift[1])))
    size = float(np.ceil(np.ptp(places, axis=0).max() + 2 * _BORDER))
    ahead = np.round([np.cos(ego.heading), np.sin(ego.heading)])
    left_hand = np.array([-ahead[1], ahead[0]])
    corner = shift + crossing * ahead + LANE * left_hand
    town = Town(_streets(corner[0], size, rng), _streets(corner[1], size, rng), size)

    scenery, posts = build_scenery(town, plane, rng)
    away = np.linalg.norm(scenery.centre[:, None, :2] - places, axis=-1).min(axis=1)
    near = away - np.linalg.norm(scenery.half[:, :2], axis=-1) < _SIGHT
    return Block(town, ego, scenery.take(near), posts)


def _drive(seconds: float, rng: np.random.Generator) -> tuple[Route, float]:
    """Draw the car's route from (0, 0), and the metres to the crossing street ahead."""
    speed = 0.0 if rng.random() < 0.1 else rng.uniform(3.0, 10.0)
    length = speed * seconds
    heading = int(rng.integers(4)) * np.pi / 2
    crossing = rng.uniform(14.0, 60.0)
    if speed == 0.0 or rng.random() >= 0.4:
        return Route((0.0, 0.0), heading, speed), crossing
    left = bool(rng.random() < 0.5)
    # On a short drive the turn may have begun before the first key frame.
    straight = max(rng.uniform(-2.0 if length < 10 else 0.0, 0.8) * length, -4.0)
    crossing = straight - turn_at(0.0, left)[0]
    straight, turn, radius = turn_at(crossing, left)
    return Route((0.0, 0.0), heading, speed, straight, turn, radius), crossing


def _streets(through: float, size: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the places of parallel streets, one of them at ``through``."""
    places = [float(through)]
    while places[-1] < size:
        places.append(places[-1] + rng.uniform(75.0, 115.0))
    while places[0] > 0:
        places.insert(0, places[0] - rng.uniform(75.0, 115.0))
    return tuple(places)

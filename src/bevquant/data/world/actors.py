"""The objects of a scene: what each is, where it is at any time, the boxes it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevquant.data.world.geometry import Array, Plane, Solids
from bevquant.data.world.kinds import Coat, Kind
from bevquant.data.world.route import Route
from bevquant.data.world.shapes import Shape

MARGIN = 0.05
"""Annotated boxes are this much larger than the object on every side, metres."""


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


def actor_solids(actors: Sequence[Actor], time: float, plane: Plane) -> Solids:
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

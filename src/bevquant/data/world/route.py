"""The way a car or a pedestrian goes: straight, possibly one turn, straight again."""

from dataclasses import dataclass

import numpy as np

from bevquant.data.world.geometry import Array


@dataclass(frozen=True)
class Route:
    """A path at constant speed.

    Attributes:
        start: (x, y) at time 0, metres.
        heading: direction at the start, radians.
        speed: metres a second.
        straight: metres before the turn.
        turn: radians turned (left positive); 0 for none.
        radius: of the turn, metres.
    """

    start: tuple[float, float]
    heading: float
    speed: float = 0.0
    straight: float = 0.0
    turn: float = 0.0
    radius: float = 1.0

    def at(self, time: Array) -> tuple[Array, Array]:
        """Return position [..., 2] and heading [...] at each time (seconds, may be < 0)."""
        way = self.speed * time
        if self.turn == 0.0:
            return self._place(way, np.zeros_like(way), np.full_like(way, self.heading))
        side = np.sign(self.turn)
        turned = np.clip((way - self.straight) / self.radius, 0.0, abs(self.turn))
        after = np.maximum(way - self.straight - self.radius * abs(self.turn), 0.0)
        ahead = np.minimum(way, self.straight) + self.radius * np.sin(turned)
        left = self.radius * (1.0 - np.cos(turned))
        ahead = ahead + after * np.cos(turned)
        left = left + after * np.sin(turned)
        return self._place(ahead, side * left, self.heading + side * turned)

    def _place(self, ahead: Array, left: Array, heading: Array) -> tuple[Array, Array]:
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        x = self.start[0] + cos * ahead - sin * left
        y = self.start[1] + sin * ahead + cos * left
        return np.stack([x, y], axis=-1), heading

"""One scene: a town block, its objects, the weather, and the car that drives through."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from bevquant.data.world.actors import Actor, actor_solids
from bevquant.data.world.geometry import Array, Plane, Solids, concatenate
from bevquant.data.world.layout import Block, build
from bevquant.data.world.placement import populate
from bevquant.data.world.rig import Pose
from bevquant.data.world.settings import KEYFRAME_SECONDS, WorldSettings


class Weather(Enum):
    """Light and weather of a scene."""

    DAY = "day"
    NIGHT = "night"
    RAIN = "rain"


_CYCLE = (Weather.DAY, Weather.NIGHT, Weather.RAIN, Weather.DAY, Weather.DAY)


@dataclass(frozen=True)
class Scene:
    """Everything there is in one scene.

    Attributes:
        weather: light and weather.
        plane: the sloping ground.
        block: streets and scenery.
        actors: objects, annotated ones and lookalikes.
        sun: unit vector [3] towards the sun (or moon).
        sway: amplitude (radians), angular frequency and phase of the car's pitch and roll.
    """

    weather: Weather
    plane: Plane
    block: Block
    actors: tuple[Actor, ...]
    sun: Array
    sway: Array

    def solids(self, time: float) -> Solids:
        """Return every box at ``time`` (seconds after the first key frame)."""
        if not self.actors:
            return self.block.scenery
        return concatenate([actor_solids(self.actors, time, self.plane), self.block.scenery])

    def ego(self, time: float) -> Pose:
        """Return the car's pose in the global frame: wheels on the slope, body swaying."""
        place, heading = self.block.ego.at(np.array(time))
        up = self.plane.normal()
        forward = np.array([np.cos(heading), np.sin(heading), 0.0])
        forward -= up * (up @ forward)
        forward /= np.sqrt((forward**2).sum())
        on_slope = np.stack([forward, np.cross(up, forward), up], axis=1)
        amplitude, frequency, phase = self.sway
        pitch, roll = amplitude * np.sin(frequency * time + phase)
        cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
        nod = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        lean = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        ground = float(self.plane.height(place[0], place[1]))
        return Pose(on_slope @ nod @ lean, np.array([place[0], place[1], ground]))


def generator(settings: WorldSettings, index: int, stream: int) -> np.random.Generator:
    """Return the random numbers of one purpose (``stream``) in scene ``index``."""
    return np.random.default_rng(np.random.SeedSequence([settings.seed, index, stream]))


def make_scene(settings: WorldSettings, index: int) -> Scene:
    """Make scene ``index``; the same arguments give the same scene."""
    rng = generator(settings, index, 0)
    seconds = (settings.keyframes - 1) * KEYFRAME_SECONDS
    steep = rng.uniform(0.0, 0.04) if rng.random() < 0.5 else 0.0
    falls = rng.uniform(0.0, 2 * np.pi)
    plane = Plane((steep * float(np.cos(falls)), steep * float(np.sin(falls))))
    block = build(seconds, plane, rng)
    azimuth, height = rng.uniform(0.0, 2 * np.pi), rng.uniform(0.5, 1.1)
    sun = np.array(
        [np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)]
    )
    sway = np.stack(
        [rng.uniform(0.0, [0.008, 0.006]), rng.uniform(2.0, 6.0, 2), rng.uniform(0.0, 6.28, 2)]
    )
    actors = populate(block, seconds, settings, rng)
    return Scene(_CYCLE[index % len(_CYCLE)], plane, block, actors, sun, sway)

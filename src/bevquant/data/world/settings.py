"""The knobs of a generated world."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

VERSION = "v1.0-world"
"""Name of the folder that holds a generated world's tables."""

KEYFRAME_SECONDS = 0.5
"""Time between key frames: annotations come at 2 Hz, as in nuScenes."""

Pixels = Annotated[int, Field(ge=16, le=4096)]


class WorldSettings(BaseModel):
    """What to generate; a scene depends only on these and on its own index.

    Attributes:
        scenes: number of scenes; each is a town block of its own.
        keyframes: annotated key frames per scene, 0.5 s apart.
        seed: everything random comes from it.
        sweeps: LiDAR sweeps before each key frame, evenly spaced over the 0.5 s.
        val_fraction: share of the scenes (the last ones) in the split ``world_val``.
        image_size: (height, width) of every camera image in pixels.
        beams: LiDAR beams.
        azimuths: LiDAR firings per revolution.
        lidar_range: no LiDAR return beyond this many metres.
        annotation_range: objects farther from the car than this are not annotated, metres.
        density: factor on the number of annotated objects.
        lookalikes: factor on the number of objects that share an annotated class's shape
            but not its colours, and are not annotated. They make the cameras matter.
        labels: whether maps and occupancy are labelled too (twice the time); what the
            sensors see does not depend on it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenes: int = Field(default=20, ge=1, le=9999)
    keyframes: int = Field(default=10, ge=2, le=80)
    seed: int = Field(default=0, ge=0)
    sweeps: int = Field(default=2, ge=0, le=9)
    val_fraction: float = Field(default=0.25, ge=0.0, le=1.0)
    image_size: tuple[Pixels, Pixels] = (198, 352)
    beams: int = Field(default=32, ge=2, le=128)
    azimuths: int = Field(default=540, ge=16, le=4096)
    lidar_range: float = Field(default=75.0, gt=5.0, le=200.0)
    annotation_range: float = Field(default=60.0, gt=5.0, le=200.0)
    density: float = Field(default=1.0, ge=0.0, le=3.0)
    lookalikes: float = Field(default=1.0, ge=0.0, le=3.0)
    labels: bool = False

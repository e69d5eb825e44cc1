"""What a benchmark of deployed files says of each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevquant.deploy.engines import Arithmetic
from bevquant.deploy.footprint import Footprint

STAGES = ("preprocess", "camera", "LiDAR", "fuse", "head", "decode", "other")
"""What a frame goes through. ``other`` is the engine between two layers, and its dispatch."""

STAGE_OF = {
    "img_backbone": "camera",
    "img_neck": "camera",
    "view_transform": "camera",
    "pts_middle_encoder": "LiDAR",
    "fusion_layer": "fuse",
    "pts_backbone": "fuse",
    "pts_neck": "fuse",
    "bbox_head": "head",
}
"""The stage of each main module."""


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Attributes:
        path: file of :func:`~bevquant.deploy.export.export`.
        arithmetic: of what is not computed in integers.
    """

    path: Path
    arithmetic: Arithmetic = "f32"


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one thing that was run many times.

    Attributes:
        runs: milliseconds of each run that counts.
    """

    runs: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median of the runs."""
        return float(np.median(self.runs))

    @property
    def spread_ms(self) -> float:
        """Their interquartile range."""
        low, high = np.percentile(self.runs, (25, 75))
        return float(high - low)

    def speed_up(self, of: "Timing") -> float:
        """Return how many times as fast ``of`` is: the median over runs side by side."""
        return float(np.median(np.divide(self.runs, of.runs)))


@dataclass(frozen=True)
class Measurement:
    """One candidate at one number of threads.

    Attributes:
        candidate: what was measured.
        threads: of the engine, and of the work around it.
        latency: from the files of one frame to its boxes.
        network: from the network's input to its output, the part that is the engine's.
        stages: parts of ``latency``, by the names in :data:`STAGES`.
        modules: parts of ``network``, by main module, as the engine counts them.
        file_bytes: size of the file.
        footprint: what it takes of a fresh process.
        integer_layers: layers that the engine executes in integers.
        quantizable_layers: layers that could be.
    """

    candidate: Candidate
    threads: int
    latency: Timing
    network: Timing
    stages: dict[str, Timing]
    modules: dict[str, Timing]
    file_bytes: int
    footprint: Footprint
    integer_layers: int
    quantizable_layers: int

    @property
    def frames_per_second(self) -> float:
        """Throughput, one frame after the other."""
        return 1e3 / self.latency.median_ms

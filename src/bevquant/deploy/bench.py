"""Measuring deployed BEVFusions against each other: interleaved runs, medians, spread."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.deploy.engines import Arithmetic, Array
from bevquant.deploy.footprint import Footprint, footprint
from bevquant.deploy.profile import Profile, main_modules
from bevquant.deploy.runtime import load
from bevquant.models.bevfusion import HeadOutput
from bevquant.progress import track

WARM_UP = 2

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


def bench(
    candidates: Sequence[Candidate],
    dataset: NuScenesDataset,
    threads: int = 1,
    rounds: int = 20,
    frames: int = 4,
) -> list[Measurement]:
    """Measure deployed BEVFusions on the same frames with OpenVINO.

    Every round takes each candidate once from the files of the next frame to its boxes, so
    that whatever else the machine does falls on all of them alike. Ratios between the
    results are sound; compare with FP32 by passing a float export.

    Args:
        candidates: files, and the arithmetic of what is not integer in them.
        dataset: of frames that the files take.
        threads: of the engine and of the preparation of its input.
        rounds: runs of each candidate that count, after two that do not.
        frames: how many frames of ``dataset`` take turns.

    Raises:
        BevquantError: a file cannot be loaded, or takes other frames.
    """
    used = range(min(frames, len(dataset)))
    with _torch_threads(threads):
        roads = [_Road(candidate, dataset, threads) for candidate in candidates]
        laps: list[list[_Lap]] = [[] for _ in roads]
        for number in track(range(WARM_UP + rounds), f"bench, {threads} threads"):
            for road, own in zip(roads, laps, strict=True):
                own.append(road.run(used[number % len(used)]))
        inputs = [roads[0].prepare(index) for index in used]
        return [
            road.measurement(own[WARM_UP:], inputs) for road, own in zip(roads, laps, strict=True)
        ]


@dataclass(frozen=True)
class _Lap:
    """Milliseconds of one frame."""

    latency: float
    network: float
    stages: dict[str, float]
    modules: dict[str, float]


class _Road:
    """A candidate, from the files of a frame to its boxes."""

    def __init__(self, candidate: Candidate, dataset: NuScenesDataset, threads: int) -> None:
        self.candidate = candidate
        self.dataset = dataset
        self.threads = threads
        self.deployed = load(candidate.path, threads=threads, arithmetic=candidate.arithmetic)
        self.profile = Profile(self.deployed.engine)

    def prepare(self, index: int) -> list[Array]:
        """Read and preprocess a frame."""
        batch = collate([self.dataset.frame(index)], self.deployed.preprocess)
        return self.deployed.prepare(batch)

    def run(self, index: int) -> _Lap:
        start = time.perf_counter()
        arrays = self.prepare(index)
        prepared = time.perf_counter()
        outputs, spent = self.profile(arrays)
        computed = time.perf_counter()
        self.deployed.model.decode(HeadOutput(*map(torch.from_numpy, outputs)))
        end = time.perf_counter()
        modules = main_modules(spent)
        network = 1e3 * (computed - prepared)
        stages = dict.fromkeys(STAGES, 0.0)
        stages["preprocess"] = 1e3 * (prepared - start)
        stages["decode"] = 1e3 * (end - computed)
        for module, stage in STAGE_OF.items():
            stages[stage] += modules.get(module, 0.0)
        stages["other"] = network - sum(modules.get(module, 0.0) for module in STAGE_OF)
        return _Lap(1e3 * (end - start), network, stages, modules)

    def measurement(self, laps: Sequence[_Lap], inputs: Sequence[Sequence[Array]]) -> Measurement:
        candidate, engine = self.candidate, self.deployed.engine
        return Measurement(
            candidate=candidate,
            threads=self.threads,
            latency=Timing(tuple(lap.latency for lap in laps)),
            network=Timing(tuple(lap.network for lap in laps)),
            stages={name: Timing(tuple(lap.stages[name] for lap in laps)) for name in STAGES},
            modules={name: Timing(tuple(lap.modules[name] for lap in laps)) for name in STAGE_OF},
            file_bytes=candidate.path.stat().st_size,
            footprint=footprint(candidate.path, inputs, self.threads, candidate.arithmetic),
            integer_layers=len(engine.integer_layers),
            quantizable_layers=len(engine.precisions),
        )


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

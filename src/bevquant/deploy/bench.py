"""Measuring deployed BEVFusions against each other: interleaved runs, medians, spread."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.deploy.engines import Array
from bevquant.deploy.footprint import footprint
from bevquant.deploy.measurement import STAGE_OF, STAGES, Candidate, Measurement, Timing
from bevquant.deploy.profile import Profile, main_modules
from bevquant.deploy.runtime import load
from bevquant.models.bevfusion import HeadOutput
from bevquant.progress import track

WARM_UP = 2


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
        results, inputs = _race(candidates, dataset, threads, rounds, used)
        return [
            Measurement(
                candidate=candidate,
                threads=threads,
                latency=Timing(tuple(lap.latency for lap in result.laps)),
                network=Timing(tuple(lap.network for lap in result.laps)),
                stages={
                    name: Timing(tuple(lap.stages[name] for lap in result.laps)) for name in STAGES
                },
                modules={
                    name: Timing(tuple(lap.modules[name] for lap in result.laps))
                    for name in STAGE_OF
                },
                file_bytes=candidate.path.stat().st_size,
                footprint=footprint(candidate.path, inputs, threads, candidate.arithmetic),
                integer_layers=result.integer_layers,
                quantizable_layers=result.quantizable_layers,
            )
            for candidate, result in zip(candidates, results, strict=True)
        ]


@dataclass(frozen=True)
class _Lap:
    """Milliseconds of one frame."""

    latency: float
    network: float
    stages: dict[str, float]
    modules: dict[str, float]


@dataclass(frozen=True)
class _Result:
    """What came of one candidate."""

    laps: list[_Lap]
    integer_layers: int
    quantizable_layers: int


def _race(
    candidates: Sequence[Candidate],
    dataset: NuScenesDataset,
    threads: int,
    rounds: int,
    frames: Sequence[int],
) -> tuple[list[_Result], list[list[Array]]]:
    """Run the candidates in turn; also return the network's input for each frame.

    The engines are gone afterwards: those of the public network hold gigabytes.
    """
    roads = [_Road(candidate, dataset, threads) for candidate in candidates]
    engines = [road.deployed.engine for road in roads]
    results = [
        _Result([], len(engine.integer_layers), len(engine.precisions)) for engine in engines
    ]
    for number in track(range(WARM_UP + rounds), f"bench, {threads} threads"):
        for road, result in zip(roads, results, strict=True):
            lap = road.run(frames[number % len(frames)])
            if number >= WARM_UP:
                result.laps.append(lap)
    return results, [roads[0].prepare(index) for index in frames]


class _Road:
    """A candidate, from the files of a frame to its boxes."""

    def __init__(self, candidate: Candidate, dataset: NuScenesDataset, threads: int) -> None:
        self.dataset = dataset
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


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

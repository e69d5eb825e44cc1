"""Measuring deployed files against each other: interleaved runs, medians, spread."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bevquant.data.frame import Batch
from bevquant.deploy.engines import Array, open_engine
from bevquant.deploy.runtime import load
from bevquant.progress import track

WARM_UP = 2

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one thing that was run many times, in milliseconds.

    Attributes:
        median_ms: median.
        spread_ms: interquartile range.
    """

    median_ms: float
    spread_ms: float


@dataclass(frozen=True)
class Measurement:
    """One file at one number of threads.

    Attributes:
        path: the file.
        threads: of the engine.
        latency: of one frame through the network, without the preparation of its inputs.
        file_bytes: size of the file.
        memory_bytes: see :func:`peak_memory`.
        integer_layers: layers that the engine executes in integers.
        quantizable_layers: layers that could be.
    """

    path: Path
    threads: int
    latency: Timing
    file_bytes: int
    memory_bytes: int | None
    integer_layers: int
    quantizable_layers: int


def bench(
    paths: Sequence[Path], batches: Sequence[Batch], threads: int = 1, rounds: int = 30
) -> list[Measurement]:
    """Measure deployed BEVFusions on the same frames with OpenVINO.

    Every round runs each file once on the next frame, so that whatever else the machine
    does falls on all of them alike. Ratios between the results are sound; compare with
    FP32 by passing a float export.

    Args:
        paths: files of :func:`~bevquant.deploy.export.export`.
        batches: of one frame each, taken in turn.
        threads: of the engine.
        rounds: runs of each file that count, after two that do not.

    Raises:
        BevquantError: a file cannot be loaded, or takes other batches.
    """
    deployed = [load(path, threads=threads) for path in paths]
    inputs = [deployed[0].prepare(batch) for batch in batches]
    runs = [lambda arrays, network=file.network: network(arrays) for file in deployed]
    timings = interleave(runs, inputs, rounds)
    return [
        Measurement(
            path=path,
            threads=threads,
            latency=timing,
            file_bytes=path.stat().st_size,
            memory_bytes=peak_memory(path, inputs, threads),
            integer_layers=len(file.engine.integer_layers),
            quantizable_layers=len(file.engine.precisions),
        )
        for path, file, timing in zip(paths, deployed, timings, strict=True)
    ]


def interleave(
    candidates: Sequence[Callable[[Any], Any]], inputs: Sequence[Any], rounds: int
) -> list[Timing]:
    """Time ``candidates`` in turn, each round on the next of ``inputs``."""
    seconds = np.empty((rounds + WARM_UP, len(candidates)))
    for number in track(range(len(seconds)), "bench"):
        for i, run in enumerate(candidates):
            start = time.perf_counter()
            run(inputs[number % len(inputs)])
            seconds[number, i] = time.perf_counter() - start
    low, median, high = np.percentile(seconds[WARM_UP:] * 1e3, (25, 50, 75), axis=0)
    return [Timing(*map(float, row)) for row in zip(median, high - low, strict=True)]


def peak_memory(path: Path, inputs: Sequence[Sequence[Array]], threads: int = 1) -> int | None:
    """Return the bytes by which a fresh process grows while it loads ``path`` and runs it.

    ``None`` where the kernel does not tell (anything but Linux).
    """
    if not STATUS.exists():
        return None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_growth, path, inputs, threads).result()


def _growth(path: Path, inputs: Sequence[Sequence[Array]], threads: int) -> int:
    RESET_PEAK.write_text("5")
    before = _status("VmRSS")
    engine = open_engine(path, threads=threads)
    for arrays in inputs:
        engine(arrays)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """Return an entry of the process status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])

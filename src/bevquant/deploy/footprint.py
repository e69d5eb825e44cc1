"""What loading and running a file takes of a fresh process: seconds and bytes."""

import ctypes
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openvino

from bevquant.deploy.engines import Arithmetic, Array, Engine, open_engine

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """A file in a process of its own.

    Attributes:
        load_seconds: from the file to an engine that can run.
        weight_bytes: weights and other constants of the graph that the engine executes.
        loaded_bytes: by which the process has grown once the file is loaded: weights, the
            engine's own copies of them, its graph and its kernels. ``None`` where the
            kernel does not tell (anything but Linux).
        peak_bytes: by which it has grown at most while it loaded and ran; or ``None``.
    """

    load_seconds: float
    weight_bytes: int
    loaded_bytes: int | None
    peak_bytes: int | None


def footprint(
    path: Path,
    inputs: Sequence[Sequence[Array]],
    threads: int = 1,
    arithmetic: Arithmetic = "f32",
) -> Footprint:
    """Load ``path`` in a fresh process with OpenVINO, and run it on each of ``inputs``."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_measure, path, inputs, threads, arithmetic).result()


def _measure(
    path: Path, inputs: Sequence[Sequence[Array]], threads: int, arithmetic: Arithmetic
) -> Footprint:
    # The engine's own code is no part of any file.
    openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    told = sys.platform == "linux"
    if told:
        RESET_PEAK.write_text("5")
    before = _status("VmRSS") if told else 0
    start = time.perf_counter()
    engine = open_engine(path, threads=threads, arithmetic=arithmetic)
    seconds = time.perf_counter() - start
    if told:
        # What the allocator keeps for later is not what the engine holds.
        ctypes.CDLL(None).malloc_trim(0)
    loaded = _status("VmRSS") - before if told else None
    for arrays in inputs:
        engine(arrays)
    peak = _status("VmHWM") - before if told else None
    return Footprint(seconds, _constant_bytes(engine), loaded, peak)


def _constant_bytes(engine: Engine) -> int:
    assert engine.request is not None
    return sum(
        math.prod(map(int, node.get_output_shape(0))) * int(node.get_output_element_type(0).size)
        for node in engine.request.get_compiled_model().get_runtime_model().get_ops()
        if str(node.rt_info["layerType"].astype(str)) == "Const"
    )


def _status(key: str) -> int:
    """Return an entry of the process status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])

"""What both stages and the simulated forward pass cost, against the float forward pass.

Times are processor time of one thread; the two sides of a ratio take turns in one process,
and a figure is the median over rounds. Memory is the peak of a process that does nothing
else. The full network has random weights, on which neither depends.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from _rows import Row, of_runs
from float_forward import GIB, Alone, forward_memory, frame, network, peak_bytes, seconds

from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.memory import keep_freed_memory
from bevquant.quant.calibrate import calibrate
from bevquant.quant.layers import floating
from bevquant.quant.prepare import quantize
from bevquant.quant.refinement.refine import refine
from bevquant.quant.spec import W2A8, W3A8, W4A8, W8A8, W16A16
from bevquant.run import calibration_batches, load_small, quantize_small

BIT_PAIRS = (W2A8, W3A8, W4A8, W8A8, W16A16)
ROUNDS = 15
FULL_ROUNDS = 3
BATCHES = 2
"""Of stage 1: the first one also counts the multiply-accumulates."""


def cost_rows() -> Sequence[Row]:
    """Return a row for each claim; minutes, and some GiB for the full network."""
    return [
        of_runs(
            "simulated W8A8 forward, small network: part of float",
            "at most",
            1.1,
            Alone()(simulated_forward),
        ),
        of_runs(
            "stage 1, full network: time, part of float forward passes",
            "at most",
            1.3,
            Alone()(stage_1),
        ),
        of_runs(
            "stage 1, full network: peak memory, part of a float forward pass",
            "at most",
            1.3,
            [Alone()(stage_1_memory) / Alone()(forward_memory)],
        ),
        of_runs(
            "stage 2, five bit pairs, small network: passes of 20 frames",
            "at most",
            15,
            Alone()(stage_2),
        ),
    ]


def simulated_forward() -> list[float]:
    keep_freed_memory()
    batches = small_batches(2)
    model = quantize_small(load_small(), batches, W8A8)
    ratios = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            with floating(model):
                exact = seconds(lambda: model(batches[0]))
            ratios.append(seconds(lambda: model(batches[0])) / exact)
    return ratios[1:]  # the first pass quantizes the weights


def stage_2() -> list[float]:
    keep_freed_memory()
    batches = small_batches(20)
    model = quantize_small(load_small(), batches, W8A8)
    with torch.inference_mode(), floating(model):
        exact = seconds(lambda: [model(batch) for batch in batches])
    return [seconds(lambda: refine(model, batches, precisions=BIT_PAIRS)) / exact]


def small_batches(frames: int) -> list[Batch]:
    with tempfile.TemporaryDirectory() as name:
        settings = WorldSettings(scenes=1, keyframes=frames, val_fraction=0)
        generate(Path(name), settings, jobs=1)
        sweeps = preprocess.SMALL.sweeps
        dataset = NuScenesDataset(Path(name), VERSION, "world_train", sweeps=sweeps)
        return calibration_batches(dataset, frames)


def stage_1() -> list[float]:
    keep_freed_memory()
    model, batch = network(), frame()
    with torch.inference_mode():
        model(batch)  # the first pass is slower
    quantize(model, W8A8)
    ratios = []
    for _ in range(FULL_ROUNDS):
        with torch.inference_mode(), floating(model):
            exact = seconds(lambda: [model(batch) for _ in range(BATCHES)])
        ratios.append(seconds(lambda: calibrate(model, [batch] * BATCHES)) / exact)
    return ratios


def stage_1_memory() -> float:
    """Return the peak of a process that quantizes and calibrates, in GiB."""
    keep_freed_memory()
    model = quantize(network(), W8A8)
    calibrate(model, [frame()] * BATCHES)
    return peak_bytes() / GIB

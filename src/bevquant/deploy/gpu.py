"""The network in PyTorch on a GPU: what a file there has to beat, and how fast a search is."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bevquant.deploy.bench import WARM_UP
from bevquant.deploy.measurement import Timing
from bevquant.models.bevfusion import BEVFusion, HeadOutput, NetworkInput
from bevquant.quant.calibrate import calibrate
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize
from bevquant.quant.spec import DEPLOY, W2A8, W4A8, W8A8

T = TypeVar("T")

ARITHMETICS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

CANDIDATES = (W2A8, W4A8, W8A8)
"""Precisions that take turns; as in a search, every candidate is another than the last."""


def time_arithmetics(
    model: BEVFusion, inputs: Sequence[NetworkInput], device: str = "cuda", rounds: int = 20
) -> Mapping[str, Timing]:
    """Time the float network in each arithmetic, interleaved.

    Args:
        model: any weights: speed does not depend on them. Copied, not changed.
        inputs: of one frame each, on the CPU; they take turns, and are there when time starts.
        device: that PyTorch knows.
        rounds: runs in each arithmetic that count, after two that do not.

    Returns:
        Milliseconds of the layers, for ``"fp32"``, ``"fp16"`` and ``"bf16"``.
    """
    copies = {n: copy.deepcopy(model).to(device, dtype) for n, dtype in ARITHMETICS.items()}
    runs: dict[str, list[float]] = {name: [] for name in ARITHMETICS}
    for _, frame in zip(range(WARM_UP + rounds), cycle(inputs), strict=False):
        for name, dtype in ARITHMETICS.items():
            given = _moved(frame, device, dtype)
            runs[name].append(_timed(copies[name].network, given, device))
    return {name: Timing(tuple(times[WARM_UP:])) for name, times in runs.items()}


def candidates_per_second(
    model: BEVFusion, frame: NetworkInput, device: str = "cuda", rounds: int = 20
) -> float:
    """Return how many bit policies a second a search simulates on one frame.

    A candidate is its policy put in place and one forward pass of the quantized network.
    Arguments as above.
    """
    frame = _moved(frame, device, torch.float32)
    model = quantize(copy.deepcopy(model).to(device), W8A8, DEPLOY)
    calibrate(model, [frame], lambda _, given: model.network(given))

    def run(number: int) -> HeadOutput:
        apply(model, BitPolicy({"*": CANDIDATES[number % len(CANDIDATES)], "*matmul*": None}))
        return model.network(frame)

    times = [_timed(run, number, device) for number in range(WARM_UP + rounds)]
    return 1e3 / Timing(tuple(times[WARM_UP:])).median_ms


def _moved(frame: NetworkInput, device: str, dtype: torch.dtype) -> NetworkInput:
    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype if x.is_floating_point() else None)

    moved: NetworkInput = pytree.tree_map(move, frame.with_tables())
    return moved


def _timed(work: Callable[[T], object], given: T, device: str) -> float:
    with torch.inference_mode():
        _wait(device)
        start = time.perf_counter()
        work(given)
        _wait(device)
    return 1e3 * (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()

"""What one evaluation of the search costs, against a forward pass and a rebuilt model."""

import tempfile
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

import numpy as np
import torch
from _rows import Row, of_runs

import bevquant as bq
from bevquant.data.frame import Batch
from bevquant.mixed import SmallProblem, run_network
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.run import load_small
from bevquant.search.evaluator import Evaluator, Job
from bevquant.search.executors import Processes
from bevquant.search.front import Front, Point
from bevquant.search.random_search import Random
from bevquant.search.strategy import Problem

EVERY = 12
"""Of the strategy's evaluations one in so many is compared with a plain pass."""
REBUILT = 5
WORKED = 48
"""Genomes that are evaluated by one worker, and by two."""
ROUNDS = 3


def cost_rows(problem: SmallProblem, front: Front, batches: Sequence[Batch]) -> Sequence[Row]:
    """Return a row for each claim.

    Args:
        problem: what was searched.
        front: of the default strategy, whose own genomes are timed in their order.
        batches: those of ``problem``, before they were prepared.
    """
    network = problem.model, problem.space
    reusing = Evaluator(*network, problem.inputs, problem.error, run_network)
    plain = Evaluator(*network, batches, problem.error, memory=0)
    evaluated, passes = [], []
    for index, point in enumerate(front.evaluated):
        evaluated.append(_seconds(reusing, point) / point.batches)
        if index % EVERY == 0:
            passes.append(_seconds(plain, point) / point.batches)
    rebuilt = _rebuild_seconds(problem, front.evaluated[-REBUILT:], batches)
    whole = float(np.mean(evaluated)) * len(batches)
    speed = [_throughput(reusing, workers) for _ in range(ROUNDS) for workers in (1, 2)]
    return [
        of_runs(
            "an evaluation, of a plain quantized pass",
            "at most",
            0.5,
            [float(np.mean(evaluated) / np.mean(passes))],
        ),
        of_runs(
            "rebuilding the model, of an evaluation",
            "at least",
            5.0,
            [seconds / whole for seconds in rebuilt],
        ),
        of_runs(
            "two workers, of one",
            "at least",
            1.7,
            [two / one for one, two in zip(speed[::2], speed[1::2], strict=True)],
        ),
    ]


def _seconds(evaluator: Evaluator, point: Point) -> float:
    return evaluator.evaluate(Job(point.genome, (), point.batches, inf)).seconds


def _rebuild_seconds(
    problem: SmallProblem, points: Sequence[Point], batches: Sequence[Batch]
) -> list[float]:
    """Time what a search without swapping does: load, fold, quantize, set the grids, run."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.safetensors"
        save_calibration(problem.model, calibration)
        for point in points:
            started = time.perf_counter()
            model = load_small()
            bq.fold_batchnorm(model, batches[0])
            load_calibration(bq.quantize(model, point), calibration)
            with torch.no_grad():
                for batch in batches:
                    model(batch)
            seconds.append(time.perf_counter() - started)
    return seconds


def _throughput(evaluator: Evaluator, workers: int) -> float:
    """Return evaluations a second, the start of the workers not counted."""
    problem = Problem(evaluator.space, (), len(evaluator.batches))
    asks = next(Random(WORKED + workers).steps(problem, seed=0))
    jobs = [Job(ask.genome, (), problem.batches, inf) for ask in asks]
    with Processes(workers).open(evaluator) as pool:
        list(pool(iter(jobs[:workers])))
        started = time.perf_counter()
        list(pool(iter(jobs[workers:])))
        return WORKED / (time.perf_counter() - started)

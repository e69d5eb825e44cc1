"""The default search against the thesis' NSGA-II, its cost, and what its picks are worth.

Evaluations are kept in ``--out``: stopped at any moment, the same command continues. The
claims are about ``--data WORLD --evaluations 5000 --frames 4 --seeds 3`` (many hours on two
cores); by default everything is smaller. One evaluation is one pass over all frames.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
import torch
from _rows import Row, report

import bevquant as bq
from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.evaluate import evaluate, float_predictor
from bevquant.mixed import SmallProblem, run_network
from bevquant.quant.layers import quant_modules
from bevquant.quant.policy import BitPolicy
from bevquant.report.search import draw_curves, draw_fronts
from bevquant.run import calibration_batches, deployable, ends_at_8_bits, load_small
from bevquant.search.evaluator import Evaluator, Job
from bevquant.search.executors import Processes
from bevquant.search.front import Front
from bevquant.search.nsga2 import NSGA2
from bevquant.search.random_search import Random
from bevquant.search.space import Genome
from bevquant.search.strategy import Problem
from bevquant.search.surrogate import Surrogate

REFERENCE = (0.5, 2.0)
"""Worst relative weight bits (16 bits everywhere) and box error (all lost) of interest."""
CALIBRATION_FRAMES = 24
BUDGETS = ((0.1033, 0.985), (0.075, 0.96), (0.066, 0.95))
"""Relative weight bits, and the share of the float NDS that is to be kept."""


@dataclass(frozen=True)
class Options:
    data: Path | None
    out: Path
    evaluations: int
    frames: int
    seeds: int
    validation: int | None


def measure(options: Options) -> Sequence[Row]:
    torch.set_num_threads(1)
    data = options.data or options.out / "world"
    if not data.exists():
        generate(data, WorldSettings(scenes=12, keyframes=3, seed=1000, val_fraction=0.5), jobs=2)
    batches = calibration_batches(_split(data, "world_train"), CALIBRATION_FRAMES)
    problem = SmallProblem.of(load_small(), batches, options.frames)
    ours, theirs = [], []
    for seed in range(options.seeds):
        ledger = options.out / "ledger.sqlite"
        strategy = NSGA2(generations=max(1, options.evaluations // 100))
        theirs.append(problem.search(strategy, seed=seed, ledger=ledger))
        ours.append(problem.search(Surrogate(), seed=seed, ledger=ledger))
    _draw(ours, theirs, options)
    return [
        *_search_rows(ours, theirs, options),
        *_cost_rows(problem, ours[0]),
        *_nds_rows(problem, ours[0], batches, data, options),
    ]


def _search_rows(ours: list[Front], theirs: list[Front], options: Options) -> list[Row]:
    ratios, passes = [], []
    for a, b in zip(ours, theirs, strict=True):
        reference = _reference(a)
        target = b.hypervolume(reference)
        ratios.append(a.hypervolume(reference) / target)
        passes.append(next((n for n, volume in _curve(a, options) if volume >= target), inf))
    after = f"NSGA-II after {max(1, options.evaluations // 100) * 100}"
    return [
        _row(f"hypervolume over {after}", "at least", 1.0, ratios),
        _row(f"evaluations' worth of passes to that of {after}", "at most", 250, passes),
    ]


def _cost_rows(problem: SmallProblem, front: Front) -> list[Row]:
    """Time the strategy's own genomes, in its order, with and without reuse."""
    parts = problem.model, problem.space, problem.inputs, problem.error, run_network
    reusing, plain = Evaluator(*parts), Evaluator(*parts, memory=0)
    genomes = [point.genome for point in front.evaluated]
    warm, timed = genomes[:2], [*genomes[2:-16:16], *genomes[-16:]]
    for genome in warm:
        _seconds(reusing, genome), _seconds(plain, genome)
    pairs = np.array([(_seconds(reusing, g), _seconds(plain, g)) for g in timed])
    rebuilt = np.array([_rebuild_seconds(problem, genome) for genome in timed[:3]])
    worth = pairs[:, 0].sum() / pairs[:, 1].sum()
    one, two = (_throughput(Evaluator(*parts), problem, workers) for workers in (1, 2))
    return [
        Row("an evaluation, of a plain quantized pass", "at most", 0.5, float(worth), 0.0),
        _row("rebuilding, of an evaluation", "at least", 5.0, list(rebuilt / pairs[:, 0].mean())),
        Row("two workers, of one", "at least", 1.7, two / one, 0.0),
    ]


def _nds_rows(
    problem: SmallProblem, front: Front, batches: list[Batch], data: Path, options: Options
) -> list[Row]:
    dataset = _split(data, "world_val", options.validation)

    def nds(policy: BitPolicy | None) -> float:
        model = load_small()
        if policy is not None:
            model = problem.model
            bq.apply(model, policy)
            bq.reconstruct(model, batches)
        metrics = evaluate(
            float_predictor(model), dataset, preprocess.SMALL, description="evaluate"
        )
        return metrics.NDS

    whole = nds(None)
    uniform = nds(deployable(bq.W4A8))
    ends = nds(BitPolicy({**ends_at_8_bits(bq.W4A8).rules, "*matmul*": None}))
    rows = []
    for budget, share in BUDGETS:
        kept = nds(front.under(weight_bits=budget * front.float_costs["weight_bits"]))
        rows.append(Row(f"NDS at {budget}, of float", "at least", share, kept / whole, 0.0))
        if budget == BUDGETS[0][0]:
            rows.append(Row("the same, of uniform W4A8", "at least", 1.0, kept / uniform, 0.0))
            rows.append(Row("the same, of W4A8, ends at 8", "at least", 1.0, kept / ends, 0.0))
    return rows


def _seconds(evaluator: Evaluator, genome: Genome) -> float:
    return evaluator.evaluate(Job(genome, (), len(evaluator.batches), inf)).seconds


def _rebuild_seconds(problem: SmallProblem, genome: Genome) -> float:
    """Time what a search without reuse does: load, fold, quantize, set ranges, run all frames."""
    started = time.perf_counter()
    ranges = {
        layer.name: [quantizer.ranges for quantizer in layer.inputs]
        for layer in quant_modules(problem.model)
    }
    model = load_small()
    bq.fold_batchnorm(model, problem.inputs[0], run_network)
    bq.quantize(model, problem.space.policy(genome))
    for layer in quant_modules(model):
        for quantizer, found in zip(layer.inputs, ranges[layer.name], strict=True):
            quantizer.ranges = found
    with torch.no_grad():
        for inputs in problem.inputs:
            run_network(model, inputs)
    return time.perf_counter() - started


def _throughput(evaluator: Evaluator, problem: SmallProblem, workers: int) -> float:
    """Return evaluations a second, the start of the workers not counted."""
    steps = Random(8 + workers).steps(Problem(problem.space, (), len(problem.inputs)), seed=0)
    jobs = [Job(ask.genome, (), len(problem.inputs), inf) for ask in next(steps)]
    with Processes(workers).open(evaluator) as pool:
        list(pool(iter(jobs[:workers])))
        started = time.perf_counter()
        list(pool(iter(jobs[workers:])))
        return 8 / (time.perf_counter() - started)


def _reference(front: Front) -> tuple[float, float]:
    return REFERENCE[0] * front.float_costs["weight_bits"], REFERENCE[1]


def _curve(front: Front, options: Options) -> list[tuple[float, float]]:
    """Return passes, in whole evaluations, and the hypervolume after each evaluation."""
    each = np.cumsum([point.batches / options.frames for point in front.evaluated])
    return list(zip(each.tolist(), front.curve(_reference(front)), strict=True))


def _draw(ours: list[Front], theirs: list[Front], options: Options) -> None:
    curves = {f"default, seed {i}": _curve(front, options) for i, front in enumerate(ours)}
    curves |= {f"NSGA-II, seed {i}": _curve(front, options) for i, front in enumerate(theirs)}
    draw_curves(curves, options.out / "curves.png")
    named = {"default": ours[0], "NSGA-II": theirs[0]}
    fronts = {
        name: [(front.relative(p)["weight_bits"], max(p.error, 1e-9)) for p in front.points]
        for name, front in named.items()
    }
    draw_fronts(fronts, [], options.out / "fronts.png")


def _split(data: Path, name: str, limit: int | None = None) -> NuScenesDataset:
    return NuScenesDataset(data, VERSION, name, sweeps=preprocess.SMALL.sweeps, limit=limit)


def _row(figure: str, bound: str, goal: float, values: Sequence[float]) -> Row:
    low, median, high = np.percentile(values, (25, 50, 75))
    return Row(figure, bound, goal, float(median), float(high - low))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_search"))
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validation", type=int, help="only so many frames for NDS")
    known, sys.argv[1:] = parser.parse_known_args()
    report("search", partial(measure, Options(**vars(known))))

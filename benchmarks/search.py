"""The default search against the thesis' NSGA-II, its cost, and what its picks are worth.

The small network, every layer with weights at 2, 4, 8 or 16 bits, box error; each seed has
calibration frames of its own. NDS is that of the validation split, weights reconstructed for
the policy and activations at 8 bits. One evaluation's worth is one pass over all frames that
genomes are compared on. Whatever is finished is kept in ``--folder``, and the same command
continues; the claims are about the defaults, which take hours.
"""

from collections.abc import Sequence
from math import inf
from statistics import fmean

import numpy as np
from _rows import Row, conclude, of_seeds, parser
from _search_cost import cost_rows
from _search_setup import Options

import bevquant as bq
from bevquant.quant.policy import BitPolicy
from bevquant.report.search import draw_curves, draw_fronts
from bevquant.run import deployable, ends_at_8_bits
from bevquant.search.front import Front
from bevquant.search.nsga2 import NSGA2
from bevquant.search.surrogate import Surrogate

WORST = (0.5, 2.0)
"""Relative weight bits (16 bits everywhere) and box error (all lost) that bound the volume."""
BUDGETS = ((0.1033, 0.985), (0.075, 0.96), (0.066, 0.95))
"""Relative weight bits, and the share of the float NDS that is to be kept."""


def measure(options: Options) -> Sequence[Row]:
    problems, ours, theirs = [], [], []
    for seed in range(options.seeds):
        problems.append(problem := options.problem(seed))
        ours.append(options.search(problem, Surrogate(), seed))
        nsga2 = NSGA2(generations=options.evaluations // NSGA2().population)
        theirs.append(options.search(problem, nsga2, seed))
    _draw(ours, theirs, options)
    return [
        *_search_rows(ours, theirs, options),
        *cost_rows(problems[0], ours[0], options.compared(0)),
        *_nds_rows(ours, options),
    ]


def _search_rows(ours: list[Front], theirs: list[Front], options: Options) -> list[Row]:
    ratios, passes = [], []
    for a, b in zip(ours, theirs, strict=True):
        target = b.hypervolume(_reference(b))
        ratios.append(a.hypervolume(_reference(a)) / target)
        passes.append(next((n for n, volume in _curve(a, options) if volume >= target), inf))
    after = f"NSGA-II after {options.evaluations}"
    return [
        _worst(f"hypervolume over that of {after}", "at least", 1.0, ratios),
        _worst(f"evaluations' worth of passes to that of {after}", "at most", 250, passes),
    ]


def _nds_rows(fronts: list[Front], options: Options) -> list[Row]:
    products = {"*matmul*": None}
    policies: dict[str, list[BitPolicy | None]] = {
        "float": [None] * len(fronts),
        "uniform W4A8": [deployable(bq.W4A8)] * len(fronts),
        "W4A8, ends at 8": [BitPolicy({**ends_at_8_bits(bq.W4A8).rules, **products})] * len(fronts),
    }
    for budget, _ in BUDGETS:
        limit = budget * fronts[0].float_costs["weight_bits"]
        policies[f"{budget}"] = [_within(front, limit) for front in fronts]
    work = [(seed, rules) for each in policies.values() for seed, rules in enumerate(each)]
    measured = np.array(options.nds(work)).reshape(len(policies), len(fronts))
    figures = dict(zip(policies, measured, strict=True))
    first, _ = BUDGETS[0]
    return [
        *(
            _mean(f"NDS at {budget}, of float", share, figures[f"{budget}"] / figures["float"])
            for budget, share in BUDGETS
        ),
        *(
            _mean(f"NDS at {first}, of {other}", 1.0, figures[f"{first}"] / figures[other])
            for other in ("uniform W4A8", "W4A8, ends at 8")
        ),
    ]


def _within(front: Front, weight_bits: float) -> BitPolicy:
    """Return the pick for a budget, all activations at 8 bits."""
    rules = front.under(weight_bits=weight_bits).rules
    return BitPolicy({k: v and bq.Precision(v.weights, 8) for k, v in rules.items()})


def _reference(front: Front) -> tuple[float, float]:
    return WORST[0] * front.float_costs["weight_bits"], WORST[1]


def _curve(front: Front, options: Options) -> list[tuple[float, float]]:
    """Return passes, in whole evaluations, and the hypervolume after each evaluation."""
    each = np.cumsum([point.batches / options.frames for point in front.evaluated])
    return list(zip(each.tolist(), front.curve(_reference(front)), strict=True))


def _draw(ours: list[Front], theirs: list[Front], options: Options) -> None:
    curves = {f"default, seed {i}": _curve(front, options) for i, front in enumerate(ours)}
    curves |= {f"NSGA-II, seed {i}": _curve(front, options) for i, front in enumerate(theirs)}
    draw_curves(curves, options.folder / "curves.png")
    named = {"default": ours[0], "NSGA-II": theirs[0]}
    fronts = {
        name: [(front.relative(p)["weight_bits"], max(p.error, 1e-9)) for p in front.points]
        for name, front in named.items()
    }
    draw_fronts(fronts, [], options.folder / "fronts.png")


def _worst(figure: str, bound: str, goal: float, values: Sequence[float]) -> Row:
    return of_seeds(
        figure, bound, goal, values, min(values) if bound == "at least" else max(values)
    )


def _mean(figure: str, goal: float, values: Sequence[float]) -> Row:
    return of_seeds(figure, "at least", goal, values, fmean(values))


if __name__ == "__main__":
    command_line = parser("search")
    chosen, target = Options.read(command_line)
    conclude("search", measure(chosen), target)

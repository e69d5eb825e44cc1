"""The default strategy: a model of the error decides which genomes are worth evaluating."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from bevquant.search import sensitivity
from bevquant.search.costs import Cost
from bevquant.search.error_model import ErrorModel
from bevquant.search.front import Point, hypervolume, non_dominated, pareto
from bevquant.search.ilp import predicted_front
from bevquant.search.space import Genome
from bevquant.search.strategy import Ask, Problem, Steps

_MEASURED = 2
"""Choices of each gene whose sensitivity is measured: the others add little, and are learnt."""
_PREDICTED = 128
"""Genomes along the predicted front that are looked at in each round, unevaluated."""
_NEIGHBOURS = 16
"""Changed copies of each genome of the front that are looked at in each round."""


@dataclass(frozen=True)
class Surrogate:
    """Exact assignment on a model of the error that learns from every evaluation.

    It begins as :class:`~bevquant.search.ilp.ILP`: sensitivities, then the front of an
    additive error. What the evaluations of that front reveal (layers that matter more or less
    together than alone) goes into :class:`~bevquant.search.error_model.ErrorModel`; the
    front of the corrected model and small changes of the best genomes are candidates, and
    those that are predicted to enlarge the front most are evaluated. An evaluation stops as
    soon as its genome is sure to be beaten.

    Attributes:
        evaluations: of genomes on all batches, besides the sensitivities.
        start: how many of them are the front of the additive error.
        at_once: genomes that are asked for together; part of the result, so not the number
            of workers.
        sensitivity_batches: sensitivities are measured on so many batches, which need not
            be all: they are corrected later.
    """

    evaluations: int = 160
    start: int = 24
    at_once: int = 8
    sensitivity_batches: int | None = 1

    def budget(self, problem: Problem) -> int:
        """Return about how many evaluations it will ask for."""
        return sensitivity.count(problem.space, _MEASURED) + min(
            self.evaluations, problem.space.size
        )

    def steps(self, problem: Problem, seed: int) -> Steps:
        """Search."""
        space, costs = problem.space, problem.costs
        generator = np.random.default_rng(seed)
        base, added = yield from sensitivity.sensitivities(
            space, self.sensitivity_batches, _MEASURED
        )
        genomes = predicted_front(added, costs, self.start)
        genomes = list(dict.fromkeys((space.lowest, space.highest, *genomes)))
        points = list((yield [Ask(genome) for genome in genomes[: self.evaluations]]))
        left = min(self.evaluations, space.size) - len(points)
        while left > 0:
            model = ErrorModel(base, added, points)
            known = {point.genome for point in points}
            front = pareto(points)
            candidates = dict.fromkeys(predicted_front(model.added, costs, _PREDICTED))
            candidates.update(dict.fromkeys(_neighbours(front, space.sizes, generator)))
            fresh = [genome for genome in candidates if genome not in known]
            if not fresh:
                return
            chosen = _most_promising(fresh, model, costs, front, min(self.at_once, left))
            points += yield [Ask(g, bound=_beaten_above(g, costs, front)) for g in chosen]
            left -= len(chosen)


def _neighbours(
    front: Sequence[Point], sizes: Sequence[int], generator: np.random.Generator
) -> Generator[Genome, None, None]:
    """Yield copies of the front's genomes with one to three genes one step up or down."""
    for point in front:
        for _ in range(_NEIGHBOURS):
            genome = np.array(point.genome)
            genes = generator.choice(len(sizes), min(len(sizes), generator.integers(1, 4)), False)
            genome[genes] += generator.choice((-1, 1), len(genes))
            yield tuple(np.clip(genome, 0, np.array(sizes) - 1).tolist())


def _most_promising(
    genomes: Sequence[Genome],
    model: ErrorModel,
    costs: Sequence[Cost],
    front: Sequence[Point],
    count: int,
) -> list[Genome]:
    """Return the genomes that together are predicted to enlarge the front most.

    Volumes are those of costs and errors and, in turns, those of their logarithms: a front
    from 2 bits to 16 spans orders of magnitude, and each of them counts as well.
    """
    relative = [[cost(genome) / cost.float_value for cost in costs] for genome in genomes]
    predicted = np.column_stack((relative, np.exp(np.clip(model.predict(genomes), -20, 20))))
    taken = [_objectives(point, costs) for point in front]
    worst = np.max([*taken, *predicted], axis=0) * 1.1
    hopeful = non_dominated(predicted)
    chosen: list[int] = []
    while hopeful and len(chosen) < count:
        scaled = np.array([*taken, *predicted[hopeful], worst])
        scaled = np.log(scaled) if len(chosen) % 2 else scaled
        front_rows, candidates = scaled[: len(taken)], scaled[len(taken) : -1]
        volumes = [hypervolume([*front_rows, row], scaled[-1]) for row in candidates]
        best = hopeful.pop(int(np.argmax(volumes)))
        chosen.append(best)
        taken.append(predicted[best].tolist())
    left = [i for i in range(len(genomes)) if i not in chosen]
    left.sort(key=lambda i: predicted[i, -1])
    return [genomes[i] for i in (chosen + left)[:count]]


def _objectives(point: Point, costs: Sequence[Cost]) -> list[float]:
    relative = [point.costs[cost.name] / cost.float_value for cost in costs]
    return [*relative, max(point.error, 1e-12)]


def _beaten_above(genome: Genome, costs: Sequence[Cost], front: Sequence[Point]) -> float:
    """Return the smallest error of the points that cost no more than ``genome``."""
    limits = {cost.name: cost(genome) for cost in costs}
    cheaper = (p for p in front if all(p.costs[name] <= limit for name, limit in limits.items()))
    return min((point.error for point in cheaper), default=np.inf)

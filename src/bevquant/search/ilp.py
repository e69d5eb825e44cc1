"""Sensitivities once, then the exact optimum for every budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevquant.search import sensitivity
from bevquant.search.assignment import assign
from bevquant.search.costs import Cost
from bevquant.search.space import Genome
from bevquant.search.strategy import Ask, Problem, Steps


@dataclass(frozen=True)
class ILP:
    """Search as if the errors of layers added up (Yao et al., HAWQ-V3, arXiv 2011.10680).

    With several costs: the front of error against each of them, and against their mean.

    Attributes:
        points: genomes that are evaluated, evenly spread along the predicted front.
        sensitivity_batches: sensitivities are measured on so many batches; ``None`` for all.
    """

    points: int = 32
    sensitivity_batches: int | None = None

    def budget(self, problem: Problem) -> int:
        """Return about how many evaluations it will ask for."""
        return sensitivity.count(problem.space) + self.points

    def steps(self, problem: Problem, seed: int) -> Steps:
        """Search; the seed decides nothing."""
        _, added = yield from sensitivity.sensitivities(problem.space, self.sensitivity_batches)
        yield [Ask(genome) for genome in predicted_front(added, problem.costs, self.points)]


def predicted_front(
    errors: Sequence[Sequence[float]], costs: Sequence[Cost], points: int
) -> list[Genome]:
    """Return genomes along the front of an additive error, each once."""
    tables = [_scaled(cost) for cost in costs]
    if len(tables) > 1:
        tables.append([np.mean(rows, axis=0).tolist() for rows in zip(*tables, strict=True)])
    found: dict[Genome, None] = {}
    for table in tables:
        found.update(dict.fromkeys(assign(errors, table).spread(max(2, points // len(tables)))))
    return list(found)


def _scaled(cost: Cost) -> list[list[float]]:
    return [[value / cost.float_value for value in row] for row in cost.table]

"""Choosing one option for each gene so that two sums are as small as they can be, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bevquant.search.space import Genome

Floats = npt.NDArray[np.float64]
Table = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Assignments:
    """All non-dominated genomes of an additive problem, in rising order of cost.

    Attributes:
        costs: [n], rising.
        errors: [n], falling.
    """

    costs: Floats
    errors: Floats
    _steps: tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], ...]

    def genome(self, index: int) -> Genome:
        """Return the genome of point ``index``."""
        choices = []
        for parents, options in reversed(self._steps):
            choices.append(int(options[index]))
            index = int(parents[index])
        return tuple(reversed(choices))

    def under(self, budget: float) -> Genome | None:
        """Return the genome of the smallest error that costs at most ``budget``."""
        index = int(np.searchsorted(self.costs, budget, side="right")) - 1
        return None if index < 0 else self.genome(index)

    def spread(self, count: int) -> list[Genome]:
        """Return ``count`` genomes, evenly spaced along the front, both axes logarithmic."""
        logs = np.log(np.stack((self.costs, self.errors)).clip(min=1e-12))
        extent = np.ptp(logs, axis=1, keepdims=True)
        scaled = logs / np.where(extent > 0, extent, 1.0)
        length = np.concatenate(([0.0], np.abs(np.diff(scaled)).sum(axis=0).cumsum()))
        places = np.searchsorted(length, np.linspace(0, length[-1], count))
        return [self.genome(i) for i in sorted({int(p) for p in places})]


def assign(errors: Table, costs: Table) -> Assignments:
    """Return the whole exact front of min sum of errors, min sum of costs.

    Gene after gene, every partial choice that another one beats in both sums is dropped
    (Nemhauser & Ullmann, 1969): the optimum of the integer program for *every* budget at
    once. A few tenths of a second for a hundred genes of four choices.

    Args:
        errors: for each gene the error of each choice.
        costs: same shape.
    """
    total_errors = total_costs = np.zeros(1)
    steps = []
    for gene_errors, gene_costs in zip(errors, costs, strict=True):
        options = len(gene_errors)
        all_errors = np.add.outer(total_errors, np.asarray(gene_errors, float)).ravel()
        all_costs = np.add.outer(total_costs, np.asarray(gene_costs, float)).ravel()
        order = np.lexsort((all_errors, all_costs))
        best = np.minimum.accumulate(all_errors[order])
        kept = order[np.concatenate(([True], best[1:] < best[:-1]))]
        total_errors, total_costs = all_errors[kept], all_costs[kept]
        steps.append((kept // options, kept % options))
    return Assignments(total_costs, total_errors, tuple(steps))

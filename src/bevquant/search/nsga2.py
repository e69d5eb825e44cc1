"""The thesis' search: NSGA-II (Deb et al., 2002) with its operators for bit-widths."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.sampling.rnd import IntegerRandomSampling

from bevquant.search.strategy import Ask, Problem, Steps

Integers = npt.NDArray[np.int64]
_WORST = 1e12
"""Stands for an error that is not finite: distances between infinities have no value."""


@dataclass(frozen=True)
class NSGA2:
    """NSGA-II as in the thesis: 5,000 evaluations in 50 generations.

    Attributes:
        population: genomes in a generation, the first one included in the count.
        generations: how many.
        mutation: a mutated gene changes to ``any`` other width, or to the ``neighbour``
            below or above. Every gene mutates with probability 1 / genes.
    """

    population: int = 100
    generations: int = 50
    mutation: Literal["any", "neighbour"] = "neighbour"

    def budget(self, problem: Problem) -> int:
        """Return how many evaluations it will ask for."""
        return self.population * self.generations

    def steps(self, problem: Problem, seed: int) -> Steps:
        """Search."""
        sizes = np.array(problem.space.sizes)
        algorithm = PymooNSGA2(
            pop_size=self.population,
            sampling=IntegerRandomSampling(),
            crossover=MidpointCrossover(),
            mutation=WidthMutation(sizes, self.mutation),
        )
        algorithm.setup(
            PymooProblem(len(sizes), len(problem.costs) + 1, xl=0, xu=sizes - 1, vtype=int),
            termination=("n_gen", self.generations),
            seed=seed,
        )
        while algorithm.has_next():
            infills = algorithm.ask()
            if infills is None or len(infills) == 0:
                return
            points = yield [Ask(tuple(map(int, row))) for row in infills.get("X")]
            objectives = np.array([point.objectives for point in points])
            infills.set("F", np.minimum(objectives, _WORST))
            algorithm.evaluator.n_eval += len(infills)
            algorithm.tell(infills=infills)


class MidpointCrossover(Crossover):  # type: ignore[misc]
    """Two children, each with the first half of one parent and the second of the other."""

    def __init__(self) -> None:
        super().__init__(n_parents=2, n_offsprings=2)

    def _do(self, problem: Any, parents: Integers, *args: Any, **kwargs: Any) -> Integers:
        children = parents.copy()
        middle = parents.shape[-1] // 2
        children[:, :, middle:] = parents[::-1, :, middle:]
        return children


class WidthMutation(Mutation):  # type: ignore[misc]
    """Every gene changes with probability 1 / genes."""

    def __init__(self, sizes: Integers, kind: Literal["any", "neighbour"]) -> None:
        super().__init__()
        self.sizes = sizes
        self.kind = kind

    def _do(
        self,
        problem: Any,
        genomes: Integers,
        *args: Any,
        random_state: np.random.Generator,
        **kwargs: Any,
    ) -> Integers:
        mutated = random_state.random(genomes.shape) < 1 / len(self.sizes)
        if self.kind == "any":
            step = random_state.integers(1, np.maximum(self.sizes, 2), genomes.shape)
            changed = (genomes + step) % self.sizes
        else:
            step = random_state.choice((-1, 1), genomes.shape)
            step = np.where(genomes == 0, 1, np.where(genomes == self.sizes - 1, -1, step))
            changed = genomes + step
        return np.where(mutated, changed, genomes)

"""The baseline: genomes drawn at random."""

from dataclasses import dataclass

import numpy as np

from bevquant.search.strategy import Ask, Problem, Steps

_ASKED_AT_ONCE = 100


@dataclass(frozen=True)
class Random:
    """Uniformly random genomes: the ``R`` rows of the thesis' table 4.1.

    Attributes:
        evaluations: how many; a small space is drawn from until each is seen at most once.
    """

    evaluations: int = 5000

    def budget(self, problem: Problem) -> int:
        """Return how many evaluations it will ask for."""
        return min(self.evaluations, problem.space.size)

    def steps(self, problem: Problem, seed: int) -> Steps:
        """Search."""
        generator = np.random.default_rng(seed)
        left, seen = self.budget(problem), set()
        while left:
            drawn = generator.integers(
                0, problem.space.sizes, (_ASKED_AT_ONCE, len(problem.space.genes))
            )
            new = [g for g in dict.fromkeys(map(tuple, drawn.tolist())) if g not in seen][:left]
            seen.update(new)
            left -= len(new)
            if new:
                yield [Ask(genome) for genome in new]

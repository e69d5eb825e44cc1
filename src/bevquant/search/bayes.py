"""Bayesian optimisation with Optuna."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bevquant.errors import BevquantError
from bevquant.search.strategy import Ask, Problem, Steps

if TYPE_CHECKING:
    import optuna

_WORST = 1e12


@dataclass(frozen=True)
class Bayes:
    """Multi-objective tree-structured Parzen estimators (Ozaki et al., GECCO 2020).

    Attributes:
        evaluations: how many.
        at_once: genomes that are asked for together, before their results are known; part
            of the result, so not the number of workers.
    """

    evaluations: int = 250
    at_once: int = 8

    def budget(self, problem: Problem) -> int:
        """Return how many evaluations it will ask for."""
        return self.evaluations

    def steps(self, problem: Problem, seed: int) -> Steps:
        """Search.

        Raises:
            BevquantError: Optuna is not installed.
        """
        study = _study(seed, len(problem.costs) + 1)
        left = self.evaluations
        while left:
            trials = [study.ask() for _ in range(min(self.at_once, left))]
            left -= len(trials)
            points = yield [Ask(_genome(trial, problem.space.sizes)) for trial in trials]
            for trial, point in zip(trials, points, strict=True):
                study.tell(trial, [min(value, _WORST) for value in point.objectives])


def _study(seed: int, objectives: int) -> "optuna.Study":
    try:
        import optuna  # noqa: PLC0415
    except ImportError as error:
        raise BevquantError("search: bayes needs Optuna; pip install 'bevquant[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)


def _genome(trial: "optuna.Trial", sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(trial.suggest_int(f"{i}", 0, size - 1) for i, size in enumerate(sizes))

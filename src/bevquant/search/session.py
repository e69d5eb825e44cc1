"""One strategy on its way through a ledger and a pool of workers."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence

from bevquant.search.evaluator import Job, hopeless
from bevquant.search.executors import Pool
from bevquant.search.front import Point
from bevquant.search.ledger import Ledger
from bevquant.search.space import Genome
from bevquant.search.strategy import Ask, Problem, Strategy

_POLL_S = 0.05


class Session:
    """Answers what a strategy asks: from the ledger, or by having it evaluated.

    Args:
        problem: what is searched.
        ledger: what is known, by whoever found it.
        pool: evaluates what is not.
        name: of the strategy with its settings, for those who look at the ledger.

    Attributes:
        points: what the strategy has been told so far.
        passes: forward passes over all batches that this took, whoever made them.
    """

    def __init__(self, problem: Problem, ledger: Ledger, pool: Pool, name: str) -> None:
        self.problem = problem
        self.ledger = ledger
        self.pool = pool
        self.name = name
        self.points: list[Point] = []
        self.passes = 0.0

    def follow(self, strategy: Strategy, seed: int, budget: int) -> Iterator[None]:
        """Search, yielding once for each point."""
        steps = strategy.steps(self.problem, seed)
        self.ledger.progress(self.name, budget, 0, finished=False)
        try:
            asks = next(steps)
            while True:
                points = yield from self._answer(asks, budget)
                self.points += points
                asks = steps.send(points)
        except StopIteration:
            self.ledger.progress(self.name, len(self.points), len(self.points), finished=True)

    def _answer(self, asks: Sequence[Ask], budget: int) -> Generator[None, None, list[Point]]:
        waiting = {genome: job for genome, job in self._jobs(asks).items() if not self._known(job)}
        done = len(self.points) + len(asks) - len(waiting)
        for _ in range(len(asks) - len(waiting)):
            yield
        while waiting:
            for job, outcome in self.pool(self._claimed(waiting)):
                del waiting[job.genome]
                costs = {cost.name: cost(job.genome) for cost in self.problem.costs}
                self.ledger.record(job.genome, outcome.errors, costs, outcome.seconds, outcome.host)
                done += 1
                self.ledger.progress(self.name, budget, done, finished=False)
                yield
            for job in [job for job in waiting.values() if self._known(job)]:
                del waiting[job.genome]
                done += 1
                yield
            if waiting:
                time.sleep(_POLL_S)
        return [self._point(ask) for ask in asks]

    def _jobs(self, asks: Sequence[Ask]) -> dict[Genome, Job]:
        jobs = {}
        for ask in asks:
            known = self.ledger.get(ask.genome)
            errors = known.errors if known else ()
            batches = self.problem.batches if ask.batches is None else ask.batches
            jobs[ask.genome] = Job(
                ask.genome, errors, min(batches, self.problem.batches), ask.bound
            )
        return jobs

    def _claimed(self, waiting: Mapping[Genome, Job]) -> Iterator[Job]:
        for job in list(waiting.values()):
            if not self._known(job) and self.ledger.claim(job.genome):
                yield job

    def _known(self, job: Job) -> bool:
        known = self.ledger.get(job.genome)
        return known is not None and _answers(known.errors, job) is not None

    def _point(self, ask: Ask) -> Point:
        (job,) = self._jobs([ask]).values()
        errors = _answers(job.known, job)
        assert errors is not None
        self.passes += len(errors) / self.problem.batches
        return Point(
            self.problem.space.policy(ask.genome).rules,
            genome=ask.genome,
            error=sum(errors) / len(errors),
            costs={cost.name: cost(ask.genome) for cost in self.problem.costs},
            complete=len(errors) == self.problem.batches,
            batches=len(errors),
        )


def _answers(errors: Sequence[float], job: Job) -> Sequence[float] | None:
    """Return the errors that evaluating ``job`` alone gives, if ``errors`` suffice.

    More may be known: what a strategy is told must not depend on that.
    """
    for end in range(job.batches + 1):
        if end == job.batches or hopeless(errors[:end], job.batches, job.bound):
            return errors[:end]
        if end == len(errors):
            return None
    return None

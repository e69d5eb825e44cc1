"""The search itself: a strategy asks, a ledger remembers, an executor evaluates."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant.layers import QuantLayer, quant_modules
from bevquant.quant.running import Forward, call
from bevquant.search.costs import COSTS, Cost, CostMaker
from bevquant.search.digest import describe, digest
from bevquant.search.errors import ERRORS
from bevquant.search.evaluator import ErrorFunction, Evaluator, Job, hopeless
from bevquant.search.executors import Executor, Pool, Serial
from bevquant.search.front import Front, Point, pareto
from bevquant.search.ledger import Ledger
from bevquant.search.space import Genome, Space
from bevquant.search.space import space as all_layers
from bevquant.search.strategy import Ask, Problem, Strategy
from bevquant.search.surrogate import Surrogate

_POLL_S = 0.05


def search(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    error: str | ErrorFunction = "cosine",
    cost: str | CostMaker | Sequence[str | CostMaker] = "weight_bits",
    space: Space | None = None,
    strategy: Strategy | None = None,
    seed: int = 0,
    forward: Forward = call,
    ledger: Path | None = None,
    executor: Executor | None = None,
    threads: int = 1,
) -> Front:
    """Find the bit policies with the best trade-offs between error and costs (stage 3).

    ``apply(model, front.knee())`` then sets the bits. The result depends on the arguments
    up to ``forward`` alone: not on the executor, nor on how often the search was stopped
    and started again, nor on how many processes share the ledger.

    Args:
        model: quantized and calibrated; its bits are as before afterwards.
        batches: on which outputs are compared, of any type that ``forward`` takes.
        error: ``"cosine"``, ``"mse"``, or a function of the outputs on one batch and those
            of the float network; 0 or more, averaged over the batches. For a metric of a
            whole data set pass one "batch" of all its samples.
        cost: ``"weight_bits"``, ``"bytes"``, ``"bops"``, a maker such as
            ``latency(table)``, or several.
        space: what may be chosen; by default 2, 4, 8 or 16 bits for every layer.
        strategy: how to search; by default
            :class:`~bevquant.search.surrogate.Surrogate`.
        seed: of the strategy's random choices.
        forward: runs the model on one batch; ``model(batch)`` by default.
        ledger: file of all evaluations. If the search is stopped, at whatever moment, the
            same call continues. ``None`` keeps them in memory.
        executor: where evaluations run; by default in this process.
        threads: of PyTorch in each evaluation.

    Raises:
        BevquantError: the model is not calibrated, a name or a setting is wrong, or the
            ledger is another search's or cannot be written.
    """
    layers = quant_modules(model)
    if not any(layer.calibrated for layer in layers):
        raise BevquantError("search: the model is not calibrated; call quantize and calibrate")
    if not batches:
        raise BevquantError("search: there is no batch to compare outputs on")
    strategy = strategy or Surrogate()
    space = space or all_layers(model)
    unknown = set(space.assign(space.lowest)) ^ {layer.name for layer in layers}
    if unknown:
        raise BevquantError(f"search: the space is another model's, see layer {min(unknown)!r}")
    makers = [cost] if isinstance(cost, str) or callable(cost) else cost
    costs = tuple(_named(COSTS, "cost", maker)(model, space) for maker in makers)
    evaluator = Evaluator(model, space, batches, _named(ERRORS, "error", error), forward, threads)
    setup = setup_of(evaluator, costs)
    with closing(Ledger(ledger, setup)) as book, (executor or Serial()).open(evaluator) as pool:
        problem = Problem(space, costs, len(batches))
        session = _Session(problem, book, pool, f"{strategy!r}, seed {seed}")
        budget = strategy.budget(problem)
        for _ in track(session.follow(strategy, seed, budget), "search", total=budget):
            pass
    return Front(
        points=pareto(session.points),
        evaluated=tuple(session.points),
        float_costs={cost.name: cost.float_value for cost in costs},
        passes=session.passes,
    )


def setup_of(evaluator: Evaluator, costs: Sequence[Cost]) -> dict[str, str]:
    """Return what evaluations depend on, part by part, for the ledger."""
    layers = quant_modules(evaluator.model)
    found = [
        (
            layer.name,
            [quantizer.ranges for quantizer in layer.inputs],
            [(str(p), alphas) for p, alphas in layer.refined.items()],
            [(str(p), r) for p, r in layer.rounded.items()] if isinstance(layer, QuantLayer) else 0,
        )
        for layer in layers
    ]
    space = evaluator.space
    return {
        "layers and schemes": digest([(x.name, x.kind.name, str(x.scheme)) for x in layers]),
        "weights": digest(dict(evaluator.model.state_dict())),
        "calibration": digest(found),
        "space": digest(([(g.layers, g.choices) for g in space.genes], dict(space.pinned))),
        "batches": digest(list(evaluator.batches)),
        "error": describe(evaluator.error),
        "forward": describe(evaluator.forward),
        "costs": digest(costs),
        "threads": str(evaluator.threads),
        "torch": str(torch.__version__),
    }


class _Session:
    """One strategy on its way; ``points`` are those it has been told."""

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


def _named(known: Mapping[str, Any], what: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in known:
        raise BevquantError(f"search: {what} {value!r} is unknown; choose {', '.join(known)}")
    return known[value]

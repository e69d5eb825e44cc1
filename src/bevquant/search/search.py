"""The search itself: a strategy asks, a ledger remembers, an executor evaluates."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant.inputs import sequence_of
from bevquant.quant.layers import quant_modules
from bevquant.quant.running import Forward, call
from bevquant.search.costs import COSTS, CostMaker
from bevquant.search.errors import ERRORS
from bevquant.search.evaluator import ErrorFunction, Evaluator
from bevquant.search.executors import Executor, Serial
from bevquant.search.front import Front, pareto
from bevquant.search.ledger import Ledger
from bevquant.search.session import Session
from bevquant.search.setup import setup_of
from bevquant.search.space import Space
from bevquant.search.space import space as all_layers
from bevquant.search.strategy import Problem, Strategy
from bevquant.search.surrogate import Surrogate


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
    batches = sequence_of(batches, "search")
    ledger = Path(ledger) if ledger is not None else None
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
        session = Session(problem, book, pool, f"{strategy!r}, seed {seed}")
        budget = strategy.budget(problem)
        for _ in track(session.follow(strategy, seed, budget), "search", total=budget):
            pass
    return Front(
        points=pareto(session.points),
        evaluated=tuple(session.points),
        float_costs={cost.name: cost.float_value for cost in costs},
        passes=session.passes,
    )


def _named(known: Mapping[str, Any], what: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in known:
        raise BevquantError(f"search: {what} {value!r} is unknown; choose {', '.join(known)}")
    return known[value]

"""How a search is doing, seen from another terminal."""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from rich.table import Table

from bevquant.progress import console
from bevquant.search.front import Point, pareto
from bevquant.search.ledger import Ledger
from bevquant.search.records import Evaluation, Run

BEST = 10
"""Points that are listed."""


def print_status(path: Path) -> None:
    """Print progress, speed, time left and the best points of the searches in a ledger.

    The ledger is only read; a search may be writing to it.

    Raises:
        BevquantError: there is no ledger at ``path``, or it cannot be read.
    """
    with closing(Ledger(path, None)) as ledger:
        runs, evaluations = ledger.runs(), ledger.all()
    for run in runs:
        console.print(_line(run, evaluations), highlight=False, soft_wrap=True)
    seconds = sum(evaluation.seconds for evaluation in evaluations)
    hosts = ", ".join(sorted({evaluation.host for evaluation in evaluations}))
    console.print(
        f"{len(evaluations)} evaluations, {seconds:.0f} s of work on {hosts or 'no host'}"
    )
    points = front_of(evaluations)
    if points:
        shown = [points[i * (len(points) - 1) // max(1, BEST - 1)] for i in range(BEST)]
        table = Table(*points[0].costs, "error", title=f"{len(points)} points on the front")
        for point in dict.fromkeys(p.objectives for p in shown):
            table.add_row(*(f"{value:.5g}" for value in point))
        console.print(table)


def front_of(evaluations: Sequence[Evaluation]) -> tuple[Point, ...]:
    """Return the front of those evaluations that saw as many batches as any."""
    batches = max((len(evaluation.errors) for evaluation in evaluations), default=0)
    return pareto(
        [
            Point({}, e.genome, sum(e.errors) / batches, e.costs)
            for e in evaluations
            if len(e.errors) == batches
        ]
    )


def time_left(run: Run, evaluations: Sequence[Evaluation], now: float) -> float | None:
    """Return the seconds that a run still needs at its speed of late; ``None`` if unknown.

    The last fifty evaluations since it was started count: what was found in the ledger took
    no time, and machines may have come or gone.
    """
    recent = [e.finished for e in evaluations if e.finished >= run.started][-50:]
    if len(recent) < 2:
        return None
    return (run.budget - run.asked) * (now - recent[0]) / len(recent)


def _line(run: Run, evaluations: Sequence[Evaluation]) -> str:
    text = f"{run.strategy}: {run.asked} of {run.budget}"
    if run.finished:
        return f"{text}, finished"
    left = time_left(run, evaluations, time.time())
    return f"{text}, ETA {'unknown' if left is None else timedelta(seconds=round(left))}"

"""What a ledger holds."""

from collections.abc import Mapping
from dataclasses import dataclass

from bevquant.search.space import Genome


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one genome.

    Attributes:
        genome: what was evaluated.
        errors: error on each batch; on the first ones if it was stopped early.
        costs: name -> figure.
        seconds: what the forward passes took.
        host: machine that ran them.
        finished: seconds since 1970.
    """

    genome: Genome
    errors: tuple[float, ...]
    costs: Mapping[str, float]
    seconds: float
    host: str
    finished: float


@dataclass(frozen=True)
class Run:
    """A search that uses or used a ledger.

    Attributes:
        strategy: its settings and seed.
        budget: evaluations that it will ask for, about.
        asked: evaluations that it has asked for and got.
        started: seconds since 1970, of the first start.
        updated: seconds since 1970.
        finished: whether it came to its end.
    """

    strategy: str
    budget: int
    asked: int
    started: float
    updated: float
    finished: bool

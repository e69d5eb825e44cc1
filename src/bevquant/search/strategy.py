"""What all search strategies share: they ask for genomes, and are told what those are worth."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bevquant.search.costs import Cost
from bevquant.search.front import Point
from bevquant.search.space import Genome, Space


@dataclass(frozen=True)
class Ask:
    """A genome that a strategy wants evaluated.

    Attributes:
        genome: of the space.
        batches: only on so many of the batches; ``None`` for all.
        bound: a greater error is of no interest: the evaluation stops where that is sure.
    """

    genome: Genome
    batches: int | None = None
    bound: float = math.inf


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        space: the genomes.
        costs: to be minimised, besides the error.
        batches: number of batches that the error is the mean over.
    """

    space: Space
    costs: tuple[Cost, ...]
    batches: int


Steps = Generator[Sequence[Ask], Sequence[Point], None]
"""Yields what it wants evaluated, is sent the points in the same order, and ends when done.

It is a function of those points and of its seed alone: not of the order in which they
came in, of time, or of who evaluated them. That is what lets a search continue after a
crash, and be spread over machines, with the same result.
"""


class Strategy(Protocol):
    """A way to search; a frozen dataclass whose fields are its settings."""

    def budget(self, problem: Problem) -> int:
        """Return about how many evaluations it will ask for; exactly, where it knows."""
        ...

    def steps(self, problem: Problem, seed: int) -> Steps:
        """Search."""
        ...

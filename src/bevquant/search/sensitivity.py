"""What each layer costs in error when it alone has few bits."""

from collections.abc import Generator, Sequence

from bevquant.search.front import Point
from bevquant.search.space import Space
from bevquant.search.strategy import Ask

_SATURATED = 1e6
"""Stands for an error that is not finite, where sums are formed."""

Sensitivities = tuple[float, list[list[float]]]
"""The error of the genome of the most bits; and for each gene the error that each choice adds."""


def sensitivities(
    space: Space, batches: int | None
) -> Generator[Sequence[Ask], Sequence[Point], Sensitivities]:
    """Ask for every genome in which one gene has fewer than the most bits, all others the most.

    The others have the *most* bits: at 4 bits one layer can saturate the error and hide all
    the rest.

    Args:
        space: the genomes.
        batches: to measure on so many batches; ``None`` for all.
    """
    highest = space.highest
    single = [(gene, choice) for gene, size in enumerate(space.sizes) for choice in range(size - 1)]
    genomes = [(*highest[:gene], choice, *highest[gene + 1 :]) for gene, choice in single]
    points = yield [Ask(genome, batches) for genome in (highest, *genomes)]
    base = min(points[0].error, _SATURATED)
    added = [[0.0] * size for size in space.sizes]
    for (gene, choice), point in zip(single, points[1:], strict=True):
        added[gene][choice] = max(min(point.error, _SATURATED) - base, 0.0)
    return base, added


def count(space: Space) -> int:
    """Return how many genomes :func:`sensitivities` asks for."""
    return 1 + sum(size - 1 for size in space.sizes)

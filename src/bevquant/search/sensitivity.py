"""What each layer costs in error when it alone has few bits."""

from collections.abc import Generator, Sequence

from bevquant.search.front import Point
from bevquant.search.space import Space
from bevquant.search.strategy import Ask

_SATURATED = 1e6
"""Stands for an error that is not finite, where sums are formed."""
_FALL = (1e-3, 0.5)
"""Least and greatest factor by which an error is believed to fall from choice to choice."""

Sensitivities = tuple[float, list[list[float]]]
"""The error of the genome of the most bits; and for each gene the error that each choice adds."""


def sensitivities(
    space: Space, batches: int | None, measured: int | None = None
) -> Generator[Sequence[Ask], Sequence[Point], Sensitivities]:
    """Ask for every genome in which one gene has fewer than the most bits, all others the most.

    The others have the *most* bits: at 4 bits one layer can saturate the error and hide all
    the rest.

    Args:
        space: the genomes.
        batches: to measure on so many batches; ``None`` for all.
        measured: so many of each gene's choices, those of the fewest bits, are measured, 2 or
            more; from there the error is taken to fall on by the same factor. ``None`` for all.
    """
    highest = space.highest
    single = [
        (gene, choice)
        for gene, size in enumerate(space.sizes)
        for choice in range(_measured(size, measured))
    ]
    genomes = [(*highest[:gene], choice, *highest[gene + 1 :]) for gene, choice in single]
    points = yield [Ask(genome, batches) for genome in (highest, *genomes)]
    base = min(points[0].error, _SATURATED)
    added: list[list[float]] = [[] for _ in space.sizes]
    for (gene, _), point in zip(single, points[1:], strict=True):
        added[gene].append(max(min(point.error, _SATURATED) - base, 0.0))
    return base, [
        [*_continued(errors, size - 1), 0.0]
        for errors, size in zip(added, space.sizes, strict=True)
    ]


def count(space: Space, measured: int | None = None) -> int:
    """Return how many genomes :func:`sensitivities` asks for."""
    return 1 + sum(_measured(size, measured) for size in space.sizes)


def _measured(size: int, measured: int | None) -> int:
    return size - 1 if measured is None else min(measured, size - 1)


def _continued(errors: Sequence[float], length: int) -> list[float]:
    continued = list(errors)
    while len(continued) < length:
        before, last = continued[-2:]
        fall = last / before if before else 0.0
        continued.append(last * min(max(fall, _FALL[0]), _FALL[1]))
    return continued

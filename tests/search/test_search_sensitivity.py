import numpy as np
import pytest
from search_toys import choices

from bevquant.search.front import Point
from bevquant.search.sensitivity import Sensitivities, count, sensitivities
from bevquant.search.space import Gene, Genome, Space

FALLING = (0.25, 0.25 / 16, 0.25 / 256)


def space_of(*widths: tuple[int, ...]) -> Space:
    return Space(tuple(Gene((f"{i}",), choices(*bits)) for i, bits in enumerate(widths)), {})


SPACE = space_of((2, 4, 8, 16), (4, 16), (2, 4, 8, 16))


def falling(genome: Genome) -> float:
    """An error to which every gene adds its own, 1/16 from choice to choice, and 0 at last."""
    lost = [(*FALLING[: size - 1], 0.0) for size in SPACE.sizes]
    return 0.125 + sum((i + 1) * lost[i][choice] for i, choice in enumerate(genome))


def follow(space: Space, measured: int | None, error: float | None) -> tuple[Sensitivities, int]:
    steps = sensitivities(space, None, measured)
    asks = next(steps)
    values = [falling(ask.genome) if error is None else error for ask in asks]
    with pytest.raises(StopIteration) as end:
        steps.send([Point({}, a.genome, v) for a, v in zip(asks, values, strict=True)])
    return end.value.value, len(asks)


@pytest.mark.parametrize("measured", [None, 2])
def test_what_each_choice_adds_measured_or_as_it_falls(measured: int | None) -> None:
    (base, added), asked = follow(SPACE, measured, None)
    assert asked == count(SPACE, measured) == (8 if measured is None else 6)
    assert base == 0.125
    for i, (row, size) in enumerate(zip(added, SPACE.sizes, strict=True)):
        np.testing.assert_allclose(row, [(i + 1) * x for x in (*FALLING[: size - 1], 0.0)])


def test_errors_that_are_all_the_same_add_nothing() -> None:
    (base, added), _ = follow(SPACE, 2, 0.5)
    assert base == 0.5
    assert all(value == 0 for row in added for value in row)

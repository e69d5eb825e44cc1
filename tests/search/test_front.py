import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bevquant as bq
from bevquant.search.front import Front, Point, pareto, stability


def point(cost: float, error: float, *genome: int, complete: bool = True) -> Point:
    return Point({"*": bq.W4A8}, genome, error, {"bits": cost}, complete)


def front(*points: Point) -> Front:
    return Front(pareto(points), points, {"bits": 100.0}, 1.0)


CONVEX = front(point(1, 10, 0), point(2, 3, 1), point(5, 1, 2), point(9, 0.5, 3), point(6, 4, 4))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_pareto_by_definition(pairs: list[tuple[int, int]]) -> None:
    points = [point(cost, error, i) for i, (cost, error) in enumerate(pairs)]
    expected = {
        a for a in pairs if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in pairs)
    }
    found = pareto(points)
    assert [p.objectives for p in found] == sorted(expected)
    assert pareto(points[::-1]) == found


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=8))
def test_hypervolume_counts_the_cells_that_are_dominated(pairs: list[tuple[int, int]]) -> None:
    found = front(*(point(*pair, i) for i, pair in enumerate(pairs)))
    cells = sum(
        any(cost <= x and error <= y for cost, error in pairs)
        for x, y in itertools.product(range(6), range(6))
    )
    assert found.hypervolume((6, 6)) == pytest.approx(cells)


def test_incomplete_and_infinite_points_are_no_part_of_a_front() -> None:
    points = [point(1, 0.1, 0, complete=False), point(2, np.inf, 1), point(3, 0.5, 2)]
    assert pareto(points) == (points[2],)


def test_of_points_that_tie_the_smallest_genome_is_kept() -> None:
    tied = [point(1, 0.5, genome) for genome in (3, 1, 2)]
    for order in itertools.permutations(tied):
        assert [p.genome for p in pareto(order)] == [(1,)]


def test_picks() -> None:
    assert CONVEX.error_first().genome == (3,)
    assert CONVEX.weight_first().genome == (0,)
    assert CONVEX.under(bits=5.5).genome == (2,)
    assert CONVEX.best(max_drop=3).genome == (1,)
    assert CONVEX.knee().genome == (1,)
    assert CONVEX.relative(CONVEX.knee()) == {"bits": 0.02}


def test_a_point_is_a_policy() -> None:
    assert bq.BitPolicy.of(CONVEX.knee()).assign(["a"]) == {"a": bq.W4A8}


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda: CONVEX.under(bits=0.5), "no point costs that little"),
        (lambda: CONVEX.under(bytes=5), "'bytes' is no cost"),
        (lambda: CONVEX.best(max_drop=0.1), "no point has an error of at most 0.1"),
    ],
)
def test_impossible_picks(pick: object, message: str) -> None:
    with pytest.raises(bq.BevquantError, match=message):
        pick()


def test_curve_is_the_hypervolume_after_each_evaluation() -> None:
    expected = [front(*CONVEX.evaluated[: count + 1]).hypervolume((10, 10)) for count in range(5)]
    assert CONVEX.curve((10, 10)) == pytest.approx(expected)


def test_stability_over_seeds() -> None:
    other = front(point(1, 10, 0), point(2, 4, 2))
    found = stability([CONVEX, CONVEX, other], (10, 10))
    volumes = [f.hypervolume((10, 10)) for f in (CONVEX, CONVEX, other)]
    assert found.mean == pytest.approx(np.mean(volumes))
    assert found.deviation == pytest.approx(np.std(volumes, ddof=1))
    assert found.agreement == (pytest.approx(2 / 3),)

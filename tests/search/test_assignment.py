import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevquant.search.assignment import assign

Tables = list[list[tuple[int, int]]]
tables = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def brute_force(genes: Tables) -> dict[int, int]:
    """Cost -> smallest error, for every reachable cost."""
    best: dict[int, int] = {}
    for chosen in itertools.product(*genes):
        error, cost = (sum(values) for values in zip(*chosen, strict=True))
        best[cost] = min(error, best.get(cost, error))
    return best


@settings(deadline=None, max_examples=80)
@given(tables)
def test_optimum_of_every_budget(genes: Tables) -> None:
    errors = [[error for error, _ in gene] for gene in genes]
    costs = [[cost for _, cost in gene] for gene in genes]
    found = assign(errors, costs)
    best = brute_force(genes)
    for budget in range(-1, max(best) + 1):
        reachable = [error for cost, error in best.items() if cost <= budget]
        genome = found.under(budget)
        if not reachable:
            assert genome is None
            continue
        assert genome is not None
        assert sum(row[c] for row, c in zip(costs, genome, strict=True)) <= budget
        assert sum(row[c] for row, c in zip(errors, genome, strict=True)) == min(reachable)


def test_hundred_genes() -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(100, 100_000, 100)
    errors = (10.0 ** generator.normal(-3, 1, 100))[:, None] * [1, 0.06, 0.004, 0]
    found = assign(errors.tolist(), np.outer(weights, [2, 4, 8, 16]).tolist())
    assert (np.diff(found.costs) > 0).all()
    assert (np.diff(found.errors) < 0).all()
    spread = found.spread(32)
    assert spread[0] == (0,) * 100
    assert spread[-1] == (3,) * 100
    assert 16 <= len(spread) <= 32


def test_scipy_agrees() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(1)
    errors, costs = generator.random((12, 4)), generator.random((12, 4))
    found = assign(errors.tolist(), costs.tolist())
    each_once = np.kron(np.eye(12), np.ones((1, 4)))
    for budget in (4.0, 5.0, 6.0):
        solved = optimize.milp(
            errors.ravel(),
            integrality=np.ones(48),
            bounds=optimize.Bounds(0, 1),
            constraints=[
                optimize.LinearConstraint(each_once, 1, 1),
                optimize.LinearConstraint(costs.ravel()[None], -np.inf, budget),
            ],
            options={"mip_rel_gap": 0},
        )
        genome = found.under(budget)
        assert genome is not None
        assert sum(errors[i, c] for i, c in enumerate(genome)) == pytest.approx(solved.fun)

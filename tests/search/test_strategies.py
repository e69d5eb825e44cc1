from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import choices

from bevquant.search.bayes import Bayes
from bevquant.search.costs import Cost
from bevquant.search.error_model import ErrorModel
from bevquant.search.front import Point, hypervolume, pareto
from bevquant.search.ilp import ILP, predicted_front
from bevquant.search.nsga2 import NSGA2, MidpointCrossover, WidthMutation
from bevquant.search.random_search import Random
from bevquant.search.space import Gene, Genome, Space
from bevquant.search.strategy import Problem, Strategy
from bevquant.search.surrogate import Surrogate

REFERENCE = (1.0, 2.0)


def problem(genes: int, *more: Cost) -> Problem:
    space = Space(tuple(Gene((f"{i}",), choices(2, 4, 8, 16)) for i in range(genes)), {})
    generator = np.random.default_rng(genes)
    weights = generator.integers(10, 1000, genes)
    table = tuple(tuple(float(w * b) for b in (2, 4, 8, 16)) for w in weights)
    cost = Cost("bits", "bit", 0.0, table, float(32 * weights.sum()))
    return Problem(space, (cost, *more), 4)


def interacting(genes: int) -> Callable[[Genome], float]:
    """An error that saturates, and in which neighbouring layers make each other worse."""
    generator = np.random.default_rng(100 + genes)
    alone = 10 ** generator.normal(-2, 0.8, genes)
    lost = np.array([1.0, 0.08, 0.006, 0.0])

    def error(genome: Genome) -> float:
        each = alone * lost[list(genome)]
        together = each.sum() + 3 * np.sqrt(each[1:] * each[:-1]).sum()
        return float(1 - np.exp(-together)) + 1e-5

    return error


def run(
    strategy: Strategy, where: Problem, error: Callable[[Genome], float], seed: int = 0
) -> tuple[list[Point], float]:
    """Follow a strategy; return the points and the number of evaluations' worth of passes."""
    points, passes = [], 0.0
    steps = strategy.steps(where, seed)
    try:
        asks = next(steps)
        while True:
            told = []
            for ask in asks:
                batches = where.batches if ask.batches is None else ask.batches
                value = error(ask.genome)
                stopped = value > ask.bound
                costs = {cost.name: cost(ask.genome) for cost in where.costs}
                passes += (1 if stopped else batches) / where.batches
                complete = not stopped and batches == where.batches
                told.append(Point({}, ask.genome, value, costs, complete))
            points += told
            asks = steps.send(told)
    except StopIteration:
        return points, passes


def volume(points: list[Point], where: Problem) -> float:
    scale = where.costs[0].float_value
    return hypervolume([(p.costs["bits"] / scale, p.error) for p in pareto(points)], REFERENCE)


@pytest.mark.parametrize(
    "strategy",
    [NSGA2(20, 6), Random(120), ILP(12, sensitivity_batches=2), Bayes(24, 4), Surrogate(40, 8, 4)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_the_same_seed_asks_for_the_same_genomes(strategy: Strategy) -> None:
    where, error = problem(10), interacting(10)
    first, _ = run(strategy, where, error, seed=3)
    again, _ = run(strategy, where, error, seed=3)
    assert [p.genome for p in first] == [p.genome for p in again]
    assert abs(len(first) - strategy.budget(where)) <= 4
    sizes = where.space.sizes
    assert all(0 <= c < size for p in first for c, size in zip(p.genome, sizes, strict=True))
    if not isinstance(strategy, ILP):
        other, _ = run(strategy, where, error, seed=4)
        assert [p.genome for p in first] != [p.genome for p in other]


@pytest.mark.parametrize("strategy", [NSGA2(8, 20), Random(500), Surrogate(500, 8, 4)])
def test_small_space_is_searched_without_repetition(strategy: Strategy) -> None:
    where = problem(3)
    points, _ = run(strategy, where, interacting(3))
    complete = [p.genome for p in points if p.complete]
    if not isinstance(strategy, NSGA2):  # it compares children with their parents only
        assert len(set(complete)) == len(complete)
    everything = [
        Point({}, (a, b, c), interacting(3)((a, b, c)), {"bits": where.costs[0]((a, b, c))})
        for a in range(4)
        for b in range(4)
        for c in range(4)
    ]
    if isinstance(strategy, Random):
        assert len(complete) == 64
    assert volume(points, where) == pytest.approx(volume(everything, where), rel=0.01)


def test_ilp_finds_the_exact_front_of_an_additive_error() -> None:
    where = problem(6)
    alone = 10 ** np.random.default_rng(5).normal(-2, 1, 6)

    def error(genome: Genome) -> float:
        return float(sum(alone * np.array([1, 0.1, 0.01, 0])[list(genome)]))

    points, _ = run(ILP(points=5000), where, error)
    genomes = np.stack(np.meshgrid(*[range(4)] * 6, indexing="ij"), -1).reshape(-1, 6)
    everything = [
        Point({}, tuple(g), error(tuple(g)), {"bits": where.costs[0](tuple(g))})
        for g in genomes.tolist()
    ]
    assert volume(points, where) == pytest.approx(volume(everything, where), rel=1e-3)


def test_default_strategy_beats_nsga2_with_a_tenth_of_the_evaluations() -> None:
    where, error = problem(20), interacting(20)
    nsga2, _ = run(NSGA2(50, 20), where, error)
    for seed in range(2):
        ours, passes = run(Surrogate(64, 16), where, error, seed)
        assert passes <= 0.1 * len(nsga2)
        assert volume(ours, where) > volume(nsga2, where)


def logarithmic_volume(points: list[Point], where: Problem) -> float:
    scale = where.costs[0].float_value
    rows = [(np.log(p.costs["bits"] / scale), np.log(p.error)) for p in pareto(points)]
    return hypervolume(rows, [np.log(value) for value in REFERENCE])


def test_learning_improves_on_the_additive_front() -> None:
    where, error = problem(20), interacting(20)
    ilp, _ = run(ILP(points=64, sensitivity_batches=1), where, error)
    ours, _ = run(Surrogate(64, 16), where, error)
    assert volume(ours, where) > volume(ilp, where)
    assert logarithmic_volume(ours, where) > logarithmic_volume(ilp, where)


def test_several_costs() -> None:
    second = Cost("ms", "ms", 1.0, ((1.0, 2.0, 1.5, 3.0),) * 8, 30.0)
    where, error = problem(8, second), interacting(8)
    for strategy in (NSGA2(20, 4), ILP(12), Surrogate(30, 8, 4)):
        points, _ = run(strategy, where, error)
        assert len(pareto(points)) > 3


def test_nsga2_reaches_the_known_front_of_zdt1() -> None:
    """ZDT1 on a grid: f1 = x0, f2 = g (1 - sqrt(x0 / g)); the front has all other genes 0."""
    space = Space(tuple(Gene((f"{i}",), choices(*(2, 3, 4, 6, 8, 16))) for i in range(8)), {})
    cost = Cost("f1", "", 0.0, (tuple(i / 5 for i in range(6)), *((0.0,) * 6,) * 7), 1.0)

    def error(genome: Genome) -> float:
        g = 1 + 9 * np.mean(np.array(genome[1:]) / 5)
        return float(g * (1 - np.sqrt(genome[0] / 5 / g)))

    points, _ = run(NSGA2(40, 40), Problem(space, (cost,), 1), error)
    assert {p.genome for p in pareto(points)} == {(i, *(0,) * 7) for i in range(6)}


genomes = st.lists(st.integers(0, 3), min_size=6, max_size=6)


@settings(deadline=None, max_examples=25)
@given(genomes, genomes)
def test_midpoint_crossover(a: list[int], b: list[int]) -> None:
    children = MidpointCrossover()._do(None, np.array([[a], [b]]))
    assert children[:, 0].tolist() == [[*a[:3], *b[3:]], [*b[:3], *a[3:]]]


@pytest.mark.parametrize("kind", ["any", "neighbour"])
def test_mutation(kind: str) -> None:
    sizes = np.array([4] * 39 + [2])
    genome = np.tile(np.arange(40) % 4 % sizes, (3000, 1))
    mutated = WidthMutation(sizes, kind)._do(None, genome, random_state=np.random.default_rng(0))
    changed = mutated != genome
    assert changed.mean() == pytest.approx(1 / 40, rel=0.1)
    assert (mutated >= 0).all()
    assert (mutated < sizes).all()
    steps = set(np.abs(mutated - genome)[changed].tolist())
    assert steps == ({1, 2, 3} if kind == "any" else {1})


def test_error_model_predicts_what_it_has_seen_and_learns_from_it() -> None:
    where, error = problem(12), interacting(12)
    generator = np.random.default_rng(0)
    drawn = [tuple(g) for g in generator.integers(0, 4, (160, 12)).tolist()]
    added = [
        [error((*where.space.highest[:i], c, *where.space.highest[i + 1 :])) for c in range(4)]
        for i in range(12)
    ]
    seen = [Point({}, genome, error(genome)) for genome in drawn[:100]]
    before, after = ErrorModel(1e-5, added, []), ErrorModel(1e-5, added, seen)
    truth = np.log([error(genome) for genome in drawn])
    assert np.abs(after.predict(drawn[:100]) - truth[:100]).max() < 0.05
    unseen = slice(100, 160)
    lost = np.abs(before.predict(drawn[unseen]) - truth[unseen]).mean()
    assert np.abs(after.predict(drawn[unseen]) - truth[unseen]).mean() < lost / 2


def test_an_infinite_error_is_only_a_very_bad_one_to_nsga2() -> None:
    """Distances between infinities are NaN, and would end the search in a mess."""
    where, error = problem(6), interacting(6)

    def broken(genome: Genome) -> float:
        return float("inf") if genome[0] == 0 else error(genome)

    with np.errstate(all="raise"):
        points, _ = run(NSGA2(20, 12), where, broken)
    assert len(points) == 240
    late = points[-40:]
    assert sum(np.isfinite(p.error) for p in late) > 20
    assert all(p.genome[0] for p in pareto(points))


def test_the_unit_of_a_cost_does_not_change_a_predicted_front() -> None:
    """Bits in millions and milliseconds in ones: the mean of both must not be that of bits."""
    generator = np.random.default_rng(0)
    errors, first, second = (generator.random((6, 3)).tolist() for _ in range(3))

    def second_in(unit: float) -> Cost:
        table = tuple(tuple(value * unit for value in row) for row in second)
        return Cost("ms", "", 0.0, table, 6.0 * unit)

    bits = Cost("bits", "bit", 0.0, tuple(map(tuple, first)), 6.0)
    fronts = [predicted_front(errors, [bits, second_in(unit)], 40) for unit in (1.0, 2.0**20)]
    assert fronts[0] == fronts[1]


def test_the_mean_of_two_costs_is_a_cost_of_its_own() -> None:
    """A choice that is second best in each cost is the best in their mean."""
    first = Cost("a", "", 0.0, ((1.0, 0.1, 0.0),), 1.0)
    second = Cost("b", "", 0.0, ((0.0, 0.1, 1.0),), 1.0)
    genomes = predicted_front([[0.0, 0.5, 0.9]], [first, second], 30)
    assert (1,) in genomes

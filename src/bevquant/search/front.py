"""The trade-off that a search found: the bit policies that no other beats in everything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pymoo.indicators.hv import HV
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from bevquant.errors import BevquantError
from bevquant.quant.policy import BitPolicy
from bevquant.search.space import Genome

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point(BitPolicy):
    """A bit policy and what it was measured to be worth.

    Attributes:
        genome: of the space that was searched.
        error: mean over the batches; ``inf`` where outputs were not finite.
        costs: name -> figure.
        complete: whether all batches were run; if not, ``error`` is that of the first ones.
        batches: how many were run.
    """

    genome: Genome = ()
    error: float = np.inf
    costs: Mapping[str, float] = field(default_factory=dict)
    complete: bool = True
    batches: int = 0

    @property
    def objectives(self) -> tuple[float, ...]:
        """All costs, then the error; all to be minimised."""
        return *self.costs.values(), self.error


@dataclass(frozen=True)
class Front:
    """What a search returns.

    Attributes:
        points: non-dominated, in rising order of the first cost.
        evaluated: every point that the search asked for, in that order; a genome that was
            asked for twice (first on fewer batches, say) comes twice.
        float_costs: costs of the float network.
        passes: forward passes that the strategy asked for, in whole evaluations.
    """

    points: tuple[Point, ...]
    evaluated: tuple[Point, ...]
    float_costs: Mapping[str, float]
    passes: float

    def relative(self, point: Point) -> dict[str, float]:
        """Return the costs of ``point`` as shares of the float network's."""
        return {name: cost / self.float_costs[name] for name, cost in point.costs.items()}

    def error_first(self) -> Point:
        """Return the point of the smallest error."""
        return min(self.points, key=lambda point: (point.error, point.objectives))

    def weight_first(self) -> Point:
        """Return the point of the smallest (first) cost."""
        return min(self.points, key=lambda point: point.objectives)

    def knee(self) -> Point:
        """Return the point farthest below the plane through the ends of the front.

        Objectives are scaled to 0..1 over the front first (Das, 1999); for one cost that is
        the greatest distance to the line between its two ends.
        """
        values = np.array([point.objectives for point in self.points])
        spread = np.ptp(values, axis=0)
        scaled = (values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)
        return self.points[int(scaled.sum(axis=1).argmin())]

    def under(self, **limits: float) -> Point:
        """Return the point of the smallest error that costs at most ``limits``.

        ``front.under(bytes=12e6, latency=30)``.

        Raises:
            BevquantError: there is no such cost, or no such point.
        """
        for name in limits:
            if name not in self.float_costs:
                known = ", ".join(self.float_costs)
                raise BevquantError(f"under: {name!r} is no cost of this search; costs: {known}")
        within = [p for p in self.points if all(p.costs[n] <= x for n, x in limits.items())]
        if not within:
            lowest = {n: min(p.costs[n] for p in self.points) for n in limits}
            raise BevquantError(f"under: no point costs that little; the least is {lowest}")
        return min(within, key=lambda point: (point.error, point.objectives))

    def best(self, max_drop: float) -> Point:
        """Return the cheapest point (by the first cost) whose error is at most ``max_drop``.

        Args:
            max_drop: in the units of the error that was searched with.

        Raises:
            BevquantError: no point is that good.
        """
        within = [point for point in self.points if point.error <= max_drop]
        if not within:
            least = self.error_first().error
            raise BevquantError(f"best: no point has an error of at most {max_drop}; least {least}")
        return min(within, key=lambda point: point.objectives)

    def hypervolume(self, reference: Sequence[float]) -> float:
        """Return the volume of objectives that is dominated, up to ``reference``.

        Args:
            reference: the worst values of interest: one of each cost, then the error.
        """
        return hypervolume([point.objectives for point in self.points], reference)

    def curve(self, reference: Sequence[float]) -> list[float]:
        """Return the hypervolume after each evaluation.

        Args:
            reference: as for :meth:`hypervolume`.
        """
        front: list[tuple[float, ...]] = []
        volumes: list[float] = []
        for point in self.evaluated:
            new = point.objectives
            known = any(all(a <= b for a, b in zip(old, new, strict=True)) for old in front)
            if not known and point.complete:
                front = [f for f in front if any(a < b for a, b in zip(f, new, strict=True))]
                front.append(new)
                volumes.append(hypervolume(front, reference))
            else:
                volumes.append(volumes[-1] if volumes else 0.0)
        return volumes


def pareto(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the complete, finite, non-dominated points in order of the first cost.

    Of points with the same objectives the one with the smallest genome is kept, so that the
    result does not depend on the order.
    """
    best: dict[tuple[float, ...], Point] = {}
    for point in sorted(points, key=lambda point: point.genome):
        if point.complete and np.isfinite(point.error):
            best.setdefault(point.objectives, point)
    if not best:
        return ()
    front = non_dominated(np.array(list(best)))
    candidates = list(best.values())
    return tuple(sorted((candidates[i] for i in front), key=lambda point: point.objectives))


def non_dominated(objectives: Floats) -> list[int]:
    """Return the indices of the rows [n, m] that no other row dominates."""
    rows = NonDominatedSorting().do(objectives, only_non_dominated_front=True)
    return [int(i) for i in rows]


def hypervolume(objectives: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Return the volume that points [n, m] dominate, up to ``reference`` [m]."""
    inside = [row for row in objectives if all(a < b for a, b in zip(row, reference, strict=True))]
    if not inside:
        return 0.0
    return float(HV(ref_point=np.array(reference))(np.array(inside)))


@dataclass(frozen=True)
class Stability:
    """How much the seed decides.

    Attributes:
        hypervolumes: one of each front.
        agreement: for each gene, the share of fronts whose knee has the commonest choice.
    """

    hypervolumes: tuple[float, ...]
    agreement: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean hypervolume."""
        return float(np.mean(self.hypervolumes))

    @property
    def deviation(self) -> float:
        """Standard deviation of the hypervolume over seeds (n - 1); 0 for one seed."""
        return float(np.std(self.hypervolumes, ddof=1)) if len(self.hypervolumes) > 1 else 0.0


def stability(fronts: Sequence[Front], reference: Sequence[float]) -> Stability:
    """Compare fronts that differ in their seed only.

    Args:
        fronts: of the same space.
        reference: as for :meth:`Front.hypervolume`.
    """
    knees = [front.knee().genome for front in fronts]
    commonest = (Counter(choices).most_common(1)[0][1] for choices in zip(*knees, strict=True))
    return Stability(
        hypervolumes=tuple(front.hypervolume(reference) for front in fronts),
        agreement=tuple(count / len(fronts) for count in commonest),
    )

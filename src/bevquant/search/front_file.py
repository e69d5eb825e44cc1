"""A front as a JSON file, so that a pick need not be made when the search ends."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bevquant.errors import BevquantError
from bevquant.files import read_json, write_json
from bevquant.quant.policy import BitPolicy
from bevquant.search.front import Front, Point


class _Point(BaseModel):
    model_config = ConfigDict(extra="forbid")

    error: float
    costs: dict[str, float]
    genome: tuple[int, ...]
    policy: dict[str, str]


class _Front(BaseModel):
    model_config = ConfigDict(extra="forbid")

    float_costs: dict[str, float]
    passes: float
    points: list[_Point]


def write_front(front: Front, path: Path) -> None:
    """Write the points of a front, with their policies, to a JSON file, atomically."""
    points = [
        _Point(error=p.error, costs=dict(p.costs), genome=p.genome, policy=p.to_json())
        for p in front.points
    ]
    written = _Front(float_costs=dict(front.float_costs), passes=front.passes, points=points)
    write_json(path, written.model_dump(mode="json"))


def read_front(path: Path) -> Front:
    """Return the front in a file of :func:`write_front`; ``evaluated`` is its points.

    Raises:
        BevquantError: there is no such file, or it holds no front.
    """
    try:
        read = _Front.model_validate(read_json(path))
        points = tuple(
            Point(BitPolicy.from_json(p.policy).rules, p.genome, p.error, p.costs)
            for p in read.points
        )
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BevquantError(f"{path}: holds no front (see {where}); search again") from error
    if not points:
        raise BevquantError(f"{path}: the front is empty; search again")
    return Front(points, points, read.float_costs, read.passes)

"""One point of a front, chosen when the search is over: the verb ``search pick``."""

from pathlib import Path

from bevquant.errors import BevquantError
from bevquant.files import write_json
from bevquant.mixed import FRONT
from bevquant.progress import console
from bevquant.search.front import Point
from bevquant.search.front_file import read_front


def pick(
    run: Path, target: Path, under: float | None, max_drop: float | None, errors_first: bool
) -> Point:
    """Write the policy of one point of a front to ``target``, and return it.

    Args:
        run: folder of a search.
        target: JSON file, which ``bevquant export --precision`` takes.
        under: most of the first cost, as a share of the float network's.
        max_drop: greatest error.
        errors_first: the point of the smallest error; without any of these, the knee.

    Raises:
        BevquantError: there is no front, or no such point on it; more than one wish.
    """
    if (under is not None) + (max_drop is not None) + errors_first > 1:
        raise BevquantError("pick: choose one of --under, --max-drop and --error-first")
    front = read_front(run / FRONT)
    first = next(iter(front.float_costs))
    if under is not None:
        point = front.under(**{first: under * front.float_costs[first]})
    elif max_drop is not None:
        point = front.best(max_drop)
    else:
        point = front.error_first() if errors_first else front.knee()
    write_json(target, point.to_json())
    share = front.relative(point)[first]
    console.print(f"{target}: error {point.error:.4g}, {first} {share:.4f} of float")
    return point

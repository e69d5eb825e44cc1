"""The curves of a training run: one JSON line per step, and a picture of them."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.errors import BevquantError
from bevquant.files import append_text, atomic_path, read_text, write_text

Row = dict[str, float]
SMOOTHING = 50
"""Most steps over which the picture averages; fewer of a short run."""

COLUMNS = 3


class Curves:
    """The numbers of each step, appended to ``path``.

    Args:
        path: the JSON lines file.
        kept: rows of an earlier, stopped run that are kept; later ones will come again.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        write_text(path, "".join(f"{line}\n" for line in lines[:kept]))

    def append(self, row: Row) -> None:
        """Add one step."""
        append_text(self.path, json.dumps(row) + "\n")

    def rows(self) -> list[Row]:
        """Return all steps so far."""
        return read_rows(self.path)


def read_rows(path: Path) -> list[Row]:
    """Return the steps that were written to ``path``."""
    try:
        return [json.loads(line) for line in read_text(path).splitlines()]
    except ValueError as error:
        raise BevquantError(f"{path}: not rows of JSON ({error}); delete it") from error


def draw(rows: list[Row], path: Path) -> None:
    """Draw every column but the time over the steps as a PNG.

    What every step has is averaged, on a log scale; what only some have is drawn as points.
    """
    names = [name for name in dict.fromkeys(chain(*rows)) if name not in {"step", "seconds"}]
    lines = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, COLUMNS, position)
        steps, values = zip(*((row["step"], row[name]) for row in rows if name in row), strict=True)
        if 2 * len(steps) > len(rows):
            axes.plot(steps, smooth(values, min(SMOOTHING, len(values) // 20 + 1)), linewidth=1)
            axes.set_yscale("log")
        else:
            axes.plot(steps, values, marker="o")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def smooth(values: Sequence[float], steps: int) -> list[float]:
    """Return the mean of each value and the ``steps`` - 1 before it."""
    windows = (values[max(0, end - steps) : end] for end in range(1, len(values) + 1))
    return [fmean(window) for window in windows]

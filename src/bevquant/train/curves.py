"""The curves of a training run: one JSON line per step, and a picture of them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.files import atomic_path, write_text

Row = dict[str, float]
SMOOTHING = 50
"""Steps over which the picture averages."""

COLUMNS = 3


class Curves:
    """The numbers of each step, appended to ``path``.

    Args:
        path: the JSON lines file.
        steps: rows of an earlier, stopped run that are kept; later ones will come again.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        write_text(path, "".join(f"{line}\n" for line in lines[:steps]))

    def append(self, row: Row) -> None:
        """Add one step."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[Row]:
        """Return all steps so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def draw(rows: list[Row], path: Path) -> None:
    """Draw every column but the time over the steps as a PNG, averaged, on a log scale."""
    names = [name for name in rows[0] if name not in {"step", "seconds"}]
    lines = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [row["step"] for row in rows]
    for position, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, COLUMNS, position)
        axes.plot(steps, smooth([row[name] for row in rows]), linewidth=1)
        axes.set(title=name, xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and the :data:`SMOOTHING` - 1 before it."""
    windows = (values[max(0, end - SMOOTHING) : end] for end in range(1, len(values) + 1))
    return [fmean(window) for window in windows]

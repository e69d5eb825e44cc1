"""The curves of a training run: one JSON line per step, and a picture of them."""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.files import atomic_path, write_text

Row = dict[str, float]
SMOOTHING = 50
"""Steps over which the picture averages."""


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
    """Draw every column over the steps as a PNG, each averaged over the last steps."""
    names = [name for name in rows[0] if name != "step"]
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for position, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), position + 1)
        values = [row[name] for row in rows]
        smooth = [
            sum(window) / len(window)
            for window in (values[max(0, i + 1 - SMOOTHING) : i + 1] for i in range(len(values)))
        ]
        axes.plot([row["step"] for row in rows], smooth, linewidth=1)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

"""The metric of a task while layers are trained, one line for each way to choose them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.files import atomic_path

Curve = Sequence[tuple[float, float]]
"""Steps and the metric there."""


def draw_metric(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw means over the seeds as a PNG; a way that trained nothing has no line.

    Args:
        curves: of each seed, by the name of the way.
        path: written atomically.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, seeds in curves.items():
        points = list(zip(*(curve for curve in seeds if curve), strict=True))
        if not points:
            continue
        steps = [seed_points[0][0] for seed_points in points]
        axes.plot(steps, [fmean(y for _, y in each) for each in points], marker=".", label=name)
    axes.set(xlabel="step", ylabel="metric on a few validation frames")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

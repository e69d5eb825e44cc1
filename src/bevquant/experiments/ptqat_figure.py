"""What each way to choose layers wins, in a picture."""

from pathlib import Path
from statistics import fmean

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.experiments.ptqat_gains import Rows, loss_taken_off, points
from bevquant.experiments.ptqat_rules import PTQ
from bevquant.files import atomic_path

PANELS = (
    (loss_taken_off, "loss of frames kept back, % taken off"),
    (points, "points above PTQ"),
)


def draw_gains(rows: Rows, path: Path) -> None:
    """Draw the mean over the seeds as a bar and every seed as a dot, for each row, as a PNG.

    Args:
        rows: PTQ, which the others are compared with, among them.
        path: written atomically.
    """
    names = [name for name in rows if name != PTQ]
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (gain, title) in zip(
        figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True
    ):
        for name in names:
            seeds = gain(rows, name)
            axes.barh(name, fmean(seeds), color="tab:blue", alpha=0.4)
            axes.plot(seeds, [name] * len(seeds), ".", color="tab:blue")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

"""A heat map of what each layer costs at each number of bits."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.files import atomic_path

WORST, BEST = 0.0, 60.0
"""dB at which the colours end."""

_ROW = 0.17
"""Inches."""


def draw(
    layers: Sequence[str],
    groups: Sequence[str],
    precisions: Sequence[str],
    panels: Sequence[tuple[str, Sequence[Sequence[float]]]],
    path: Path,
) -> None:
    """Draw one panel for each thing that was measured, side by side, as a PNG.

    Args:
        layers: names, from the top.
        groups: main module of each layer; a line is drawn where it changes.
        precisions: names of the columns.
        panels: title and signal to noise ratio in dB, [layers][precisions].
        path: file to write.
    """
    height = _ROW * len(layers) + 1.4
    width = 0.075 * max(map(len, layers)) + len(panels) * (0.55 * len(precisions) + 0.5) + 0.6
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(grid, panels, strict=True):
        image = axes.imshow(
            np.clip(np.asarray(values, dtype=float), WORST, BEST),
            cmap="magma",
            vmin=WORST,
            vmax=BEST,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(precisions)), precisions, fontsize=8)
        axes.tick_params(top=True, labeltop=True, length=0)
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                colour = "white" if value < (WORST + BEST) / 2 else "black"
                axes.text(
                    column, row, _figure(value), ha="center", va="center", fontsize=6, color=colour
                )
        for row in range(1, len(groups)):
            if groups[row] != groups[row - 1]:
                axes.axhline(row - 0.5, color="white", linewidth=1.5)
    grid[0].set_yticks(range(len(layers)), layers, fontsize=7)
    bar = figure.colorbar(
        image,
        ax=list(grid),
        location="bottom",
        shrink=0.6,
        fraction=0.15 / height,
        pad=0.15 / height,
    )
    bar.set_label("signal to quantization noise in dB: dark layers are the sensitive ones", size=8)
    bar.ax.tick_params(labelsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _figure(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else ("∞" if value > 0 else "")

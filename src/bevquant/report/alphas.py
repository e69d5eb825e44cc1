"""Histograms of the factors that stage 2 found (figure 3.1 of the thesis)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.files import atomic_path

BINS = np.arange(0.225, 1.3, 0.05)


def draw_alphas(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw a histogram of the weights' and of the inputs' factors for each group, as a PNG.

    Args:
        groups: title -> one record for each layer, with ``weight`` and ``inputs``, lists of
            factors, and ``kept``, whether they are in use.
        path: written atomically.
    """
    columns = max(1, (len(groups) + 1) // 2)
    figure = Figure(figsize=(3.4 * columns, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, rows) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(2, columns, position)
        kept = [row for row in rows if row["kept"]]
        for key, label in (("weight", "weights"), ("inputs", "activations")):
            factors = [factor for row in kept for factor in row[key]]
            share = np.full(len(factors), 1 / max(1, len(factors)))
            axes.hist(
                factors, BINS.tolist(), weights=share, histtype="stepfilled", alpha=0.5, label=label
            )
        axes.axvline(1, color="black", linewidth=0.7, linestyle=":")
        axes.set(
            title=f"{title}: {len(kept)} of {len(rows)} layers", xlabel="alpha", ylabel="share"
        )
        axes.title.set_fontsize(9)
        if position == 1:
            axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

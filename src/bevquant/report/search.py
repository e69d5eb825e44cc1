"""Pictures of a search: what was evaluated, how the front grew, which layer got which bits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bevquant.files import atomic_path

Pairs = Sequence[tuple[float, float]]
"""Cost and error of points."""


def draw_evolution(generations: Sequence[Pairs], baseline: Pairs, path: Path) -> None:
    """Draw all points of some generations in rising colours (thesis, figures 4.1 and 4.2).

    Args:
        generations: costs and errors of each generation, the first one first.
        baseline: those of random genomes, drawn below; may be empty.
        path: a PNG, written atomically.
    """
    figure, axes = _axes("relative weight bits", "error")
    if baseline:
        _scatter(axes, baseline, color="0.8", label="random")
    colours = np.linspace(0.1, 0.95, max(2, len(generations)))
    for number, (points, colour) in enumerate(zip(generations, colours, strict=False), start=1):
        label = f"generation {number}" if number in (1, len(generations)) else None
        _scatter(axes, points, color=_shade(float(colour)), label=label)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_fronts(fronts: Mapping[str, Pairs], evaluated: Pairs, path: Path) -> None:
    """Draw fronts as steps over all points that were evaluated.

    Args:
        fronts: name -> costs and errors, in rising order of cost.
        evaluated: drawn below; may be empty.
        path: a PNG, written atomically.
    """
    figure, axes = _axes("relative cost", "error")
    if evaluated:
        _scatter(axes, evaluated, color="0.85", label=None)
    for name, points in fronts.items():
        costs, errors = zip(*points, strict=True)
        axes.step(costs, errors, where="post", marker="o", markersize=3, linewidth=1, label=name)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_curves(curves: Mapping[str, Pairs], path: Path) -> None:
    """Draw how hypervolume grows with the evaluations' worth of forward passes.

    Args:
        curves: name -> passes and hypervolume, in order.
        path: a PNG, written atomically.
    """
    figure, axes = _axes("forward passes over all batches", "hypervolume")
    axes.set_yscale("linear")
    axes.set_xscale("log")
    for name, points in curves.items():
        passes, volumes = zip(*points, strict=True)
        axes.step(passes, volumes, where="post", linewidth=1, label=name)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_bits(bits: Mapping[str, int], main_modules: Sequence[str], path: Path) -> None:
    """Draw the weight bits of each layer as a bar, main modules side by side.

    Args:
        bits: layer -> bits of its weights, 32 for float, in the order of the network.
        main_modules: of each layer.
        path: a PNG, written atomically.
    """
    figure, axes = _axes("layer", "bits of the weights", width=max(6.0, 0.11 * len(bits)))
    axes.set_yscale("log", base=2)
    axes.set_yticks([2, 4, 8, 16, 32], labels=["2", "4", "8", "16", "float"])
    names = list(dict.fromkeys(main_modules))
    for number, name in enumerate(names):
        places = [i for i, module in enumerate(main_modules) if module == name]
        heights = [list(bits.values())[i] for i in places]
        axes.bar(places, [h - 1 for h in heights], bottom=1, color=f"C{number % 10}", label=name)
    axes.legend(frameon=False, ncols=4, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def _axes(x: str, y: str, width: float = 6.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y, yscale="log")
    axes.grid(alpha=0.3)
    return figure, axes


def _scatter(axes: Any, points: Pairs, color: Any, label: str | None) -> None:
    costs, errors = zip(*points, strict=True)
    axes.scatter(costs, errors, s=6, color=color, label=label)


def _shade(share: float) -> tuple[float, float, float]:
    return (0.1 + 0.1 * share, 0.75 - 0.6 * share, 0.85 - 0.3 * share)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

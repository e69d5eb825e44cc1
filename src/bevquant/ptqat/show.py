"""Which layers are trained, as a table and as a figure."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from bevquant.files import atomic_path
from bevquant.ptqat.selection import Selection


def selection_table(selection: Selection) -> Table:
    """Return the layers, and how many parameters are trained, as a table for the terminal."""
    trained, everything = selection.trained_parameters, selection.parameters
    table = Table(
        title=f"{len(selection.layers)} of {len(selection.choices)} layers are trained: "
        f"{trained:,} of {everything:,} parameters ({trained / everything:.0%})"
    )
    table.add_column("layer")
    table.add_column("parameters", justify="right")
    table.add_column(selection.measure, justify="right")
    table.add_column("")
    table.add_column("reason")
    for choice in selection.choices:
        layer = choice.candidate
        fate = "trained" if choice.trained else "frozen"
        size, score = f"{layer.parameters:,}", f"{layer.score:.3g}"
        table.add_row(layer.layer, size, score, fate, choice.reason)
    return table


def draw_selection(selection: Selection, path: Path) -> None:
    """Draw the score of each layer as a bar, coloured by its fate, as a PNG.

    Args:
        selection: layers, drawn from the top.
        path: written atomically.
    """
    choices = selection.choices
    figure = Figure(figsize=(9, 0.19 * len(choices) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for trained, label, colour in ((True, "trained", "C1"), (False, "frozen", "C0")):
        places = [place for place, choice in enumerate(choices) if choice.trained == trained]
        scores = [choices[place].candidate.score for place in places]
        axes.barh(places, scores, color=colour, label=label)
    axes.set_yticks(range(len(choices)), [choice.candidate.layer for choice in choices], fontsize=6)
    axes.set_ylim(len(choices) - 0.5, -0.5)
    if all(choice.candidate.score > 0 for choice in choices):
        axes.set_xscale("log")
    axes.set_xlabel(selection.measure)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

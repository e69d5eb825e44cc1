"""What every benchmark prints: one row per claim, and exit code 1 when one falls short."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import NoReturn

import numpy as np
from rich.table import Table

from bevquant.progress import console


@dataclass(frozen=True)
class Row:
    """One claim.

    ``bound`` is ``at least`` or ``at most``; ``spread`` is the interquartile range of runs, or
    the whole range of seeds.
    """

    figure: str
    bound: str
    goal: float
    measured: float
    spread: float

    @property
    def holds(self) -> bool:
        if self.bound == "at least":
            return self.measured >= self.goal
        return self.measured <= self.goal


def of_runs(figure: str, bound: str, goal: float, runs: Sequence[float]) -> Row:
    """Return the median of ``runs`` and their interquartile range as a row."""
    low, median, high = np.percentile(runs, (25, 50, 75))
    return Row(figure, bound, goal, float(median), float(high - low))


def of_seeds(figure: str, bound: str, goal: float, seeds: Sequence[float], measured: float) -> Row:
    """Return what was ``measured`` on all seeds, and the range of their own figures, as a row."""
    return Row(figure, bound, goal, float(measured), float(max(seeds) - min(seeds)))


def not_measured(figure: str, bound: str, goal: float, reason: str) -> Row:
    """Return a row that does not hold, since nobody knows."""
    return Row(f"{figure} (NOT MEASURED: {reason})", bound, goal, nan, 0.0)


def report(name: str, measure: Callable[[], Sequence[Row]]) -> None:
    """Measure, print the rows, write them to ``--json FILE``, and exit."""
    target = parser(name).parse_args().json
    conclude(name, measure(), target)


def parser(name: str) -> argparse.ArgumentParser:
    """Return the command line that every benchmark has."""
    options = argparse.ArgumentParser(description=f"Measure the claims of {name}.")
    options.add_argument("--json", type=Path, help="write the rows here too")
    return options


def conclude(name: str, rows: Sequence[Row], target: Path | None) -> NoReturn:
    """Print the rows, write them to ``target``, and exit."""
    table = Table("figure", "goal", "measured", "spread", "holds", title=name)
    for row in rows:
        mark = "[green]yes[/]" if row.holds else "[bold red]NO[/]"
        goal = f"{row.bound} {row.goal:g}"
        table.add_row(row.figure, goal, f"{row.measured:.3f}", f"{row.spread:.3f}", mark)
    console.print(table)
    if target is not None:
        target.write_text(json.dumps([{**asdict(row), "holds": row.holds} for row in rows]))
    sys.exit(not all(row.holds for row in rows))

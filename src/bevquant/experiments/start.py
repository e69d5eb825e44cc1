"""Which experiment a recipe names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bevquant.errors import BevquantError
from bevquant.experiments.ptqat import run_ptqat_table
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.search_table import ThesisTable41, run_table_4_1
from bevquant.experiments.thesis_table import ThesisTable33, run_thesis_table
from bevquant.recipe import load_recipe, read_recipe

EXPERIMENTS: dict[str, tuple[type[BaseModel], Callable[[Any, Path, int], None]]] = {
    "thesis_table_3_3": (ThesisTable33, run_thesis_table),
    "thesis_table_4_1": (ThesisTable41, run_table_4_1),
    "ptqat": (PtqatTable, run_ptqat_table),
}


def run_recipe(path: Path, out: Path, jobs: int) -> None:
    """Run the experiment of the recipe at ``path``, in the folder ``out``; continues a stopped run.

    Raises:
        BevquantError: the recipe is not one of an experiment, or invalid; or ``out`` belongs
            to another run.
    """
    name = read_recipe(path).get("experiment")
    if not isinstance(name, str) or name not in EXPERIMENTS:
        raise BevquantError(
            f"{path}: experiment: {name!r} is none of {', '.join(EXPERIMENTS)}; recipes without "
            "an experiment are for bevquant train"
        )
    kind, run = EXPERIMENTS[name]
    run(load_recipe(path, kind), out, jobs)

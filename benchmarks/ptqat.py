"""Which layers are worth training: our rule against all of them, and against either half.

Runs the five recipes ``recipes/ptqat_*_small.yaml`` (each from refined and reconstructed weights,
equal steps, their seeds), and PETR at W8A8. Prints what each rule wins on each network, and the
claims at W4A8. Points are hundredths of NDS or mIoU, of a generated world. Whatever is finished
is kept in ``--folder``, and the same command continues: hours on two cores.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from _rows import Row, conclude, of_seeds, parser

import bevquant as bq
from bevquant.experiments.ptqat import run_ptqat_table
from bevquant.experiments.ptqat_gains import Rows, headlines, loss_taken_off, points, side_by_side
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.ptqat_rows import Series, metrics, split, start, task_of
from bevquant.experiments.ptqat_rules import PTQ
from bevquant.files import read_json
from bevquant.models.zoo import network
from bevquant.progress import console
from bevquant.ptqat.layers import training
from bevquant.ptqat.steps import take_step
from bevquant.ptqat.train import initial
from bevquant.recipe import load_recipe
from bevquant.run import ensure_world, quantize_small
from bevquant.steps import Steps
from bevquant.tasks import Frames, load_shipped

RECIPES = Path(__file__).parents[1] / "recipes"
NETWORKS = (
    "bevdepth4d_small",
    "petr_small",
    "bevfusion_small",
    "bevfusion_seg_small",
    "bevfusion_occ_small",
)
PRECISION = "W4A8"
FRAMES, WARM_UP, STEPS = 6, 2, 30
"""To time a step on; steps that are not timed, and those that are."""
DEFAULT, ALL, LOW, HIGH = "promising half", "QAT", "low half, mse", "high half, mse"


@dataclass(frozen=True)
class Table:
    """The figures of one network.

    Attributes:
        points: of each row and seed, hundredths; ``float`` among them.
        rows: all figures of each row and seed.
    """

    points: Mapping[str, Sequence[float]]
    rows: Rows

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Read what an experiment wrote."""
        found = read_json(path)
        rows = found["rows"][PRECISION]
        key = headlines(found["float"])[0]
        points = {name: [100 * row[key] for row in seeds] for name, seeds in rows.items()}
        points["float"] = [100 * found["float"][key]] * len(points[PTQ])
        return cls(points, rows)

    def ratio(self, figure: str) -> float:
        """Return the sum over the seeds of a figure of our rule, over that of QAT."""
        ours, theirs = (sum(row[figure] for row in self.rows[name]) for name in (DEFAULT, ALL))
        return float(ours / theirs)


def measure(folder: Path, jobs: int) -> Sequence[Row]:
    recipes = {name: load_recipe(RECIPES / f"ptqat_{name}.yaml", PtqatTable) for name in NETWORKS}
    ensure_world(folder / "world", recipes[NETWORKS[0]].world, jobs)
    for name, recipe in recipes.items():
        (folder / name).mkdir(exist_ok=True)
        if not (folder / name / "world").exists():
            (folder / name / "world").symlink_to("../world")
        run_ptqat_table(recipe, folder / name, jobs)
    _print_gains(folder, recipes[NETWORKS[0]].precisions)
    tables = [Table.read(folder / name / "table.json") for name in NETWORKS]
    mean = {
        name: np.mean([table.points[name] for table in tables], axis=0).tolist()
        for name in tables[0].points
    }
    half = max(LOW, HIGH, key=lambda name: fmean(mean[name]))
    gain = {
        name: np.mean([loss_taken_off(table.rows, name) for table in tables], axis=0).tolist()
        for name in (DEFAULT, ALL, LOW, HIGH)
    }
    better = max(LOW, HIGH, key=lambda name: fmean(gain[name]))
    above = [points(table.rows, DEFAULT) for table in tables]
    runs = [run for seeds in above for run in seeds]
    means = np.mean(above, axis=0).tolist()
    times = [
        _step_ratio(recipes[name], folder / name, table)
        for name, table in zip(NETWORKS, tables, strict=True)
    ]
    w8a8 = _petr(recipes["petr_small"], folder)
    return [
        _difference("default rule over QAT of all layers, points", 0, mean[DEFAULT], mean[ALL]),
        _difference(f"default rule over {half}, the better, points", 0, mean[DEFAULT], mean[half]),
        _difference("loss taken off, default over QAT of all, %", 0, gain[DEFAULT], gain[ALL]),
        _difference(f"the same, over {better}, %", 0, gain[DEFAULT], gain[better]),
        _most("trained parameters, of all", 0.5, [table.ratio("parameters") for table in tables]),
        of_seeds("seconds of a step, of QAT's, mean", "at most", 1, times, fmean(times)),
        _most("seconds of a step, of QAT's", 1, times),
        _most("memory of a step, of QAT's", 1, [table.ratio("bytes") for table in tables]),
        _difference("W4A8 over float, points", -0.5, mean[DEFAULT], mean["float"]),
        of_seeds("W4A8 over its start, points, worst seed", "at least", 0, means, min(means)),
        of_seeds("the same, worst seed of a network", "at least", 0, runs, min(runs)),
        _difference("petr_small, W8A8 over float, points", -1, *w8a8),
    ]


def _print_gains(folder: Path, precisions: Sequence[str]) -> None:
    found = {name: read_json(folder / name / "table.json")["rows"] for name in NETWORKS}
    for precision in precisions:
        table = side_by_side({name: rows[precision] for name, rows in found.items()})
        console.print(f"{precision}\n\n{table}\n", markup=False, highlight=False, soft_wrap=True)


def _step_ratio(recipe: PtqatTable, out: Path, table: Table) -> float:
    """Return the median time of a step of our rule over the same step of QAT; they take turns."""
    torch.set_num_threads(1)
    few = recipe.model_copy(update={"train_frames": FRAMES, "judge_frames": 1})
    series = Series(few, out, PRECISION, seed=0)
    task = task_of(series)
    seconds: dict[str, list[float]] = {DEFAULT: [], ALL: []}
    with ExitStack() as stack:
        turns = []
        for name, times in seconds.items():
            model = start(series)
            layers = table.rows[name][0]["layers"]
            trained = stack.enter_context(training(model, layers))
            turns.append((model, initial(trained, recipe.training), times))
        for _ in range(WARM_UP + STEPS):
            for model, state, times in turns:
                started = time.perf_counter()
                take_step(model, state, task, recipe.training)
                times.append(time.perf_counter() - started)
    pairs = zip(seconds[DEFAULT][WARM_UP:], seconds[ALL][WARM_UP:], strict=True)
    return median(ours / theirs for ours, theirs in pairs)


def _petr(recipe: PtqatTable, folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Return the points of W8A8, refined, and of float, for each seed."""
    out = folder / recipe.network
    steps = Steps(folder / "w8a8", recipe.model_dump(mode="json"))
    net = network(recipe.network)

    def nds(seed: int) -> float:
        train_set = split(recipe, out, "world_train")
        frames = list(Frames(train_set, net.preprocess, recipe.frames, seed))
        model = quantize_small(load_shipped(recipe.network), frames, bq.W8A8)
        bq.refine(model, frames)
        return float(metrics(recipe, out, model)["NDS"])

    found = [100 * steps.run(f"{seed}", partial(nds, seed)) for seed in range(recipe.seeds)]
    return found, Table.read(out / "table.json").points["float"]


def _difference(figure: str, goal: float, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return of_seeds(figure, "at least", goal, differences, fmean(differences))


def _most(figure: str, goal: float, networks: Sequence[float]) -> Row:
    return of_seeds(f"{figure}, worst network", "at most", goal, networks, max(networks))


def _options() -> argparse.ArgumentParser:
    options = parser("ptqat")
    options.add_argument("--folder", type=Path, default=Path("runs/benchmark_ptqat"))
    options.add_argument("--jobs", type=int, default=2, help="seeds side by side")
    return options


if __name__ == "__main__":
    chosen = _options().parse_args()
    conclude("ptqat", measure(chosen.folder, chosen.jobs), chosen.json)

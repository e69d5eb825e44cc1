"""Selective against full quantization-aware training, of any network that is shipped."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from bevquant.experiments.ptqat_figure import draw_gains
from bevquant.experiments.ptqat_gains import Rows, headlines, loss_taken_off, points
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.ptqat_rows import Series, finished, measure_rows, metrics, split
from bevquant.experiments.ptqat_rules import PTQ
from bevquant.experiments.tables import markdown
from bevquant.experiments.variants import start_worker
from bevquant.files import write_json, write_text
from bevquant.progress import console, track
from bevquant.provenance import provenance
from bevquant.report.figures import metric
from bevquant.run import ensure_world
from bevquant.tasks import load_shipped

FLOAT = "float"


def run_ptqat_table(recipe: PtqatTable, out: Path, jobs: int) -> None:
    """Measure all rows; write table.md, table.json and gains-PRECISION.png to ``out``."""
    ensure_world(out / "world", recipe.world, jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=start_worker) as pool:
        work: list[Future[Any]] = [pool.submit(_measure_float, recipe, out)]
        work += [
            pool.submit(measure_rows, series)
            for precision in recipe.precisions
            for series in _all_series(recipe, out, precision)
        ]
        try:
            for future in track(as_completed(work), "float, precisions and seeds", total=len(work)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    steps = finished(recipe, out)
    float_ = steps.value(FLOAT)
    figures = {
        precision: {
            name: [steps.value(each.step(name)) for each in _all_series(recipe, out, precision)]
            for name in (PTQ, *recipe.rules)
        }
        for precision in recipe.precisions
    }
    where = (
        f"{recipe.training.steps} steps, {recipe.seeds} seeds; generated world (seed "
        f"{recipe.world.seed}), {float_['frames']} validation key frames"
    )
    tables = [f"## {name}\n\n{_table(float_, rows)}\n" for name, rows in figures.items()]
    page = "\n".join([f"# PTQAT of {recipe.network}: {where}\n", *tables])
    write_text(out / "table.md", page)
    fingerprint = split(recipe, out, "world_val").fingerprint()
    write_json(
        out / "table.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "provenance": provenance(0, fingerprint).to_json(),
            "float": float_,
            "rows": figures,
        },
    )
    for precision, rows in figures.items():
        draw_gains(rows, out / f"gains-{precision}.png")
    console.print(page, markup=False, highlight=False, soft_wrap=True)


def _all_series(recipe: PtqatTable, out: Path, precision: str) -> list[Series]:
    return [Series(recipe, out, precision, seed) for seed in range(recipe.seeds)]


def _measure_float(recipe: PtqatTable, out: Path) -> None:
    model = load_shipped(recipe.network)
    finished(recipe, out).run(FLOAT, lambda: metrics(recipe, out, model))


GAINS = ("points above PTQ", "loss taken off")
COSTS = ("layers", "trained parameters", "seconds", "memory of a step")


def _table(float_: Mapping[str, Any], rows: Rows) -> str:
    """Return means over the seeds, and the standard deviations of the metrics and gains."""
    names = headlines(float_)
    lines = [[FLOAT, *(metric(float_[name]) for name in names), *("" for _ in (*GAINS, *COSTS))]]
    for label, seeds in rows.items():
        means = {
            key: fmean(row[key] for row in seeds) for key in ("parameters", "seconds", "bytes")
        }
        lines.append(
            [
                label,
                *(_spread([row[name] for row in seeds], ".3f") for name in names),
                _spread(points(rows, label), "+.2f"),
                f"{_spread(loss_taken_off(rows, label), '.1f')} %",
                f"{fmean(len(row['layers']) for row in seeds):.0f}",
                f"{means['parameters']:,.0f}",
                f"{means['seconds']:.0f}",
                f"{means['bytes'] / 1e6:.0f} MB",
            ]
        )
    return markdown(("", *names, *GAINS, *COSTS), lines)


def _spread(seeds: Sequence[float], form: str) -> str:
    return f"{fmean(seeds):{form}} ± {pstdev(seeds):{form.lstrip('+')}}"

"""Selective against full quantization-aware training, of any network that is shipped."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from torch import nn

from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.settings import VERSION
from bevquant.evaluate import measure
from bevquant.experiments.ptqat_curves import draw_metric
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.ptqat_rules import PTQ, RULES, select
from bevquant.experiments.tables import markdown
from bevquant.experiments.variants import start_worker
from bevquant.files import sha256, write_json, write_text
from bevquant.models.zoo import network, shipped
from bevquant.progress import console, track
from bevquant.provenance import provenance
from bevquant.ptqat.memory import step_bytes
from bevquant.ptqat.start import candidates
from bevquant.ptqat.task import Task
from bevquant.ptqat.train import train
from bevquant.quant.calibrate import calibrate
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.prepare import quantize
from bevquant.quant.reconstruct import reconstruct
from bevquant.quant.spec import Precision
from bevquant.report.figures import metric
from bevquant.run import ensure_world
from bevquant.steps import Steps
from bevquant.tasks import Frames, load_shipped, shipped_task
from bevquant.train.curves import Curves

FLOAT = "float"
HEADLINES = ("NDS", "mAP", "mIoU")
"""Metrics that the table shows, as far as the network's task has them."""


def run_ptqat_table(recipe: PtqatTable, out: Path, jobs: int) -> None:
    """Measure all rows; write table.md, table.json, metric.png and the selections to ``out``."""
    ensure_world(out / "world", recipe.world, jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=start_worker) as pool:
        work: list[Future[Any]] = [pool.submit(_measure_float, recipe, out)]
        work += [pool.submit(_measure_rows, recipe, out, seed) for seed in range(recipe.seeds)]
        try:
            for future in track(as_completed(work), "float and seeds", total=len(work)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    steps = _steps(recipe, out)
    float_ = steps.value(FLOAT)
    figures = {
        name: [steps.value(_step(name, seed)) for seed in range(recipe.seeds)]
        for name in (PTQ, *recipe.rules)
    }
    where = (
        f"{recipe.precision}, {recipe.training.steps} steps, {recipe.seeds} seeds; generated "
        f"world (seed {recipe.world.seed}), {float_['frames']} validation key frames"
    )
    page = f"# PTQAT of {recipe.network}: {where}\n\n{_table(float_, figures)}\n"
    write_text(out / "table.md", page)
    fingerprint = _split(recipe, out, "world_val").fingerprint()
    write_json(
        out / "table.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "provenance": provenance(0, fingerprint).to_json(),
            "float": float_,
            "rows": figures,
        },
    )
    curves = {name: [row["curve"] for row in figures[name]] for name in recipe.rules}
    draw_metric(curves, out / "metric.png")
    console.print(page, markup=False, highlight=False)


def _measure_float(recipe: PtqatTable, out: Path) -> None:
    model = load_shipped(recipe.network)
    _steps(recipe, out).run(FLOAT, lambda: _metrics(recipe, out, model))


def _measure_rows(recipe: PtqatTable, out: Path, seed: int) -> None:
    """Measure every row with one seed that has no figures yet."""
    steps = _steps(recipe, out)
    task = _task(recipe, out, seed)
    for name in (PTQ, *recipe.rules):
        if not steps.has(_step(name, seed)):
            model = _start(recipe, out, seed)
            steps.run(_step(name, seed), partial(_row, recipe, out, model, task, name, seed))


def _task(recipe: PtqatTable, out: Path, seed: int) -> Task:
    dataset = _split(recipe, out, "world_train")
    task = shipped_task(recipe.network, dataset, recipe.train_frames, seed=seed)
    return replace(
        task,
        loss=task.loss if recipe.labels else None,
        metric=lambda model: _headline(_metrics(recipe, out, model, recipe.curve_frames)),
    )


def _start(recipe: PtqatTable, out: Path, seed: int) -> nn.Module:
    """Return the reconstructed network that every row of a seed starts from."""
    dataset = _split(recipe, out, "world_train")
    frames = Frames(dataset, network(recipe.network).preprocess, recipe.frames, seed)
    model = load_shipped(recipe.network)
    fold_batchnorm(model, frames[0])
    quantize(model, Precision.parse(recipe.precision))
    path = out / f"start-{seed}.safetensors"
    if path.exists():
        load_calibration(model, path)
    else:
        batches = list(frames)
        calibrate(model, batches)
        reconstruct(model, batches)
        save_calibration(model, path)
    return model


def _row(
    recipe: PtqatTable, out: Path, model: nn.Module, task: Task, name: str, seed: int
) -> dict[str, Any]:
    """Select, train and evaluate ``model``; return the figures of a row."""
    row: dict[str, Any] = {"layers": [], "parameters": 0, "seconds": 0.0, "bytes": 0, "curve": []}
    if name != PTQ:
        settings = recipe.training.model_copy(update={"seed": seed})
        scored = candidates(model, task, RULES[name], settings.distillation)
        layers = select(name, scored, seed).layers
        if layers:  # or else the row is that of PTQ
            folder = out / _step(name, seed)
            row["bytes"] = step_bytes(model, layers, task, settings)
            found = train(model, layers, task, settings, folder)
            steps = Curves(folder / "curves.jsonl", settings.steps).rows()
            row |= {
                "layers": layers,
                "parameters": found.parameters,
                "seconds": sum(step["seconds"] for step in steps),
                "curve": [[step["step"], step["metric"]] for step in steps if "metric" in step],
            }
    return {**row, **_metrics(recipe, out, model)}


def _split(recipe: PtqatTable, out: Path, name: str, limit: int | None = None) -> NuScenesDataset:
    return network(recipe.network).dataset(out / "world", VERSION, name, limit=limit)


def _metrics(
    recipe: PtqatTable, out: Path, model: nn.Module, limit: int | None = None
) -> dict[str, Any]:
    """Return the metrics of the task on the validation split, or on its first frames."""
    dataset = _split(recipe, out, "world_val", limit)
    preprocess = network(recipe.network).preprocess
    return measure(model, dataset, preprocess, description=recipe.network).to_json()


def _headline(metrics: Mapping[str, Any]) -> float:
    return next(float(metrics[name]) for name in HEADLINES if name in metrics)


def _steps(recipe: PtqatTable, out: Path) -> Steps:
    setup = {**recipe.model_dump(mode="json"), "checkpoint": sha256(shipped(recipe.network))}
    return Steps(out / "rows", setup)


def _step(name: str, seed: int) -> str:
    return f"{name}-{seed}"


COSTS = ("layers", "trained parameters", "seconds", "memory of a step")


def _table(float_: Mapping[str, Any], figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return means over the seeds, and the standard deviations of the metrics."""
    names = [name for name in HEADLINES if name in float_]
    rows = [["float", *(metric(float_[name]) for name in names), *("" for _ in COSTS)]]
    for label, seeds in figures.items():
        means = {
            key: fmean(row[key] for row in seeds) for key in ("parameters", "seconds", "bytes")
        }
        cells = [
            f"{fmean(row[key] for row in seeds):.3f} ± {pstdev(row[key] for row in seeds):.3f}"
            for key in names
        ]
        rows.append(
            [
                label,
                *cells,
                f"{fmean(len(row['layers']) for row in seeds):.0f}",
                f"{means['parameters']:,.0f}",
                f"{means['seconds']:.0f}",
                f"{means['bytes'] / 1e6:.0f} MB",
            ]
        )
    return markdown(("", *names, *COSTS), rows)

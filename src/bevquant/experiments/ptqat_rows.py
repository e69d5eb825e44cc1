"""The rows of a precision and a seed: all start from the same weights, nothing is done twice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.settings import VERSION
from bevquant.evaluate import measure
from bevquant.experiments.ptqat_gains import headlines
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.ptqat_rules import PTQ, RULES, select
from bevquant.files import sha256
from bevquant.models.zoo import network, shipped
from bevquant.ptqat.cuts import Candidate
from bevquant.ptqat.memory import step_bytes
from bevquant.ptqat.selection import EVERYTHING, Rule
from bevquant.ptqat.start import candidates
from bevquant.ptqat.task import Task
from bevquant.ptqat.teacher import taught
from bevquant.ptqat.train import train
from bevquant.quant.calibrate import calibrate
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.prepare import quantize
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import refine
from bevquant.quant.spec import Precision
from bevquant.steps import Steps
from bevquant.tasks import Frames, load_shipped, shipped_task
from bevquant.train.curves import read_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """The rows that start from the same weights.

    Attributes:
        recipe: what is measured.
        out: folder of the run.
        precision: one of the recipe's.
        seed: of the frames and their order.
    """

    recipe: PtqatTable
    out: Path
    precision: str
    seed: int

    def folder(self, name: str) -> Path:
        """Return the folder in which the row ``name`` is trained."""
        return self.out / self.precision / f"{name}-{self.seed}"

    def step(self, name: str) -> str:
        """Return what the row ``name`` is kept as."""
        return f"{self.precision}-{name}-{self.seed}"


def measure_rows(series: Series) -> None:
    """Measure every row that has no figures yet.

    Rules that choose the same layers have the same row: it is trained once.
    """
    recipe, seed = series.recipe, series.seed

    @cache
    def task() -> Task:
        return task_of(series)

    @cache
    def scored(rule: Rule) -> list[Candidate]:
        return candidates(start(series), task(), rule, recipe.training.distillation)

    def row(name: str, before: Sequence[Row]) -> Row:
        layers: list[str] = []
        if name != PTQ:
            # Rules that differ in the cut alone look at the same scores.
            scores = scored(replace(RULES[name], cut=EVERYTHING.cut, lowest=True))
            layers = sorted(select(name, scores, seed).layers)
        for other in before:
            if other["layers"] == layers:
                return other
        return _trained(series, task(), name, layers)

    rows: list[Row] = []
    for name in (PTQ, *recipe.rules):
        work = partial(row, name, tuple(rows))
        rows.append(finished(recipe, series.out).run(series.step(name), work))


def metrics(recipe: PtqatTable, out: Path, model: nn.Module, limit: int | None = None) -> Row:
    """Return the metrics of the task on the validation split, or on its first frames."""
    dataset = split(recipe, out, "world_val", limit)
    preprocess = network(recipe.network).preprocess
    return measure(model, dataset, preprocess, description=recipe.network).to_json()


def split(recipe: PtqatTable, out: Path, name: str, limit: int | None = None) -> NuScenesDataset:
    """Open a split of the recipe's world, or its first frames."""
    return network(recipe.network).dataset(out / "world", VERSION, name, limit=limit)


def finished(recipe: PtqatTable, out: Path) -> Steps:
    """Return the rows that are measured already, at any precision and of any seed."""
    setup = recipe.model_dump(mode="json", exclude={"precisions", "rules", "seeds"})
    return Steps(out / "rows", {**setup, "checkpoint": sha256(shipped(recipe.network))})


def _trained(series: Series, task: Task, name: str, layers: Sequence[str]) -> Row:
    """Train ``layers`` from the start, if there are any, and evaluate."""
    model = start(series)
    row: Row = {
        "layers": layers,
        "parameters": 0,
        "seconds": 0.0,
        "bytes": 0,
        "loss": [],
    }
    if layers:
        settings = series.recipe.training.model_copy(update={"seed": series.seed})
        folder = series.folder(name)
        row["bytes"] = step_bytes(model, layers, task, settings)
        found = train(model, layers, task, settings, folder)
        steps = read_rows(folder / "curves.jsonl")
        row |= {
            "parameters": found.parameters,
            "loss": [found.before, found.after],
            "seconds": sum(step["seconds"] for step in steps[1:]),
        }
    return {**row, **metrics(series.recipe, series.out, model)}


def task_of(series: Series) -> Task:
    """Return what every row is trained on, judged on and followed by."""
    recipe, out, seed = series.recipe, series.out, series.seed
    dataset = split(recipe, out, "world_train")
    preprocess = network(recipe.network).preprocess
    judged = Frames(dataset, preprocess, recipe.judge_frames, seed, skip=recipe.train_frames)
    task = shipped_task(
        recipe.network, dataset, recipe.train_frames, seed=seed, validation=list(judged)
    )
    task = replace(
        task,
        loss=task.loss if recipe.labels else None,
        metric=lambda model: _headline(metrics(recipe, out, model, recipe.curve_frames)),
    )
    return task if recipe.labels else taught(start(series), task)


def start(series: Series) -> nn.Module:
    """Return the network, refined and reconstructed, that every row starts from."""
    recipe = series.recipe
    dataset = split(recipe, series.out, "world_train")
    frames = Frames(dataset, network(recipe.network).preprocess, recipe.frames, series.seed)
    model = load_shipped(recipe.network)
    fold_batchnorm(model, frames[0])
    quantize(model, Precision.parse(series.precision))
    path = series.folder("start").with_suffix(".safetensors")
    if path.exists():
        load_calibration(model, path)
    else:
        batches = list(frames)
        calibrate(model, batches)
        refine(model, batches)
        reconstruct(model, batches)
        save_calibration(model, path)
    return model


def _headline(found: Row) -> float:
    return float(found[headlines(found)[0]])

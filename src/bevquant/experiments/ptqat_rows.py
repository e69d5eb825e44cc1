"""The rows of one seed: each rule trains from the same start, and nothing is done twice."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.settings import VERSION
from bevquant.evaluate import measure
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.ptqat_rules import PTQ, RULES, select
from bevquant.files import sha256
from bevquant.models.zoo import network, shipped
from bevquant.ptqat.cuts import Candidate
from bevquant.ptqat.memory import step_bytes
from bevquant.ptqat.selection import EVERYTHING, Rule
from bevquant.ptqat.start import candidates
from bevquant.ptqat.task import Task
from bevquant.ptqat.train import train
from bevquant.quant.calibrate import calibrate
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.prepare import quantize
from bevquant.quant.reconstruct import reconstruct
from bevquant.quant.refine import refine
from bevquant.quant.spec import Precision
from bevquant.steps import Steps
from bevquant.tasks import Frames, load_shipped, shipped_task
from bevquant.train.curves import Curves

Row = dict[str, Any]

HEADLINES = ("NDS", "mAP", "mIoU")
"""Metrics that the table shows, as far as the network's task has them."""


def measure_rows(recipe: PtqatTable, out: Path, seed: int) -> None:
    """Measure every row of ``seed`` that has no figures yet.

    Rules that choose the same layers have the same row: it is trained once.
    """
    task = task_of(recipe, out, seed)

    @cache
    def scored(rule: Rule) -> list[Candidate]:
        model = start(recipe, out, seed)
        return candidates(model, task, rule, recipe.training.distillation)

    def row(name: str, before: Sequence[Row]) -> Row:
        layers: list[str] = []
        if name != PTQ:
            # Rules that differ in the cut alone look at the same scores.
            scores = scored(replace(RULES[name], cut=EVERYTHING.cut, lowest=True))
            layers = sorted(select(name, scores, seed).layers)
        for other in before:
            if other["layers"] == layers:
                return other
        return _trained(recipe, out, task, name, seed, layers)

    rows: list[Row] = []
    for name in (PTQ, *recipe.rules):
        work = partial(row, name, tuple(rows))
        rows.append(finished(recipe, out).run(step_name(name, seed), work))


def metrics(recipe: PtqatTable, out: Path, model: nn.Module, limit: int | None = None) -> Row:
    """Return the metrics of the task on the validation split, or on its first frames."""
    dataset = split(recipe, out, "world_val", limit)
    preprocess = network(recipe.network).preprocess
    return measure(model, dataset, preprocess, description=recipe.network).to_json()


def split(recipe: PtqatTable, out: Path, name: str, limit: int | None = None) -> NuScenesDataset:
    """Open a split of the recipe's world, or its first frames."""
    return network(recipe.network).dataset(out / "world", VERSION, name, limit=limit)


def finished(recipe: PtqatTable, out: Path) -> Steps:
    """Return the rows that are measured already."""
    setup = {**recipe.model_dump(mode="json"), "checkpoint": sha256(shipped(recipe.network))}
    return Steps(out / "rows", setup)


def step_name(name: str, seed: int) -> str:
    """Return what the row ``name`` of ``seed`` is kept as."""
    return f"{name}-{seed}"


def _trained(
    recipe: PtqatTable, out: Path, task: Task, name: str, seed: int, layers: Sequence[str]
) -> Row:
    """Train ``layers`` from the start, if there are any, and evaluate."""
    model = start(recipe, out, seed)
    row: Row = {
        "layers": layers,
        "parameters": 0,
        "seconds": 0.0,
        "bytes": 0,
        "loss": [],
        "curve": [],
    }
    if layers:
        settings = recipe.training.model_copy(update={"seed": seed})
        folder = out / step_name(name, seed)
        row["bytes"] = step_bytes(model, layers, task, settings)
        found = train(model, layers, task, settings, folder)
        steps = Curves(folder / "curves.jsonl", settings.steps).rows()
        row |= {
            "parameters": found.parameters,
            "loss": [found.before, found.after],
            "seconds": sum(step["seconds"] for step in steps),
            "curve": [[step["step"], step["metric"]] for step in steps if "metric" in step],
        }
    return {**row, **metrics(recipe, out, model)}


def task_of(recipe: PtqatTable, out: Path, seed: int) -> Task:
    """Return what every row of a seed is trained on, judged on and followed by."""
    dataset = split(recipe, out, "world_train")
    preprocess = network(recipe.network).preprocess
    judged = Frames(dataset, preprocess, recipe.judge_frames, seed, skip=recipe.train_frames)
    task = shipped_task(
        recipe.network, dataset, recipe.train_frames, seed=seed, validation=list(judged)
    )
    return replace(
        task,
        loss=task.loss if recipe.labels else None,
        metric=lambda model: _headline(metrics(recipe, out, model, recipe.curve_frames)),
    )


def start(recipe: PtqatTable, out: Path, seed: int) -> nn.Module:
    """Return the network, refined and reconstructed, that every row of a seed starts from."""
    dataset = split(recipe, out, "world_train")
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
        refine(model, batches)
        reconstruct(model, batches)
        save_calibration(model, path)
    return model


def _headline(found: Mapping[str, Any]) -> float:
    return next(float(found[name]) for name in HEADLINES if name in found)

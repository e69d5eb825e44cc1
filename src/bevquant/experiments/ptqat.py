"""Selective against full quantization-aware training, on the small BEVFusion."""

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.data.world.settings import WorldSettings
from bevquant.evaluate import evaluate, float_predictor
from bevquant.experiments.tables import markdown
from bevquant.experiments.variants import Bench, start_worker
from bevquant.files import sha256, write_json, write_text
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.losses import LossSettings
from bevquant.progress import console, track
from bevquant.provenance import provenance
from bevquant.ptqat.cuts import Budget, Knee, Quantile, Theta
from bevquant.ptqat.memory import step_bytes
from bevquant.ptqat.selection import EVERYTHING, INVERTED, PAPER, PROMISING, Rule
from bevquant.ptqat.settings import Training
from bevquant.ptqat.start import candidates
from bevquant.ptqat.task import Task
from bevquant.ptqat.train import train
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.reconstruct import reconstruct
from bevquant.quant.spec import Precision
from bevquant.report.figures import metric
from bevquant.run import SHIPPED, ensure_world, load_small, quantize_small
from bevquant.steps import Steps
from bevquant.train.batches import with_seen_boxes
from bevquant.train.loop import loss_terms

PTQ, RANDOM = "PTQ", "random half"
RULES: Mapping[str, Rule] = {
    "QAT": EVERYTHING,
    "PTQAT": PAPER,
    "inverted": INVERTED,
    RANDOM: Rule(Budget(0.5)),  # of shuffled scores
    "promising half": PROMISING,
    "theta 0.005": Rule(Theta(0.005)),
    "theta 0.02": Rule(Theta(0.02)),
    "adaptive": Rule(Knee()),
    "low half, mse": Rule(Quantile(0.5)),
    "low half, normalised mse": Rule(Quantile(0.5), "normalised_mse"),
    "low half, cosine": Rule(Quantile(0.5), "cosine"),
    "low half, sqnr": Rule(Quantile(0.5), "sqnr"),
    "low half, kl": Rule(Quantile(0.5), "kl"),
    "low half, mse, by channel": Rule(Quantile(0.5), granularity="channel"),
    "low half, mse, by block": Rule(Quantile(0.5), granularity="block"),
    "low half, mse, all quantized": Rule(Quantile(0.5), upstream=True),
    "high half, mse": Rule(Quantile(0.5), lowest=False),
}
"""Which layers are trained, by the names that recipes know."""
COMPARED = ("QAT", "PTQAT", "inverted", RANDOM, "promising half")


class PtqatTable(BaseModel):
    """What the table is measured on.

    Attributes:
        experiment: names this table.
        world: the generated data: calibration and training on its training split, metrics
            from the other. Never nuScenes' own figures.
        frames: to calibrate and to reconstruct on.
        train_frames: to train on.
        precision: of all layers.
        labels: whether the task's loss is used beside the distance from the float network.
        rules: names of the rows beside PTQ: see :data:`RULES`.
        training: the same for every row; its seed is not used.
        seeds: repetitions, each with frames, and an order of them, of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: Literal["ptqat_bevfusion_small"]
    world: WorldSettings
    frames: int = Field(ge=1)
    train_frames: int = Field(ge=1)
    precision: str = "W2A8"
    labels: bool = False
    rules: tuple[str, ...] = COMPARED
    training: Training = Training()
    seeds: int = Field(default=3, ge=1)

    @field_validator("precision")
    @classmethod
    def _readable(cls, text: str) -> str:
        Precision.parse(text)
        return text

    @field_validator("rules")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in RULES:
                raise ValueError(f"{name!r} is no rule; choose from {', '.join(RULES)}")
        return names


class Frames(Sequence[Batch]):
    """Random frames of a data set, each a batch with the labels to train on."""

    def __init__(self, dataset: NuScenesDataset, count: int, seed: int) -> None:
        self.dataset = dataset
        order = np.random.default_rng((seed, 1)).permutation(len(dataset))
        self.chosen = [int(index) for index in order[:count]]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        frame = with_seen_boxes(self.dataset.frame(self.chosen[index]))
        return collate([frame], preprocess.SMALL)


def run_ptqat_table(recipe: PtqatTable, out: Path, jobs: int) -> None:
    """Measure all rows; write table.md, table.json and the selections to ``out``."""
    ensure_world(out / "world", recipe.world, jobs)
    bench = Bench(out, recipe.world, recipe.frames)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=start_worker) as pool:
        work: list[Future[Any]] = [pool.submit(bench.float)]
        work += [pool.submit(_measure, recipe, out, seed) for seed in range(recipe.seeds)]
        try:
            for future in track(as_completed(work), "float and seeds", total=len(work)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    figures = {name: _figures(recipe, out, name) for name in (PTQ, *recipe.rules)}
    where = (
        f"{recipe.precision}, {recipe.training.steps} steps, {recipe.seeds} seeds; generated "
        f"world (seed {recipe.world.seed}), {len(bench.validation)} validation key frames"
    )
    page = f"# PTQAT of the small BEVFusion: {where}\n\n{_table(bench.float(), figures)}\n"
    write_text(out / "table.md", page)
    write_json(
        out / "table.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "provenance": provenance(0, bench.validation.fingerprint()).to_json(),
            "float": bench.float(),
            "rows": figures,
        },
    )
    console.print(page, markup=False, highlight=False)


def _measure(recipe: PtqatTable, out: Path, seed: int) -> None:
    """Measure every row with one seed that has no figures yet."""
    steps = _steps(recipe, out)
    start = out / f"start-{seed}.safetensors"
    bench = Bench(out, recipe.world, recipe.frames)
    frames = Frames(bench.split("world_train"), recipe.train_frames, seed)
    task = Task(frames, loss=detection_loss if recipe.labels else None)
    for name in (PTQ, *recipe.rules):
        if not steps.has(_step(name, seed)):
            model = _start(recipe, bench, start, seed)
            steps.run(_step(name, seed), partial(_row, recipe, bench, model, task, name, seed))


def _start(recipe: PtqatTable, bench: Bench, path: Path, seed: int) -> BEVFusion:
    """Return the reconstructed network that every row starts from."""
    batches = bench.batches(seed)
    model = quantize_small(load_small(), batches, Precision.parse(recipe.precision))
    if path.exists():
        load_calibration(model, path)
    else:
        reconstruct(model, batches)
        save_calibration(model, path)
    return model


def _row(
    recipe: PtqatTable, bench: Bench, model: BEVFusion, task: Task, name: str, seed: int
) -> dict[str, Any]:
    """Select, train and evaluate ``model``; return the figures of a row."""
    row: dict[str, Any] = {"layers": [], "parameters": 0, "seconds": 0.0, "bytes": 0}
    if name != PTQ:
        rule, settings = RULES[name], recipe.training.model_copy(update={"seed": seed})
        scored = candidates(model, task, rule, settings.distillation)
        if name == RANDOM:
            scores = np.random.default_rng(seed).random(len(scored)).tolist()
            scored = [replace(c, score=s) for c, s in zip(scored, scores, strict=True)]
        layers = rule.select(scored).layers
        if layers:  # or else the row is that of PTQ
            row["bytes"] = step_bytes(model, layers, task, settings)
            found = train(model, layers, task, settings, bench.folder / _step(name, seed))
            row |= {"layers": layers, "parameters": found.parameters, "seconds": found.seconds}
    predict = float_predictor(model)
    metrics = evaluate(predict, bench.validation, preprocess.SMALL, description=name)
    return {**row, **metrics.to_json()}


def detection_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum of the head's losses."""
    assert isinstance(model, BEVFusion)
    return torch.stack(list(loss_terms(LossSettings())(model, batch).values())).sum()


def _steps(recipe: PtqatTable, out: Path) -> Steps:
    return Steps(out / "rows", {**recipe.model_dump(mode="json"), "checkpoint": sha256(SHIPPED)})


def _step(name: str, seed: int) -> str:
    return f"{name}-{seed}"


def _figures(recipe: PtqatTable, out: Path, name: str) -> list[dict[str, Any]]:
    """Return the figures of a row, one for each seed."""

    def missing() -> Any:
        raise AssertionError("figures are measured before they are read")

    steps = _steps(recipe, out)
    return [steps.run(_step(name, seed), missing) for seed in range(recipe.seeds)]


HEADER = ("", "NDS", "mAP", "layers", "trained parameters", "seconds", "memory of a step")


def _table(float_: Mapping[str, Any], figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return means over the seeds, and the standard deviations of the metrics."""
    rows = [["float", metric(float_["NDS"]), metric(float_["mAP"]), "", "", "", ""]]
    for name, seeds in figures.items():
        means = {
            key: fmean(row[key] for row in seeds) for key in ("parameters", "seconds", "bytes")
        }
        cells = [
            f"{fmean(row[key] for row in seeds):.3f} ± {pstdev(row[key] for row in seeds):.3f}"
            for key in ("NDS", "mAP")
        ]
        rows.append(
            [
                name,
                *cells,
                f"{fmean(len(row['layers']) for row in seeds):.0f}",
                f"{means['parameters']:,.0f}",
                f"{means['seconds']:.0f}",
                f"{means['bytes'] / 1e6:.0f} MB",
            ]
        )
    return markdown(HEADER, rows)

"""Training the selected layers of a quantized model; all others keep their integers."""

import math
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.ptqat import parallel
from bevquant.ptqat.checkpoint import State, resume, save
from bevquant.ptqat.layers import TrainedLayer, training
from bevquant.ptqat.recompute import recomputing
from bevquant.ptqat.settings import Training
from bevquant.ptqat.steps import NotFinite, judge, take_step
from bevquant.ptqat.task import Task
from bevquant.ptqat.teacher import Lesson, check_answers
from bevquant.quant.fingerprint import fingerprint, model_fingerprint
from bevquant.quant.layers import QuantLayer, quant_modules
from bevquant.train.curves import Curves, Row, draw

JUDGED = 8
"""Training batches that weights are judged on if the task brings no others."""


@dataclass(frozen=True)
class Trained:
    """What training came to.

    Attributes:
        layers: names of the trained layers.
        parameters: number of trained weights, biases and scales.
        before: loss on the validation batches before the first step.
        after: that of the weights that were kept.
        seconds: of this call.
    """

    layers: tuple[str, ...]
    parameters: int
    before: float
    after: float
    seconds: float


def train(
    model: nn.Module,
    layers: Collection[str],
    task: Task,
    settings: Training,
    folder: Path | None = None,
) -> Trained:
    """Train some layers, and leave their new integers in the model.

    Straight-through estimator (Bengio et al., arXiv 1308.3432) on copies of the weights:
    the float weights stay as they are, and restore gives them back. A layer starts from
    what it computes now, reconstructed or not. The others hold their integers to the bit,
    and have neither gradients nor optimizer state. Afterwards the model is an ordinary
    quantized one, whose trained layers have a learned weight for their precision.

    Args:
        model: quantized and calibrated; its batch norms folded, or else they keep their
            statistics.
        layers: names of those to train; quantized ones with a weight.
        task: data and loss.
        settings: everything else.
            Several processes that ``torchrun`` started, each with the same model, train
            together: ``batch_size`` is that of all of them.
        folder: for ``checkpoint.pt``, ``curves.jsonl`` and ``curves.png``. Stopped at any
            moment, the model is as it was before, and the same call on it continues from the
            checkpoint and ends with the same weights.

    Raises:
        BevquantError: nothing to train, no batch, a layer that is not quantized, a folder
            of another training, or a loss that is not finite; in the last case the best
            weights so far are kept, and the message names step and layer.
    """
    parallel.join()
    _check(model, layers, task, settings)
    check_answers(task, model)
    started = time.monotonic()
    identity = {
        "model": model_fingerprint(model),
        "layers": sorted(layers),
        "bits": {layer.name: str(layer.precision) for layer in quant_modules(model)},
        "batches": _digest(task.batches),
        "validation": _digest(task.validation),
        "loss": task.loss is not None,
        "settings": settings.model_dump(mode="json"),
    }
    originals = {layer.name: layer for layer in _weighted(model)}
    with training(model, layers, settings.learn_scale) as trained:
        state = initial(trained, settings)
        problem: NotFinite | None = None
        try:
            with recomputing(model) if settings.recompute else nullcontext(), torch.enable_grad():
                _run(model, state, task, settings, identity, folder)
        except NotFinite as error:
            problem = error
        state.take_best()
        for layer in trained if state.step else ():
            original = originals[layer.name]
            assert original.precision is not None
            original.learn(original.precision, layer.rounding())
    if problem:
        raise problem
    return Trained(
        layers=tuple(layer.name for layer in trained),
        parameters=sum(parameter.numel() for parameter in state.learned.values()),
        before=state.first_loss,
        after=state.best_loss,
        seconds=time.monotonic() - started,
    )


def _run(
    model: nn.Module,
    state: State,
    task: Task,
    settings: Training,
    identity: dict[str, Any],
    folder: Path | None,
) -> None:
    """Take the steps that are left; ``state`` holds the best weights at any moment."""
    checkpoint = folder / "checkpoint.pt" if folder else None
    judged = task.validation or [task.batches[i] for i in range(min(JUDGED, len(task.batches)))]
    resumed = checkpoint is not None and checkpoint.exists()
    if checkpoint and resumed:
        resume(state, identity, checkpoint)
    folder = folder if parallel.first() else None
    curves = Curves(folder / "curves.jsonl", state.step + 1 if resumed else 0) if folder else None

    def judgement() -> Row:
        row = {"validation": judge(model, state, task, judged, settings)}
        if curves and task.metric:
            with torch.no_grad():
                row["metric"] = float(task.metric(model))
        return row

    if not resumed:
        start = judgement()
        state.first_loss = state.best_loss
        if curves:
            curves.append({"step": 0, **start})
    every = math.ceil(settings.steps / settings.checks)
    for _ in track(range(state.step, settings.steps), "training"):
        started = time.monotonic()
        row = take_step(model, state, task, settings)
        row["seconds"] = round(time.monotonic() - started, 3)
        if state.step % every == 0 or state.step == settings.steps:
            row |= judgement()
        if curves:
            curves.append(row)
        if (
            folder
            and checkpoint
            and (state.step % settings.checkpoint_steps == 0 or state.step == settings.steps)
        ):
            save(state, identity, checkpoint)
    if curves and folder:
        draw(curves.rows(), folder / "curves.png")


def initial(trained: Sequence[TrainedLayer], settings: Training) -> State:
    """Return the state before the first step."""
    learned = {name: p for layer in trained for name, p in layer.learned.items()}
    return State(
        learned=learned,
        optimizer=torch.optim.Adam(learned.values(), lr=settings.lr),
        step=0,
        best={name: parameter.detach().clone() for name, parameter in learned.items()},
        best_loss=math.inf,
        first_loss=math.inf,
    )


def _digest(batches: Sequence[Any]) -> list[str]:
    """Return how many there are, and digests of the first and the last."""
    ends = [batches[i] for i in (0, len(batches) - 1)] if batches else []
    parts = [end.batch if isinstance(end, Lesson) else end for end in ends]
    return [str(len(batches)), *(fingerprint(part) for part in parts)]


def _weighted(model: nn.Module) -> list[QuantLayer]:
    return [layer for layer in quant_modules(model) if isinstance(layer, QuantLayer)]


def _check(model: nn.Module, layers: Collection[str], task: Task, settings: Training) -> None:
    if settings.batch_size < parallel.size():
        raise BevquantError(
            f"ptqat: batch_size {settings.batch_size} is less than the {parallel.size()} "
            "processes; each needs a batch"
        )
    if not layers:
        raise BevquantError("ptqat: nothing to train: no layer is selected")
    if not task.batches:
        raise BevquantError("ptqat: there is no batch to train on")
    known = {layer.name: layer for layer in _weighted(model)}
    for name in layers:
        if name not in known:
            raise BevquantError(f"ptqat: {name!r} is no quantizable layer with a weight")
        if not known[name].quantized:
            raise BevquantError(f"ptqat: {name}: float or not calibrated, it cannot be trained")

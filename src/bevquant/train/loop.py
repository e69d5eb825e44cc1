"""Train a detector: AdamW, one learning-rate cycle, averaged weights, resumable."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import Preprocess
from bevquant.errors import BevquantError
from bevquant.evaluate import evaluate, float_predictor
from bevquant.files import write_json
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.losses import LossSettings, losses
from bevquant.models.camera import CameraDetector
from bevquant.models.weights import save_weights
from bevquant.progress import console, track
from bevquant.provenance import provenance
from bevquant.train.batches import StepBatches, TrainBatches
from bevquant.train.checkpoint import State, resume, save
from bevquant.train.curves import Curves, Row, draw
from bevquant.train.ema import averaged
from bevquant.train.parallel import Replicas
from bevquant.train.settings import DetectorSettings, OptimSettings, TrainSettings

REPORT_STEPS = 50


class Movable(Protocol):
    """A part of a batch."""

    def to(self, device: torch.device) -> Self:
        """Return the same on ``device``."""
        ...


M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=Movable)


def train(
    model: BEVFusion | CameraDetector,
    preprocess: Preprocess,
    train_set: NuScenesDataset,
    val_set: NuScenesDataset | None,
    settings: DetectorSettings,
    *,
    run_folder: Path,
) -> None:
    """Train ``model`` and leave the result in ``run_folder``.

    Stopped at any moment, the same call continues from the last checkpoint and ends with
    the very weights of an uninterrupted run on the same machine. Files:
    ``checkpoint.pt`` (to continue from), ``curves.jsonl`` and ``curves.png``,
    ``weights.safetensors`` (the moving average) and ``card.json`` (where it comes from).

    Args:
        model: before its first step; holds the averaged weights afterwards.
        preprocess: of the network.
        train_set: frames to learn from.
        val_set: frames to measure the result on, or ``None``.
        settings: everything else; :class:`~bevquant.train.settings.TrainSettings` for a BEVFusion.
        run_folder: made if absent.

    Raises:
        BevquantError: the folder belongs to another run, a file of the data is broken, or
            the loss became infinite or NaN.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fingerprint = train_set.fingerprint()
    source = provenance(settings.seed, fingerprint)  # of the code that runs, not of a later edit
    identity = {
        "data": fingerprint,
        "model": model.config.model_dump(mode="json"),
        "preprocess": preprocess.model_dump(mode="json"),
        "train": settings.model_dump(mode="json"),
    }
    batches = TrainBatches(train_set, preprocess, settings)
    terms: Callable[[Any, Batch], dict[str, Tensor]] = camera_terms
    if isinstance(settings, TrainSettings):
        terms = loss_terms(settings.loss)
    seconds = run_steps(model.to(device), batches, terms, identity, run_folder)
    card: dict[str, Any] = {
        **identity,
        "frames": len(train_set),
        "seconds": round(seconds),
        "provenance": source.to_json(),
    }
    save_weights(model, run_folder / "weights.safetensors", {"train": settings.model_dump_json()})
    if val_set is not None:
        metrics = evaluate(float_predictor(model), val_set, preprocess, description="evaluating")
        card["metrics"] = {"split": val_set.split, **metrics.to_json()}
    write_json(run_folder / "card.json", card)


def run_steps(
    model: M,
    batches: StepBatches[P],
    terms: Callable[[M, P], dict[str, Tensor]],
    identity: dict[str, Any],
    run_folder: Path,
) -> float:
    """Take the steps that are left of a run; leave the averaged weights in ``model``.

    Args:
        model: freshly initialised, on the device of its choice.
        batches: what each step sees.
        terms: runs the model on one part of a batch down to the terms of its loss.
        identity: what the checkpoint in the folder must agree with.
        run_folder: of ``checkpoint.pt``, ``curves.jsonl`` and ``curves.png``.

    Returns:
        Seconds that all steps took, those before a stop included.

    Raises:
        BevquantError: the folder belongs to another run, or the loss became infinite or NaN.
    """
    settings = batches.optim
    device = next(model.parameters()).device
    state = initial_state(model, settings, len(batches))
    checkpoint = run_folder / "checkpoint.pt"
    resume(state, identity, checkpoint)
    replicas = Replicas(model, settings.replicas, terms)
    curves = Curves(run_folder / "curves.jsonl", state.step)

    started, before = time.monotonic(), state.seconds
    steps = track(batches.loader(state.step), "training", total=len(batches) - state.step)
    for parts in steps:
        torch.manual_seed(settings.seed + state.step)  # what a step draws is a matter of the step
        row = train_step(state, replicas, [part.to(device) for part in parts], settings.clip)
        state.seconds = before + time.monotonic() - started
        curves.append({**row, "seconds": round(state.seconds, 2)})
        if state.step % REPORT_STEPS == 0:
            console.print(f"step {state.step}/{len(batches)}: {_describe(row)}")
        if state.step % settings.checkpoint_steps == 0 or state.step == len(batches):
            save(state, identity, checkpoint)
    model.load_state_dict(state.average.module.state_dict())
    draw(curves.rows(), run_folder / "curves.png")
    return state.seconds


def initial_state(model: nn.Module, settings: OptimSettings, steps: int) -> State:
    """Return the state before the first of ``steps`` steps."""
    learned = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.lr,
        total_steps=steps + 1,
        pct_start=settings.warmup,
        cycle_momentum=False,
    )
    return State(model, averaged(model, settings.ema_decay), optimizer, schedule)


def train_step(state: State, replicas: Replicas[M, P], parts: Sequence[P], clip: float) -> Row:
    """Take one step of the optimizer and return its numbers.

    Raises:
        BevquantError: the loss or its gradient is infinite or NaN.
    """
    state.model.train()
    terms = replicas.backward(parts)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), clip)
    if not norm.isfinite():
        raise BevquantError(
            f"step {state.step + 1}: the loss or its gradient is not finite; lower train.lr"
        )
    lr = state.schedule.get_last_lr()[0]
    state.optimizer.step()
    state.schedule.step()
    state.average.update_parameters(state.model)
    state.step += 1
    values = {name: term.item() for name, term in terms.items()}
    return {"step": state.step, **values, "gradient": norm.item(), "lr": float(lr)}


def loss_terms(settings: LossSettings) -> Callable[[BEVFusion, Batch], dict[str, Tensor]]:
    """Return the function that runs a network on a batch down to the terms of its loss."""

    def terms(model: BEVFusion, batch: Batch) -> dict[str, Tensor]:
        assert batch.boxes is not None
        inputs = model.prepare(batch)
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.images.is_cuda):
            output = model.network(inputs)
        return losses(model.config.bbox_head, output, batch.boxes, settings)

    return terms


def camera_terms(model: CameraDetector, batch: Batch) -> dict[str, Tensor]:
    """Run a camera-only detector on a batch down to the terms of its loss."""
    with torch.autocast("cuda", torch.bfloat16, enabled=batch.images.is_cuda):
        return model.training_terms(batch)


def _describe(row: Row) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")

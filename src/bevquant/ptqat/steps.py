"""One step of training, and the judgement of what it came to."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from bevquant.errors import BevquantError
from bevquant.ptqat.checkpoint import State
from bevquant.ptqat.objective import objective
from bevquant.ptqat.parallel import add, add_gradients, share
from bevquant.ptqat.settings import Training
from bevquant.ptqat.task import Task
from bevquant.quant.diagnostics.debug import debug


class NotFinite(BevquantError):
    """The loss or its gradient is not finite."""


def take_step(model: nn.Module, state: State, task: Task, settings: Training) -> dict[str, float]:
    """Take one step of the optimizer and return its numbers.

    Raises:
        NotFinite: the loss or its gradient is not; in all processes at once.
    """
    lr = settings.lr * 0.5 * (1 + math.cos(math.pi * state.step / settings.steps))
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    device = next(iter(state.learned.values())).device.type
    losses = []
    for index in share(indices(state.step, len(task.batches), settings)):
        with torch.autocast(device, torch.bfloat16, enabled=settings.bfloat16):
            loss = objective(model, task, task.batches[index], settings.distillation)
        torch.autograd.backward(loss / settings.batch_size)
        losses.append((index, loss.item()))
    mean = add(sum(loss for _, loss in losses)) / settings.batch_size
    if not math.isfinite(mean):
        raise _not_finite(model, task, task.batches, losses, f"the loss in step {state.step + 1}")
    add_gradients(state.learned.values())
    norm = nn.utils.clip_grad_norm_(state.learned.values(), settings.clip)
    if not norm.isfinite():
        what = f"the gradient in step {state.step + 1}"
        raise _not_finite(model, task, task.batches, losses, what)
    state.optimizer.step()
    state.step += 1
    return {"step": state.step, "loss": mean, "gradient": norm.item(), "lr": lr}


def indices(step: int, batches: int, settings: Training) -> list[int]:
    """Return the batches of a step: of the seed's permutations of all, one after another."""
    places = range(step * settings.batch_size, (step + 1) * settings.batch_size)
    return [_order(place // batches, batches, settings.seed)[place % batches] for place in places]


def _order(epoch: int, batches: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(batches).tolist()
    return order


@torch.no_grad()
def judge(
    model: nn.Module, state: State, task: Task, batches: Sequence[Any], settings: Training
) -> float:
    """Return the mean loss on ``batches``, and keep the weights if it is the smallest so far.

    Raises:
        NotFinite: it is not; in all processes at once.
    """
    losses = [
        (place, objective(model, task, batches[place], settings.distillation).item())
        for place in share(range(len(batches)))
    ]
    mean = add(sum(loss for _, loss in losses)) / len(batches)
    if not math.isfinite(mean):
        when = f"after step {state.step}" if state.step else "before the first step"
        what = f"the loss of validation batches {when}"
        raise _not_finite(model, task, batches, losses, what)
    state.judge(mean)
    return mean


def _not_finite(
    model: nn.Module,
    task: Task,
    batches: Sequence[Any],
    losses: Sequence[tuple[int, float]],
    what: str,
) -> NotFinite:
    """Return the error, with what one of ``batches``, of this process, does to the layers.

    ``losses`` are its batches' places and their losses: the first to fail is looked at.
    """
    places = [place for place, _ in sorted(losses, key=lambda pair: math.isfinite(pair[1]))]
    where = "the outputs of all layers are finite"
    try:
        diagnosis = debug(model, [batches[place] for place in places[:1]], task.forward)
    except Exception as error:  # a loss may run the model in another way than task.forward
        where = f"which layer is the first to fail is unknown, forward fails ({error})"
    else:
        if diagnosis.finding and not all(layer.finite for layer in diagnosis.layers):
            finding = diagnosis.finding
            where = f"the first layer to fail is {finding.name}: {finding.cause}"
    return NotFinite(
        f"ptqat: {what} is not finite; {where}. The best weights so far are kept; look at the "
        "batch and the loss, or lower lr"
    )

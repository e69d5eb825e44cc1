"""One step of training, and the judgement of what it came to."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        NotFinite: the loss or its gradient is not.
    """
    lr = settings.lr * 0.5 * (1 + math.cos(math.pi * state.step / settings.steps))
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    device = next(iter(state.learned.values())).device.type
    losses = []
    for index in share(indices(state.step, len(task.batches), settings)):
        what = f"the loss in step {state.step + 1}"
        lower = torch.autocast(device, torch.bfloat16, enabled=settings.bfloat16)
        loss = _loss(model, task, task.batches[index], settings, what, lower)
        torch.autograd.backward(loss / settings.batch_size)
        losses.append(loss.item())
    add_gradients(state.learned.values())
    norm = nn.utils.clip_grad_norm_(state.learned.values(), settings.clip)
    if not norm.isfinite():
        what = f"the gradient in step {state.step + 1}"
        raise _not_finite(model, task, task.batches[index], what)
    state.optimizer.step()
    state.step += 1
    mean = add(sum(losses)) / settings.batch_size
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
        NotFinite: it is not.
    """
    when = f"after step {state.step}" if state.step else "before the first step"
    what = f"the loss of validation batches {when}"
    losses = (_loss(model, task, batch, settings, what).item() for batch in share(batches))
    mean = add(sum(losses)) / len(batches)
    state.judge(mean)
    return mean


def _loss(
    model: nn.Module,
    task: Task,
    batch: Any,
    settings: Training,
    what: str,
    precision: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 (it does nothing)
) -> Tensor:
    with precision:
        loss = objective(model, task, batch, settings.distillation)
    if not loss.isfinite():
        raise _not_finite(model, task, batch, what)
    return loss


def _not_finite(model: nn.Module, task: Task, batch: Any, what: str) -> NotFinite:
    where = "the outputs of all layers are finite"
    try:
        diagnosis = debug(model, [batch], task.forward)
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

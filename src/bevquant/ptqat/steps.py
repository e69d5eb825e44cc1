"""One step of training, and the judgement of what it came to."""

import math
from collections.abc import Sequence
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


def take_step(model: nn.Module, state: State, task: Task, settings: Training) -> dict[str, float]:
    """Take one step of the optimizer and return its numbers.

    Raises:
        BevquantError: the loss or its gradient is not finite.
    """
    lr = settings.lr * 0.5 * (1 + math.cos(math.pi * state.step / settings.steps))
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    losses = []
    for index in share(indices(state.step, len(task.batches), settings)):
        loss = _loss(model, state, task, task.batches[index], settings)
        torch.autograd.backward(loss / settings.batch_size)
        losses.append(loss.item())
    add_gradients(state.learned.values())
    norm = nn.utils.clip_grad_norm_(state.learned.values(), settings.clip)
    if not norm.isfinite():
        raise _not_finite(model, state, task, task.batches[index], "the gradient")
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
        BevquantError: it is not finite.
    """
    losses = (_loss(model, state, task, batch, settings).item() for batch in share(batches))
    loss = add(sum(losses)) / len(batches)
    state.judge(loss)
    return loss


def _loss(model: nn.Module, state: State, task: Task, batch: Any, settings: Training) -> Tensor:
    device = next(iter(state.learned.values())).device.type
    with torch.autocast(device, torch.bfloat16, enabled=settings.bfloat16):
        loss = objective(model, task, batch, settings.distillation)
    if not loss.isfinite():
        raise _not_finite(model, state, task, batch, "the loss")
    return loss


def _not_finite(model: nn.Module, state: State, task: Task, batch: Any, what: str) -> BevquantError:
    finding = debug(model, [batch], task.forward).finding
    where = (
        f"the first layer to fail is {finding.name}: {finding.cause}"
        if finding
        else ("all layers are finite, so it is the loss itself")
    )
    return BevquantError(
        f"ptqat: {what} is not finite in step {state.step + 1}; {where}. The best weights so far "
        "are kept; lower lr"
    )

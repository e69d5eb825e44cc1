"""The memory of a training step, counted."""

from collections.abc import Collection
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bevquant.ptqat.layers import training
from bevquant.ptqat.objective import objective
from bevquant.ptqat.recompute import recomputing
from bevquant.ptqat.settings import Training
from bevquant.ptqat.task import Task


def step_bytes(model: nn.Module, layers: Collection[str], task: Task, settings: Training) -> int:
    """Return what a training step holds: tensors kept for the backward pass, gradients, moments.

    Counted, not taken from the allocator: the same on every machine.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with training(model, layers, settings.learn_scale) as trained:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, recomputing(model) if settings.recompute else nullcontext():
            loss = objective(model, task, task.batches[0], settings.distillation)
        parameters = sum(p.nbytes for layer in trained for p in layer.learned.values())
        del loss  # until here it holds what was kept, so that no address is used twice
    return sum(kept.values()) + 3 * parameters

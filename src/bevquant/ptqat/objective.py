"""What training minimises: the task's loss, and the distance from the float network."""

from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.ptqat.task import Task
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.layers import floating


def objective(model: nn.Module, task: Task, batch: Any, distillation: float) -> Tensor:
    """Return ``task.loss`` plus ``distillation`` times :func:`distance`, a scalar.

    A task without a loss is distilled with weight 1.

    Raises:
        BevquantError: there is nothing to minimise.
    """
    if task.loss is None:
        return distance(model, task, batch)
    loss = task.loss(model, batch)
    return loss + distillation * distance(model, task, batch) if distillation else loss


def distance(model: nn.Module, task: Task, batch: Any) -> Tensor:
    """Return the mean squared error of the outputs over float's mean square; mean of tensors.

    The float network is ``model`` itself without quantization. What it picks with topk and
    the like is picked again, or rows of the outputs would not be the same things.

    Raises:
        BevquantError: the outputs hold no floating-point tensor.
    """
    with torch.no_grad(), floating(model), Recorded() as recorded:
        wanted = task.outputs(task.forward(model, batch))
    if not wanted:
        raise BevquantError("ptqat: the model returns no floating-point tensor to distil")
    with Replayed(recorded.choices):
        outputs = task.outputs(task.forward(model, batch))
    errors = [
        (output.float() - reference.float()).square().mean()
        / reference.float().square().mean().clamp_min(1e-12)
        for output, reference in zip(outputs, wanted, strict=True)
    ]
    return torch.stack(errors).mean()

"""What training minimises: the task's loss, and the distance from the float network."""

from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.ptqat.task import Task
from bevquant.ptqat.teacher import Lesson, answer
from bevquant.quant.choices import Replayed


def objective(model: nn.Module, task: Task, batch: Any, distillation: float) -> Tensor:
    """Return ``task.loss`` plus ``distillation`` times :func:`distance`, a scalar.

    A task without a loss is distilled with weight 1.

    Raises:
        BevquantError: ``task.loss`` returns no scalar, or one without a gradient; or as
            :func:`distance`.
    """
    if task.loss is None:
        return distance(model, task, batch)
    loss = task.loss(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise BevquantError(f"ptqat: task.loss returns {shape}; it must return a scalar tensor")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise BevquantError(
            "ptqat: task.loss returns a tensor without a gradient; leave out item(), detach() "
            "and no_grad() in it"
        )
    loss = loss.squeeze()
    return loss + distillation * distance(model, task, batch) if distillation else loss


def distance(model: nn.Module, task: Task, batch: Any) -> Tensor:
    """Return the mean squared error of the outputs over float's mean square; mean of tensors.

    Both are means weighted by ``task.weights``.
    What the float network picks with topk and the like is picked again, or rows of the
    outputs would not be the same things.

    Raises:
        BevquantError: the outputs hold no floating-point tensor, or not those of float.
    """
    wanted = batch.answer if isinstance(batch, Lesson) else answer(model, task, batch)
    with Replayed(wanted.choices):
        outputs = task.outputs(task.forward(model, batch))
    shapes = [[list(each.shape) for each in side] for side in (outputs, wanted.outputs)]
    if shapes[0] != shapes[1]:
        raise BevquantError(
            f"ptqat: outputs of shapes {shapes[0]} cannot be compared with float's {shapes[1]}; "
            "pick those of fixed shape with Task(outputs=)"
        )
    errors = [
        (weight * (output.float() - reference.float()).square()).mean()
        / (weight * reference.float().square()).mean().clamp_min(1e-12)
        for output, reference, weight in zip(outputs, wanted.outputs, wanted.weights, strict=True)
    ]
    return torch.stack(errors).mean()

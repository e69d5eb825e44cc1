"""What the task's loss could win by training a layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.progress import track
from bevquant.ptqat.cuts import Candidate
from bevquant.ptqat.layers import TrainedLayer, parameters_of, trainable_layers, training
from bevquant.ptqat.objective import objective
from bevquant.ptqat.task import Task
from bevquant.quant import affine
from bevquant.quant.kinds import weight_of


def promises(
    model: nn.Module, task: Task, batches: Sequence[Any], distillation: float = 1.0
) -> list[Candidate]:
    """Score each quantized layer by ``mean |gradient * (quantized weight - weight)|``.

    The gradient is that of what training minimises, with all layers quantized, by the
    quantized weight: to first order the sum is what the loss wins when the quantization
    error of each weight that does harm is taken away. The mean compares layers of different
    sizes under a budget of parameters.

    Args:
        model: quantized and calibrated.
        task: what is to be trained for.
        batches: to take the gradient on, one forward and backward pass each.
        distillation: as in training.

    Returns:
        The layers in order of their calls; those that the gradient does not reach have 0.

    Raises:
        BevquantError: no layer is quantized.
    """
    layers = trainable_layers(model)
    names = [layer.name for layer in layers]
    with training(model, names) as trained, torch.enable_grad():
        for batch in track(batches, "promise of each layer"):
            torch.autograd.backward(objective(model, task, batch, distillation))
        scores = {layer.name: _score(layer) for layer in trained}
    return [Candidate(x.name, parameters_of(x), scores[x.name]) for x in layers]


def _score(layer: TrainedLayer) -> float:
    gradient: Tensor | None = layer.latent.grad
    if gradient is None:
        return 0.0
    weight = weight_of(layer.wrapped).detach()
    quantized = affine.dequantize(layer.weight_codes, layer.weight_params)
    return float((gradient * (quantized - weight)).abs().mean())

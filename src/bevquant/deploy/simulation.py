"""What a quantized network computes on the sample that it is exported with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.quant.layers import quant_modules
from bevquant.quant.running import evaluating


def operand_shapes(
    module: nn.Module, inputs: Sequence[Any]
) -> dict[nn.Module, tuple[torch.Size, ...]]:
    """Return the shapes of the operands of each quantized product of two activations.

    The network is run once, and only if there is such a product.
    """
    shapes: dict[nn.Module, tuple[torch.Size, ...]] = {}

    def keep(layer: nn.Module, operands: tuple[Tensor, ...]) -> None:
        shapes[layer] = tuple(operand.shape for operand in operands)

    products = [layer for layer in quant_modules(module) if layer.operands == 2]
    hooks = [layer.register_forward_pre_hook(keep) for layer in products if layer.quantized]
    try:
        if hooks:
            with evaluating(module):
                module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes

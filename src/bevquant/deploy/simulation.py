"""What a quantized network computes on the sample that it is exported with."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bevquant.deploy.compiled import Array
from bevquant.quant.layers import QuantModule, quant_modules
from bevquant.quant.running import evaluating

Call = tuple[Tensor, ...]
"""The quantized inputs of one call of a layer."""


@dataclass(frozen=True)
class Simulation:
    """One run of a network.

    Attributes:
        outputs: all tensors that it returned, in order.
        calls: what each quantized layer was called with, call by call; by its name in the
            network that was run.
    """

    outputs: list[Array]
    calls: dict[str, list[Call]]


def operand_shapes(
    module: nn.Module, inputs: Sequence[Any]
) -> dict[nn.Module, tuple[torch.Size, ...]]:
    """Return the shapes of the operands of each quantized product of two activations.

    The network is run once, and only if there is such a product.
    """
    shapes: dict[nn.Module, tuple[torch.Size, ...]] = {}

    def keep(layer: QuantModule, operands: Call) -> None:
        shapes[layer] = tuple(operand.shape for operand in operands)

    products = [layer for layer in quant_modules(module) if layer.operands == 2 and layer.quantized]
    if products:
        with evaluating(module), _calling(products, keep):
            module(*inputs)
    return shapes


def simulate(
    module: nn.Module, inputs: Sequence[Any], *, kept_float: Collection[str], calls: bool
) -> Simulation:
    """Run ``module`` once.

    Args:
        module: quantized or not.
        inputs: its arguments.
        kept_float: names of layers that run float in spite of their precision.
        calls: whether to keep copies of what the quantized layers are called with.
    """
    names = {
        layer: name
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, QuantModule)
    }
    bypassed = [layer for layer, name in names.items() if name in kept_float]
    kept: dict[str, list[Call]] = {}

    def keep(layer: QuantModule, operands: Call) -> None:
        copies = tuple(x.detach().to("cpu", copy=True) for x in operands[: layer.operands])
        kept.setdefault(names[layer], []).append(copies)

    try:
        for layer in bypassed:
            layer.bypass = True
        quantized = [layer for layer in names if layer.quantized] if calls else []
        with evaluating(module), _calling(quantized, keep):
            outputs = module(*inputs)
    finally:
        for layer in bypassed:
            layer.bypass = False
    return Simulation(arrays(outputs), kept)


def arrays(values: Any) -> list[Array]:
    """Return every tensor in ``values``, however nested, in order."""
    leaves = pytree.tree_leaves(values)
    return [x.detach().cpu().contiguous().numpy() for x in leaves if isinstance(x, Tensor)]


@contextmanager
def _calling(
    layers: Sequence[QuantModule], tell: Callable[[QuantModule, Call], None]
) -> Iterator[None]:
    def hook(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, QuantModule)
        tell(layer, (*positional, *named.values()))

    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()

"""Running a user's model: how, in which mode, and what it computes where."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bevquant.errors import BevquantError

_PARTS = (tuple, list, Mapping, str, bytes, int, float)

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on one batch of any type; what it returns is not looked at."""


def call(model: nn.Module, batch: Any) -> Any:
    """Return ``model(batch)``: the :data:`Forward` of a model that takes its batch whole.

    Raises:
        BevquantError: the model fails on a batch of several parts, as it does if it wants
            one of them.
    """
    try:
        return model(batch)
    except (TypeError, AttributeError) as error:
        if batch is not None and not isinstance(batch, _PARTS):
            raise
        part = "**batch" if isinstance(batch, Mapping) else "batch[0]"
        raise BevquantError(
            f"the model fails on a batch of type {type(batch).__name__}; if it does not take it "
            f"whole, give forward=lambda model, batch: model({part}) (it says: {error})"
        ) from error


def refuse_inference_tensors(model: nn.Module, verb: str) -> None:
    """Refuse a model that was built in inference mode.

    Raises:
        BevquantError: a parameter is an inference tensor; the message names it.
    """
    for name, tensor in nn.Module.named_parameters(model):
        if not nn.parameter.is_lazy(tensor) and tensor.is_inference():
            raise BevquantError(
                f"{verb}: {name} was made inside torch.inference_mode(), so it can never meet "
                "gradients; build the model outside"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode, without gradients, for a ``with`` block.

    Not in inference mode, whoever may have entered it: what is computed is kept, and may
    meet gradients later.
    """
    training = [module for module in nn.Module.modules(model) if module.training]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of attention from the shapes of its operands."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# What PyTorch's flop counter takes for nothing.
_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@contextmanager
def counting_macs(model: nn.Module) -> Iterator[Counter[nn.Module]]:
    """Count multiply-accumulates while a ``with`` block runs ``model``.

    Yields the count of each module, filled as the block runs: convolutions and matrix
    products (PyTorch's flop counter, so zero padding counts) that its own code computes,
    without those of the modules it calls.
    """
    macs: Counter[nn.Module] = Counter()
    running = [model]
    counted = 0

    def settle() -> None:
        nonlocal counted
        total = counter.get_total_flops()
        macs[running[-1]] += (total - counted) // 2
        counted = total

    def enter(module: nn.Module, _: Any) -> None:
        settle()
        running.append(module)

    def leave(*_: Any) -> None:
        settle()
        running.pop()

    hooks = []
    for module in nn.Module.modules(model):
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            yield macs
            settle()
    finally:
        for hook in hooks:
            hook.remove()

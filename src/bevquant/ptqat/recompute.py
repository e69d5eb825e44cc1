"""Gradient checkpointing: less memory for more time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.layers import quant_modules


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let the main modules keep nothing but their inputs for the backward pass.

    It runs each of them a second time (Chen et al., arXiv 1604.06174), with the indices that
    it picked (topk and the like) in the first run.

    Args:
        model: quantized; its main modules are those that ``quantize`` was told or found.
    """
    known = dict(model.named_modules())
    names = {layer.main_module for layer in quant_modules(model)} - {""}
    modules = [known[name] for name in sorted(names)]
    own = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            # On the instance: its class, and what nn.Module.__call__ does, stay as they are.
            module.__dict__["forward"] = _twice(module.forward)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=_contexts, **kwargs)

    return run


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what the first and the second run happen in."""
    recorded = Recorded()
    return recorded, Replayed(recorded.choices)

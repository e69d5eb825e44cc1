"""The tensors in whatever a model returns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from bevquant.errors import BevquantError

Outputs = Callable[[Any], list[Tensor]]
"""Picks the tensors that count from what a model returned."""


def floating_tensors(value: Any) -> list[Tensor]:
    """Return the floating-point tensors in nested mappings, sequences and dataclasses."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    return [tensor for part in parts for tensor in floating_tensors(part)]


def agree(outputs: Sequence[Tensor], wanted: Sequence[Tensor], share: float) -> bool:
    """Whether no element is off by more than a ``share`` of its tensor's largest finite value."""
    if [x.shape for x in outputs] != [x.shape for x in wanted]:
        return False
    for output, exact in zip(outputs, wanted, strict=True):
        bound = share * float(exact.abs().nan_to_num(0, 0, 0).amax()) if exact.numel() else 0.0
        if not torch.allclose(output, exact, rtol=0, atol=bound, equal_nan=True):
            return False
    return True


def error_of(value: Any, output: Any, verb: str) -> float:
    """Return what an error function said of ``output``: 0 or more, infinity if not finite.

    Raises:
        BevquantError: ``value`` is no number, is negative, or is not finite although the
            output is.
    """
    try:
        error = float(value)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise BevquantError(
            f"{verb}: the error function returned {_described(value)}; it must return one number"
        ) from failure
    if error < 0:
        raise BevquantError(f"{verb}: the error function returned {error}; errors are 0 or more")
    if not isfinite(error):
        if all(bool(tensor.isfinite().all()) for tensor in floating_tensors(output)):
            raise BevquantError(
                f"{verb}: the error function returned {error} for finite outputs; it must return "
                "a number, 0 for no difference"
            )
        return inf
    return error


def _described(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]

"""The tensors in whatever a model returns."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

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

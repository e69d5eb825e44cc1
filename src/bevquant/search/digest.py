"""A fast digest of what a module is given, which need not read tensors it knows."""

import dataclasses
import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Name = Callable[[Tensor], str | None]
"""Returns a name that stands for the values of a tensor, or ``None``."""


def digest(value: Any, name: Name = lambda tensor: None) -> str:
    """Return a digest of a tree of tensors, arrays, containers, dataclasses and scalars.

    Anything else counts by its pickle. A tensor counts by type, shape and values, wherever
    it is stored.

    Args:
        value: the tree.
        name: saves the reading of tensors that have a name.
    """
    hasher = hashlib.sha1(usedforsecurity=False)
    _feed(hasher.update, value, name)
    return hasher.hexdigest()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def _feed(update: Callable[[bytes | memoryview], None], value: Any, name: Name) -> None:
    update(f"<{type(value).__qualname__}".encode())
    if isinstance(value, Tensor):
        named = name(value)
        if named is not None:
            update(named.encode())
        else:
            update(f"{value.dtype}{tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous()
            update(plain.flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        update(f"{value.dtype}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _feed(update, key, name)
            _feed(update, item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(update, item, name)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _feed(update, getattr(value, field.name), name)
    elif isinstance(value, str | bytes | int | float | bool | None):
        update(repr(value).encode())
    else:
        update(pickle.dumps(value))
    update(b">")

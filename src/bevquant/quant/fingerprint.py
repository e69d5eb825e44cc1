"""Digests by which a continued piece of work knows its model and its data again."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevquant.quant.layers import QuantLayer, quant_modules


def fingerprint(value: Any) -> str:
    """Return a digest of nested containers, dataclasses and objects, tensors to the last bit.

    Of other objects their attributes count, and their type's name.
    """
    digest = hashlib.sha256()
    _feed(digest, value, set())
    return digest.hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Return a digest of all that decides what a calibrated model computes at given bits."""
    layers = [
        (
            layer.name,
            layer.kind,
            layer.scheme,
            [quantizer.ranges for quantizer in layer.inputs],
            layer.refined,
            layer.rounded if isinstance(layer, QuantLayer) else {},
        )
        for layer in quant_modules(model)
    ]
    return fingerprint((model.state_dict(), layers))


def _feed(digest: Any, value: Any, parents: set[int]) -> None:
    if id(value) in parents:
        return
    inside = {*parents, id(value)}
    digest.update(f"{type(value).__module__}.{type(value).__qualname__}(".encode())
    parts: Any = ()
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, (str, bytes, int, float, complex)):
        digest.update(repr(value).encode())
    elif isinstance(value, Mapping):
        parts = [part for item in value.items() for part in item]
    elif isinstance(value, (list, tuple)):
        parts = value
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        parts = list(getattr(value, "__dict__", {}).items())
    for part in parts:
        _feed(digest, part, inside)
    digest.update(b")")

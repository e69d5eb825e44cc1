"""What evaluations depend on, so that a ledger is never continued with something else."""

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from bevquant.quant.fingerprint import fingerprint
from bevquant.quant.layers import QuantLayer, quant_modules
from bevquant.search.costs import Cost
from bevquant.search.evaluator import Evaluator


def setup_of(evaluator: Evaluator, costs: Sequence[Cost]) -> dict[str, str]:
    """Return what evaluations depend on, part by part."""
    layers = quant_modules(evaluator.model)
    found = [
        (
            layer.name,
            [quantizer.ranges for quantizer in layer.inputs],
            layer.refined,
            layer.rounded if isinstance(layer, QuantLayer) else {},
        )
        for layer in layers
    ]
    return {
        "layers and schemes": fingerprint([(x.name, x.kind, x.scheme) for x in layers]),
        "weights": fingerprint(dict(evaluator.model.state_dict())),
        "calibration": fingerprint(found),
        "space": fingerprint(evaluator.space),
        "batches": fingerprint(list(evaluator.batches)),
        "error": describe(evaluator.error),
        "forward": describe(evaluator.forward),
        "costs": fingerprint(list(costs)),
        "threads": str(evaluator.threads),
        "torch": str(torch.__version__),
    }


def describe(function: Any) -> str:
    """Return what identifies a function: its name and source, or the parts of a dataclass."""
    if isinstance(function, functools.partial):
        inner = describe(function.func)
        return f"partial({inner}, {fingerprint((function.args, function.keywords))})"
    if dataclasses.is_dataclass(function):
        parts = (getattr(function, field.name) for field in dataclasses.fields(function))
        described = (describe(part) if callable(part) else repr(part) for part in parts)
        return f"{type(function).__module__}.{type(function).__qualname__}({', '.join(described)})"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = ""
    return f"{getattr(function, '__module__', '')}.{name} {fingerprint(source)}"

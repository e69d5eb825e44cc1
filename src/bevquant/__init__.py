"""Quantize camera-LiDAR perception networks, and measure what they still see."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bevquant.errors import BevquantError
from bevquant.nn import Einsum, MatMul
from bevquant.ptqat.precheck import precheck
from bevquant.ptqat.selection import Rule
from bevquant.ptqat.settings import Training
from bevquant.ptqat.start import ptqat
from bevquant.ptqat.task import Task
from bevquant.quant.calibrate import calibrate
from bevquant.quant.calibration import load_calibration, save_calibration
from bevquant.quant.clipping import MSE, Entropy, Percentile
from bevquant.quant.diagnostics.debug import debug
from bevquant.quant.diagnostics.sensitivity import sensitivity
from bevquant.quant.equalization.equalize import equalize
from bevquant.quant.fold import fold_batchnorm
from bevquant.quant.inventory import layers, unquantized
from bevquant.quant.observers import MinMax, MovingAverage
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply, quantize, restore
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import Refinement, refine
from bevquant.quant.spec import (
    DEPLOY,
    SYMMETRIC,
    THESIS,
    W2A8,
    W3A8,
    W4A8,
    W8A8,
    W16A16,
    Precision,
    Scheme,
    TensorScheme,
)
from bevquant.search.search import search

if TYPE_CHECKING:
    from bevquant.deploy.export import export_module as export
    from bevquant.deploy.lint import lint

    __version__: str

__all__ = [
    "DEPLOY",
    "MSE",
    "SYMMETRIC",
    "THESIS",
    "W2A8",
    "W3A8",
    "W4A8",
    "W8A8",
    "W16A16",
    "BevquantError",
    "BitPolicy",
    "Einsum",
    "Entropy",
    "MatMul",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "Precision",
    "Refinement",
    "Rule",
    "Scheme",
    "Task",
    "TensorScheme",
    "Training",
    "apply",
    "calibrate",
    "debug",
    "equalize",
    "export",
    "fold_batchnorm",
    "layers",
    "lint",
    "load_calibration",
    "precheck",
    "ptqat",
    "quantize",
    "reconstruct",
    "refine",
    "restore",
    "save_calibration",
    "search",
    "sensitivity",
    "unquantized",
]


def __getattr__(name: str) -> Any:
    """Import what needs the exporter only where it is wanted: it takes a second."""
    if name == "__version__":
        return version("bevquant")
    if name == "export":
        from bevquant.deploy.export import export_module  # noqa: PLC0415

        return export_module
    if name == "lint":
        from bevquant.deploy.lint import lint  # noqa: PLC0415

        return lint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

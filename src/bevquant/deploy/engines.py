"""Engines that run an exported network: one interface to OpenVINO and ONNX Runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from bevquant.deploy.artefact import Artefact, read
from bevquant.deploy.card import Card
from bevquant.deploy.compiled import Arithmetic, Array, Compiled, Run
from bevquant.deploy.lint import products_of
from bevquant.deploy.pack import widen
from bevquant.deploy.run_onnxruntime import compile_literal, compile_onnxruntime
from bevquant.deploy.run_openvino import compile_openvino, has_bf16
from bevquant.errors import BevquantError

__all__ = [
    "Arithmetic",
    "Array",
    "Engine",
    "EngineName",
    "Input",
    "has_bf16",
    "open_engine",
]

EngineName = Literal["openvino", "onnxruntime", "literal"]
ENGINES: dict[EngineName, Callable[[ir.Model, int, Arithmetic], Compiled]] = {
    "openvino": compile_openvino,
    "onnxruntime": compile_onnxruntime,
    "literal": compile_literal,
}
PACKAGES: dict[EngineName, str] = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "literal": "onnxruntime",
}
"""What has to be installed for each."""


@dataclass(frozen=True)
class Input:
    """What an exported network takes.

    Attributes:
        name: in the file.
        shape: ``None`` for a size that may differ from call to call.
        dtype: of the array.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def fits(self, array: Array) -> bool:
        """Return whether ``array`` is of this shape and type."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(map(_fits, array.shape, self.shape))
        )

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run; call it with its inputs.

    Attributes:
        run: input arrays, in the order of the file, to output arrays.
        inputs: what it takes.
        card: what the file says about itself.
        integer_layers: the layers that this engine really executes in 8-bit integers.
        request: of OpenVINO, whose performance counters are on; ``None`` in other engines
            and for a network in several files.
    """

    run: Run
    inputs: tuple[Input, ...]
    card: Card
    integer_layers: tuple[str, ...]
    request: Any = None

    @property
    def precisions(self) -> dict[str, str]:
        """Each quantizable layer's precision in the file, ``"W8A8"`` or ``"float"``."""
        return self.card.layers

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the network once.

        Raises:
            BevquantError: ``arrays`` are not what the file takes, or the engine fails.
        """
        if len(arrays) != len(self.inputs):
            raise BevquantError(f"{len(arrays)} inputs: the file takes {len(self.inputs)}")
        for array, wanted in zip(arrays, self.inputs, strict=True):
            if not wanted.fits(array):
                other = replace(wanted, shape=(None, *wanted.shape[1:])).fits(array)
                hint = "; export it with dynamic_batch=True" if other else ""
                raise BevquantError(
                    f"input {array.dtype} {list(array.shape)}: the file takes {wanted}{hint}"
                )
        try:
            return self.run(arrays)
        except RuntimeError as error:  # what both engines' exceptions are
            raise BevquantError(f"the engine failed on these inputs ({_last(error)})") from error


def open_engine(
    path: str | Path,
    engine: EngineName | None = None,
    threads: int = 1,
    arithmetic: Arithmetic = "f32",
) -> Engine:
    """Load an exported file, or the files of a manifest.

    Args:
        path: of :func:`~bevquant.deploy.export.export_module`.
        engine: ``"openvino"`` runs fast; ``"onnxruntime"`` too, and on one thread only
            where the network adds up rows of one index; ``"literal"`` executes every
            QuantizeLinear and DequantizeLinear in float, by ONNX Runtime on one thread
            without optimisation, and is what others are compared with. By default the
            target of the file, or OpenVINO, which runs TensorRT's form as well.
        threads: of the engine.
        arithmetic: of OpenVINO where it does not compute in integers; ``"bf16"`` is refused
            on a processor that has none.

    Raises:
        BevquantError: a file is missing, damaged or not one of ours, or the engine is not
            installed, too old or cannot run it.
    """
    artefact = read(Path(path))
    wanted = artefact.card.target if engine is None else engine
    name: EngineName = "openvino" if wanted == "tensorrt" else wanted
    try:
        return compile_artefact(artefact, name, threads, arithmetic)
    except BevquantError:
        raise
    except Exception as error:  # whatever an engine makes of a graph that it cannot run
        raise BevquantError(f"{path}: {name} cannot load it ({_last(error)})") from error


def compile_artefact(
    artefact: Artefact, engine: EngineName, threads: int = 1, arithmetic: Arithmetic = "f32"
) -> Engine:
    """Load a network that was read already; arguments are those of :func:`open_engine`.

    Raises:
        BevquantError: the engine is not installed or too old; whatever else it makes of a
            graph that it cannot run passes through.
    """
    values = {v.name: v for _, model in artefact.parts for v in model.graph.inputs}
    inputs = tuple(_input(values[name]) for name in artefact.inputs)
    calls = {
        layer: [(str(node.name), str(node.outputs[0].name)) for node in nodes]
        for layer, nodes in products_of(artefact).items()
    }
    stages = []
    executed: set[str] = set()
    for _, model in artefact.parts:
        takes, gives = ([str(v.name) for v in e] for e in (model.graph.inputs, model.graph.outputs))
        widen(model)
        compiled = ENGINES[engine](model, threads, arithmetic)
        stages.append((takes, gives, compiled))
        executed |= compiled.integers
    # A product whose output is one of the network's may go by the name of that output.
    integer_layers = [
        layer
        for layer in artefact.card.layers
        if layer in calls and all(not executed.isdisjoint(names) for names in calls[layer])
    ]

    def run_all(arrays: Sequence[Array]) -> list[Array]:
        known = dict(zip(artefact.inputs, arrays, strict=True))
        for takes, gives, part in stages:
            known.update(zip(gives, part.run([known[name] for name in takes]), strict=True))
        return [known[name] for name in artefact.outputs]

    request = stages[0][2].request if len(stages) == 1 else None
    return Engine(run_all, inputs, artefact.card, tuple(integer_layers), request)


def _input(value: ir.Value) -> Input:
    assert value.dtype is not None
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    return Input(str(value.name), shape, value.dtype.numpy())


def _fits(given: int, wanted: int | None) -> bool:
    return wanted in (given, None)


def _last(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__

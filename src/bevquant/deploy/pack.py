"""How the constants of a graph are stored: as small as they can be without loss."""

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[np.generic]

WEIGHT_NAME = "weight_int"
"""Buffers with integer weights are called so, followed by the bits they are stored in."""

OPSET = (21, 10)
"""Opset that files are written in, and its IR version; it has everything but INT2."""
INT2_OPSET = (25, 13)

PACKED = {f"{WEIGHT_NAME}4": ml_dtypes.int4, f"{WEIGHT_NAME}2": ml_dtypes.int2}

NARROWER: dict[type, tuple[type, ...]] = {
    np.float32: (np.int8, np.float16),
    np.int64: (np.uint8, np.int16),
}
NARROWED_ELEMENTS = 1024
"""Constants with fewer elements are stored as they are."""


def constant(value: ir.Value | None) -> Array:
    """Return the array of an initializer."""
    assert value is not None
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def set_constant(value: ir.Value, array: Array) -> None:
    """Replace the array of an initializer."""
    tensor = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    value.const_value, value.dtype, value.shape = tensor, tensor.dtype, ir.Shape(array.shape)


def pack(model: ir.Model, *, widen: bool = False) -> None:
    """Store 4-bit weights two to a byte, 2-bit weights four to a byte, low bits first.

    With ``widen`` they stay int8.
    """
    model.opset_imports[""], model.ir_version = OPSET
    for name, value in model.graph.initializers.items():
        dtype = None if widen else PACKED.get(name.rpartition(".")[2])
        if dtype is not None:
            set_constant(value, constant(value).astype(dtype))
        if dtype is ml_dtypes.int2:
            model.opset_imports[""], model.ir_version = INT2_OPSET


NEEDS_LOADER = (
    "needs bevquant's loader (open_engine): no engine opens 2-bit weights by itself; export with "
    "widen=True (--widen) for a file that any opens"
)
FLOAT_ALONE = (
    "opens without bevquant's loader, but layers of 4-bit weights then run as float; export "
    "with widen=True (--widen) for a file that runs them as integers anywhere"
)


def loader_note(models: Iterable[ir.Model]) -> str:
    """Return what an engine that opens these graphs by itself misses, empty if nothing."""
    constants = (value.const_value for m in models for value in m.graph.initializers.values())
    stored = {tensor.dtype for tensor in constants if tensor is not None}
    if ir.DataType.INT2 in stored:
        return NEEDS_LOADER
    return FLOAT_ALONE if ir.DataType.INT4 in stored else ""


def widen(model: ir.Model) -> None:
    """Turn packed weights into int8, which is what engines have kernels for; exact."""
    for value in model.graph.initializers.values():
        if value.dtype in (ir.DataType.INT4, ir.DataType.INT2):
            set_constant(value, constant(value).astype(np.int8))
    model.opset_imports[""], model.ir_version = OPSET


def narrow(model: ir.Model) -> None:
    """Store large constants in a smaller type where that holds every value exactly.

    Attention masks, position indices and grids are such constants; a Cast, which engines
    compute once, restores their type.
    """
    for value in list(model.graph.initializers.values()):
        array = constant(value)
        if array.size < NARROWED_ELEMENTS or value.is_graph_output():
            continue
        for dtype in NARROWER.get(array.dtype.type, ()):
            with np.errstate(over="ignore", invalid="ignore"):
                smaller: Array = array.astype(dtype)
            if np.array_equal(smaller, array):
                original = ir.DataType.from_numpy(array.dtype)
                cast = ir.node("Cast", [value], {"to": original}, name=f"{value.name}/cast")
                cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, original
                value.replace_all_uses_with(cast.outputs[0])
                cast.replace_input_with(0, value)
                set_constant(value, smaller)
                model.graph.insert_before(model.graph[0], cast)
                break

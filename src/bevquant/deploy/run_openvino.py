"""OpenVINO on the CPU."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx_ir as ir

from bevquant.deploy.compiled import Arithmetic, Array, Compiled
from bevquant.deploy.installed import engine_package
from bevquant.deploy.placement import (
    fold_constants,
    has_vnni,
    linear_as_convolution,
    unsigned_codes,
)
from bevquant.errors import BevquantError

INTEGER_PRECISIONS = ("u8", "i8")
PRODUCT_TYPES = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def compile_openvino(model: ir.Model, threads: int, arithmetic: Arithmetic) -> Compiled:
    """Compile ``model``, which is changed.

    Raises:
        BevquantError: OpenVINO is missing or too old, or the processor has no bfloat16.
    """
    core = _core(engine_package("openvino"))
    if arithmetic == "bf16" and not has_bf16():
        raise BevquantError("OpenVINO computes in bfloat16 only where the processor does")
    unsigned_codes(model)
    if not has_vnni():
        linear_as_convolution(model)
    options = {
        # OpenVINO's own choices are bfloat16 where the processor has it, and integer
        # activations in layers of which only the weights are integers.
        "INFERENCE_PRECISION_HINT": arithmetic,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        # No slower: two readings of the clock for each node.
        "PERF_COUNT": True,
    }
    try:
        compiled = core.compile_model(_read(core, model), "CPU", options)
    except RuntimeError:
        fold_constants(model)
        compiled = core.compile_model(_read(core, model), "CPU", options)
    request = compiled.create_infer_request()

    def run(arrays: Sequence[Array]) -> list[Array]:
        results = request.infer(list(arrays), share_inputs=True)
        return [results[output] for output in compiled.outputs]

    return Compiled(run, frozenset(_integer_products(compiled)), request)


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    core = _core(engine_package("openvino"))
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core(openvino: Any) -> Any:
    """Return the one runtime of this process.

    A second one that is freed leaves the process an alternate signal stack that is freed too:
    the next signal that Python handles ends the process.
    """
    return openvino.Core()


def _read(core: Any, model: ir.Model) -> Any:
    return core.read_model(ir.serde.serialize_model(model).SerializeToString())


def _integer_products(compiled: Any) -> set[str]:
    """Return the names of the nodes that are part of products of 8-bit integers."""
    names: set[str] = set()
    for node in compiled.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in node.rt_info.items()}
        product = info["layerType"].startswith(PRODUCT_TYPES)
        if product and info["runtimePrecision"] in INTEGER_PRECISIONS:
            # "_original" is the product of an output that was given that output's name.
            names |= {
                name.split("/")[0].removesuffix("_original")
                for name in info["originalLayersNames"].split(",")
            }
    return names

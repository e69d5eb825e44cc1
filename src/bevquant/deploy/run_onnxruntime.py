"""ONNX Runtime on the CPU, optimised, and step by step as the reference."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from bevquant.deploy.compiled import Arithmetic, Array, Compiled, Run
from bevquant.deploy.installed import engine_package
from bevquant.deploy.placement import (
    gemm_as_product,
    integer_biases,
    unsigned_codes,
    wide_layers_as_float,
)
from bevquant.errors import BevquantError

INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat")

NOT_WANTED = ["MatMulAddFusion"]
"""It makes products with a bias a Gemm, which runs in integers only with a quantized output."""

ADDED = re.compile(r"(/.*|_token_\d+)$")
"""What the optimiser puts behind the name of a node that it changes."""


def compile_onnxruntime(model: ir.Model, threads: int, arithmetic: Arithmetic) -> Compiled:
    """Compile ``model``, which is changed.

    Raises:
        BevquantError: ONNX Runtime is missing or too old, or ``arithmetic`` is bfloat16.
    """
    _only_float(arithmetic)
    unsigned_codes(model)
    gemm_as_product(model)
    disabled = list(NOT_WANTED)
    if wide_layers_as_float(model):
        integer_biases(model)
        disabled.append("WeightBiasQuantization")
    if _sums_rows(model):
        threads = 1
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        run = _session(model, threads, optimized, disabled)
        nodes = onnx.load_model(optimized).graph.node
    executed = [node.name for node in nodes if node.op_type in INTEGER_OPERATORS]
    return Compiled(run, frozenset(ADDED.sub("", name) for name in executed))


def compile_literal(model: ir.Model, threads: int, arithmetic: Arithmetic) -> Compiled:
    """Compile ``model`` so that every operator in it is executed as it is, on one thread.

    Raises:
        BevquantError: as :func:`compile_onnxruntime`.
    """
    _only_float(arithmetic)
    return Compiled(_session(model, 1, None))


def _only_float(arithmetic: Arithmetic) -> None:
    if arithmetic != "f32":
        raise BevquantError("bfloat16 needs OpenVINO; ONNX Runtime has none on a CPU")


def _session(
    model: ir.Model, threads: int, optimized: Path | None, disabled: Sequence[str] = ()
) -> Run:
    onnxruntime = engine_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # not a line for every constant that was folded
    # Float activations stay float32: by itself ONNX Runtime makes them 8-bit integers before
    # weights of 8 bits and less, on processors that have kernels for it (VNNI).
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(disabled),
    )
    names = [value.name for value in session.get_inputs()]

    def run(arrays: Sequence[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(names, arrays, strict=True))))

    return run


def _sums_rows(model: ir.Model) -> bool:
    """Return whether rows of the same index are added up.

    With more than one thread ONNX Runtime 1.31 loses terms of such sums (its issues 18048
    and 23396).
    """
    return any(
        node.op_type == "ScatterND" and node.attributes.get_string("reduction", "none") != "none"
        for node in model.graph
    )

"""Engines that run an exported file: OpenVINO, and ONNX Runtime as the literal reference."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import onnx
import onnx_ir as ir
import openvino
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from bevquant.deploy.export import LAYERS_KEY
from bevquant.deploy.graph import CALL
from bevquant.deploy.pack import widen
from bevquant.deploy.placement import has_vnni, linear_as_convolution
from bevquant.errors import BevquantError

EngineName = Literal["openvino", "literal"]
Arithmetic = Literal["f32", "bf16"]
Array = npt.NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]

INTEGER_PRECISIONS = ("u8", "i8")
PRODUCT_TYPES = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run; call it with its inputs.

    Attributes:
        run: input arrays, in the order of the file, to output arrays.
        input_shapes: of each input; ``None`` for a size that may differ from call to call.
        metadata: what the file says about itself.
        precisions: each quantizable layer's precision in the file, ``"W8A8"`` or ``"float"``;
            empty where nothing was quantized.
        integer_layers: the layers that this engine really executes in 8-bit integers.
        request: of OpenVINO, whose performance counters are on; ``None`` in other engines.
    """

    run: Run
    input_shapes: tuple[tuple[int | None, ...], ...]
    metadata: dict[str, str]
    precisions: dict[str, str]
    integer_layers: tuple[str, ...]
    request: openvino.InferRequest | None = None

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the network once.

        Raises:
            BevquantError: ``arrays`` are not what the file takes.
        """
        given = [array.shape for array in arrays]
        if not len(given) == len(self.input_shapes) or not all(
            map(_fits, given, self.input_shapes)
        ):
            raise BevquantError(f"input shapes {given}: the file takes {list(self.input_shapes)}")
        return self.run(arrays)


def open_engine(
    path: Path,
    engine: EngineName = "openvino",
    threads: int = 1,
    arithmetic: Arithmetic = "f32",
) -> Engine:
    """Load an exported file.

    Args:
        path: of :func:`~bevquant.deploy.export.export_module`.
        engine: ``"openvino"`` runs fast; ``"literal"`` executes every QuantizeLinear and
            DequantizeLinear in float, by ONNX Runtime on one thread without optimisation,
            and is what other engines are compared with.
        threads: of OpenVINO.
        arithmetic: of OpenVINO where it does not compute in integers; ``"bf16"`` is refused
            on a processor that has none.

    Raises:
        BevquantError: the file is missing, damaged or not one of ours, or the engine is
            not installed or cannot run it.
    """
    model = read(path)
    precisions = json.loads(model.metadata_props[LAYERS_KEY])
    shapes = [
        tuple(size if isinstance(size, int) else None for size in value.shape or ())
        for value in model.graph.inputs
    ]
    widen(model)
    try:
        if engine == "openvino":
            run, integer_layers, request = _openvino(model, threads, arithmetic)
        else:
            run, integer_layers, request = _literal(model), (), None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise BevquantError(f"{path}: {engine} cannot load it ({reason})") from error
    metadata = dict(model.metadata_props)
    return Engine(run, tuple(shapes), metadata, precisions, integer_layers, request)


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def read(path: Path) -> ir.Model:
    """Read an exported file as it is stored.

    Raises:
        BevquantError: the file is missing, damaged or not one of ours.
    """
    try:
        model = ir.serde.deserialize_model(onnx.load_model_from_string(path.read_bytes()))
    except OSError as error:
        raise BevquantError(f"{path}: cannot be read ({error.strerror})") from error
    except (DecodeError, ValueError, KeyError, TypeError) as error:
        raise BevquantError(f"{path}: damaged, or not an ONNX file; export it again") from error
    if LAYERS_KEY not in model.metadata_props:
        raise BevquantError(f"{path}: truncated, or not exported by bevquant; export it again")
    return model


def _openvino(
    model: ir.Model, threads: int, arithmetic: Arithmetic
) -> tuple[Run, tuple[str, ...], openvino.InferRequest]:
    if arithmetic == "bf16" and not has_bf16():
        raise BevquantError("OpenVINO computes in bfloat16 only where the processor does")
    if not has_vnni():
        linear_as_convolution(model)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(_serialize(model)),
        "CPU",
        {
            # OpenVINO's own choices are bfloat16 where the processor has it, and integer
            # activations in layers of which only the weights are integers.
            "INFERENCE_PRECISION_HINT": arithmetic,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            # No slower: two readings of the clock for each node.
            "PERF_COUNT": True,
        },
    )
    request = compiled.create_infer_request()

    def run(arrays: Sequence[Array]) -> list[Array]:
        results = request.infer(list(arrays), share_inputs=True)
        return [results[output] for output in compiled.outputs]

    executed = _integer_products(compiled)
    products: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        products.setdefault((node.name or "").split(CALL)[0], []).append(node)

    def is_integer(node: ir.Node) -> bool:
        # A product whose output is one of the network's goes by the name of that output.
        return not executed.isdisjoint((node.name, node.outputs[0].name))

    layers = json.loads(model.metadata_props[LAYERS_KEY])
    integer_layers = tuple(
        layer for layer in layers if layer in products and all(map(is_integer, products[layer]))
    )
    return run, integer_layers, request


def _integer_products(compiled: openvino.CompiledModel) -> set[str]:
    """Return the names of the nodes that are part of products of 8-bit integers."""
    names: set[str] = set()
    for node in compiled.get_runtime_model().get_ops():
        info = {key: str(value.astype(str)) for key, value in node.rt_info.items()}
        product = info["layerType"].startswith(PRODUCT_TYPES)
        if product and info["runtimePrecision"] in INTEGER_PRECISIONS:
            names |= {name.split("/")[0] for name in info["originalLayersNames"].split(",")}
    return names


def _literal(model: ir.Model) -> Run:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        raise BevquantError(
            "engine 'literal' needs ONNX Runtime: pip install 'bevquant[onnxruntime]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # With more threads ONNX Runtime 1.31 loses terms of the sums in ScatterND.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        _serialize(model), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]

    def run(arrays: Sequence[Array]) -> list[Array]:
        return list(session.run(None, dict(zip(names, arrays, strict=True))))

    return run


def _serialize(model: ir.Model) -> bytes:
    serialized: bytes = ir.serde.serialize_model(model).SerializeToString()
    return serialized


def _fits(given: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(given) == len(expected) and all(
        wanted in (size, None) for size, wanted in zip(given, expected, strict=True)
    )

"""Quantizers of ONNX graphs."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from _job import Feed, Job, Quantized, feeds_of, predictor

from bevquant.deploy.runtime import flatten
from bevquant.evaluate import Predictor
from bevquant.models.bevfusion import NetworkInput
from bevquant.run import load_small

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def onnx_runtime(job: Job) -> Quantized:
    """ONNX Runtime's own static quantizer: min-max ranges, products only, QDQ.

    Its other ranges (entropy, percentile) cannot take inputs whose length differs from frame
    to frame; its default list of operators (additions, softmax and so on as integers too)
    loses two points more.
    """
    import onnxruntime

    model = onnx.load(onnx_runtime_file(job))
    stored = {each.name: each for each in model.graph.initializer}
    wanted = {8: onnx.TensorProto.INT8, 4: onnx.TensorProto.INT4}[job.precision.weights]
    weights = sum(
        node.op_type == "DequantizeLinear"
        and node.input[0] in stored
        and stored[node.input[0]].data_type == wanted
        for node in model.graph.node
    )
    options = onnxruntime.SessionOptions()
    # Literally as written, and on one thread, on which its scatter-add is right.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    return Quantized(_of_feeds(lambda feed: session.run(None, feed), names), weights)


def onnx_runtime_file(job: Job) -> Path:
    """Return the file that its quantizer writes."""
    from onnxruntime import quantization as ort

    graph, quantized = job.graph(), job.folder / "quantized.onnx"
    feeds = feeds_of(job, graph.read_bytes())

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    ort.quantize_static(
        graph,
        quantized,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        activation_type=ort.QuantType.QUInt8,
        weight_type={8: ort.QuantType.QInt8, 4: ort.QuantType.QInt4}[job.precision.weights],
        calibrate_method=ort.CalibrationMethod.MinMax,
    )
    return quantized


AIMET_PLACEMENT = {
    "defaults": {
        "ops": {},
        "params": {"is_quantized": "False", "is_symmetric": "True"},
        "per_channel_quantization": "True",
        "strict_symmetric": "False",
        "unsigned_symmetric": "False",
    },
    "params": {},
    "op_type": {
        product: {"is_input_quantized": "True", "params": {"weight": {"is_quantized": "True"}}}
        for product in PRODUCTS
    },
    "supergroups": [],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}
"""Its default quantizes every activation and the gains of norms too, and loses three points."""


def aimet(job: Job) -> Quantized:
    """AIMET for ONNX, inputs and weights of products, ranges ``tf_enhanced`` (its SQNR search)."""
    return _aimet(job, "tf_enhanced", None)


def aimet_seq_mse(job: Job) -> Quantized:
    """AIMET with the weight ranges of sequential MSE; min-max activations, as that demands."""
    from aimet_onnx import apply_seq_mse

    return _aimet(job, "min_max", apply_seq_mse)


def aimet_adaround(job: Job) -> Quantized:
    """AIMET with learned rounding (AdaRound), 1000 steps a layer.

    Its default of 10000 would take three hours of one core for one figure.
    """
    from aimet_onnx import apply_adaround

    return _aimet(job, "min_max", partial(apply_adaround, num_iterations=1000))


def _aimet(job: Job, scheme: str, learn: Any) -> Quantized:
    import aimet_onnx

    model = onnx.load(job.graph())
    feeds = feeds_of(job, model.SerializeToString())
    types = {8: aimet_onnx.int8, 4: aimet_onnx.int4}
    placement = job.folder / "placement.json"
    placement.write_text(json.dumps(AIMET_PLACEMENT))
    simulation = aimet_onnx.QuantizationSimModel(
        model,
        param_type=types[job.precision.weights],
        activation_type=types[job.precision.activations],
        quant_scheme=scheme,
        config_file=str(placement),
        dummy_input=feeds[0],
        session_options_kwargs={"intra_op_num_threads": 1},
    )
    simulation.compute_encodings(feeds)
    if learn is not None:
        # Needs ranges first: otherwise it runs the network on random indices, out of range.
        learn(simulation, feeds)
        simulation.compute_encodings(feeds)
    quantizers = (simulation.qc_quantize_op_dict[name] for name in simulation.param_names)
    weights = sum(each.enabled and each.bitwidth == job.precision.weights for each in quantizers)

    def run(feed: Feed) -> list[Any]:
        # The session reads memory of the simulation: that has to live as long.
        outputs: list[Any] = simulation.session.run(None, feed)
        return outputs

    return Quantized(_of_feeds(run, list(feeds[0])), weights)


def _of_feeds(run: Callable[[Feed], list[Any]], names: Sequence[str]) -> Predictor:
    """Return the predictor of a graph with these inputs."""

    def network(inputs: NetworkInput) -> list[torch.Tensor]:
        feed = dict(zip(names, flatten(inputs), strict=True))
        return [torch.from_numpy(array) for array in run(feed)]

    return predictor(load_small(), network)

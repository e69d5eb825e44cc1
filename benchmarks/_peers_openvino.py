"""Quantizers of OpenVINO graphs."""

import numpy as np
import openvino
import torch
from _job import Job, Quantized, feeds_of, predictor
from openvino import opset13

from bevquant.deploy.runtime import flatten
from bevquant.models.bevfusion import NetworkInput
from bevquant.run import load_small


def nncf(job: Job) -> Quantized:
    """NNCF on the OpenVINO graph: mixed preset, transformer, fast bias correction."""
    return _nncf(job, fast=True)


def nncf_full(job: Job) -> Quantized:
    """NNCF as above, with its full (layer by layer) bias correction."""
    return _nncf(job, fast=False)


def _nncf(job: Job, *, fast: bool) -> Quantized:
    quantized = nncf_graph(job, fast=fast)
    weights = _weights_to_float(quantized)
    compiled = openvino.Core().compile_model(
        quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    request = compiled.create_infer_request()

    def network(inputs: NetworkInput) -> list[torch.Tensor]:
        results = request.infer(flatten(inputs))
        return [torch.from_numpy(results[output]) for output in compiled.outputs]

    return Quantized(predictor(load_small(), network), weights)


def nncf_graph(job: Job, *, fast: bool) -> openvino.Model:
    """Return the quantized graph as NNCF leaves it."""
    import nncf as peer
    from nncf.quantization import advanced_parameters as advanced

    graph = job.graph()
    feeds = feeds_of(job, graph.read_bytes())
    eight = job.precision.weights == 8
    return peer.quantize(
        openvino.Core().read_model(graph),
        peer.Dataset(feeds),
        preset=peer.QuantizationPreset.MIXED,
        model_type=peer.ModelType.TRANSFORMER,
        # Of all targets only NPU takes 4-bit weights.
        target_device=peer.TargetDevice.CPU if eight else peer.TargetDevice.NPU,
        subset_size=len(feeds),
        fast_bias_correction=fast,
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            # Half the range of the first layer's weights, against processors whose sums
            # overflow: the arithmetic here is that of processors that have no such flaw.
            overflow_fix=advanced.OverflowFix.DISABLE,
            weights_quantization_params=None
            if eight
            else advanced.QuantizationParameters(num_bits=4),
        ),
    )


def _weights_to_float(model: openvino.Model) -> int:
    """Replace stored integers times their scale by float constants; return how many.

    OpenVINO then computes products in float, exactly on the same grids. On a processor
    without VNNI its integer products saturate, which is no fault of the quantizer.
    """
    count = 0
    for multiply in model.get_ordered_ops():
        if multiply.get_type_name() != "Multiply":
            continue
        convert, scale = (multiply.input_value(i).get_node() for i in range(2))
        if convert.get_type_name() != "Convert":
            continue
        stored = convert.input_value(0).get_node()
        if stored.get_type_name() != "Constant":
            continue
        codes = stored.data
        if stored.get_element_type() == openvino.Type.i4:
            packed = np.frombuffer(codes.tobytes(), np.int8)
            pairs = np.stack((packed << 4 >> 4, packed >> 4), 1).astype(np.int8)
            codes = pairs.reshape(-1)[: np.prod(stored.shape)].reshape(list(stored.shape))
        values = opset13.constant(codes.astype(np.float32) * scale.data)
        for target in multiply.output(0).get_target_inputs():
            target.replace_source_output(values.output(0))
        count += 1
    return count

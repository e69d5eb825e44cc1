"""Quantizers of PyTorch modules and programs."""

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from _job import Job, Quantized, predictor
from torch import Tensor, nn

from bevquant.models.bevfusion import BEVFusion, NetworkInput
from bevquant.models.bevfusion.sparse import SparseConv3d
from bevquant.quant.fold import fold_batchnorm
from bevquant.run import load_small


def torchao(job: Job) -> Quantized:
    """The PT2E flow of torchao with its x86 quantizer: histogram ranges, weights per channel."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    inputs = job.inputs
    config = x86.get_default_x86_inductor_quantization_config()
    if job.precision.weights == 4:
        config = replace(config, weight=replace(config.weight, quant_min=-8, quant_max=7))
    quantizer = x86.X86InductorQuantizer()
    # Its default (set_global) fails: it puts a histogram on a concatenation of bools.
    for function in (F.conv1d, F.conv2d, F.linear):
        quantizer.set_function_type_qconfig(function, config)
    program = prepare_pt2e(_program(_folded(job), inputs[0]), quantizer)
    with torch.no_grad():
        for each in inputs:
            program(tuple(each))
    converted = convert_pt2e(program)
    per_channel = torch.ops.quantized_decomposed.dequantize_per_channel.default
    weights = sum(node.target is per_channel for node in converted.graph.nodes)
    return Quantized(predictor(load_small(), lambda inputs: converted(tuple(inputs))), weights)


def brevitas(job: Job) -> Quantized:
    """Brevitas, layer by layer: weight scales by MSE, percentile ranges, bias correction."""
    return _brevitas(job, gptq=False)


def brevitas_gptq(job: Job) -> Quantized:
    """Brevitas as above, with weights learned by GPTQ before the bias correction."""
    return _brevitas(job, gptq=True)


def _brevitas(job: Job, *, gptq: bool) -> Quantized:
    import brevitas.nn as qnn
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.gptq import gptq_mode
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.quant.scaled_int import Int8WeightPerChannelFloatMSE
    from brevitas.quant.shifted_scaled_int import ShiftedUint8ActPerTensorFloat

    inputs = job.inputs
    model = _folded(job)
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseConv3d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _TableConv(module))
    settings = {
        "weight_quant": Int8WeightPerChannelFloatMSE,
        "weight_bit_width": job.precision.weights,
        "input_quant": ShiftedUint8ActPerTensorFloat,
        "input_bit_width": job.precision.activations,
        "return_quant_tensor": False,
    }
    kinds = {
        nn.Conv1d: qnn.QuantConv1d,
        nn.Conv2d: qnn.QuantConv2d,
        nn.ConvTranspose2d: qnn.QuantConvTranspose2d,
        nn.Linear: qnn.QuantLinear,
    }
    layer_map = {kind: (quantized, settings) for kind, quantized in kinds.items()}
    model = layerwise_quantize(model, layer_map)
    # The layers alone: preparing a frame is nothing to quantize.
    model.forward = model.network  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        with calibration_mode(model):
            for each in inputs:
                model(each)
        if gptq:
            with gptq_mode(model, act_order=True) as learning:
                for _ in range(learning.num_layers):
                    for each in inputs:
                        learning.model(each)
                    learning.update()
        correction = bias_correction_mode(model)
        # Its own rule takes axis 1 for the channels of a linear layer's 4-D output.
        correction.bias_correction.channel_dim = _channel_axis
        with correction:
            for each in inputs:
                model(each)
    weights = sum(isinstance(module, tuple(kinds.values())) for module in model.modules())
    return Quantized(predictor(load_small(), model.eval().network), weights)


def _channel_axis(x: Tensor, layer: nn.Module) -> int:
    return x.ndim - 1 if isinstance(layer, nn.Linear) else 1


class _TableConv(nn.Module):
    """A sparse convolution over a neighbour table, its kernel in a linear layer."""

    def __init__(self, layer: SparseConv3d) -> None:
        super().__init__()
        weight = layer.weight.detach().flatten(1)
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight = nn.Parameter(weight)

    def forward(self, features: Tensor, rule: Tensor) -> Tensor:
        gathered = F.pad(features, (0, 0, 0, 1)).index_select(0, rule.flatten())
        y: Tensor = self.linear(gathered.view(rule.shape[0], -1))
        return y


def _folded(job: Job) -> BEVFusion:
    model = load_small()
    fold_batchnorm(model, job.batches[0])
    return model


def _program(model: BEVFusion, sample: NetworkInput) -> Any:
    """Return the layers of ``model`` as a graph that takes any number of points."""
    network = copy.copy(model)
    network.forward = lambda inputs: model.network(NetworkInput(*inputs))  # type: ignore[method-assign, assignment]
    fixed = ("images", "depth_map")
    rows = {0: torch.export.Dim.AUTO}
    shapes: tuple[Any, ...] = tuple(
        {} if name in fixed else tuple(rows for _ in value) if isinstance(value, tuple) else rows
        for name, value in sample._asdict().items()
    )
    return torch.export.export(network, (tuple(sample),), dynamic_shapes=(shapes,)).module()

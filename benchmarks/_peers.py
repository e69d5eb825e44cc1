"""The quantizers that are compared, ours first; each is one function of a :class:`Job`."""

from collections.abc import Callable

import _peers_onnx
import _peers_openvino
import _peers_torch
from _job import Job, Quantized

from bevquant.evaluate import float_predictor
from bevquant.quant.layers import quant_modules
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import refine
from bevquant.run import deployable, load_small, quantize_small


def ours(job: Job) -> Quantized:
    """What ``bevquant export`` does."""
    return _ours(job, learn=True)


def ours_ranges(job: Job) -> Quantized:
    """What ``bevquant export --ranges-only`` does: min-max ranges, nothing else."""
    return _ours(job, learn=False)


def _ours(job: Job, *, learn: bool) -> Quantized:
    model = quantize_small(load_small(), job.batches, deployable(job.precision))
    if learn:
        refine(model, job.batches)
        reconstruct(model, job.batches)
    weights = sum(layer.precision is not None for layer in quant_modules(model))
    return Quantized(float_predictor(model), weights)


OURS: dict[str, Callable[[Job], Quantized]] = {
    "bevquant": ours,
    "bevquant, ranges only": ours_ranges,
}

PEERS: dict[str, Callable[[Job], Quantized]] = {
    "ONNX Runtime": _peers_onnx.onnx_runtime,
    "NNCF": _peers_openvino.nncf,
    "NNCF, full bias correction": _peers_openvino.nncf_full,
    "AIMET": _peers_onnx.aimet,
    "AIMET, SeqMSE": _peers_onnx.aimet_seq_mse,
    "AIMET, AdaRound": _peers_onnx.aimet_adaround,
    "torchao PT2E": _peers_torch.torchao,
    "Brevitas": _peers_torch.brevitas,
    "Brevitas, GPTQ": _peers_torch.brevitas_gptq,
}

LOW_BITS_ONLY = ("AIMET, AdaRound", "Brevitas, GPTQ")
"""Learned rounding takes minutes to hours, and at 8 bits rounding is not what loses."""

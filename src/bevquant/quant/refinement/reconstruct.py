"""Beyond the thesis: weights whose integers are learned, layer after layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant import affine
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.inputs import precisions_of, sequence_of
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantLayer, Rounding, floating, quant_modules
from bevquant.quant.refinement.lockstep import Call, lockstep
from bevquant.quant.refinement.rounding import Moments, fit
from bevquant.quant.refinement.samples import (
    inputs_of,
    linear_in_rows,
    outputs_of,
    positions,
    rows_weight,
    weight_rows,
)
from bevquant.quant.running import Forward, call, evaluating
from bevquant.quant.spec import Precision

LEARNED_BITS = 6
"""Most bits of a weight whose integers are learned; of wider ones only the bias is refitted."""


@dataclass(frozen=True)
class _Wanted:
    """What a layer returned in the float network: outputs [G, P, N] at positions [P]."""

    where: Tensor
    outputs: Tensor


def reconstruct(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward = call,
    *,
    precisions: Sequence[Precision] = (),
    samples: int = 512,
    ridge: float = 0.01,
    seed: int = 0,
) -> tuple[str, ...]:
    """Choose the integers of all weights so that each layer returns its float outputs.

    Layer after layer, in the order of the forward pass, with all layers before it already
    quantized: a layer is fitted to return the outputs of the *float* network from its
    *quantized* inputs, so that it also makes good what was lost before it. No labels are
    needed. The result holds, strictly, for the present policy of the model; it is kept
    beside those for other precisions.

    Layers with weights of 8 or 16 bits keep their weights and get a refitted bias (bias
    correction, Nagel et al., arXiv 1906.04721). Indices that the network picks (``topk``
    and the like) are those of the float network throughout.

    Args:
        model: quantized and calibrated.
        batches: for calibration; held in mid-forward side by side.
        forward: runs the model on one batch; ``model(batch)`` by default.
        precisions: what to learn for each layer, all from the inputs that the present policy
            gives it; by default its present precision. A search that mixes precisions wants
            them all, learned behind layers of many bits.
        samples: positions of each layer's output that are looked at in each batch.
        ridge: pull towards the float weights, as a share of the mean input power.
        seed: of the positions.

    Returns:
        The names of the quantized layers that were left as they were: never reached, or
        transposed convolutions in groups.

    Raises:
        BevquantError: nothing is quantized, or there is no batch.
    """
    layers = [layer for layer in quant_modules(model) if isinstance(layer, QuantLayer)]
    layers = [layer for layer in layers if layer.quantized]
    if not layers:
        raise BevquantError("reconstruct: no layer is quantized; call quantize and calibrate first")
    batches = sequence_of(batches, "reconstruct")
    precisions = precisions_of(precisions, "reconstruct")
    learnable = {layer: i for i, layer in enumerate(layers) if linear_in_rows(layer)}
    for layer in layers:
        for precision in _learned(layer, precisions):
            layer.rounded.pop(precision, None)

    done: set[QuantLayer] = set()
    with evaluating(model):
        wanted, choices = _float_outputs(model, learnable, batches, forward, samples, seed)

        def replay(model: nn.Module, indexed: tuple[int, Any]) -> Any:
            index, batch = indexed
            with Replayed(choices[index]):
                return forward(model, batch)

        steps = lockstep(model, learnable, list(enumerate(batches)), replay)
        for layer, calls in track(steps, "reconstruct", total=len(learnable)):
            for precision, moments in _moments(layer, calls, wanted, precisions):
                if moments.count:
                    layer.learn(precision, _round(layer, moments, ridge))
                    done.add(layer)
    return tuple(layer.name for layer in layers if layer not in done)


def _float_outputs(
    model: nn.Module,
    layers: dict[QuantLayer, int],
    batches: Sequence[Any],
    forward: Forward,
    samples: int,
    seed: int,
) -> tuple[dict[tuple[QuantLayer, int], _Wanted], list[list[Tensor]]]:
    """Return samples of each layer's first output in each batch, and the choices of each batch."""
    wanted: dict[tuple[QuantLayer, int], _Wanted] = {}
    choices = []
    current = 0

    def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(layer, QuantLayer)
        if (layer, current) not in wanted:
            key = (seed * len(batches) + current) * len(layers) + layers[layer]
            generator = torch.Generator().manual_seed(key)
            where = positions(layer, output, samples, generator)
            wanted[layer, current] = _Wanted(where, outputs_of(layer, output, where))

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with floating(model):
            for batch in track(batches, "float outputs"):
                with Recorded() as recorded:
                    forward(model, batch)
                choices.append(recorded.choices)
                current += 1
    finally:
        for hook in hooks:
            hook.remove()
    return wanted, choices


def _learned(layer: QuantLayer, precisions: Sequence[Precision]) -> Sequence[Precision]:
    assert layer.precision is not None
    return precisions or (layer.precision,)


def _moments(
    layer: QuantLayer,
    calls: Sequence[Call],
    wanted: dict[tuple[QuantLayer, int], _Wanted],
    precisions: Sequence[Precision],
) -> Iterator[tuple[Precision, Moments]]:
    """Yield, with the layer at each precision, moments of its quantized inputs and float outputs.

    They depend on the bits of the activations only.
    """
    present = layer.precision
    known: dict[int, Moments] = {}
    try:
        for precision in _learned(layer, precisions):
            layer.precision = precision
            if precision.activations not in known:
                known[precision.activations] = moments = Moments()
                for each in calls:
                    sample = wanted.get((layer, each.batch))
                    if sample is not None:
                        (x,) = layer.quantize_inputs(each.args[0])
                        rows = inputs_of(layer, sample.where, x, *each.args[1:], **each.kwargs)
                        moments.update(rows.float(), sample.outputs.float())
            yield precision, known[precision.activations]
    finally:
        layer.precision = present


def _round(layer: QuantLayer, moments: Moments, ridge: float) -> Rounding:
    """Return the integers, the grid and the bias that fit the moments."""
    weight = weight_of(layer.wrapped).detach().float()
    rows = weight_rows(layer, weight)
    params = layer.weight_params
    channels = rows.shape[:2]
    per_channel = params.scale.numel() == channels.numel()
    if per_channel and params.quant_max - params.quant_min < 2**LEARNED_BITS:
        low, high = (bound.view(channels) for bound in params.bounds)
        steps, scale = fit(moments, rows, low, high, ridge)
        params = replace(params, scale=scale.view_as(params.scale))
        codes = rows_weight(layer, steps, weight).to(torch.int32) + params.zero_point
    else:
        codes = affine.quantize(weight, params)
    rows = weight_rows(layer, affine.dequantize(codes, params)).double()
    mean_x, mean_y = moments.means()
    bias = mean_y - (rows @ mean_x[..., None]).squeeze(-1)
    cpu = replace(params, scale=params.scale.cpu(), zero_point=params.zero_point.cpu())
    return Rounding(codes.cpu(), cpu, bias.flatten().float().cpu())

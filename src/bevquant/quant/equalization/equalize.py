"""Activations evened out between channels, at the cost of the weights: exact when float."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bevquant.errors import BevquantError
from bevquant.quant.equalization.balance import channel_ranges, output_errors
from bevquant.quant.equalization.channels import SharedChannels
from bevquant.quant.equalization.flow import Flow
from bevquant.quant.fold import FoldedBatchNorm
from bevquant.quant.inputs import scheme_of, sequence_of
from bevquant.quant.kinds import kind_of
from bevquant.quant.layers import quant_modules
from bevquant.quant.outputs import agree, floating_tensors
from bevquant.quant.running import Forward, call, evaluating
from bevquant.quant.scaling import rescale, rescaled, unscale
from bevquant.quant.spec import DEPLOY, W8A8, Precision, Scheme

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""From weights evened out to activations evened out."""


@dataclass(frozen=True)
class Equalized:
    """Layers that share input channels, and what was done to them.

    Attributes:
        producers: names of the modules whose output channels were divided.
        consumers: names of the layers whose weights' input channels were multiplied.
        strength: that was chosen; ``None`` if the layers were left as they were.
        before: squared error over squared output of the consumers, each quantized alone;
            their mean; ``None`` if nothing could be tried.
        after: the same with the factors.
        reason: why they were left; empty if they were not.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    strength: float | None
    before: float | None
    after: float | None
    reason: str


def equalize(
    model: nn.Module,
    batches: Sequence[Any],
    precision: Precision = W8A8,
    scheme: Scheme = DEPLOY,
    forward: Forward = call,
    strengths: Sequence[float] = STRENGTHS,
    limit: float = 64.0,
) -> tuple[Equalized, ...]:
    """Scale channels such that one activation scale for the tensor serves all of them, in place.

    A producer's channel is divided by a factor and the weights of all layers that read it
    are multiplied by it. In between may be whatever commutes with positive factors. Where
    outputs are added, their producers share the factors; a channel that anything else
    reads keeps factor 1. In float arithmetic the model computes what it did, up to
    rounding. It is the deployable form of activation scales per channel (thesis, stage 1):
    integer kernels know one scale for a layer's input.

    The factor of channel c is ``a_c^s / w_c^(1 - s)`` with the range ``a_c`` of its
    activations, the largest weight ``w_c`` that reads it and the strength ``s`` (Xiao et
    al., SmoothQuant, ICML 2023, equation 4; 0.5 is the square root rule of Nagel et al.,
    Data-Free Quantization, ICCV 2019), within ``limit`` of the geometric mean. Each set of
    layers that share channels gets the strength with which they, quantized alone at
    ``precision``, add the least to their outputs over ``batches``; it is left alone unless
    that is less than before, and no more for any of them. Weights need a scale for each
    output channel: then the producers' error does not change.

    Call it on the float model, after :func:`~bevquant.quant.fold.fold_batchnorm`.
    :func:`~bevquant.quant.prepare.restore` undoes it.

    Args:
        model: float.
        batches: calibration data, passed over twice; the first one has to lead through
            every branch.
        precision: bits at which layers are tried.
        scheme: symmetry and granularity at which layers are tried.
        forward: runs the model on one batch; ``model(batch)`` by default.
        strengths: to choose from, each from 0 to 1.
        limit: largest factor, and inverse of the smallest.

    Returns:
        What was equalized, and what was left with the reason.

    Raises:
        BevquantError: the model is quantized or equalized already, there is no batch, a
            strength or the limit is out of range, the scheme has one scale for a whole
            weight, or the model reads a channel in a way that was not seen
            (its weights elsewhere, say).
    """
    if quant_modules(model):
        raise BevquantError("equalize: the model is quantized; equalize before quantize")
    if rescaled(model):
        raise BevquantError("equalize: the model is equalized already; use restore")
    batches = sequence_of(batches, "equalize")
    precision, scheme = Precision.of(precision), scheme_of(scheme, "equalize")
    if limit < 1 or not all(0 <= strength <= 1 for strength in strengths):
        raise BevquantError("equalize: strengths lie from 0 to 1, and limit is at least 1")
    if not scheme.weights.per_channel:
        raise BevquantError("equalize: needs a scheme with a weight scale per output channel")
    flow, names = _watch(model, batches[0], forward)
    channels = SharedChannels(flow)
    with evaluating(model):
        _check(model, flow, channels, lambda: forward(model, batches[0]))
    sets = channels.sets()
    ranges = channel_ranges(
        model, [layer for layers, _ in sets for layer in layers], batches, forward
    )
    candidates: dict[nn.Module, list[Tensor]] = {}
    factors = []
    for layers, roots in sets:
        some = [channels.factors(ranges, layers, roots, s, limit) for s in strengths]
        factors.append([torch.ones(flow.count, dtype=torch.float64), *some])
        for layer in layers:
            candidates[layer] = [f[channels.root[flow.consumed[layer]]] for f in factors[-1]]
    errors = output_errors(model, candidates, ranges, batches, forward, precision, scheme)

    outcomes = []
    chosen = torch.ones(flow.count, dtype=torch.float64)
    for (layers, roots), some in zip(sets, factors, strict=True):
        measured = torch.stack([errors[layer] for layer in layers])
        total = measured.mean(0).where((measured <= measured[:, :1]).all(0), torch.inf)
        best = int(total.argmin())
        chosen *= some[best]
        producers = (
            m for m, ids in flow.produced.items() if torch.isin(channels.root[ids], roots).any()
        )
        outcomes.append(
            Equalized(
                producers=tuple(names[module] for module in producers),
                consumers=tuple(names[layer] for layer in layers),
                strength=strengths[best - 1] if best else None,
                before=float(total[0]),
                after=float(total[best]),
                reason="" if best else "no strength lowers the error of every layer",
            )
        )
    _scale_by(model, flow, chosen[channels.root])
    for layer, ids in flow.consumed.items():
        if layer not in candidates:
            outcomes.append(Equalized((), (names[layer],), None, None, None, channels.why_not(ids)))
    return tuple(outcomes)


def _watch(model: nn.Module, batch: Any, forward: Forward) -> tuple[Flow, dict[nn.Module, str]]:
    names: dict[nn.Module, str] = {}
    producers: dict[nn.Module, int] = {}
    consumers: dict[nn.Module, int] = {}
    carriers: dict[nn.Module, int] = {}
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is not None and kind.channel_axis is not None:
            producers[module] = consumers[module] = kind.channel_axis
        elif (axis := _norm_axis(module)) is not None:
            producers[module] = axis
        elif isinstance(module, FoldedBatchNorm) and module.shift is not None:
            carriers[module] = -1
        elif kind is None:
            continue
        names[module] = name
    flow = Flow(names, producers, consumers, carriers)
    flow.outlived(flow.run(model, batch, forward))
    return flow, names


def _norm_axis(module: nn.Module) -> int | None:
    """Return the axis of the channels that a norm scales, ``None`` for any other module."""
    if getattr(module, "weight", None) is None:
        return None
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return -1 if len(module.normalized_shape) == 1 else None
    return 1 if isinstance(module, (nn.GroupNorm, _NormBase)) else None


def _scale_by(model: nn.Module, flow: Flow, factors: Tensor) -> None:
    def changed(ids_of: dict[nn.Module, Tensor]) -> dict[nn.Module, Tensor]:
        found = {module: factors[ids] for module, ids in ids_of.items()}
        return {module: f for module, f in found.items() if (f != 1).any()}

    rescale(model, changed({**flow.produced, **flow.carried}), changed(flow.consumed))


def _check(model: nn.Module, flow: Flow, channels: SharedChannels, run: Callable[[], Any]) -> None:
    """Refuse a flow that missed something: factors, powers of two, must change no output."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-3, 4, (flow.count,), generator=generator)
    before = floating_tensors(run())
    _scale_by(model, flow, torch.exp2(exponents.double()).where(channels.free, 1.0)[channels.root])
    try:
        after = floating_tensors(run())
    finally:
        unscale(model)
    if not agree(after, before, 1e-3):
        raise BevquantError(
            "equalize: the model uses a channel in a way that its operators do not show "
            "(a weight read elsewhere, NumPy in between, random numbers?); nothing was changed"
        )

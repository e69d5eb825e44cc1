"""What quantization makes of a layer whose input channels are scaled, on calibration data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.progress import track
from bevquant.quant import affine
from bevquant.quant.affine import Range
from bevquant.quant.kinds import kind_of, weight_of
from bevquant.quant.layers import QuantLayer
from bevquant.quant.observers import min_max
from bevquant.quant.running import Forward, evaluating
from bevquant.quant.scaling import like, scale_inputs
from bevquant.quant.spec import PerChannel, PerTensor, Precision, Scheme


def channel_ranges(
    model: nn.Module, layers: Iterable[nn.Module], batches: Sequence[Any], forward: Forward
) -> dict[nn.Module, Range]:
    """Return the range of each input channel, [C, 1, ...], of those layers that are called."""
    ranges: dict[nn.Module, Range] = {}

    def observe(layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = _split(args, kwargs)[0].detach()
        if x.numel():
            new = min_max(x, PerChannel(_channel_axis(layer))).to("cpu")
            ranges[layer] = ranges[layer].union(new) if layer in ranges else new

    hooks = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in layers]
    _run(model, batches, forward, hooks, "equalize: ranges")
    return ranges


def output_errors(
    model: nn.Module,
    candidates: Mapping[nn.Module, Sequence[Tensor]],
    ranges: Mapping[nn.Module, Range],
    batches: Sequence[Any],
    forward: Forward,
    precision: Precision,
    scheme: Scheme,
) -> dict[nn.Module, Tensor]:
    """Return what each layer, quantized alone, adds to its output for each candidate.

    Args:
        model: float.
        candidates: layer -> factors [C] of its weight's input channels, by which the input
            is divided; as many for each layer.
        ranges: of each layer's input channels.
        batches: calibration data.
        forward: runs the model on one batch.
        precision: bits.
        scheme: symmetry and granularity; grids cover the whole range.

    Returns:
        Layer -> squared error over squared output, float64 [candidates].
    """
    errors = {layer: torch.zeros(len(c), dtype=torch.float64) for layer, c in candidates.items()}
    energy = dict.fromkeys(candidates, 0.0)
    running = False

    def measure(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        nonlocal running
        if running:
            return
        running = True
        try:
            energy[layer] += float(output.double().square().sum())
            for index, factors in enumerate(candidates[layer]):
                trial = _quantized(layer, args, kwargs, factors, ranges[layer], precision, scheme)
                errors[layer][index] += float((trial - output).double().square().sum())
        finally:
            running = False

    hooks = [layer.register_forward_hook(measure, with_kwargs=True) for layer in candidates]
    _run(model, batches, forward, hooks, "equalize: errors")
    return {layer: error / max(energy[layer], 1e-300) for layer, error in errors.items()}


def _quantized(
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    factors: Tensor,
    values: Range,
    precision: Precision,
    scheme: Scheme,
) -> Tensor:
    kind, weight = kind_of(layer), weight_of(layer)
    assert kind is not None
    x, args, kwargs = _split(args, kwargs)
    shaped = factors.float().view(-1, *(1,) * (-_channel_axis(layer) - 1))
    spec = scheme.activations.spec(precision.activations, kind.channel_axis)
    values = values.scaled(1 / shaped)
    if isinstance(spec.granularity, PerTensor):
        values = Range(values.minimum.amin(), values.maximum.amax())
    grid = affine.params_from_range(values.to(x.device), spec)
    probe = QuantLayer(layer, "", "", kind, scheme)
    layer._parameters["weight"] = like(scale_inputs(layer, factors), weight)
    try:
        scaled = weight_of(layer)
        simulated = affine.simulate(scaled, probe.weight_grid(precision.weights, 1.0))
        quantized = affine.simulate(x / shaped.to(x.device, x.dtype), grid)
        output: Tensor = probe.run(simulated, quantized, *args, **kwargs)
    finally:
        layer._parameters["weight"] = weight
    return output


def _split(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return a layer's input, and its other arguments."""
    if args:
        return args[0], args[1:], kwargs
    first, *others = kwargs
    return kwargs[first], (), {name: kwargs[name] for name in others}


def _channel_axis(layer: nn.Module) -> int:
    kind = kind_of(layer)
    assert kind is not None
    assert kind.channel_axis is not None
    return kind.channel_axis


def _run(
    model: nn.Module, batches: Sequence[Any], forward: Forward, hooks: list[Any], what: str
) -> None:
    try:
        with evaluating(model):
            for batch in track(batches, what):
                forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()

"""Which layer spoils a network: the first that is not finite, or that drowns in noise."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.diagnostics.diagnosis import FLOAT, Diagnosis, Finding, Histogram, LayerHealth
from bevquant.quant.diagnostics.fidelity import FidelityMeter
from bevquant.quant.diagnostics.streams import Streams, hooked
from bevquant.quant.inputs import sequence_of
from bevquant.quant.layers import QuantModule, floating, quant_modules
from bevquant.quant.observers import min_max
from bevquant.quant.outputs import floating_tensors
from bevquant.quant.running import Forward, call, evaluating
from bevquant.quant.spec import PerChannel, PerTensor

FLOOR = 10.0
"""dB below which an output is spoilt: its noise is a third as large as its signal."""

DROP = 10.0
"""dB by which an output has to be worse than the input for the module to be the cause."""

_BINS = 40


def debug(model: nn.Module, batches: Sequence[Any], forward: Forward = call) -> Diagnosis:
    """Find the first module that spoils the outputs.

    The float and the quantized network run over each batch, and every layer, and every
    other module without children, is watched in both. Found is, in order of the calls,

    1. the first module of the float network whose output holds NaN or infinity; the
       quantized one then does not run;
    2. else the first such module of the quantized network;
    3. else the first whose output falls off a cliff: its signal to quantization noise ratio
       is below :data:`FLOOR` and at least :data:`DROP` below that of its input. The ratios
       are those of the network that is quantized as a whole against the float one, from a
       sample of each tensor.

    Where the quantized network would pick other elements than the float one (topk, argmax
    and so on), it is made to pick the same: what follows could not be compared.

    Args:
        model: float, quantized, or quantized and calibrated. What is not quantized can only
            be looked at for NaN and infinity.
        batches: that show the problem; a few.
        forward: runs the model on one batch; ``model(batch)`` by default.

    Returns:
        All that was watched, and what was found; ``print`` it.

    Raises:
        BevquantError: there is no batch, or no module was called.
    """
    batches = sequence_of(batches, "debug")
    streams = Streams(model)
    quantized = any(layer.quantized for layer in quant_modules(model))
    with evaluating(model):
        for batch in track(batches, "debug"):
            with floating(model), Recorded() as recorded:
                streams.run(model, batch, forward, reference=True)
                if streams.broken is not None:
                    problem = "the first output that is not finite, in float already"
                    return _diagnosis(streams, model, batch, forward, streams.broken, problem)
            if quantized:
                with Replayed(recorded.choices):
                    streams.run(model, batch, forward, reference=False)
            if streams.broken is not None:
                problem = "the first output that is not finite; in float it is"
                return _diagnosis(streams, model, batch, forward, streams.broken, problem)
        if not streams.tracks:
            raise BevquantError("debug: no module was called; does forward run the model?")
        for module, seen in streams.tracks.items():
            before, after = sqnr(seen.input), sqnr(seen.output)
            if before is not None and after is not None and after < min(FLOOR, before - DROP):
                problem = f"its output falls off a cliff, from {before:.1f} to {after:.1f} dB"
                return _diagnosis(streams, model, batches[0], forward, module, problem)
    return Diagnosis(_health(streams), None)


def sqnr(meter: FidelityMeter) -> float | None:
    """Return the ratio in dB, ``None`` if nothing was compared."""
    return meter.fidelity.sqnr if meter.seen else None


def _health(streams: Streams) -> tuple[LayerHealth, ...]:
    return tuple(
        LayerHealth(
            name=streams.names[module],
            kind=type(module.wrapped if isinstance(module, QuantModule) else module).__name__,
            precision=str(module.precision if _is_quantized(module) else FLOAT),
            finite=seen.finite,
            input_sqnr=sqnr(seen.input),
            sqnr=sqnr(seen.output),
        )
        for module, seen in streams.tracks.items()
    )


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, QuantModule) and module.calibrated and module.precision is not None


def _diagnosis(
    streams: Streams,
    model: nn.Module,
    batch: Any,
    forward: Forward,
    module: nn.Module,
    problem: str,
) -> Diagnosis:
    """Look at what ``module`` meets in one more pass."""
    inputs: list[Tensor] = []
    finite = True

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        if finite:  # else the call before was the one that fails
            inputs[:] = [x.clone() for x in floating_tensors([*args, *kwargs.values()])]

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal finite
        finite = finite and all(bool(x.isfinite().all()) for x in floating_tensors(output))

    with hooked([module], enter, leave):
        forward(model, batch)
    weight = getattr(module, "weight", None)
    finding = Finding(
        name=streams.names[module],
        problem=problem,
        cause=_cause(streams, module, inputs, finite),
        input=histogram(inputs[0] if inputs else torch.zeros(0)),
        weight=histogram(weight) if isinstance(weight, Tensor) else None,
    )
    return Diagnosis(_health(streams), finding)


def _cause(streams: Streams, module: nn.Module, inputs: list[Tensor], finite: bool) -> str:
    """Return why a module fails, as far as it can be told, and the mend."""
    spoilt = [name for name, p in module.named_parameters() if not p.isfinite().all()]
    if spoilt:
        return f"NaN or infinity in its parameters: {', '.join(spoilt)}"
    if not all(bool(x.isfinite().all()) for x in inputs):
        order = list(streams.tracks)
        place = order.index(module)
        origin = f"after {streams.names[order[place - 1]]}" if place else "in the batch"
        return f"its input is not finite already: it became so {origin}"
    if not finite:
        dtype = str(inputs[0].dtype).removeprefix("torch.") if inputs else "its type"
        return f"input and parameters are finite: the result overflows {dtype}, or is undefined"
    if isinstance(module, QuantModule) and module.kind.channel_axis is not None:
        low, high = min_max(inputs[0], PerChannel(module.kind.channel_axis))
        spans = (high.clamp(min=0) - low.clamp(max=0)).flatten()
        times = float(spans.max() / spans.median().clamp(min=1e-30))
        if times > 10 and isinstance(module.inputs[0].granularity, PerTensor):
            return (
                f"channel {int(spans.argmax())} of its input is {times:.3g} times as wide as the "
                "median one, and all share one scale: equalize, or give the layer more bits"
            )
    return "too few bits for its input or its weight"


def histogram(values: Tensor) -> Histogram:
    """Return the distribution of a tensor's finite values."""
    finite = values.detach().flatten().float()
    finite = finite[finite.isfinite()].cpu()
    if not len(finite):
        return Histogram(0.0, 0.0, (0,) * _BINS, 1.0, values.numel())
    ordered = finite.sort().values
    low, high = float(ordered[0]), float(ordered[-1])
    cut = len(ordered) // 200
    middle = float(ordered[len(ordered) - 1 - cut]) - float(ordered[cut])
    counts = torch.histc(finite, _BINS, low, high).long().tolist()
    central = middle / (high - low) if high > low else 1.0
    return Histogram(low, high, tuple(counts), central, values.numel() - len(finite))

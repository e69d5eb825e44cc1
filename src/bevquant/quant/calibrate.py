"""Stage 1: the ranges of a network's activations."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant.inputs import stream_of
from bevquant.quant.inventory import macs_by_name, set_macs
from bevquant.quant.layers import QuantModule, floating, quant_modules
from bevquant.quant.observers import MIN_MAX, Observer, min_max
from bevquant.quant.running import Forward, call, counting_macs, evaluating


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Forward = call,
    observer: Observer = MIN_MAX,
) -> None:
    """Observe the range of every input of every quantizable layer.

    As in the thesis the ranges are those of the float network, over all batches. The
    thesis gathers them main module by main module, so that no more than one module's
    activations are held; extremes need no activations held at all and those of one layer
    do not depend on which others are observed, so that one pass over the batches, in the
    memory of a float forward pass, finds the same numbers.

    The model runs in evaluation mode. A layer that no batch reaches stays float, and
    :func:`~bevquant.quant.inventory.unquantized` lists it. What was refined or reconstructed
    with former ranges is forgotten. On an error the model keeps all it had.

    Args:
        model: quantized.
        batches: of any type that ``forward`` takes.
        forward: runs the model on one batch; ``model(batch)`` by default.
        observer: how a range is found from what is seen: ``MinMax()``, ``MovingAverage()``,
            ``Percentile(99.99)``, ``MSE()`` or ``Entropy()``.

    Raises:
        BevquantError: ``model`` is not quantized, there is no batch, no layer was reached,
            or a layer was given NaN or infinity.
    """
    layers = quant_modules(model)
    if not layers:
        raise BevquantError("calibrate: the model has no quantized layer; call quantize first")
    statistics = {
        layer: tuple(observer.watch(q.scheme, q.channel_axis) for q in layer.inputs)
        for layer in layers
    }
    count = 0

    def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, QuantModule)
        inputs: list[Tensor] = [*args, *kwargs.values()][: len(layer.inputs)]
        for statistic, quantizer, x in zip(statistics[layer], layer.inputs, inputs, strict=True):
            if x.numel() == 0:  # says nothing
                continue
            values = min_max(x.detach(), quantizer.granularity).to("cpu")
            if not values.finite:
                raise BevquantError(f"{layer.name}: NaN or infinity in its input, batch {count}")
            statistic.update(x.detach(), values)

    hooks = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in layers]
    try:
        with evaluating(model), floating(model):
            for batch in track(stream_of(batches, "calibrate"), "calibrate"):
                with counting_macs(model) if count == 0 else nullcontext() as macs:
                    forward(model, batch)
                if macs is not None:
                    set_macs(model, macs_by_name(model, macs))
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise BevquantError("calibrate: there is no batch to calibrate on")
    found = {layer: [s.ranges() for s in group] for layer, group in statistics.items()}
    if not any(ranges for group in found.values() for ranges in group):
        raise BevquantError("calibrate: no quantized layer was called; does forward run the model?")
    for layer, group in found.items():
        layer.forget()
        for quantizer, ranges in zip(layer.inputs, group, strict=True):
            quantizer.ranges = ranges

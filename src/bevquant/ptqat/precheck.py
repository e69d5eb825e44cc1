"""The pre-check of PTQAT: how far each quantized layer's output is from float."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.ptqat.layers import trainable_layers
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.diagnostics.fidelity import Fidelity, FidelityMeter
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantLayer, floating
from bevquant.quant.running import Forward, call, evaluating

Granularity = Literal["layer", "channel", "block"]
Measure = Literal["mse", "normalised_mse", "cosine", "sqnr", "kl"]

ROWS = 4096
"""Positions of an output that are compared in one call."""

BINS = 256
"""Of the histograms behind the KL divergence."""


@dataclass(frozen=True)
class LayerError:
    """How far the output of a quantized layer is from that of the float one.

    Attributes:
        layer: its name.
        weights: number of elements of its weight.
        output: closeness to float.
        kl: divergence of the distribution of its values from float, in nats.
    """

    layer: str
    weights: int
    output: Fidelity
    kl: float

    def score(self, measure: Measure) -> float:
        """Return an error that grows as the output gets worse.

        That is the measure itself; of the cosine, what it lacks of 1; of the signal to noise
        ratio, its negative.
        """
        if measure == "kl":
            return self.kl
        if measure == "cosine":
            return 1 - self.output.cosine
        if measure == "sqnr":
            return -self.output.sqnr
        return self.output.mse if measure == "mse" else self.output.normalised_mse


def precheck(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward = call,
    *,
    upstream: bool = False,
    granularity: Granularity = "layer",
) -> list[LayerError]:
    """Compare each quantized layer's output with float, at its present bits.

    The paper (section "pre-check") takes the mean squared error and leaves open whether a
    layer is quantized alone, and per what the error is taken: hence the arguments.

    Args:
        model: quantized and calibrated, reconstructed or not.
        batches: to compare on.
        forward: runs the model on one batch; ``model(batch)`` by default.
        upstream: with everything before the layer quantized too; otherwise the layer alone,
            on float inputs. What the network picks with topk is picked by the float one.
        granularity: ``"layer"`` takes errors over the whole output; ``"channel"`` for each
            channel, and their mean: each then counts the same; ``"block"`` gives all layers
            of the same parent module the mean of their errors.

    Returns:
        A row for each quantized layer with a weight that was called, in order of the calls.

    Raises:
        BevquantError: no layer is quantized, there is no batch, no layer was called, or an
            output is not finite.
    """
    layers = trainable_layers(model)
    if not batches:
        raise BevquantError("precheck: there is no batch to compare on")
    meters = {layer: _Meter(layer.name, granularity == "channel") for layer in layers}
    compare = _with_upstream if upstream else _alone
    with evaluating(model):
        for batch in track(batches, "pre-check"):
            compare(model, batch, forward, meters)
    rows = [
        LayerError(layer.name, weight_of(layer.wrapped).numel(), meter.output.fidelity, meter.kl)
        for layer, meter in meters.items()
        if meter.output.seen
    ]
    if not rows:
        raise BevquantError("precheck: no quantized layer was called; does forward run the model?")
    return _by_block(rows) if granularity == "block" else rows


class _Meter:
    """Streams pairs of outputs, as rows [P, C]."""

    def __init__(self, name: str, channels: bool) -> None:
        self.name, self.channels = name, channels
        self.output = FidelityMeter()
        self._kl: list[float] = []

    def update(self, quantized: Tensor, reference: Tensor) -> None:
        if reference.numel() == 0:
            return
        if not (reference.isfinite().all() and quantized.isfinite().all()):
            raise BevquantError(
                f"precheck: the output of {self.name} holds NaN or infinity; bevquant.debug says "
                "where that begins"
            )
        pairs = [(quantized, reference)]
        if self.channels:
            pairs = list(zip(quantized.unbind(1), reference.unbind(1), strict=True))
        self.output.update([q for q, _ in pairs], [r for _, r in pairs])
        self._kl.append(fmean(divergence(q, r) for q, r in pairs))

    @property
    def kl(self) -> float:
        return fmean(self._kl)


def divergence(quantized: Tensor, reference: Tensor) -> float:
    """Return KL(reference || quantized) of their values' histograms, in nats.

    Over the range of the reference; each bin counts one value more than it holds.
    """
    low, high = (float(x) for x in reference.aminmax())
    if low == high:
        return 0.0
    q, r = (
        torch.histc(x.cpu().clamp(low, high), BINS, low, high) + 1 for x in (quantized, reference)
    )
    q, r = q.double() / q.sum(), r.double() / r.sum()
    return float((r * (r / q).log()).sum())


def _alone(
    model: nn.Module, batch: Any, forward: Forward, meters: dict[QuantLayer, _Meter]
) -> None:
    """Compare in a float pass: each layer quantized on its float inputs."""

    def compare(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        assert isinstance(layer, QuantLayer)
        layer.bypass = False
        quantized = layer.forward(*args, **kwargs)
        layer.bypass = True
        meters[layer].update(_rows(quantized, layer), _rows(output, layer))

    with floating(model), _after(meters, compare):
        forward(model, batch)


def _with_upstream(
    model: nn.Module, batch: Any, forward: Forward, meters: dict[QuantLayer, _Meter]
) -> None:
    """Compare a quantized pass with a float one."""
    kept: defaultdict[nn.Module, list[Tensor]] = defaultdict(list)

    def keep(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        assert isinstance(layer, QuantLayer)
        kept[layer].append(_rows(output, layer))

    def compare(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        assert isinstance(layer, QuantLayer)
        meters[layer].update(_rows(output, layer), kept[layer].pop(0))

    with floating(model), Recorded() as recorded, _after(meters, keep):
        forward(model, batch)
    with Replayed(recorded.choices), _after(meters, compare):
        forward(model, batch)


@contextmanager
def _after(layers: Iterable[QuantLayer], hook: Any) -> Iterator[None]:
    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _rows(output: Tensor, layer: QuantLayer) -> Tensor:
    """Return the same positions of every output with as many: a new tensor [P, C]."""
    assert layer.kind.channel_axis is not None
    rows = output.detach().movedim(layer.kind.channel_axis, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    if len(rows) <= ROWS:
        return rows.float().clone()  # what comes next may work in place
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))[:ROWS]
    return rows[chosen.to(rows.device)].float()


def _by_block(rows: Sequence[LayerError]) -> list[LayerError]:
    blocks: defaultdict[str, list[LayerError]] = defaultdict(list)
    for row in rows:
        blocks[_parent(row.layer)].append(row)
    return [_mean(row, blocks[_parent(row.layer)]) for row in rows]


def _mean(row: LayerError, block: Sequence[LayerError]) -> LayerError:
    output = Fidelity(
        fmean(each.output.mse for each in block),
        fmean(each.output.normalised_mse for each in block),
        fmean(each.output.cosine for each in block),
    )
    return LayerError(row.layer, row.weights, output, fmean(each.kl for each in block))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]

"""Beyond the thesis: weights whose integers are learned, layer after layer."""

from collections.abc import Callable, Iterator, Sequence
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
from bevquant.quant.outputs import floating_tensors
from bevquant.quant.refinement.lockstep import Call, lockstep
from bevquant.quant.refinement.refine import distance
from bevquant.quant.refinement.rounding import Moments, fit
from bevquant.quant.refinement.samples import (
    inputs_of,
    linear_in_rows,
    outputs_of,
    rows_weight,
    split_positions,
    weight_rows,
)
from bevquant.quant.running import Forward, call, evaluating
from bevquant.quant.spec import Precision

CHECKED = 4
"""Batches on which the network's outputs are compared, as learned and without."""

LEARNED_BITS = 6
"""Most bits of a weight whose integers are learned; of wider ones only the bias is refitted."""


@dataclass(frozen=True)
class _Wanted:
    """What a layer returned in the float network: outputs [G, P, N] at positions [P].

    Attributes:
        where: positions that are fitted.
        outputs: there.
        unfitted: other positions, on which what was fitted is accepted or not; few or none of
            a small output.
        others: outputs there.
    """

    where: Tensor
    outputs: Tensor
    unfitted: Tensor
    others: Tensor


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
    correction, Nagel et al., arXiv 1906.04721).

    Nothing is kept that makes a layer worse: its error is compared with that of rounding at
    positions that were not fitted, and afterwards the outputs of the whole network are
    compared with float's, as learned and without. Indices that the network picks (``topk``
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
        The names of the quantized layers that were left as they were: never reached,
        transposed convolutions in groups, or no better for what was learned.

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
            for precision, moments, held in _moments(layer, calls, wanted, precisions):
                if moments.count:
                    rounding = _round(layer, moments, ridge)
                    if held.prefers(layer, rounding):
                        layer.learn(precision, rounding)
                        done.add(layer)
        step = max(1, len(batches) // CHECKED)
        some = range(0, len(batches), step)[:CHECKED]
        done -= _drop_what_spoils(
            model, [x for x in layers if x in done], lambda i: replay(model, (i, batches[i])), some
        )
    return tuple(layer.name for layer in layers if layer not in done)


def _drop_what_spoils(
    model: nn.Module, layers: Sequence[QuantLayer], run: Callable[[int], Any], some: Sequence[int]
) -> set[QuantLayer]:
    """Forget, main module by main module, what brings the network's outputs no nearer to float.

    Only if all of it together does not. Returns the layers that have lost what they learned.
    """
    with floating(model):
        exact = [_copies(floating_tensors(run(i))) for i in some]

    def error() -> float:
        outputs = (floating_tensors(run(i)) for i in some)
        return sum(distance(each, wanted) for each, wanted in zip(outputs, exact, strict=True))

    learned = {layer: dict(layer.rounded) for layer in layers}

    def without(members: Sequence[QuantLayer]) -> float:
        for layer in members:
            assert layer.precision is not None
            layer.rounded.pop(layer.precision, None)
        return error()

    least = error()
    plain = without(layers)
    for layer in layers:
        layer.rounded.update(learned[layer])
    if not least > plain:
        return set()
    dropped: set[QuantLayer] = set()
    for name in dict.fromkeys(layer.main_module for layer in layers):
        members = [layer for layer in layers if layer.main_module == name]
        if (found := without(members)) <= least:
            least = found
            dropped.update(members)
        else:
            for layer in members:
                layer.rounded.update(learned[layer])
    if least > plain:
        without(layers)
        return set(layers)
    return dropped


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


class _Held:
    """Inputs and float outputs of a layer at positions that its fit has not seen.

    Where all positions were fitted it is those: the error of a bias that was fitted to n
    samples, each predicted from the others, is n / (n - 1) times what is left of it.
    """

    def __init__(self) -> None:
        self._unfitted: list[tuple[Tensor, Tensor]] = []
        self._fitted: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: Tensor, outputs: Tensor, *, fitted: bool) -> None:
        """Keep inputs [G, P, K] and outputs [G, P, N]."""
        if rows.shape[1]:
            (self._fitted if fitted else self._unfitted).append((rows, outputs))

    def prefers(self, layer: QuantLayer, rounding: Rounding) -> bool:
        """Whether the layer's error is smaller with ``rounding`` than as it is."""
        own = layer.wrapped._parameters.get("bias")
        weight = affine.dequantize(layer.weight_codes, layer.weight_params)
        plain = self._error(layer, weight, own)
        weight = affine.dequantize(rounding.codes, rounding.params)
        count = sum(rows.shape[1] for rows, _ in self._fitted)
        if not self._unfitted and count < 2:
            return False
        factor = 1.0 if self._unfitted else (count / (count - 1)) ** 2
        return factor * self._error(layer, weight, rounding.bias) < plain

    def _error(self, layer: QuantLayer, weight: Tensor, bias: Tensor | None) -> float:
        samples = self._unfitted or self._fitted
        device = samples[0][0].device
        matrix = weight_rows(layer, weight.to(device)).float()
        shift = 0 if bias is None else bias.to(device).float().view(len(matrix), 1, -1)
        total = 0.0
        for rows, outputs in samples:
            total += float((rows @ matrix.transpose(1, 2) + shift - outputs).square().sum())
        return total


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
            places = split_positions(layer, output, samples, generator)
            where, unfitted = places
            outputs = [outputs_of(layer, output, each) for each in places]
            wanted[layer, current] = _Wanted(where, outputs[0], unfitted, outputs[1])

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
) -> Iterator[tuple[Precision, Moments, _Held]]:
    """Yield, with the layer at each precision, moments of its quantized inputs and float outputs.

    Beside them, samples that are not in the moments. They depend on the bits of the
    activations only.
    """
    present = layer.precision
    known: dict[int, tuple[Moments, _Held]] = {}
    try:
        for precision in _learned(layer, precisions):
            layer.precision = precision
            if precision.activations not in known:
                known[precision.activations] = moments, held = Moments(), _Held()
                for each in calls:
                    sample = wanted.get((layer, each.batch))
                    if sample is not None:
                        (x,) = layer.quantize_inputs(each.args[0])
                        places = torch.cat((sample.where, sample.unfitted))
                        rows = inputs_of(layer, places, x, *each.args[1:], **each.kwargs).float()
                        fitted = len(sample.where)
                        rows, others = rows[:, :fitted], rows[:, fitted:]
                        moments.update(rows, sample.outputs.float())
                        held.add(others, sample.others.float(), fitted=False)
                        if not len(sample.unfitted):
                            held.add(rows, sample.outputs.float(), fitted=True)
            yield precision, *known[precision.activations]
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

"""Stage 2: factors on the ranges that stage 1 found."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bevquant.errors import BevquantError
from bevquant.progress import track
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.inputs import choice_of, precisions_of, sequence_of
from bevquant.quant.layers import QuantLayer, QuantMatMul, QuantModule, floating, quant_modules
from bevquant.quant.outputs import floating_tensors
from bevquant.quant.refinement import alphas
from bevquant.quant.refinement.alphas import Found
from bevquant.quant.refinement.lockstep import lockstep
from bevquant.quant.running import Forward, call, evaluating
from bevquant.quant.spec import Precision

Method = Literal["measured", "thesis"]


@dataclass(frozen=True)
class Refinement:
    """What stage 2 found for one layer at one precision.

    Attributes:
        layer: its name.
        precision: weight and input bits.
        weight_alphas: factor of the weight's range, one or one for each output channel; of
            a product of activations empty.
        input_alphas: factor of each input's range.
        before: mean square error of the layer's output with factors of 1.
        after: the same with these factors.
        kept: whether the layer uses them: otherwise its main module came out worse.
    """

    layer: str
    precision: Precision
    weight_alphas: tuple[float, ...]
    input_alphas: tuple[float, ...]
    before: float
    after: float
    kept: bool


def refine(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Forward = call,
    *,
    precisions: Sequence[Precision] | None = None,
    method: Method = "measured",
    samples: int = 512,
    checked: int = 4,
    seed: int = 0,
) -> list[Refinement]:
    """Search factors alpha_w, alpha_a for the ranges of each layer, at each precision.

    ``"measured"``: for each layer the factors with the smallest error of its output over
    all batches, weights and inputs searched in turns over a wide grid, weights for each
    output channel; 1 is in the grid. They are kept where the error falls *and* the output
    of the layer's main module, run on its float inputs with all its layers quantized, is no
    further from float than with factors of 1. The network as a
    whole is not compared: modules that are each no worse can together end behind.

    ``"thesis"``: a grid of 0.8 to 1.2 for both factors; the best pair of each batch has a
    vote, and the mean of the votes is taken, whatever it does to the error (chapter 3).

    Float inputs are what the layers are looked at with, all batches in mid-forward side by
    side. Indices that the network picks are those of the float network.

    Args:
        model: quantized and calibrated.
        batches: for calibration.
        forward: runs the model on one batch; ``model(batch)`` by default.
        precisions: those to search for; by default those that the layers have.
        method: see above.
        samples: positions of each layer's output that are looked at, over all batches.
        checked: batches on which main modules are compared.
        seed: of the positions.

    Returns:
        A row for each layer that a batch reaches (but transposed convolutions in groups,
        which keep factors of 1), and each precision.

    Raises:
        BevquantError: nothing is quantized, or there is no batch.
    """
    layers = [layer for layer in quant_modules(model) if layer.quantized]
    if not layers:
        raise BevquantError("refine: no layer is quantized; call quantize and calibrate first")
    batches = sequence_of(batches, "refine")
    choice_of(method, get_args(Method), "refine: method")
    wanted = precisions_of(
        sorted({str(layer.precision) for layer in layers}) if precisions is None else precisions,
        "refine",
    )
    for layer in layers:
        for precision in wanted:
            layer.refined.pop(precision, None)
            if isinstance(layer, QuantLayer):
                layer.rounded.pop(precision, None)  # it was learned for former factors

    find = alphas.search if method == "measured" else alphas.thesis
    found: dict[tuple[QuantModule, Precision], Found] = {}
    with evaluating(model):
        with floating(model):
            steps = lockstep(model, layers, batches, forward)
            for number, (layer, calls) in enumerate(track(steps, "refine", total=len(layers))):
                assert isinstance(layer, QuantLayer | QuantMatMul)
                given = alphas.sample(layer, calls, samples, seed * len(layers) + number)
                for precision in wanted if given else ():
                    found[layer, precision] = find(layer, precision, given)
        kept = {
            key for key, each in found.items() if method == "thesis" or each.after < each.before
        }
        for layer, precision in kept:
            layer.adjust(precision, found[layer, precision].alphas)
        if method == "measured":
            step = max(1, len(batches) // checked)
            worse = _worse_modules(model, layers, batches[::step][:checked], forward, wanted)
            for layer, precision in list(kept):
                if (layer.main_module, precision) in worse:
                    del layer.refined[precision]
                    kept.remove((layer, precision))
    return [
        _row(layer, precision, each, (layer, precision) in kept)
        for (layer, precision), each in found.items()
    ]


def _row(layer: QuantModule, precision: Precision, found: Found, kept: bool) -> Refinement:
    weight = found.alphas.weight.flatten().tolist() if isinstance(layer, QuantLayer) else ()
    return Refinement(
        layer.name, precision, tuple(weight), found.alphas.inputs, found.before, found.after, kept
    )


def _worse_modules(
    model: nn.Module,
    layers: Sequence[QuantModule],
    batches: Sequence[Any],
    forward: Forward,
    precisions: Sequence[Precision],
) -> set[tuple[str, Precision]]:
    """Return the main modules whose output is further from float with factors than without.

    Each is called again, on copies of its float inputs, within a float forward pass.
    """
    members: dict[str, list[QuantModule]] = {}
    for layer in layers:
        members.setdefault(layer.main_module, []).append(layer)
    errors: dict[tuple[str, Precision, bool], float] = {}
    busy = False

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not busy:
            inputs[module] = _copy((args, kwargs)), len(recorded.choices)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        (args, kwargs), start = inputs.pop(module)
        chosen, wanted = recorded.choices[start:], _copy(floating_tensors(output))
        name = names[module]
        for precision in precisions:
            for refined in (False, True):
                with _trial(members[name], precision, refined), Replayed(chosen):
                    given, options = _copy((args, kwargs))
                    error = distance(floating_tensors(module(*given, **options)), wanted)
                key = name, precision, refined
                errors[key] = errors.get(key, 0.0) + error
        del recorded.choices[start + len(chosen) :]  # those of the calls just made
        busy = False

    inputs: dict[nn.Module, Any] = {}
    names = {model.get_submodule(name): name for name in members if name}
    hooks = []
    for module in names:
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after))
    try:
        with floating(model):
            for batch in track(batches, "check main modules"):
                with Recorded() as recorded:
                    forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        (name, precision)
        for name, precision, refined in errors
        if refined and errors[name, precision, True] > errors[name, precision, False]
    }


@contextmanager
def _trial(layers: Sequence[QuantModule], precision: Precision, refined: bool) -> Iterator[None]:
    """Quantize ``layers`` for a while, with their factors or without."""
    before = [(layer, layer.precision, layer.refined) for layer in layers]
    for layer in layers:
        layer.precision, layer.bypass = precision, False
        if not refined:
            layer.refined = {}
    try:
        yield
    finally:
        for layer, bits, factors in before:
            layer.precision, layer.refined, layer.bypass = bits, factors, True


def _copy(values: Any) -> Any:
    """Copy the tensors in a nest: a module may write into what it is given."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, values)


def distance(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the sum over tensors of the square error, as a share of the float power."""
    total = 0.0
    for output, exact in zip(outputs, wanted, strict=True):
        power = exact.double().square().sum().clamp_min(torch.finfo(torch.float64).tiny)
        total += float((output.double() - exact.double()).square().sum() / power)
    return total

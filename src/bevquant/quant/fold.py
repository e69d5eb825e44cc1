"""Exact folding of BatchNorm into the layer that feeds it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bevquant.errors import BevquantError
from bevquant.quant.choices import Recorded, Replayed
from bevquant.quant.kinds import kind_of, weight_of
from bevquant.quant.layers import quant_modules, swap
from bevquant.quant.outputs import agree, floating_tensors
from bevquant.quant.running import Forward, call, evaluating, refuse_inference_tensors
from bevquant.quant.scaling import like, rescaled, scale_outputs
from bevquant.quant.watch import Watch

ROUNDING = 1e-4
"""Share of an output's largest value that rounding changes it by at most, in deep networks."""

HOOKS = "it or the layer before it has forward hooks, which would see other values"
INEXACT = (
    "the model would return something else (is the weight of the layer before it read elsewhere, "
    "or changed on its way, or is the norm called without being a module's child?)"
)


def fold_batchnorm(model: nn.Module, batch: Any, forward: Forward = call) -> tuple[str, ...]:
    """Fold every BatchNorm whose input is the output of a layer that feeds it alone, in place.

    Who feeds whom is seen in one forward pass over ``batch``, in evaluation mode: the very
    tensor that a layer returned must reach the norm, reach no other operator, and be gone
    at the end (neither returned nor stored). So no tracing and no change of code is needed,
    but a use that only other batches lead to is not seen.

    The layer's weight and bias become those of layer and norm together (running
    statistics), computed in float64; a layer that has no place for a bias keeps its share
    of the norm as an addition. :func:`~bevquant.quant.prepare.restore` undoes it.

    Whether the model still returns what it did is checked on the batch. A norm that it does
    not (its layer's weight is read elsewhere, say, or changed on the way) is left alone, and
    so is one with hooks of a user's, or whose layer has some; a warning names each.

    Args:
        model: float, not yet quantized.
        batch: one batch, typical in that every branch runs.
        forward: runs the model on the batch; ``model(batch)`` by default.

    Returns:
        The names of the norms that were folded.

    Raises:
        BevquantError: ``model`` is quantized or equalized already.
    """
    if quant_modules(model):
        raise BevquantError("fold_batchnorm: the model is quantized; fold before quantize")
    refuse_inference_tensors(model, "fold_batchnorm")
    if rescaled(model):
        raise BevquantError("fold_batchnorm: the model is equalized; fold before equalize")
    pairs = _pairs(model, batch, forward)
    names = {module: name for name, module in model.named_modules() if module in pairs}
    reasons = {norm: HOOKS for norm, layer in pairs.items() if _hooked(norm) or _hooked(layer)}
    candidates = [norm for norm in names if norm not in reasons]
    inexact = _fold_what_stays_exact(model, pairs, candidates, lambda: forward(model, batch))
    reasons |= dict.fromkeys(inexact, INEXACT)
    for norm, reason in reasons.items():
        warnings.warn(f"fold_batchnorm: left {names[norm]!r} alone: {reason}", stacklevel=2)
    return tuple(name for norm, name in names.items() if norm not in reasons)


def _fold_what_stays_exact(
    model: nn.Module,
    pairs: Mapping[_BatchNorm, nn.Module],
    candidates: Sequence[_BatchNorm],
    run: Callable[[], Any],
) -> list[_BatchNorm]:
    """Fold the candidates; return those that had to be left, as the model's outputs changed.

    All are folded at once; only if that changes something are they folded half by half.
    """

    def outputs(choices: Recorded | Replayed) -> list[Tensor]:
        with evaluating(model), torch.random.fork_rng(devices=()), choices:
            torch.manual_seed(0)
            return floating_tensors(run())

    def attempt(norms: Sequence[_BatchNorm]) -> list[_BatchNorm]:
        if not norms:
            return []
        folded: dict[nn.Module, FoldedBatchNorm] = {n: _fold(n, pairs[n]) for n in norms}
        swap(model, dict(folded))
        if agree(outputs(Replayed(recorded.choices)), wanted, ROUNDING):
            return []
        swap(model, {each: each.unfold() for each in reversed(folded.values())})
        if len(norms) == 1:
            return list(norms)
        half = len(norms) // 2
        return attempt(norms[:half]) + attempt(norms[half:])

    if not candidates:
        return []
    recorded = Recorded()
    wanted = [tensor.clone() for tensor in outputs(recorded)]
    return attempt(candidates)


def _hooked(module: nn.Module) -> bool:
    """Whether somebody looks at, or changes, what a module is given or returns."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def unfold(model: nn.Module) -> None:
    """Undo :func:`fold_batchnorm`: the same norms and parameters as before."""
    folded = [module for module in nn.Module.modules(model) if isinstance(module, FoldedBatchNorm)]
    swap(model, {module: module.unfold() for module in folded})


@dataclass(frozen=True)
class _Before:
    """What a folding replaced; no module, so that its parameters are not the model's."""

    norm: _BatchNorm
    layer: nn.Module
    parameters: dict[str, nn.Parameter | None]


class FoldedBatchNorm(nn.Module):
    """Stands where a BatchNorm stood, and adds what its layer could not take.

    Attributes:
        shift: float [C], or ``None`` if the layer's bias took it.
    """

    shift: Tensor | None

    def __init__(self, before: _Before, shift: Tensor | None) -> None:
        super().__init__()
        self._before = before
        self.training = before.norm.training
        self.register_buffer("shift", shift)

    def forward(self, input: Tensor) -> Tensor:
        """Return the input plus the shift, if there is one."""
        return input if self.shift is None else input + self.shift

    def unfold(self) -> _BatchNorm:
        """Give the layer its parameters back, and return the norm."""
        before = self._before
        weight = weight_of(before.layer)
        # The model may have been moved or cast in between.
        before.norm.to(weight.device, weight.dtype)
        before.norm.train(self.training)
        for name, parameter in before.parameters.items():
            if parameter is not None:
                parameter.data = parameter.data.to(weight)
            setattr(before.layer, name, parameter)
        return before.norm


def _fold(norm: _BatchNorm, layer: nn.Module) -> FoldedBatchNorm:
    kind = kind_of(layer)
    assert kind is not None
    assert kind.weight_axis is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    before = _Before(norm, layer, dict(layer._parameters))
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift = shift + norm.bias.double()

    weight = weight_of(layer)
    layer.weight = like(scale_outputs(layer, gain), weight)
    if "bias" not in layer._parameters:
        return FoldedBatchNorm(before, shift.detach().to(weight.dtype))
    if (bias := layer._parameters["bias"]) is not None:
        shift = shift + bias.double() * gain
    layer.bias = like(shift, weight)
    return FoldedBatchNorm(before, None)


@dataclass(eq=False)
class _Output:
    """One tensor that a layer returned.

    Attributes:
        layer: who returned it.
        readers: the norms that took it, and ``None`` for anything else.
    """

    layer: nn.Module
    readers: set[nn.Module | None] = field(default_factory=set)


class _Watch(Watch[_Output]):  # type: ignore[no-untyped-call]
    """Watches which outputs go from which layers to which norms and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[_Output] = []
        self.feeders: dict[_BatchNorm, set[nn.Module | None]] = {}

    def watched(self, module: nn.Module) -> bool:
        kind = kind_of(module)
        return _is_plain_norm(module) or (kind is not None and kind.weight_axis is not None)

    def entered(self, module: nn.Module, inputs: list[Any]) -> None:
        norm = module if isinstance(module, _BatchNorm) else None
        for output in self.labels(inputs):
            output.readers.add(norm)
        if norm is not None:
            feeder = self.get(inputs[0])
            self.feeders.setdefault(norm, set()).add(feeder.layer if feeder else None)

    def left(self, module: nn.Module, output: Any) -> None:
        kind = kind_of(module)
        if kind is None:
            return
        watched = _Output(module)
        self.outputs.append(watched)
        self.put(output, watched)
        assert kind.channel_axis is not None
        if kind.channel_axis % output.ndim != 1:  # a norm would not normalise its channels
            watched.readers.add(None)

    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        for output in self.labels((args, kwargs)):
            output.readers.add(None)
        return func(*args, **kwargs)


def _pairs(model: nn.Module, batch: Any, forward: Forward) -> dict[_BatchNorm, nn.Module]:
    """Return norm -> layer, for each norm that only this layer feeds and that alone reads it."""
    watch = _Watch()
    for output in watch.run(model, batch, forward):
        output.readers.add(None)
    readers: dict[nn.Module, set[nn.Module | None]] = {}
    for output in watch.outputs:
        readers.setdefault(output.layer, set()).update(output.readers)
    return {
        norm: layer
        for norm, feeding in watch.feeders.items()
        for layer in feeding
        if layer is not None and len(feeding) == 1 and readers[layer] == {norm}
    }


def _is_plain_norm(module: nn.Module) -> bool:
    plain = isinstance(module, nn.SyncBatchNorm) or (
        isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward
    )
    return plain and module.running_mean is not None and module.running_var is not None

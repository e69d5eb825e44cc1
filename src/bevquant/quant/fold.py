"""Exact folding of BatchNorm into the layer that feeds it."""

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevquant.errors import BevquantError
from bevquant.quant.kinds import kind_of, weight_of
from bevquant.quant.layers import quant_modules, swap
from bevquant.quant.running import Forward, call, evaluating


def fold_batchnorm(model: nn.Module, batch: Any, forward: Forward = call) -> tuple[str, ...]:
    """Fold every BatchNorm whose input is the output of a layer that feeds it alone, in place.

    Who feeds whom is seen in one forward pass over ``batch``, in evaluation mode: the very
    tensor that a layer returned must reach the norm, reach no other operator, and be gone
    at the end (neither returned nor stored). So no tracing and no change of code is needed,
    but a use that only other batches lead to is not seen.

    The layer's weight and bias become those of layer and norm together (running
    statistics), computed in float64; a layer that has no place for a bias keeps its share
    of the norm as an addition. :func:`~bevquant.quant.prepare.restore` undoes it.

    Args:
        model: float, not yet quantized.
        batch: one batch, typical in that every branch runs.
        forward: runs the model on the batch; ``model(batch)`` by default.

    Returns:
        The names of the norms that were folded.

    Raises:
        BevquantError: ``model`` is quantized already.
    """
    if quant_modules(model):
        raise BevquantError("fold_batchnorm: the model is quantized; fold before quantize")
    pairs = _pairs(model, batch, forward)
    names = tuple(name for name, module in model.named_modules() if module in pairs)
    swap(model, {norm: _fold(norm, layer) for norm, layer in pairs.items()})
    return names


def unfold(model: nn.Module) -> None:
    """Undo :func:`fold_batchnorm`: the same norms and parameters as before."""
    folded = [module for module in model.modules() if isinstance(module, FoldedBatchNorm)]
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
    # A transposed convolution has its output channels group by group: [groups * in, out, ...].
    groups = layer.groups if isinstance(layer, _ConvTransposeNd) else 1
    gain_shape = (
        groups,
        *(1,) * kind.weight_axis,
        -1,
        *(1,) * (weight.ndim - 1 - kind.weight_axis),
    )
    by_group = weight.double().view(groups, -1, *weight.shape[1:])
    layer.weight = _like((by_group * gain.view(gain_shape)).view(weight.shape), weight)
    if "bias" not in layer._parameters:
        return FoldedBatchNorm(before, shift.to(weight.dtype))
    if (bias := layer._parameters["bias"]) is not None:
        shift = shift + bias.double() * gain
    layer.bias = _like(shift, weight)
    return FoldedBatchNorm(before, None)


def _like(value: Tensor, parameter: nn.Parameter) -> nn.Parameter:
    value = value.detach().to(parameter.dtype)
    return nn.Parameter(value.contiguous(), requires_grad=parameter.requires_grad)


@dataclass
class _Output:
    """One tensor that a layer returned, watched without keeping it alive.

    Attributes:
        layer: who returned it.
        tensor: the tensor; dead once nobody holds it.
        readers: the norms that took it, and ``None`` for any other operator.
    """

    layer: nn.Module
    tensor: "weakref.ref[Tensor]"
    readers: set[nn.Module | None] = field(default_factory=set)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches which tensors go from which layers to which norms and other operators.

    Below autograd and Python an operator's arguments still are the very tensors that
    modules handed over, and reading a shape or a dtype is no operator.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: list[_Output] = []
        self.feeders: dict[_BatchNorm, set[nn.Module | None]] = {}
        self._alive: dict[int, _Output] = {}
        self._inside_norm = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._inside_norm:
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self._alive:
                    self._alive[id(leaf)].readers.add(None)
        return func(*args, **kwargs)

    def returned(self, layer: nn.Module, _: Any, tensor: Tensor) -> None:
        """Forward hook of a layer."""
        key = id(tensor)
        output = _Output(layer, weakref.ref(tensor, lambda _: self._alive.pop(key, None)))
        self.outputs.append(output)
        self._alive[key] = output
        kind = kind_of(layer)
        assert kind is not None
        assert kind.channel_axis is not None
        if kind.channel_axis % tensor.ndim != 1:  # a norm would not normalise its channels
            output.readers.add(None)

    def entered(self, norm: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of a norm."""
        assert isinstance(norm, _BatchNorm)
        self._inside_norm = True
        output = self._alive.get(id((*args, *kwargs.values())[0]))
        self.feeders.setdefault(norm, set()).add(output.layer if output else None)
        if output:
            output.readers.add(norm)

    def left(self, *_: Any) -> None:
        """Forward hook of a norm."""
        self._inside_norm = False


def _pairs(model: nn.Module, batch: Any, forward: Forward) -> dict[_BatchNorm, nn.Module]:
    """Return norm -> layer, for each norm that only this layer feeds and that alone reads it."""
    watch = _Watch()
    hooks = []
    for module in model.modules():
        if _is_plain_norm(module):
            hooks.append(module.register_forward_pre_hook(watch.entered, with_kwargs=True))
            hooks.append(module.register_forward_hook(watch.left))
        elif (kind := kind_of(module)) is not None and kind.weight_axis is not None:
            hooks.append(module.register_forward_hook(watch.returned))
    try:
        with evaluating(model), watch:
            result = forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    for output in watch.outputs:
        if output.tensor() is not None:
            output.readers.add(None)
    del result  # was held up to here, so that what the model returns counts as alive
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

"""Scaling the channels of modules, and taking it back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bevquant.quant.kinds import kind_of, weight_of

_BEFORE = "_bevquant_before_scaling"


def scale_outputs(layer: nn.Module, factors: Tensor) -> Tensor:
    """Return the layer's weight, float64, with each output channel scaled by [C_out] factors."""
    kind, weight = kind_of(layer), weight_of(layer)
    assert kind is not None
    assert kind.weight_axis is not None
    # A transposed convolution has its output channels group by group: [groups * in, out, ...].
    groups = layer.groups if isinstance(layer, _ConvTransposeNd) else 1
    return _scale(weight, factors, groups, kind.weight_axis)


def scale_inputs(layer: nn.Module, factors: Tensor) -> Tensor:
    """Return the layer's weight, float64, with each input channel scaled by [C_in] factors."""
    kind, weight = kind_of(layer), weight_of(layer)
    assert kind is not None
    # A convolution has its input channels group by group: [groups * out, in, ...].
    grouped = isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd)
    groups = layer.groups if grouped else 1
    assert isinstance(groups, int)
    return _scale(weight, factors, groups, kind.input_axis % weight.ndim)


def like(value: Tensor, parameter: nn.Parameter) -> nn.Parameter:
    """Return ``value`` as a parameter in the dtype of another."""
    with torch.inference_mode(False):  # else it could never be trained
        value = value.detach().to(parameter.dtype, copy=True)
        return nn.Parameter(value.contiguous(), requires_grad=parameter.requires_grad)


def rescale(
    model: nn.Module, outputs: Mapping[nn.Module, Tensor], inputs: Mapping[nn.Module, Tensor]
) -> None:
    """Divide the output channels of some modules, and multiply the input channels of others.

    Args:
        model: what the modules are part of; remembers how they were.
        outputs: layer, norm with an affine part, or module with a ``shift`` -> [C] factors
            that its output's channels are divided by, float64.
        inputs: layer -> [C] factors of its weight's input channels, float64.
    """
    for module, factors in outputs.items():
        if kind_of(module) is not None:
            _set(model, module, "weight", scale_outputs(module, 1 / factors))
            names: tuple[str, ...] = ("bias",)
        else:
            names = ("weight", "bias", "shift")
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                _set(model, module, name, value.detach().double() / factors.to(value.device))
    for layer, factors in inputs.items():
        _set(model, layer, "weight", scale_inputs(layer, factors))


def rescaled(model: nn.Module) -> bool:
    """Return whether there is something that :func:`unscale` would take back."""
    return _BEFORE in model.__dict__


def unscale(model: nn.Module) -> None:
    """Undo every :func:`rescale`: the same parameters as before."""
    before: dict[nn.Module, dict[str, Tensor]] = model.__dict__.pop(_BEFORE, {})
    for module, tensors in before.items():
        for name, tensor in tensors.items():
            store = module._parameters if name in module._parameters else module._buffers
            now = store[name]
            assert now is not None
            tensor.data = tensor.data.to(now.device)  # the model may have been moved in between
            store[name] = tensor  # type: ignore[assignment]


def _set(model: nn.Module, module: nn.Module, name: str, value: Tensor) -> None:
    before = model.__dict__.setdefault(_BEFORE, {}).setdefault(module, {})
    now = getattr(module, name)
    before.setdefault(name, now)
    if isinstance(now, nn.Parameter):
        module._parameters[name] = like(value, now)
    else:
        module._buffers[name] = value.to(now.dtype)


def _scale(weight: Tensor, factors: Tensor, groups: int, axis: int) -> Tensor:
    by_group = weight.detach().double().view(groups, -1, *weight.shape[1:])
    shape = (groups, *(1,) * axis, -1, *(1,) * (weight.ndim - 1 - axis))
    factors = factors.to(weight.device, by_group.dtype)
    return (by_group * factors.view(shape)).view(weight.shape)

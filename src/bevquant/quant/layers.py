"""The modules that stand where a network's layers stood."""

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bevquant.errors import BevquantError
from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.changes import Known, Notice
from bevquant.quant.kinds import Kind, weight_of
from bevquant.quant.observers import min_max
from bevquant.quant.pairs import limited, pair_sums
from bevquant.quant.quantizers import ActivationQuantizer
from bevquant.quant.spec import Precision, QuantSpec, Scheme


@dataclass(frozen=True, eq=False)
class Alphas:
    """Factors on the ranges of one layer at one precision (stage 2 of the thesis).

    Attributes:
        weight: float32, on the CPU; shape [] or, for each output channel, [C, 1, ...];
            1 for a product of activations.
        inputs: one factor for each quantized input.
    """

    weight: Tensor
    inputs: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Rounding:
    """A weight whose integers were chosen for the layer's output, not one by one.

    Attributes:
        codes: int32, on the CPU, shaped like the float weight.
        params: the grid that the codes are of, on the CPU.
        bias: float32 [C], on the CPU; stands in for the layer's own.
    """

    codes: Tensor
    params: QuantParams
    bias: Tensor


class QuantModule(nn.Module):
    """A layer that quantizes its inputs, and whose bits can be changed at any time.

    It runs float while it has no precision, or its inputs no observed range.

    Attributes:
        wrapped: the float layer itself; stride, padding and so on are read there.
        name: dotted path in the model that was quantized.
        main_module: name of the main module that the layer is part of.
        kind: see :mod:`bevquant.quant.kinds`.
        scheme: symmetry and granularity of weights and activations.
        precision: bits, or ``None`` for float.
        bypass: run float whatever the precision; see :func:`floating`.
        inputs: one quantizer for each quantized input.
        notice: says that what was learned is forgotten; one for all layers of a model.
    """

    operands = 1

    def __init__(
        self,
        wrapped: nn.Module,
        name: str,
        main_module: str,
        kind: Kind,
        scheme: Scheme,
        notice: Notice | None = None,
    ) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.name = name
        self.main_module = main_module
        self.kind = kind
        self.scheme = scheme
        self.precision: Precision | None = None
        self.bypass = False
        self.inputs = tuple(
            ActivationQuantizer(scheme.activations, kind.channel_axis) for _ in range(self.operands)
        )
        self.notice = notice or Notice()
        self._refined: dict[Precision, Alphas] = {}

    @property
    def refined(self) -> dict[Precision, Alphas]:
        """What :func:`~bevquant.quant.refinement.refine.refine` found, for each precision.

        :meth:`adjust` adds to it.
        """
        self._forget_if_changed()
        return self._refined

    @refined.setter
    def refined(self, factors: dict[Precision, Alphas]) -> None:
        self._refined = factors

    def adjust(self, precision: Precision, alphas: Alphas) -> None:
        """Use factors that were found for the layer's present weight and bias."""
        self._refined[precision] = alphas

    @property
    def calibrated(self) -> bool:
        """Whether every input has an observed range."""
        return all(quantizer.ranges for quantizer in self.inputs)

    @property
    def quantized(self) -> bool:
        """Whether a forward pass is a quantized one now."""
        return self.precision is not None and self.calibrated and not self.bypass

    @property
    def input_params(self) -> tuple[QuantParams, ...]:
        """Grid of each quantized input at the present precision, on the CPU.

        Raises:
            BevquantError: the layer is float or not calibrated.
        """
        return self._input_params(torch.device("cpu"))

    def quantize_inputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return each input quantized and dequantized, as new tensors.

        Raises:
            BevquantError: the layer is float or not calibrated.
        """
        grids = self._input_params(inputs[0].device)
        return tuple(affine.simulate(x, grid) for x, grid in zip(inputs, grids, strict=True))

    def forget(self) -> None:
        """Forget what was refined and learned: the ranges it was found for have changed."""
        self._refined = {}

    def _forget_if_changed(self) -> None:
        """Forget what was found for a weight that has changed: here there is none."""

    def _input_params(self, device: torch.device) -> tuple[QuantParams, ...]:
        precision = self._bits()
        alphas = self.refined.get(precision)
        return tuple(
            quantizer.params(precision.activations, alphas.inputs[i] if alphas else 1.0, device)
            for i, quantizer in enumerate(self.inputs)
        )

    def _bits(self) -> Precision:
        if self.precision is None or not self.calibrated:
            raise BevquantError(f"{self.name}: float or not calibrated, it has no integer grid")
        return self.precision

    def __getattr__(self, name: str) -> Any:
        """Look up what this module lacks (weight, stride, ...) in the float layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "wrapped":
                raise
            return getattr(self.wrapped, name)

    def extra_repr(self) -> str:
        """Return the bits."""
        return str(self.precision or "float")


class QuantLayer(QuantModule):
    """A layer that is linear in its ``weight`` and in its first input.

    An exporter reads :attr:`weight_codes`, :attr:`weight_params`, :attr:`weight_axis`,
    :attr:`learned_bias` and the one element of :attr:`input_params`: the forward pass is
    that of ``wrapped`` with the dequantized weight on the dequantized input.

    Under ``torch.no_grad()`` the weight is quantized once per bit-width and kept; with
    gradients it is quantized in every pass, as it may have been trained in between. What is
    kept or learned is of the values that weight and bias had: once these are others, in
    whatever way they were changed, it is forgotten. Values are compared in every pass, as
    ``.data`` and NumPy change them without a trace: weights are read once for that, which
    takes 1 % of a convolution's time.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        name: str,
        main_module: str,
        kind: Kind,
        scheme: Scheme,
        notice: Notice | None = None,
    ) -> None:
        super().__init__(wrapped, name, main_module, kind, scheme, notice)
        self._rounded: dict[Precision, Rounding] = {}
        self._simulated: dict[tuple[int, Alphas | Rounding | None], Tensor] = {}
        self._known: Known | None = None

    @property
    def rounded(self) -> dict[Precision, Rounding]:
        """What reconstruct or ptqat learned, for each precision; :meth:`learn` adds to it."""
        self._forget_if_changed()
        return self._rounded

    @property
    def weight_axis(self) -> int:
        """Axis of the output channels in the weight."""
        assert self.kind.weight_axis is not None
        return self.kind.weight_axis

    @property
    def weight_params(self) -> QuantParams:
        """Grid of the weight at the present precision; scale [], [C, 1, ...] or, by groups, [C, I].

        Raises:
            BevquantError: the layer is float or not calibrated, or its weight is not finite.
        """
        precision = self._bits()
        rounding = self.rounded.get(precision)
        if rounding is not None:
            return rounding.params
        alphas = self.refined.get(precision)
        return self.weight_grid(precision.weights, alphas.weight if alphas else 1.0)

    @property
    def weight_codes(self) -> Tensor:
        """Integer weight at the present precision: int32, shaped like the float weight.

        Raises:
            BevquantError: as :attr:`weight_params`.
        """
        rounding = self.rounded.get(self._bits())
        if rounding is not None:
            return rounding.codes
        return affine.quantize(weight_of(self.wrapped), self.weight_params)

    @property
    def learned_bias(self) -> Tensor | None:
        """Bias [C] that stands in for the layer's own at the present precision, if any."""
        rounding = self.rounded.get(self._bits())
        return None if rounding is None else rounding.bias

    def adjust(self, precision: Precision, alphas: Alphas) -> None:
        """Use factors that were found for the layer's present weight and bias."""
        self._know()
        self._refined[precision] = alphas
        self.notice.said = False

    def learn(self, precision: Precision, rounding: Rounding) -> None:
        """Use integers that were chosen for the layer's present weight and bias."""
        self._know()
        self._rounded[precision] = rounding
        self.notice.said = False

    def weight_spec(self, bits: int) -> QuantSpec:
        """Return what codes of the weight look like at ``bits``, 2..16."""
        ndim = weight_of(self.wrapped).ndim
        axes = self.weight_axis % ndim, self.kind.input_axis % ndim
        return self.scheme.weights.spec(bits, *(axis - ndim for axis in axes))

    def weight_grid(self, bits: int, alpha: Tensor | float) -> QuantParams:
        """Return the grid of ``alpha`` times the weight's range.

        Args:
            bits: 2..16.
            alpha: one factor, or one for each output channel, [C, 1, ...].

        Raises:
            BevquantError: the weight is not finite.
        """
        weight = weight_of(self.wrapped).detach()
        spec = self.weight_spec(bits)
        values = min_max(weight, spec.granularity)
        if not values.finite:
            raise BevquantError(f"{self.name}: its weight holds NaN or infinity")
        factor = alpha.to(weight.device) if isinstance(alpha, Tensor) else alpha
        values = values.scaled(factor)
        if limited(spec):
            # No factor may shrink these: kernels would saturate.
            sums = pair_sums(weight, self.weight_axis, self.kind.channel_axis == -1)
            values = values.union(min_max(sums, spec.granularity))
        return affine.params_from_range(values, spec)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; all arguments but the first reach it as they are."""
        if not self.quantized:
            return self.wrapped(input, *args, **kwargs)
        (quantized,) = self.quantize_inputs(input)  # and forget what is of another weight
        rounding = self._rounded.get(self._bits())
        if rounding is None:
            return self.run(self._weight(), quantized, *args, **kwargs)
        bias = rounding.bias.to(input.device, input.dtype)
        return self.run(self._weight(), quantized, *args, bias=bias, **kwargs)

    def run(
        self, weight: Tensor, input: Tensor, *args: Any, bias: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the float layer on ``input`` with another weight and, if given, another bias."""
        # What torch.func.functional_call does, without its 40 microseconds a call.
        wrapped = self.wrapped
        parameters: dict[str, Any] = wrapped._parameters
        before = dict(parameters)
        parameters["weight"] = weight
        added = bias is not None and "bias" not in parameters
        if bias is not None and not added:
            parameters["bias"] = bias
        try:
            output = wrapped(input, *args, **kwargs)
        finally:
            parameters.update(before)
        if bias is not None and added:
            assert self.kind.channel_axis is not None
            output = output + bias.view(-1, *(1,) * (-self.kind.channel_axis - 1))
        return output

    def forget(self) -> None:
        """Forget what was refined and learned: the ranges it was found for have changed."""
        super().forget()
        self._rounded = {}

    def _weight(self) -> Tensor:
        """Return the simulated weight; what is of another weight has been forgotten before."""
        precision = self._bits()
        weight = weight_of(self.wrapped)
        rounding = self._rounded.get(precision)
        if rounding is None and torch.is_grad_enabled() and weight.requires_grad:
            return affine.simulate(weight, self.weight_params)
        key = precision.weights, rounding or self._refined.get(precision)
        if key not in self._simulated:
            self._know()
            with torch.inference_mode(False), torch.no_grad():  # kept, and may meet gradients
                if rounding is None:
                    value = affine.simulate(weight.detach(), self.weight_params)
                else:
                    value = affine.dequantize(rounding.codes, rounding.params)
            self._simulated[key] = value.to(weight.device, weight.dtype)
        return self._simulated[key]

    def _present(self) -> tuple[Tensor, ...]:
        bias = self.wrapped._parameters.get("bias")
        return (weight_of(self.wrapped), *(() if bias is None else (bias,)))

    def _know(self) -> None:
        """Know weight and bias again: something is about to be kept that is of them."""
        self._forget_if_changed()
        if self._known is None:
            self._known = Known(self._present())

    def _forget_if_changed(self) -> None:
        """Forget what is kept or learned of a weight or bias that has changed since."""
        learned = bool(self._rounded or self._refined)
        if self._known is None:
            if learned:
                self._known = Known(self._present())
            return
        present = self._present()
        if self._known.same(present):
            return
        self._simulated = {}
        if self._known.moved(present):  # to another device or type: what is learned still holds
            self._known = Known(present)
            return
        self._known = None
        if learned:
            self.forget()
            self.notice.say(self.name)


class QuantMatMul(QuantModule):
    """A product of two activations, each quantized per tensor."""

    operands = 2

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b``."""
        if self.quantized:
            a, b = self.quantize_inputs(a, b)
        product: Tensor = self.wrapped(a, b)
        return product


def quant_modules(model: nn.Module) -> list[QuantModule]:
    """Return every quantizable layer of a quantized model, each once, in order of name."""
    return [module for module in nn.Module.modules(model) if isinstance(module, QuantModule)]


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some, wherever ``model`` holds them.

    That is under every name, and in lists, tuples and dicts that are attributes: a model may
    call its layers by those.
    """
    for parent in list(nn.Module.modules(model)):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
        for name, value in list(parent.__dict__.items()):
            if name not in _OWN and isinstance(value, list | tuple | dict):
                parent.__dict__[name] = _swapped(value, replacements)


_OWN = frozenset(nn.Module().__dict__)
"""Attributes in which PyTorch keeps what a module has."""


def held_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules in plain lists, tuples and dicts that are attributes, with their name."""
    for name, value in module.__dict__.items():
        if name not in _OWN and isinstance(value, list | tuple | dict):
            for leaf in tree_leaves(value):
                if isinstance(leaf, nn.Module):
                    yield name, leaf


def _swapped(value: Any, replacements: Mapping[nn.Module, nn.Module]) -> Any:
    """Return a container with modules replaced, lists and dicts in place, tuples if need be."""
    if isinstance(value, nn.Module):
        return replacements.get(value, value)
    if type(value) in (list, dict):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            new = _swapped(item, replacements)
            if new is not item:
                value[key] = new
    elif type(value) is tuple:
        items = tuple(_swapped(item, replacements) for item in value)
        return value if all(map(operator.is_, items, value)) else items
    return value


@contextmanager
def floating(model: nn.Module) -> Iterator[None]:
    """Run every layer of ``model`` float for the time of a ``with`` block."""
    modules = quant_modules(model)
    for module in modules:
        module.bypass = True
    try:
        yield
    finally:
        for module in modules:
            module.bypass = False

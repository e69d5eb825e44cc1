"""The modules that stand where a network's layers stood."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.kinds import Kind, weight_of
from bevquant.quant.observers import min_max, pair_sums
from bevquant.quant.quantizers import ActivationQuantizer
from bevquant.quant.spec import Precision, Scheme


class QuantModule(nn.Module):
    """A layer that quantizes its inputs, and whose bits can be changed at any time.

    It runs float while it has no precision, or its inputs no observed range.

    Attributes:
        wrapped: the float layer itself; bias, stride, padding and so on are read there.
        name: dotted path in the model that was quantized.
        main_module: name of the main module that the layer is part of.
        kind: see :mod:`bevquant.quant.kinds`.
        scheme: symmetry and granularity of weights and activations.
        precision: bits, or ``None`` for float.
        bypass: run float whatever the precision; see :func:`floating`.
        inputs: one quantizer for each quantized input.
    """

    operands = 1

    def __init__(
        self, wrapped: nn.Module, name: str, main_module: str, kind: Kind, scheme: Scheme
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

    @property
    def calibrated(self) -> bool:
        """Whether every input has an observed range."""
        return all(quantizer.range is not None for quantizer in self.inputs)

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
        bits = self._bits().activations
        return tuple(quantizer.params(bits, torch.device("cpu")) for quantizer in self.inputs)

    def _bits(self) -> Precision:
        if self.precision is None or not self.calibrated:
            raise BevquantError(f"{self.name}: float or not calibrated, it has no integer grid")
        return self.precision

    def _quantize_inputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        bits = self._bits().activations
        return tuple(q(x, bits) for q, x in zip(self.inputs, inputs, strict=True))

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

    An exporter reads :attr:`weight_codes`, :attr:`weight_params`, :attr:`weight_axis`, the
    one element of :attr:`input_params`, and ``wrapped.bias``: the forward pass is that of
    ``wrapped`` with the dequantized weight on the dequantized input.

    Under ``torch.no_grad()`` the weight is quantized once per bit-width and kept; with
    gradients it is quantized in every pass, as it may have been trained in between.
    """

    def __init__(
        self, wrapped: nn.Module, name: str, main_module: str, kind: Kind, scheme: Scheme
    ) -> None:
        super().__init__(wrapped, name, main_module, kind, scheme)
        self._stamp: tuple[Any, ...] = ()
        self._params: dict[int, QuantParams] = {}
        self._simulated: dict[int, Tensor] = {}

    @property
    def weight_axis(self) -> int:
        """Axis of the output channels in the weight."""
        assert self.kind.weight_axis is not None
        return self.kind.weight_axis

    @property
    def weight_params(self) -> QuantParams:
        """Grid of the weight at the present precision; scale [] or [C, 1, ...].

        Raises:
            BevquantError: the layer is float or not calibrated, or its weight is not finite.
        """
        return self._weight_params(self._bits().weights)

    @property
    def weight_codes(self) -> Tensor:
        """Integer weight at the present precision: int32, shaped like the float weight.

        Raises:
            BevquantError: as :attr:`weight_params`.
        """
        return affine.quantize(weight_of(self.wrapped), self.weight_params)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; all arguments but the first reach it as they are."""
        if not self.quantized:
            return self.wrapped(input, *args, **kwargs)
        (quantized,) = self._quantize_inputs(input)
        # What torch.func.functional_call does, without its 40 microseconds a call.
        parameters: dict[str, Any] = self.wrapped._parameters
        float_weight = parameters["weight"]
        parameters["weight"] = self._weight(self._bits().weights)
        try:
            return self.wrapped(quantized, *args, **kwargs)
        finally:
            parameters["weight"] = float_weight

    def _weight_params(self, bits: int) -> QuantParams:
        self._drop_stale()
        if bits not in self._params:
            weight = weight_of(self.wrapped).detach()
            spec = self.scheme.weights.spec(bits, self.weight_axis - weight.ndim)
            values = min_max(weight, spec.granularity)
            if not values.finite:
                raise BevquantError(f"{self.name}: its weight holds NaN or infinity")
            if spec.symmetric and bits == 8:
                sums = pair_sums(weight, self.weight_axis, self.kind.channel_axis == -1)
                values = values.union(min_max(sums, spec.granularity))
            self._params[bits] = affine.params_from_range(values, spec)
        return self._params[bits]

    def _weight(self, bits: int) -> Tensor:
        params = self._weight_params(bits)
        weight = weight_of(self.wrapped)
        if torch.is_grad_enabled() and weight.requires_grad:
            return affine.simulate(weight, params)
        if bits not in self._simulated:
            with torch.inference_mode(False):  # it is kept, and may meet gradients later
                self._simulated[bits] = affine.simulate(weight.detach(), params)
        return self._simulated[bits]

    def _drop_stale(self) -> None:
        """Forget what was computed from a weight that has been changed, moved or replaced."""
        weight = weight_of(self.wrapped)
        stamp = id(weight), weight._version, weight.device, weight.dtype
        if stamp != self._stamp:
            self._stamp, self._params, self._simulated = stamp, {}, {}


class QuantMatMul(QuantModule):
    """A product of two activations, each quantized per tensor."""

    operands = 2

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b``."""
        if self.quantized:
            a, b = self._quantize_inputs(a, b)
        product: Tensor = self.wrapped(a, b)
        return product


def quant_modules(model: nn.Module) -> list[QuantModule]:
    """Return every quantizable layer of a quantized model, each once, in order of name."""
    return [module for module in model.modules() if isinstance(module, QuantModule)]


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some, under every name that they have in ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])


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

"""Layers whose integer weights are being learned."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.diagnostics.sensitivity import calibrated_layers
from bevquant.quant.kinds import weight_of
from bevquant.quant.layers import QuantLayer, Rounding, quant_modules, swap
from bevquant.quant.pairs import limited, pair_excess

CELL = 0.4
"""How far from its integer a weight may start, in steps; at 0.5 it would be the next integer."""


class TrainedLayer(QuantLayer):
    """A quantized layer that learns: it stands in its place while it is trained.

    It starts from the weight, the grid and the bias that the layer has at its precision,
    learned ones included. The float layer in ``wrapped`` is left alone.

    Attributes:
        latent: float32, shaped like the weight; its rounding is what the layer computes
            with, and gradients pass the rounding straight through.
        shift: bias, float32 [C]; of a layer without one, 0 at first.
        stretch: factor on the grid's scale, shaped like it; ``None`` if scales are fixed.
            Its gradient is that of LSQ (Esser et al., ICLR 2020, equation 3) but for the
            constant, which optimizers that normalise gradients don't see; as a factor it
            is learned at the same pace whatever the scale.
    """

    def __init__(self, layer: QuantLayer, learn_scale: bool) -> None:
        super().__init__(layer.wrapped, layer.name, layer.main_module, layer.kind, layer.scheme)
        self.precision, self.training = layer.precision, layer.training
        self.inputs, self.refined = layer.inputs, layer.refined
        weight = weight_of(layer.wrapped).detach()
        grid = layer.weight_params
        assert layer.precision is not None
        rounding = layer.rounded.get(layer.precision)
        start = weight if rounding is None else _within_cells(weight, rounding)
        self._grid = _on(grid, weight.device)
        self._limited = limited(layer.weight_spec(layer.precision.weights))
        self.latent = nn.Parameter(start.to(weight.device, torch.float32, copy=True))
        bias = layer.learned_bias
        if bias is None:
            bias = layer.wrapped._parameters.get("bias")
        if bias is None:
            bias = weight.new_zeros(_output_channels(layer))
        self.shift = nn.Parameter(bias.detach().to(weight.device, torch.float32, copy=True))
        self.stretch = nn.Parameter(torch.ones_like(self._grid.scale)) if learn_scale else None

    @property
    def weight_params(self) -> QuantParams:
        """Grid of the weight as far as it is learned."""
        if self.stretch is None:
            return self._grid
        scale = self._grid.scale * self.stretch.detach()
        return replace(self._grid, scale=scale.clamp_min(torch.finfo(torch.float32).tiny))

    @property
    def weight_codes(self) -> Tensor:
        """Integer weight as far as it is learned: int32, shaped like the float weight."""
        codes = affine.quantize(self.latent, self.weight_params)
        return codes - self._excess(codes) if self._limited else codes

    def _excess(self, codes: Tensor) -> Tensor:
        return pair_excess(codes, self.weight_axis, self.kind.channel_axis == -1)

    @property
    def learned_bias(self) -> Tensor:
        """Bias [C] as far as it is learned."""
        return self.shift

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        parameters = {"latent": self.latent, "shift": self.shift, "stretch": self.stretch}
        return {f"{self.name}:{k}": p for k, p in parameters.items() if p is not None}

    def rounding(self) -> Rounding:
        """Return what was learned, as an ordinary layer keeps it."""
        grid = _on(self.weight_params, torch.device("cpu"))
        return Rounding(self.weight_codes.cpu(), grid, self.shift.detach().cpu().clone())

    def _forget_if_changed(self) -> None:
        """The float weight is left alone, and what is learned here is of no other."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer with its weight and bias as far as they are learned."""
        if not self.quantized:
            return self.wrapped(input, *args, **kwargs)
        (quantized,) = self.quantize_inputs(input)
        weight, bias = self.rounded_weight().to(input.dtype), self.shift.to(input.dtype)
        return self.run(weight, quantized, *args, bias=bias, **kwargs)

    def rounded_weight(self) -> Tensor:
        """Return the dequantized weight, with gradients for all that is learned."""
        weight = affine.simulate(self.latent, self.weight_params)
        if self._limited:  # gradients pass this straight through, too
            codes = affine.quantize(self.latent, self.weight_params)
            weight = weight - self._excess(codes) * self.weight_params.scale
        if self.stretch is None:
            return weight
        low, high = self._grid.bounds
        steps = (self.latent / (self._grid.scale * self.stretch)).detach()
        slope = torch.minimum(torch.maximum(steps, low), high).round()
        slope = torch.where((steps >= low) & (steps <= high), slope - steps, slope)
        moved = slope * self._grid.scale * self.stretch
        return weight + (moved - moved.detach())  # + 0, with a gradient


def trainable_layers(model: nn.Module) -> list[QuantLayer]:
    """Return the quantized layers of ``model`` with a weight, in order of their calls.

    Raises:
        BevquantError: there is none.
    """
    layers = [layer for layer in calibrated_layers(model) if isinstance(layer, QuantLayer)]
    layers = [layer for layer in layers if layer.quantized]
    if not layers:
        raise BevquantError("ptqat: no layer is quantized; call quantize and calibrate first")
    return layers


def parameters_of(layer: QuantLayer) -> int:
    """Return how many weights and biases a layer has when it is trained with fixed scales."""
    return weight_of(layer.wrapped).numel() + _output_channels(layer)


@contextmanager
def training(
    model: nn.Module, names: Collection[str], learn_scale: bool = False
) -> Iterator[list[TrainedLayer]]:
    """Let layers of ``model`` learn for the time of a ``with`` block.

    All else is frozen: no other parameter has a gradient, and the model is in evaluation
    mode, so that statistics stay as they are and nothing is dropped at random. At the end
    the layers are back, as they were.

    Args:
        model: quantized and calibrated.
        names: of layers that are quantized.
        learn_scale: whether scales are learned too.
    """
    chosen = [x for x in quant_modules(model) if isinstance(x, QuantLayer) and x.name in names]
    modes = {module: module.training for module in nn.Module.modules(model)}
    wanted = [p for p in nn.Module.parameters(model) if p.requires_grad]
    pairs: dict[nn.Module, TrainedLayer] = {
        layer: TrainedLayer(layer, learn_scale) for layer in chosen
    }
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        swap(model, pairs)
        model.eval()
        yield list(pairs.values())
    finally:
        swap(model, {trained: layer for layer, trained in pairs.items()})
        for module, mode in modes.items():
            module.training = mode
        for parameter in wanted:
            parameter.requires_grad_(True)


def _within_cells(weight: Tensor, rounding: Rounding) -> Tensor:
    """Return the values nearest to ``weight`` that clearly round to the learned integers.

    An integer is the sooner left, the nearer its neighbour is to the float weight.
    """
    grid = _on(rounding.params, weight.device)
    middle = affine.dequantize(rounding.codes.to(weight.device), grid)
    reach = CELL * grid.scale
    return torch.minimum(torch.maximum(weight.float(), middle - reach), middle + reach)


def _on(grid: QuantParams, device: torch.device) -> QuantParams:
    return replace(grid, scale=grid.scale.to(device), zero_point=grid.zero_point.to(device))


def _output_channels(layer: QuantLayer) -> int:
    channels = weight_of(layer.wrapped).shape[layer.weight_axis]
    if isinstance(layer.wrapped, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        channels *= layer.wrapped.groups  # its weight has the channels of one group
    return channels

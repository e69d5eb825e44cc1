"""A tensor's quantizer: its observed range, and the integer grid for each bit-width."""

import torch
from torch import Tensor

from bevquant.quant import affine
from bevquant.quant.affine import QuantParams, Range
from bevquant.quant.spec import Granularity, TensorScheme


class ActivationQuantizer:
    """Quantizes one input of one layer.

    The range is kept, not the scale: any number of bits can be asked for after one
    calibration.

    Attributes:
        scheme: symmetry and granularity.
        channel_axis: channels of the input, counted from the end; ``None`` if it has none.
    """

    def __init__(self, scheme: TensorScheme, channel_axis: int | None) -> None:
        self.scheme = scheme
        self.channel_axis = channel_axis
        self._range: Range | None = None
        self._params: dict[tuple[int, torch.device], QuantParams] = {}

    def __call__(self, x: Tensor, bits: int) -> Tensor:
        """Return ``x`` quantized and dequantized, a new tensor."""
        return affine.simulate(x, self.params(bits, x.device))

    @property
    def granularity(self) -> Granularity:
        """What shares one scale."""
        return self.scheme.granularity(self.channel_axis)

    @property
    def range(self) -> Range | None:
        """Range of the values, on the CPU; ``None`` before calibration."""
        return self._range

    @range.setter
    def range(self, values: Range | None) -> None:
        self._range, self._params = values, {}

    def params(self, bits: int, device: torch.device) -> QuantParams:
        """Return the grid on ``device``; computed once per bit-width and device."""
        assert self._range is not None
        key = bits, device
        if key not in self._params:
            spec = self.scheme.spec(bits, self.channel_axis)
            self._params[key] = affine.params_from_range(self._range.to(device), spec)
        return self._params[key]

"""A tensor's quantizer: its observed range, and the integer grid for each bit-width."""

import torch
from torch import Tensor

from bevquant.quant import affine
from bevquant.quant.affine import QuantParams
from bevquant.quant.spec import TensorScheme


class ActivationQuantizer:
    """Quantizes one input of one layer.

    The range is kept, not the scale: any number of bits can be asked for after one
    calibration.

    Attributes:
        scheme: symmetry and granularity.
        channel_axis: channels of the input, counted from the end; ``None`` if it has none.
        minimum: float32 on the CPU, ``[]`` or ``[C, 1, ...]``; ``None`` before calibration.
        maximum: likewise.
    """

    def __init__(self, scheme: TensorScheme, channel_axis: int | None) -> None:
        self.scheme = scheme
        self.channel_axis = channel_axis
        self.minimum: Tensor | None = None
        self.maximum: Tensor | None = None
        self._params: dict[tuple[int, torch.device], QuantParams] = {}

    def __call__(self, x: Tensor, bits: int) -> Tensor:
        """Return ``x`` quantized and dequantized, a new tensor."""
        return affine.simulate(x, self.params(bits, x.device))

    @property
    def calibrated(self) -> bool:
        """Whether there is a range."""
        return self.minimum is not None

    def set_range(self, minimum: Tensor | None, maximum: Tensor | None) -> None:
        """Replace the range."""
        self.minimum, self.maximum = minimum, maximum
        self._params = {}

    def params(self, bits: int, device: torch.device) -> QuantParams:
        """Return the grid on ``device``; computed once per bit-width and device."""
        assert self.minimum is not None
        assert self.maximum is not None
        key = bits, device
        if key not in self._params:
            spec = self.scheme.spec(bits, self.channel_axis)
            self._params[key] = affine.params_from_range(
                self.minimum.to(device), self.maximum.to(device), spec
            )
        return self._params[key]

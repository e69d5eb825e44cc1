"""A tensor's quantizer: its observed ranges, and the integer grid for each bit-width."""

import torch

from bevquant.quant import affine
from bevquant.quant.affine import QuantParams, Range
from bevquant.quant.spec import Granularity, TensorScheme


class ActivationQuantizer:
    """The integer grids of one input of one layer.

    Ranges are kept, not scales: any number of bits can be asked for after one calibration.

    Attributes:
        scheme: symmetry and granularity.
        channel_axis: channels of the input, counted from the end; ``None`` if it has none.
    """

    def __init__(self, scheme: TensorScheme, channel_axis: int | None) -> None:
        self.scheme = scheme
        self.channel_axis = channel_axis
        self._ranges: dict[int, Range] = {}
        self._params: dict[tuple[int, float, torch.device], QuantParams] = {}

    @property
    def granularity(self) -> Granularity:
        """What shares one scale."""
        return self.scheme.granularity(self.channel_axis)

    @property
    def ranges(self) -> dict[int, Range]:
        """Range of the values for each number of bits, on the CPU; empty before calibration."""
        return self._ranges

    @ranges.setter
    def ranges(self, values: dict[int, Range]) -> None:
        self._ranges, self._params = values, {}

    def params(self, bits: int, alpha: float, device: torch.device) -> QuantParams:
        """Return the grid of ``alpha`` times the observed range; computed once and kept."""
        key = bits, alpha, device
        if key not in self._params:
            spec = self.scheme.spec(bits, self.channel_axis)
            values = self._ranges[bits].to(device).scaled(alpha)
            self._params[key] = affine.params_from_range(values, spec)
        return self._params[key]

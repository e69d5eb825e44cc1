"""A tensor's quantizer: its observed ranges, and the integer grid for each bit-width."""

import torch

from bevquant.quant import affine
from bevquant.quant.affine import QuantParams, Range
from bevquant.quant.changes import Known
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
        self._params: dict[tuple[int, float, torch.device], tuple[Known, QuantParams]] = {}

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
        """Return the grid of ``alpha`` times the observed range, kept while that is the same."""
        key = bits, alpha, device
        observed = self._ranges[bits]
        known, grid = self._params.get(key, (None, None))
        if known is None or grid is None or not known.same(observed):
            spec = self.scheme.spec(bits, self.channel_axis)
            grid = affine.params_from_range(observed.to(device).scaled(alpha), spec)
            self._params[key] = Known(observed), grid
        return grid

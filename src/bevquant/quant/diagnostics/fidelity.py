"""How close quantized tensors stay to float ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from bevquant.errors import BevquantError


@dataclass(frozen=True)
class Fidelity:
    """Closeness of quantized tensors to float ones; of several tensors, the mean of each.

    Attributes:
        mse: mean squared error.
        normalised_mse: squared error over squared float values.
        cosine: of the angle between the two.
    """

    mse: float
    normalised_mse: float
    cosine: float

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio in dB: infinite without noise, -inf without signal."""
        if self.normalised_mse in (0.0, math.inf):
            return -math.inf if self.normalised_mse else math.inf
        return -10 * math.log10(self.normalised_mse)


class FidelityMeter:
    """Streams pairs of lists of tensors into a :class:`Fidelity`, in float64."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def update(self, quantized: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
        """Take one more pair of lists into account.

        Args:
            quantized: as many tensors in each call, of any shapes.
            reference: their float counterparts.

        Raises:
            BevquantError: the tensors are not the same in number or in shape.
        """
        shapes = [tuple(tensor.shape) for tensor in quantized], [tuple(t.shape) for t in reference]
        if shapes[0] != shapes[1] or (self._sums and len(self._sums) != len(reference)):
            raise BevquantError(
                f"fidelity: outputs of shapes {shapes[0]} cannot be compared with {shapes[1]}; "
                "pick those of fixed shape with outputs="
            )
        new = [_sums(q, r) for q, r in zip(quantized, reference, strict=True)]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new

    @property
    def seen(self) -> bool:
        """Whether anything with elements was compared."""
        return any(float(sums[0]) > 0 for sums in self._sums)

    @property
    def fidelity(self) -> Fidelity:
        """Closeness over all that was seen.

        Raises:
            BevquantError: nothing with elements was seen.
        """
        parts = [_fidelity(*sums.tolist()) for sums in self._sums if sums[0] > 0]
        if not parts:
            raise BevquantError("fidelity: there is no floating-point output to compare")
        return Fidelity(
            fmean(part.mse for part in parts),
            fmean(part.normalised_mse for part in parts),
            fmean(part.cosine for part in parts),
        )


def _sums(quantized: Tensor, reference: Tensor) -> Tensor:
    q, r = quantized.detach().double().flatten(), reference.detach().double().flatten()
    sums = torch.stack([(q - r).square().sum(), r.square().sum(), q.square().sum(), q @ r])
    return torch.cat([torch.tensor([q.numel()], dtype=torch.float64), sums.cpu()])


def _fidelity(count: float, error: float, signal: float, power: float, product: float) -> Fidelity:
    if signal > 0 and power > 0:
        cosine = min(product / math.sqrt(signal * power), 1.0)  # but for rounding it is
    else:
        cosine = float(signal == power)
    normalised = error / signal if signal else (math.inf if error else 0.0)
    return Fidelity(error / count, normalised, cosine)

"""Knowing the weights again that something was computed from or learned for."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Known:
    """The values that some tensors had.

    A copy: sums and hashes of little cost miss a weight that was negated, or whose channels
    changed places.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        with torch.inference_mode(False):  # compared in any mode later
            self._copies = tuple(tensor.detach().clone() for tensor in tensors)

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are these, value by value, on the same device, of the same type."""
        return len(tensors) == len(self._copies) and all(map(_same, self._copies, tensors))

    def moved(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are what these become on another device or in another type."""
        return len(tensors) == len(self._copies) and all(map(_moved, self._copies, tensors))


def _same(copy: Tensor, tensor: Tensor) -> bool:
    like = copy.device == tensor.device and copy.dtype == tensor.dtype
    return like and torch.equal(copy, tensor)


def _moved(copy: Tensor, tensor: Tensor) -> bool:
    return copy.shape == tensor.shape and torch.equal(copy.to(tensor), tensor.detach())


@dataclass
class Notice:
    """Warns that what was learned is forgotten, once for all layers of a model.

    Attributes:
        said: whether it has, since something was learned last.
    """

    said: bool = False

    def say(self, layer: str) -> None:
        """Warn, and name ``layer``, unless that has been done for another."""
        if not self.said:
            self.said = True
            warnings.warn(
                f"{layer}: its weight or bias has changed since refine, reconstruct or ptqat; what "
                "they found is forgotten, here and in every other layer that has changed, and the "
                "new weights are rounded; calibrate and run them again",
                stacklevel=3,
            )

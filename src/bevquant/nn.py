"""Modules that networks use so that a toolkit can see what plain operators hide."""

import torch
from torch import Tensor, nn


class MatMul(nn.Module):
    """Matrix product of two activations as a module.

    A functional ``a @ b`` is invisible to anything that walks a module tree. Networks
    that want the product to be a layer of its own (attention scores, attention output)
    call this module instead; the arithmetic is that of :func:`torch.matmul`.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b`` with the broadcasting rules of :func:`torch.matmul`."""
        return torch.matmul(a, b)


class Einsum(nn.Module):
    """:func:`torch.einsum` of two activations as a module.

    Attributes:
        equation: as there, with two operands.
    """

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the sum of products that the equation names."""
        return torch.einsum(self.equation, a, b)

    def extra_repr(self) -> str:
        """Return the equation."""
        return self.equation

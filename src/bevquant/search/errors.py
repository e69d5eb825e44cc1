"""How far the outputs of a quantized network are from those of the float one."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.errors import BevquantError
from bevquant.quant.running import Forward, call
from bevquant.search.digest import tensors_in


def cosine_error(outputs: Any, float_outputs: Any) -> float:
    """Return 1 - cosine between outputs, the mean over their tensors (thesis, F_error).

    Args:
        outputs: tensors, in any nesting of tuples, lists, mappings and dataclasses; those
            that are not floating point are not looked at.
        float_outputs: the same of the float network.

    Returns:
        0..2; NaN where outputs are.
    """
    return _mean_over_tensors(_cosine, outputs, float_outputs)


def mse_error(outputs: Any, float_outputs: Any) -> float:
    """Return the mean squared difference over that of the float outputs to their mean.

    The mean over the tensors of the outputs, see :func:`cosine_error`. 1 is the error of
    constant outputs, whatever their unit.
    """
    return _mean_over_tensors(_relative_mse, outputs, float_outputs)


ERRORS: Mapping[str, Callable[[Any, Any], float]] = {"cosine": cosine_error, "mse": mse_error}
"""Errors by the names under which :func:`~bevquant.search.search.search` knows them."""


@dataclass(frozen=True)
class OutputOf:
    """A forward pass that ends with one module and returns that module's output.

    With it a search looks at one main module at a time, as the thesis' module-wise search.

    Attributes:
        module: dotted name.
        forward: runs the whole model on a batch.
    """

    module: str
    forward: Forward = call

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Return the output of the first call of the module.

        Raises:
            BevquantError: the forward pass does not call the module.
        """
        found: list[Any] = []

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output)
            raise _Reached

        hook = model.get_submodule(self.module).register_forward_hook(stop)
        try:
            with suppress(_Reached):
                self.forward(model, batch)
        finally:
            hook.remove()
        if not found:
            raise BevquantError(f"search: the forward pass does not call {self.module!r}")
        return found[0]


class _Reached(BaseException):
    """Not an Exception, so that no handler in the network takes it for its own."""


def _mean_over_tensors(
    compare: Callable[[Tensor, Tensor], Tensor], outputs: Any, float_outputs: Any
) -> float:
    pairs = list(zip(_tensors(outputs), _tensors(float_outputs), strict=True))
    if not pairs:
        raise BevquantError("search: the outputs hold no floating-point tensor; give an error")
    return float(sum(compare(a.double(), b.double()) for a, b in pairs)) / len(pairs)


def _cosine(x: Tensor, reference: Tensor) -> Tensor:
    if not reference.any():
        return x.any().double()
    return (1 - F.cosine_similarity(x.flatten(), reference.flatten(), dim=0)).clamp(min=0)


def _relative_mse(x: Tensor, reference: Tensor) -> Tensor:
    power = reference.var(correction=0)
    return (x - reference).square().mean() / power.clamp(min=1e-30)


def _tensors(value: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]

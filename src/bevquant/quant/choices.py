"""Replaying the discrete choices of a network.

A detector that picks its queries with ``topk`` picks others once it is quantized: row 7 then
is another object, and comparing rows says nothing. While two networks are compared, the
second one therefore makes the choices of the first.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SORTING = {
    torch.topk: 2,
    torch.Tensor.topk: 2,
    torch.sort: 1,
    torch.Tensor.sort: 1,
}
"""Functions that return values and indices, and where their argument ``dim`` stands."""

_INDEXING = {
    *(torch.argmax, torch.argmin, torch.argsort),
    *(torch.Tensor.argmax, torch.Tensor.argmin, torch.Tensor.argsort),
}
"""Functions that return indices."""


class Recorded(TorchFunctionMode):
    """Keeps the indices that topk, sort, argsort, argmax and argmin return in a ``with`` block.

    Attributes:
        choices: the indices, in order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SORTING or func in _INDEXING:
            self.choices.append(_indices(result))
        return result


class Replayed(TorchFunctionMode):
    """Lets the same functions return recorded indices, in order of the calls.

    A call whose own indices have another shape than the recorded ones, or that comes after
    the last of them, is left as it is.
    """

    def __init__(self, choices: list[Tensor]) -> None:
        super().__init__()
        self._choices: Iterator[Tensor] = iter(choices)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in _SORTING and func not in _INDEXING:
            return result
        chosen = next(self._choices, None)
        if chosen is None or chosen.shape != _indices(result).shape:
            return result
        if func in _INDEXING:
            return chosen
        place = _SORTING[func]
        dim = kwargs.get("dim", args[place] if len(args) > place else -1)
        values = args[0] if args else kwargs["input"]
        return type(result)((values.gather(dim, chosen), chosen))


def _indices(result: Any) -> Tensor:
    indices: Tensor = result if isinstance(result, Tensor) else result.indices
    return indices

"""Watching where tensors go in a forward pass: no tracing, no change of code."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevquant.quant.running import Forward, evaluating

Label = TypeVar("Label")


class Watch(TorchDispatchMode, ABC, Generic[Label]):  # type: ignore[no-untyped-call]
    """Follows labelled tensors from module to module and operator to operator.

    Below autograd and Python an operator's arguments still are the very tensors that
    modules handed over, and reading a shape or a dtype is no operator. Tensors are not kept
    alive, so that one that still lives at the end was returned or stored. What runs inside
    a watched module is its own affair and not looked at.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._labels: dict[int, tuple[weakref.ref[Tensor], Label]] = {}
        self._depth = 0

    @abstractmethod
    def watched(self, module: nn.Module) -> bool:
        """Return whether ``module`` is looked at as one."""

    @abstractmethod
    def entered(self, module: nn.Module, inputs: list[Any]) -> None:
        """Take note that a watched module was called with ``inputs``."""

    @abstractmethod
    def left(self, module: nn.Module, output: Any) -> None:
        """Take note of what a watched module returned."""

    @abstractmethod
    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operator outside all watched modules makes of labelled tensors."""

    def put(self, tensor: Tensor, label: Label) -> None:
        """Label ``tensor`` for as long as it lives."""
        key = id(tensor)
        self._labels[key] = weakref.ref(tensor, lambda _: self._labels.pop(key, None)), label

    def get(self, value: Any) -> Label | None:
        """Return the label of a tensor, ``None`` of anything without."""
        found = self._labels.get(id(value))
        return found[1] if found else None

    def labels(self, values: Any) -> list[Label]:
        """Return the labels in a nest of values."""
        found = (self._labels.get(id(leaf)) for leaf in tree_leaves(values))
        return [entry[1] for entry in found if entry]

    def run(self, model: nn.Module, batch: Any, forward: Forward) -> list[Label]:
        """Watch one forward pass in evaluation mode; return the labels that outlive it."""
        hooks = []
        for module in nn.Module.modules(model):
            if self.watched(module):
                hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leave))
        try:
            with evaluating(model), self:
                result = forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        living = [label for _, label in self._labels.values()]
        del result  # was held up to here, so that what the model returns counts as alive
        return living

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Hand operators on labelled tensors to :meth:`read`, and run the others."""
        kwargs = kwargs or {}
        if self._depth == 0 and self.labels((args, kwargs)):
            return self.read(func, args, kwargs)
        return func(*args, **kwargs)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._depth == 0:
            self.entered(module, [*args, *kwargs.values()])
        self._depth += 1

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.left(module, output)

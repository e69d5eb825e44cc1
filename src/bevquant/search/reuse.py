"""Main modules that do not compute twice what they have computed before."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from bevquant.quant.layers import QuantModule, quant_modules
from bevquant.search.digest import digest, tensors_in

_PLAIN = (Tensor, bool, int, float, complex, str, bytes, type(None))


class Memory:
    """Outputs of main modules, found again by what the modules were given.

    A module in evaluation mode that gets the same inputs at the same bits returns the same
    outputs. Nothing needs to be known of how modules are wired: if only layers of the head
    have other bits, the whole network before it is found in memory; if a layer of the
    camera branch has, the LiDAR branch is.

    Args:
        model: quantized.
        batches: whose tensors will come again and again.
        capacity: bytes that are kept; the outputs that were not used for longest go first.

    Attributes:
        computed: calls of main modules that ran.
        found: calls that were answered from memory.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], capacity: int) -> None:
        self.capacity = capacity
        self.computed = 0
        self.found = 0
        self._bytes = 0
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._modules = _main_modules(model)
        self._names = _Names()
        for batch in batches:
            for tensor in tensors_in(batch):
                self._names.give(tensor, digest(tensor))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the main modules look into memory for the time of a ``with`` block."""
        before = [(module, module.__dict__.get("forward")) for module, _ in self._modules.values()]
        for name, (module, layers) in self._modules.items():
            # On the instance: its class, and what nn.Module.__call__ does, stay as they are.
            module.__dict__["forward"] = self._remembering(name, module.forward, layers)
        try:
            yield
        finally:
            for module, forward in before:
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward

    def _remembering(
        self, name: str, forward: Callable[..., Any], layers: Sequence[QuantModule]
    ) -> Callable[..., Any]:
        def remembered(*args: Any, **kwargs: Any) -> Any:
            bits = [str(layer.precision) for layer in layers]
            try:
                key = digest((name, bits, args, kwargs), self._names.of)
            except (pickle.PicklingError, TypeError, AttributeError):
                return forward(*args, **kwargs)
            if key in self._kept:
                self.found += 1
                self._kept.move_to_end(key)
            else:
                self.computed += 1
                output = forward(*args, **kwargs)
                if not all(isinstance(leaf, _PLAIN) for leaf in tree_flatten(output)[0]):
                    return output  # a copy of it might not be whole
                self._keep(key, output)
            return self._copy(key)

        return remembered

    def _copy(self, key: str) -> Any:
        """Return a copy of what is kept: the network may change it in place."""
        output = tree_map(_clone, self._kept[key][0])
        for index, tensor in enumerate(tensors_in(output)):
            self._names.give(tensor, f"{key}:{index}")
        return output

    def _keep(self, key: str, output: Any) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(output))
        self._kept[key] = tree_map(_clone, output), size
        self._bytes += size
        while self._bytes > self.capacity and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped


class _Names:
    """Names of tensors whose origin is known, so that their values need not be read.

    They are void once a tensor has been changed in place. A view has the name of the tensor
    it looks at, and what it looks at.
    """

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def give(self, tensor: Tensor, name: str) -> None:
        if not tensor.is_inference() and tensor._base is None:
            self._known[tensor] = tensor._version, name

    def of(self, tensor: Tensor) -> str | None:
        if tensor.is_inference():
            return None
        base = tensor if tensor._base is None else tensor._base
        version, name = self._known.get(base, (None, None))  # type: ignore[no-untyped-call]
        if name is None or version != tensor._version:
            return None
        shape, stride = tuple(tensor.shape), tensor.stride()
        return f"{name} {tensor.dtype} {tensor.storage_offset()} {shape} {stride}"


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _main_modules(model: nn.Module) -> dict[str, tuple[nn.Module, list[QuantModule]]]:
    """Return each main module and the layers inside it, those of nested ones included."""
    known = dict(model.named_modules())
    modules = {}
    for name in dict.fromkeys(layer.main_module for layer in quant_modules(model)):
        if name and not isinstance(known[name], QuantModule):
            modules[name] = known[name], quant_modules(known[name])
    return modules

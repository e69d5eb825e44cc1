"""Products of activations in a network's own code: what they are, and where."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevquant.nn import Einsum, MatMul
from bevquant.quant.attention import ScaledDotProductAttention
from bevquant.quant.kinds import kind_of
from bevquant.quant.running import Forward, evaluating

Site = tuple[Any, ...]
"""What is computed, and the place in the code: the calls from a module's forward on down."""

_MATMULS = frozenset(
    (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.mm)  # ``@`` is one
)
_CALL = nn.Module._call_impl.__code__
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Product:
    """One call that multiplies activations.

    Attributes:
        name: what a layer of it is called, but for a number.
        layer: makes a module that computes it.
        args: of that module.
        kwargs: of that module.
        operands: the tensors that are multiplied.
        what: tells apart what one place in the code may compute.
    """

    name: str
    layer: Callable[[], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[Any, ...]
    what: str = ""


def product_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
    """Recognise a call: matmul, ``@``, bmm, mm, scaled_dot_product_attention, einsum.

    ``None`` for any other, for products of integers, and for an einsum of more operands.
    """
    if func in _MATMULS:
        operands = (*args, *kwargs.values())
        product = Product("matmul", MatMul, operands, {}, operands)
    elif func is F.scaled_dot_product_attention:
        operands = (*args, *kwargs.values())[:3]
        product = Product("sdpa", ScaledDotProductAttention, args, kwargs, operands)
    elif func is torch.einsum and isinstance(args[0], str):
        equation, operands = args[0], args[1:]
        product = Product("einsum", partial(Einsum, equation), operands, kwargs, operands, equation)
    else:
        return None
    plain = all(isinstance(x, Tensor) and x.is_floating_point() for x in operands)
    return product if plain and len(operands) == (3 if product.name == "sdpa" else 2) else None


def place_of(product: Product) -> tuple[nn.Module | None, Site]:
    """Return the module whose own code is computing ``product`` now, and the place in it.

    To be called from ``__torch_function__``. Frames of PyTorch are no part of the place:
    hooks, checkpoints and tracers add some.
    """
    site: list[Any] = [product.name, product.what]
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code is not _CALL:
        code = frame.f_code
        if not code.co_filename.startswith(_TORCH):
            site.append((code.co_qualname, frame.f_lasti))
        frame = frame.f_back
    return frame.f_locals["self"] if frame.f_code is _CALL else None, tuple(site)


def find_products(
    model: nn.Module, batch: Any, forward: Forward
) -> dict[nn.Module, dict[Site, Product | None]]:
    """Return where the own code of which module multiplies activations.

    Seen in one forward pass over ``batch``, in evaluation mode. ``None`` stands for what is
    to stay as it is: parameters have had no part in one of the operands (the geometry of
    cameras, which 8 bits cannot hold), or one is a parameter.
    """
    computed = _Computed(model)
    watch = _Watch(computed)
    with evaluating(model), computed, watch:
        forward(model, batch)
    return watch.found


class _Watch(TorchFunctionMode):
    def __init__(self, computed: "_Computed") -> None:
        super().__init__()
        self.found: dict[nn.Module, dict[Site, Product | None]] = {}
        self._computed = computed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (product := product_of(func, args, kwargs)) is not None:
            owner, site = place_of(product)
            if owner is not None and kind_of(owner) is None:
                activations = all(x in self._computed for x in product.operands)
                sites = self.found.setdefault(owner, {})
                sites[site] = sites.get(site) or (product if activations else None)
        return func(*args, **kwargs)


class _Computed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The set of tensors that were computed from parameters, by the memory that they use."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = {_memory(p) for p in nn.Module.parameters(model)}
        self._computed: dict[int, StorageWeakRef] = {}  # keeps the address, not the values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x in self._parameters or x in self._computed for x in sources):
            for x in tree_leaves(result):
                if isinstance(x, Tensor) and (memory := _memory(x)) not in self._parameters:
                    self._computed.setdefault(memory, _weak(x))
        return result

    def __contains__(self, x: Tensor) -> bool:
        return _memory(x) in self._computed


def _weak(x: Tensor) -> StorageWeakRef:
    return StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]


def _memory(x: Tensor) -> int:
    address: int = x.untyped_storage()._cdata
    return address

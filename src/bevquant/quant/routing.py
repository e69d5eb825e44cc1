"""Layers in the place of the products that a network's own code computes: no edit, no trace."""

from collections import Counter
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from bevquant.quant.products import Site, find_products, place_of, product_of
from bevquant.quant.running import Forward

_ROUTER = "_bevquant_router"


def add_products(model: nn.Module, batch: Any, forward: Forward) -> None:
    """Give every module whose own code multiplies activations a layer for each product.

    The layers are children of the module, called ``matmul_0``, ``einsum_0``, or ``sdpa_0``
    with the children ``scores`` and ``mix``, and numbered in the order of their first call.
    A place in the code is one layer, however often it runs. What a product is:
    :func:`~bevquant.quant.products.find_products`.
    """
    for owner, sites in find_products(model, batch, forward).items():
        if not any(sites.values()):
            continue
        router = Router()
        numbers: Counter[str] = Counter()
        for site, product in sites.items():
            if product is None:
                router.names[site] = None
                continue
            while hasattr(owner, name := f"{product.name}_{numbers[product.name]}"):
                numbers[product.name] += 1
            owner.add_module(name, product.layer().train(owner.training))
            router.names[site] = name
        router.install(owner)


def remove_products(model: nn.Module) -> None:
    """Undo :func:`add_products`."""
    for module in list(nn.Module.modules(model)):
        if (router := router_of(module)) is not None:
            router.remove(module)


def router_of(module: nn.Module) -> "Router | None":
    """Return what sends the products of a module's own code to layers, if anything does."""
    router: Router | None = module.__dict__.get(_ROUTER)
    return router


class Router(TorchFunctionMode):
    """Sends the products that one module's own code computes to layers of that module.

    Attributes:
        names: the layer's name for each place in the code, ``None`` for a product that is
            no layer.
        missed: whether a product ran float as its place was not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Site, str | None] = {}
        self.missed = False
        self._hooks: tuple[Any, ...] = ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (product := product_of(func, args, kwargs)) is not None:
            owner, site = place_of(product)
            # Not by the module itself: a tracer hands out proxies, which share its attributes.
            if owner is not None and router_of(owner) is self:
                self.missed |= site not in self.names
                if (name := self.names.get(site)) is not None:
                    return getattr(owner, name)(*product.args, **product.kwargs)
        return func(*args, **kwargs)

    def install(self, owner: nn.Module) -> None:
        """Be in force from now on whenever ``owner`` runs."""
        setattr(owner, _ROUTER, self)
        self._hooks = (
            owner.register_forward_pre_hook(_enter, prepend=True),
            owner.register_forward_hook(_leave, always_call=True),
        )

    def remove(self, owner: nn.Module) -> None:
        """Undo :meth:`install`, and take the layers out."""
        for hook in self._hooks:
            hook.remove()
        for name in filter(None, self.names.values()):
            delattr(owner, name)
        delattr(owner, _ROUTER)


def _enter(owner: nn.Module, _: Any) -> None:
    owner.__dict__[_ROUTER].__enter__()


def _leave(owner: nn.Module, *_: Any) -> None:
    owner.__dict__[_ROUTER].__exit__(None, None, None)

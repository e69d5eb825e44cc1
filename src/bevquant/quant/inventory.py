"""What a model consists of: the layers that can be quantized, and all that stays float."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bevquant.quant.attention import is_expandable
from bevquant.quant.kinds import Kind, kind_of, weight_of, why_float
from bevquant.quant.layers import QuantModule, held_modules, quant_modules
from bevquant.quant.routing import router_of
from bevquant.quant.running import Forward, call, counting_macs, evaluating
from bevquant.quant.spec import Precision

_MACS = "_bevquant_macs"


@dataclass(frozen=True)
class LayerInfo:
    """A layer that can be quantized.

    Attributes:
        name: dotted path in the model; of a shared module, the first.
        kind: conv1d..3d, conv_transpose1d..3d, linear, sparse_conv, matmul or einsum.
        weight_shape: ``None`` for a product of activations.
        weights: number of elements of the weight.
        macs: multiply-accumulates of all its calls in one forward pass; ``None`` if none
            has been counted.
        main_module: name of the main module it is part of, ``""`` if of none.
        precision: bits; ``None`` for float.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...] | None
    weights: int
    macs: int | None
    main_module: str
    precision: Precision | None


@dataclass(frozen=True)
class Unquantized:
    """A module with parameters or products that runs float.

    Attributes:
        name: dotted path in the model.
        kind: its class.
        reason: why.
    """

    name: str
    kind: str
    reason: str


def layers(model: nn.Module, batch: Any = None, forward: Forward = call) -> list[LayerInfo]:
    """Return the quantizable layers of a float or a quantized model.

    Once a forward pass has been watched (here, with ``batch``, or by calibrate) they have
    their MACs and come in the order of their first call; before, in that of definition.
    """
    macs = macs_of(model)
    if batch is not None:
        with evaluating(model), counting_macs(model) as counted:
            forward(model, batch)
        macs = macs_by_name(model, counted)
    infos = []
    for name, module, kind in find_layers(model):
        quant = module if isinstance(module, QuantModule) else None
        layer = quant.wrapped if quant else module
        weight = None if kind.weight_axis is None else weight_of(layer)
        infos.append(
            LayerInfo(
                name=name,
                kind=kind.name,
                weight_shape=None if weight is None else tuple(weight.shape),
                weights=0 if weight is None else weight.numel(),
                macs=None if macs is None else macs.get(name, 0),
                main_module=quant.main_module if quant else main_module_of(name, None),
                precision=quant.precision if quant else None,
            )
        )
    if macs is not None:
        order = {name: position for position, name in enumerate(macs)}
        infos.sort(key=lambda info: order.get(info.name, len(order)))
    return infos


def unquantized(model: nn.Module) -> list[Unquantized]:
    """Return all that runs float at present, with the reasons: nothing is left out in silence.

    That is every module with parameters of its own that is no quantized layer, every
    product of two activations that is no layer, and, once the model is calibrated, every
    module that computes products in its own code (attention written with ``@``, say).
    """
    macs = macs_of(model) or {}
    layers = quant_modules(model)
    registered = set(nn.Module.modules(model))
    calibrated = any(layer.calibrated for layer in layers)
    found = []
    if layers and not calibrated:  # said once: a row for each would bury the other reasons
        text = f"not calibrated yet, all {len(layers)} layers: call calibrate"
        found.append(Unquantized("", type(model).__name__, text))
    for name, module in _walk(model):
        reason: str | None
        if isinstance(module, QuantModule):
            reason = _why_layer_float(module) if calibrated else _why_policy(module)
        elif kind_of(module) is not None or is_expandable(module):
            reason = "quantize has not been called on it"
        elif any(True for _ in nn.Module.parameters(module, recurse=False)):
            reason = why_float(module)
        elif macs.get(name):
            reason = _why_products_float(module, registered)
        else:
            continue
        if reason is not None:
            reason += f" ({macs[name]:,} MACs)" if macs.get(name) else ""
            kind = module.wrapped if isinstance(module, QuantModule) else module
            found.append(Unquantized(name, type(kind).__name__, reason))
    return found


def find_layers(model: nn.Module) -> list[tuple[str, nn.Module, Kind]]:
    """Return name, module and kind of each quantizable layer, in order of definition."""
    found = []
    for name, module in _walk(model):
        kind = module.kind if isinstance(module, QuantModule) else kind_of(module)
        if kind is not None:
            found.append((name, module, kind))
    return found


def main_module_of(name: str, main_modules: Sequence[str] | None) -> str:
    """Return the innermost of ``main_modules`` that layer ``name`` is part of, or ``""``.

    ``None`` stands for the children of the model.
    """
    if main_modules is None:
        return name.partition(".")[0]
    inside = [main for main in main_modules if f"{name}.".startswith(f"{main}.")]
    return max(inside, key=len, default="")


def macs_of(model: nn.Module) -> dict[str, int] | None:
    """Return the MACs that each module's own code was last seen to compute, by name.

    In the order of their calls; ``None`` if no forward pass of ``model`` has been watched.
    """
    return model.__dict__.get(_MACS)


def set_macs(model: nn.Module, macs: dict[str, int] | None) -> None:
    """Keep, or forget, what :func:`macs_of` returns."""
    if macs is None:
        model.__dict__.pop(_MACS, None)
    else:
        model.__dict__[_MACS] = macs


def macs_by_name(model: nn.Module, macs: Mapping[nn.Module, int]) -> dict[str, int]:
    """Name the modules; what is inside a layer counts as the layer."""
    names = {}
    for name, module in _walk(model):
        names[module] = name
        for part in nn.Module.modules(module) if _is_layer(module) else ():
            names[part] = name
    named: dict[str, int] = {}
    for module, count in macs.items():
        named[names[module]] = named.get(names[module], 0) + count
    return named


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module like ``named_modules``, but nothing inside a layer."""
    layer = None
    for name, module in model.named_modules():
        if layer is not None and name.startswith(layer):
            continue
        layer = name and f"{name}." if _is_layer(module) else None
        yield name, module


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, QuantModule) or kind_of(module) is not None


def _why_products_float(module: nn.Module, registered: Collection[nn.Module]) -> str:
    for name, held in held_modules(module):
        if held not in registered and kind_of(held) is not None:
            return (
                f"calls layers of its attribute {name}, a plain container that PyTorch does not "
                "look into: hold them in nn.ModuleList or nn.ModuleDict"
            )
    if (router := router_of(module)) is not None and router.missed:
        return "products on a way through its code that quantize's batch did not take"
    return "products in its own code; given a batch, quantize makes layers of those of activations"


def _why_policy(layer: QuantModule) -> str | None:
    return "left float by the policy" if layer.precision is None else None


def _why_layer_float(layer: QuantModule) -> str | None:
    if layer.precision is None or layer.calibrated:
        return _why_policy(layer)
    return "never called in calibration: unused, or its weight is read without a call"

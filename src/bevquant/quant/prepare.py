"""Putting quantizable layers into a model, changing their bits, and taking them out."""

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from bevquant.errors import BevquantError
from bevquant.quant.attention import collapse_attention, expand_attention, is_expandable
from bevquant.quant.changes import Notice
from bevquant.quant.fold import unfold
from bevquant.quant.inputs import scheme_of
from bevquant.quant.inventory import find_layers, main_module_of, set_macs
from bevquant.quant.kinds import kind_of
from bevquant.quant.layers import QuantLayer, QuantMatMul, quant_modules, swap
from bevquant.quant.policy import BitPolicy, PolicyLike
from bevquant.quant.routing import add_products, remove_products
from bevquant.quant.running import Forward, call, refuse_inference_tensors
from bevquant.quant.scaling import unscale
from bevquant.quant.spec import DEPLOY, Scheme

Model = TypeVar("Model", bound=nn.Module)


def quantize(
    model: Model,
    precision: PolicyLike,
    scheme: Scheme = DEPLOY,
    main_modules: Sequence[str] | None = None,
    batch: Any = None,
    forward: Forward = call,
) -> Model:
    """Swap every layer of ``model`` that can be quantized for a quantizable one, in place.

    The layers run float until :func:`~bevquant.quant.calibrate.calibrate` has seen their
    inputs. Any module that is called: no tracing, no change of code. A
    ``nn.MultiheadAttention`` becomes the layers q_proj, k_proj, v_proj, scores, mix and
    out_proj. With a batch, products of two activations in a module's own code (``@``,
    matmul, bmm, scaled_dot_product_attention, einsum) become layers too: children of that
    module called matmul_0, sdpa_0.scores, sdpa_0.mix, einsum_0 and on. What stays float is
    listed, with the reason, by :func:`~bevquant.quant.inventory.unquantized`.

    Args:
        model: any module; fold its BatchNorms first.
        precision: of all layers (``"W8A8"``), or rules for them. Layers that it leaves float
            can be given bits later, without another calibration.
        scheme: symmetry and granularity.
        main_modules: dotted names of the parts of the network that a report or a search
            looks at one by one; its children by default.
        batch: one batch, typical in that every branch runs, to look for products in the
            modules' own code.
        forward: runs the model on the batch; ``model(batch)`` by default.

    Returns:
        ``model``.

    Raises:
        BevquantError: nothing to quantize, quantized already, a policy that leaves every
            layer float, or a rule or a main module that names nothing.
    """
    policy, scheme = BitPolicy.of(precision), scheme_of(scheme, "quantize")
    if quant_modules(model):
        raise BevquantError("quantize: the model is quantized already; use apply or restore")
    if kind_of(model) is not None or is_expandable(model):
        raise BevquantError("quantize: the model is one layer; wrap it in nn.Sequential(model)")
    refuse_inference_tensors(model, "quantize")
    _warn_of_denormals(model)
    try:
        expand_attention(model)
        if batch is not None:
            add_products(model, batch, forward)
        swap(model, _quantizable(model, policy, scheme, main_modules))
    except BaseException:
        _withdraw(model)
        raise
    return model


def _quantizable(
    model: nn.Module, policy: BitPolicy, scheme: Scheme, main_modules: Sequence[str] | None
) -> dict[nn.Module, nn.Module]:
    """Return what each layer is to be replaced by."""
    found = find_layers(model)
    if not found:
        raise BevquantError("quantize: the model has no layer that can be quantized")
    known = dict(model.named_modules())
    for name in main_modules or ():
        if name not in known:
            raise BevquantError(f"quantize: main module {name!r} is no module of the model")
    assigned = policy.assign(name for name, _, _ in found)
    if not any(assigned.values()):
        raise BevquantError("quantize: the policy leaves every layer float; give some layer bits")
    replacements: dict[nn.Module, nn.Module] = {}
    notice = Notice()
    for name, module, kind in found:
        layer_type = QuantMatMul if kind.weight_axis is None else QuantLayer
        main_module = main_module_of(name, main_modules)
        layer = layer_type(module, name, main_module, kind, scheme, notice)
        layer.training = module.training
        layer.precision = assigned[name]
        replacements[module] = layer
    return replacements


def apply(model: Model, precision: PolicyLike) -> Model:
    """Change the bits of the layers of a quantized model; no new calibration is needed.

    Raises:
        BevquantError: ``model`` is not quantized, or a rule matches no layer.
    """
    layers = quant_modules(model)
    if not layers:
        raise BevquantError("apply: the model has no quantized layer; call quantize first")
    assigned = BitPolicy.of(precision).assign(layer.name for layer in layers)
    for layer in layers:
        layer.precision = assigned[layer.name]
    return model


def restore(model: Model) -> Model:
    """Take out all that quantize, calibrate, equalize and fold_batchnorm put in.

    What is left are the float modules that were there before, the objects themselves.
    """
    swap(model, {layer: layer.wrapped for layer in quant_modules(model)})
    _withdraw(model)
    unscale(model)
    unfold(model)
    set_macs(model, None)
    return model


def _withdraw(model: nn.Module) -> None:
    """Take out the float layers that stand for parts of a module's code."""
    remove_products(model)
    collapse_attention(model)


def _warn_of_denormals(model: nn.Module) -> None:
    """Name numbers so small that a processor computes with them some thirty times slower."""
    tiny = torch.finfo(torch.float32).tiny
    names = [
        name
        for name, tensor in nn.Module.named_parameters(model)
        if not nn.parameter.is_lazy(tensor)
        and tensor.dtype == torch.float32
        and bool(((tensor.abs() < tiny) & (tensor != 0)).any())
    ]
    if names:
        warnings.warn(
            f"{len(names)} parameters hold denormal numbers, {names[0]} the first: float passes "
            "may take many times longer; torch.set_flush_denormal(True) makes them zeros",
            stacklevel=3,
        )

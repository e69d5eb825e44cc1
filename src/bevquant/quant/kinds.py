"""Which modules can be quantized and along which axes; and why the others cannot."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bevquant.nn import Einsum, MatMul


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        name: as printed.
        weight_axis: output channels in ``weight``; ``None`` for a product of activations.
        channel_axis: channels of the input and of the output, counted from the end;
            ``None`` where their number is not fixed.
    """

    name: str
    weight_axis: int | None
    channel_axis: int | None

    @property
    def input_axis(self) -> int:
        """Input channels in ``weight``: the last of the other axes if channels come last."""
        if self.channel_axis == -1:
            return -2 if self.weight_axis == -1 else -1
        return 0 if self.weight_axis else 1


_KINDS: dict[type[nn.Module], Kind] = {
    nn.Conv1d: Kind("conv1d", 0, -2),
    nn.Conv2d: Kind("conv2d", 0, -3),
    nn.Conv3d: Kind("conv3d", 0, -4),
    nn.ConvTranspose1d: Kind("conv_transpose1d", 1, -2),
    nn.ConvTranspose2d: Kind("conv_transpose2d", 1, -3),
    nn.ConvTranspose3d: Kind("conv_transpose3d", 1, -4),
    nn.Linear: Kind("linear", 0, -1),
    # Operands of attention have as many rows and columns as there are tokens.
    MatMul: Kind("matmul", None, None),
    Einsum: Kind("einsum", None, None),
}


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a quantizable layer, ``None`` for any other module.

    Besides PyTorch's own layers that is any module with the attribute
    ``quant_weight_axis: int``, which declares: my output is linear in ``self.weight``,
    whose output channels lie along that axis, and in my first input, a tensor with
    channels last (a sparse convolution over voxel features [n, C], say).
    """
    kind = _declared_kind(module)
    if kind is None or kind.weight_axis is None:
        return kind
    weight = module._parameters.get("weight")
    if weight is None or nn.parameter.is_lazy(weight) or not weight.is_floating_point():
        return None
    return kind


def _declared_kind(module: nn.Module) -> Kind | None:
    if isinstance(axis := getattr(module, "quant_weight_axis", None), int):
        return Kind("sparse_conv", axis, -1)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    for layer, kind in _KINDS.items():
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return kind
    return None


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a layer that has a kind with a weight axis."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


_WHY_FLOAT: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (
        (nn.MultiheadAttention,),
        "overrides the forward of MultiheadAttention, or has a parametrization",
    ),
    (
        (NonDynamicallyQuantizableLinear,),
        "MultiheadAttention reads its weight without calling it",
    ),
    (
        (_BatchNorm,),
        "normalisation; fold_batchnorm removes it where it is alone in reading a layer's output",
    ),
    (
        (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase),
        "normalisation by the statistics of each input",
    ),
    ((nn.Embedding, nn.EmbeddingBag), "a look-up in a table, no product"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers have no quantized form"),
)


def why_float(module: nn.Module) -> str:
    """Return why a module that :func:`kind_of` does not know stays float."""
    for types, reason in _WHY_FLOAT:
        if isinstance(module, types):
            return reason
    if any(
        nn.parameter.is_lazy(parameter) for parameter in nn.Module.parameters(module, recurse=False)
    ):
        return "its parameters have no shape yet: run a forward pass, then quantize"
    if _declared_kind(module) is not None:
        weight = module._parameters.get("weight")
        if weight is None:
            return "its weight is no plain parameter: remove the parametrization, then quantize"
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}: no real numbers to round"
    for layer in _KINDS:
        if isinstance(module, layer):
            return f"overrides the forward of {layer.__name__}, so what it computes is unknown"
    names = ", ".join(name for name, _ in module.named_parameters(recurse=False))
    return f"its own code uses its parameters {names}"

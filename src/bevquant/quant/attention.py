"""Attention as layers: projections and products that are called, not read by one function."""

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.nn import MatMul
from bevquant.quant.layers import swap

_NESTED = "_bevquant_nested"


def attend(
    scores: nn.Module,
    mix: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """Return ``softmax(query key^T + mask) value``, and the softmax.

    A query that the mask keeps from every key attends to nothing and gets zeros, as in
    :func:`torch.nn.functional.scaled_dot_product_attention`.

    Args:
        scores: multiplies query by key.
        mix: multiplies the softmax by value.
        query: scaled; [..., L, D].
        key: [..., S, D].
        value: [..., S, V].
        mask: added to the scores, so that ``-inf`` masks; broadcasts to [..., L, S].
        drop: probability with which a weight is dropped.
    """
    logits: Tensor = scores(query, key.transpose(-2, -1))
    if mask is None:
        weights = logits.softmax(-1)
    else:
        logits = logits + mask
        nowhere = logits.amax(-1, keepdim=True) == -torch.inf
        # Not -inf throughout: softmax would have gradients of NaN there.
        weights = logits.masked_fill(nowhere, 0).softmax(-1).masked_fill(nowhere, 0)
    weights = F.dropout(weights, drop) if drop else weights
    return mix(weights, value), weights


class ScaledDotProductAttention(nn.Module):
    """:func:`torch.nn.functional.scaled_dot_product_attention`, its two products as layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = MatMul()
        self.mix = MatMul()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Arguments and result are those of the function."""
        if is_causal:
            shape = query.shape[-2], key.shape[-2]
            attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = _additive(~attn_mask, query.dtype)
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
        return attend(self.scores, self.mix, query, key, value, attn_mask, dropout_p)[0]


@dataclass(frozen=True)
class _Before:
    """What an expansion replaced; no module, so that its parameters are not the model's."""

    attention: nn.MultiheadAttention


class ExpandedAttention(nn.Module):
    """Stands where a ``nn.MultiheadAttention`` stood, and calls every layer of it.

    The parameters are the original ones, or share their memory where the original keeps
    three projections in one. Weights average over heads and masks are as there.
    """

    # What TransformerEncoderLayer looks at before it hands the weights to one fused function,
    # without a call: with these values it does not.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self._before = _Before(attention)
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.dropout, self.add_zero_attn = attention.dropout, attention.add_zero_attn
        self.batch_first = attention.batch_first
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(*parts) for parts in zip(_weights(attention), _biases(attention), strict=True)
        )
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.scores, self.mix = MatMul(), MatMul()
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results are those of ``nn.MultiheadAttention``.

        ``is_causal`` is a hint about ``attn_mask``, and not needed.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        batched = query.dim() == 3
        batch_axis = 0 if self.batch_first or not batched else 1
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if batched:
            q, k, v = (x.transpose(0, batch_axis) for x in (q, k, v))
        else:
            q, k, v = (x.unsqueeze(0) for x in (q, k, v))
        mask = self._mask(attn_mask, key_padding_mask, q)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat((x, bias.expand(len(x), 1, -1)), 1)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if mask is not None:  # whatever was appended is never masked
            mask = F.pad(mask, (0, k.shape[-2] - mask.shape[-1]))
        drop = self.dropout if self.training else 0.0
        q = q * self.head_dim**-0.5
        mixed, weights = attend(self.scores, self.mix, q, k, v, mask, drop)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        out = out.transpose(0, batch_axis) if batched else out.squeeze(0)
        if not need_weights:
            return out, None
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights if batched else weights.squeeze(0)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Return what is added to the scores [B, H, L, S]; ``q`` is [B, L, C]."""
        mask = None
        if attention is not None:
            mask = _additive(attention, q.dtype)
            if mask.ndim == 3:
                mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        if padding is not None:
            padding = _additive(padding, q.dtype).reshape(len(q), 1, 1, -1)
            mask = padding if mask is None else mask + padding
        return mask

    def collapse(self) -> nn.MultiheadAttention:
        """Return the original, with the present values of the parameters."""
        attention = self._before.attention
        attention.to(self.out_proj.weight.device, self.out_proj.weight.dtype)
        attention.train(self.training)
        with torch.no_grad():  # a copy, a move or a cast parts the memory that was shared
            for weight, layer in zip(_weights(attention), self._inputs(), strict=True):
                weight.copy_(layer.weight)
            for bias, layer in zip(_biases(attention), self._inputs(), strict=True):
                if bias is not None:
                    bias.copy_(layer.bias)
        return attention

    def _inputs(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj


def expand_attention(model: nn.Module) -> None:
    """Put :class:`ExpandedAttention` in the place of every ``nn.MultiheadAttention``, in place.

    An ``nn.TransformerEncoder`` around it no longer leaves out padded positions by nested
    tensors: their outputs, which are 0 there, become some number that nothing depends on.
    """
    found = [module for module in nn.Module.modules(model) if is_expandable(module)]
    swap(model, {module: ExpandedAttention(module) for module in found})
    for module in nn.Module.modules(model) if found else ():
        if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            module.use_nested_tensor = False
            setattr(module, _NESTED, True)


def collapse_attention(model: nn.Module) -> None:
    """Undo :func:`expand_attention`: the same modules and parameters as before."""
    found = [module for module in nn.Module.modules(model) if isinstance(module, ExpandedAttention)]
    swap(model, {module: module.collapse() for module in found})
    for module in nn.Module.modules(model):
        if isinstance(module, nn.TransformerEncoder) and module.__dict__.pop(_NESTED, False):
            module.use_nested_tensor = True


def is_expandable(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether it is attention as PyTorch computes it, with parameters in plain sight."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and not hasattr(module, "parametrizations")
        and not hasattr(module.out_proj, "parametrizations")
    )


def _weights(attention: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    """Return the weights of the query, key and value projection."""
    if attention.in_proj_weight is not None:
        return attention.in_proj_weight.chunk(3)
    return attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight


def _biases(attention: nn.MultiheadAttention) -> tuple[Tensor | None, ...]:
    bias = attention.in_proj_bias
    return (None, None, None) if bias is None else bias.chunk(3)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer of these very parameters, or on the memory of these parts of one."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(value: Any) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach(), requires_grad=value._base.requires_grad)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add, from one that is ``True`` at what is masked or is to add already."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)

"""Multi-head attention, saved like torch.nn.MultiheadAttention, made of layers that are called."""

from abc import ABC
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.nn import MatMul


class PackedAttention(nn.Module, ABC):
    """Arithmetic and state dict of :class:`torch.nn.MultiheadAttention`.

    There the projections are parameters that one function reads; here they are linear
    layers, so that hooks see them and a toolkit can replace them. The state dict has torch's
    names (``in_proj_weight``, ``in_proj_bias``, ``out_proj.*``).

    Args:
        channels: of queries, keys and values.
        num_heads: attention heads.
        projections: input projections by name, in torch's order, with the multiple of
            ``channels`` that each returns; three in all.
    """

    def __init__(self, channels: int, num_heads: int, projections: dict[str, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = projections
        layers = {name: nn.Linear(channels, n * channels) for name, n in projections.items()}
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.out_proj = nn.Linear(channels, channels)
        # As torch: Xavier over the three projections as one matrix [3C, C], no bias.
        bound = (6 / (4 * channels)) ** 0.5
        for layer in layers.values():
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out_proj.bias)
        self.register_state_dict_post_hook(_pack)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_unpack)  # type: ignore[no-untyped-call]

    def split(self, x: Tensor) -> Tensor:
        """Turn projected tokens [B, L, C] into [B, heads, L, C / heads]."""
        batch, length, channels = x.shape
        return x.reshape(batch, length, self.num_heads, channels // self.num_heads).transpose(1, 2)

    def join(self, y: Tensor) -> Tensor:
        """Turn what the heads found [B, heads, Q, C / heads] into the output [B, Q, C]."""
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out


class MultiheadAttention(PackedAttention):
    """Attention whose keys and values come from the same tensor."""

    query_proj: nn.Module
    memory_proj: nn.Module

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__(channels, num_heads, {"query_proj": 1, "memory_proj": 2})

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attend from ``query`` [B, Q, C] to ``memory`` [B, L, C]; return [B, Q, C]."""
        q = self.query_proj(query)
        k, v = self.memory_proj(memory).chunk(2, -1)
        y = F.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v))
        return self.join(y)


class KeyValueAttention(PackedAttention):
    """Attention whose keys are not its values, for instance because they carry positions.

    Its two products of activations are layers too.
    """

    query_proj: nn.Module
    key_proj: nn.Module
    value_proj: nn.Module

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__(channels, num_heads, {"query_proj": 1, "key_proj": 1, "value_proj": 1})
        self.scale = (channels // num_heads) ** -0.5
        self.q_k_matmul = MatMul()
        self.attn_v_matmul = MatMul()

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from ``query`` [B, Q, C] by ``key`` to ``value`` [B, L, C]; return [B, Q, C]."""
        q = self.split(self.query_proj(query)) * self.scale
        k, v = self.split(self.key_proj(key)), self.split(self.value_proj(value))
        scores = self.q_k_matmul(q, k.transpose(-2, -1))
        return self.join(self.attn_v_matmul(scores.softmax(-1), v))


def _pack(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Join the input projections under torch's names."""
    assert isinstance(module, PackedAttention)
    for part in ("weight", "bias"):
        names = [f"{prefix}{name}.{part}" for name in module.projections]
        if all(name in state for name in names):
            state[f"{prefix}in_proj_{part}"] = torch.cat([state.pop(name) for name in names])


def _unpack(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Undo :func:`_pack` before loading."""
    assert isinstance(module, PackedAttention)
    for part in ("weight", "bias"):
        packed = state.pop(f"{prefix}in_proj_{part}", None)
        if packed is not None:
            channels = len(packed) // 3
            sizes = [multiple * channels for multiple in module.projections.values()]
            for name, piece in zip(module.projections, packed.split_with_sizes(sizes), strict=True):
                state[f"{prefix}{name}.{part}"] = piece

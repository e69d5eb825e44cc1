"""Multi-head attention, saved like torch.nn.MultiheadAttention, made of layers that are called."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Attention whose keys and values come from the same tensor.

    Arithmetic and state dict (``in_proj_weight``, ``in_proj_bias``, ``out_proj.*``) are
    those of :class:`torch.nn.MultiheadAttention`. There the projections are parameters
    that one function reads; here they are linear layers, so that hooks see them and a
    toolkit can replace them.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(channels, channels)
        self.memory_proj = nn.Linear(channels, 2 * channels)
        self.out_proj = nn.Linear(channels, channels)
        # As torch: Xavier over the three projections as one matrix [3C, C], no bias.
        bound = (6 / (4 * channels)) ** 0.5
        for layer in (self.query_proj, self.memory_proj):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out_proj.bias)
        self.register_state_dict_post_hook(_pack)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_unpack)  # type: ignore[no-untyped-call]

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attend from ``query`` [B, Q, C] to ``memory`` [B, L, C]; return [B, Q, C]."""
        q = self.query_proj(query)
        k, v = self.memory_proj(memory).chunk(2, -1)
        y = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        return x.reshape(batch, length, self.num_heads, channels // self.num_heads).transpose(1, 2)


def _pack(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Join the two input projections under torch's names."""
    for part in ("weight", "bias"):
        names = f"{prefix}query_proj.{part}", f"{prefix}memory_proj.{part}"
        if all(name in state for name in names):
            state[f"{prefix}in_proj_{part}"] = torch.cat([state.pop(name) for name in names])


def _unpack(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Undo :func:`_pack` before loading."""
    for part in ("weight", "bias"):
        packed = state.pop(f"{prefix}in_proj_{part}", None)
        if packed is not None:
            channels = len(packed) // 3
            state[f"{prefix}query_proj.{part}"] = packed[:channels]
            state[f"{prefix}memory_proj.{part}"] = packed[channels:]

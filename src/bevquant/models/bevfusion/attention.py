"""Multi-head attention with parameters named as those of torch.nn.MultiheadAttention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Attention whose keys and values come from the same tensor.

    The arithmetic is that of :class:`torch.nn.MultiheadAttention`; unlike there, the
    output projection is a module that is called, so that hooks and replacements see it.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attend from ``query`` [B, Q, C] to ``memory`` [B, L, C]; return [B, Q, C]."""
        channels = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        q = F.linear(query, weight[:channels], bias[:channels])
        k, v = F.linear(memory, weight[channels:], bias[channels:]).chunk(2, -1)
        y = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        return x.reshape(batch, length, self.num_heads, channels // self.num_heads).transpose(1, 2)

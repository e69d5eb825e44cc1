"""DETR's decoder (Carion et al., ECCV 2020): positions enter queries and keys, not values."""

from torch import Tensor, nn

from bevquant.models.bevfusion.attention import KeyValueAttention
from bevquant.models.bevfusion.layers import FFN
from bevquant.models.petr.config import PETRHeadConfig


class Attention(nn.Module):
    """Attention with a residual connection; the level ``attn`` in the parameter names of mmcv."""

    def __init__(self, config: PETRHeadConfig) -> None:
        super().__init__()
        self.attn = KeyValueAttention(config.channels, config.num_heads)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query: Tensor, query_code: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from [B, Q, C] with position codes [Q, C] to keys and values [B, L, C]."""
        y: Tensor = self.dropout(self.attn(query + query_code, key, value))
        return query + y


class DecoderLayer(nn.Module):
    """Post-norm layer: self-attention, cross-attention, feed-forward network."""

    def __init__(self, config: PETRHeadConfig) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention(config) for _ in range(2))
        self.ffns = nn.ModuleList(
            [FFN(config.channels, config.ffn_channels, nn.ReLU(inplace=True))]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.channels) for _ in range(3))

    def forward(self, query: Tensor, query_code: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Refine queries [B, Q, C]; see :class:`Attention`."""
        query = self.norms[0](self.attentions[0](query, query_code, query + query_code, query))
        query = self.norms[1](self.attentions[1](query, query_code, key, value))
        y: Tensor = self.norms[2](self.ffns[0](query, query))
        return y


class Decoder(nn.Module):
    """The layers, and one norm for what any of them returns."""

    def __init__(self, config: PETRHeadConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.post_norm = nn.LayerNorm(config.channels)

    def forward(
        self, query: Tensor, query_code: Tensor, key: Tensor, value: Tensor
    ) -> list[Tensor]:
        """Return the refined queries [B, Q, C]: of every layer in training, else of the last."""
        outputs = []
        for layer in self.layers:
            query = layer(query, query_code, key, value)
            outputs.append(query)
        return [self.post_norm(y) for y in (outputs if self.training else outputs[-1:])]

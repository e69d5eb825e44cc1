"""TransFusion head (Bai et al., CVPR 2022): a heat map proposes, a decoder refines."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevquant.models.bevfusion.attention import MultiheadAttention
from bevquant.models.bevfusion.config import HeadConfig
from bevquant.models.bevfusion.layers import FFN, ConvModule

PRIOR_BIAS = -2.19
"""Bias that makes a sigmoid start at 0.1 (focal loss prior)."""


class HeadOutput(NamedTuple):
    """Raw predictions for B frames and Q queries, in falling order of heat-map score.

    Attributes:
        center: [B, 2, Q], x and y in cells from the corner of the grid.
        height: [B, 1, Q], z of the gravity centre in metres.
        dim: [B, 3, Q], natural logarithm of length, width, height in metres.
        rot: [B, 2, Q], sine and cosine of the yaw.
        vel: [B, 2, Q], velocity along x and y in m/s.
        heatmap: [B, classes, Q], class logits.
        query_heatmap_score: [B, classes, Q], heat map (0..1) at the query's cell after
            the local-maximum suppression; carries no gradient.
        query_labels: int64 [B, Q], the class that proposed the query.
        query_cells: int64 [B, Q], the cell that proposed it, x * Y + y.
        dense_heatmap: [B, classes, X, Y], logits.
    """

    center: Tensor
    height: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor
    heatmap: Tensor
    query_heatmap_score: Tensor
    query_labels: Tensor
    query_cells: Tensor
    dense_heatmap: Tensor


class _Attention(nn.Module):
    """The level ``attn`` in the parameter names of mmcv."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.attn = MultiheadAttention(channels, num_heads)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        y: Tensor = self.attn(query, memory)
        return y


class PositionEncoding(nn.Module):
    """Learned encoding of BEV positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Turn positions [B, L, 2] in cells into [B, L, C]."""
        y: Tensor = self.position_embedding_head(positions.transpose(1, 2))
        return y.transpose(1, 2)


class TransformerDecoderLayer(nn.Module):
    """Post-norm decoder layer; unlike DETR's, its values carry the position too."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        channels = config.hidden_channels
        self.self_attn = _Attention(channels, config.num_heads)
        self.cross_attn = _Attention(channels, config.num_heads)
        self.ffn = FFN(channels, config.ffn_channels, nn.ReLU(inplace=True))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.self_posembed = PositionEncoding(channels)
        self.cross_posembed = PositionEncoding(channels)

    def forward(
        self, query: Tensor, key: Tensor, query_positions: Tensor, key_positions: Tensor
    ) -> Tensor:
        """Refine queries.

        Args:
            query: [B, Q, C].
            key: [B, L, C].
            query_positions: [B, Q, 2] in cells.
            key_positions: [1, L, 2] in cells.

        Returns:
            [B, Q, C].
        """
        query_code = self.self_posembed(query_positions)
        memory = key + self.cross_posembed(key_positions)
        positioned = query + query_code
        query = self.norms[0](query + self.self_attn(positioned, positioned))
        query = self.norms[1](query + self.cross_attn(query + query_code, memory))
        out: Tensor = self.norms[2](self.ffn(query, query))
        return out


class SeparateHead(nn.Module):
    """One small branch per predicted quantity."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.center = _branch(config, 2)
        self.height = _branch(config, 1)
        self.dim = _branch(config, 3)
        self.rot = _branch(config, 2)
        self.vel = _branch(config, 2)
        self.heatmap = _branch(config, config.num_classes)
        nn.init.constant_(self.heatmap[-1].bias, PRIOR_BIAS)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Turn query features [B, C, Q] into [B, n, Q] per branch."""
        return {name: branch(features) for name, branch in self.named_children()}


class TransFusionHead(nn.Module):
    """Propose queries from a heat map, refine them, predict boxes."""

    bev_positions: Tensor
    is_point_class: Tensor

    def __init__(self, in_channels: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        channels, classes = config.hidden_channels, config.num_classes
        self.shared_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            ConvModule(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            ),
            nn.Conv2d(channels, classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(classes, channels, 1)
        self.decoder = nn.ModuleList([TransformerDecoderLayer(config)])
        self.prediction_heads = nn.ModuleList([SeparateHead(config)])
        x, y = torch.meshgrid(*(torch.arange(cells) + 0.5 for cells in config.grid), indexing="ij")
        positions = torch.stack((x, y), -1).view(1, -1, 2)
        self.register_buffer("bev_positions", positions, persistent=False)
        point_classes = torch.zeros(1, classes, 1, 1, dtype=torch.bool)
        point_classes[:, list(config.point_classes)] = True
        self.register_buffer("is_point_class", point_classes, persistent=False)
        nn.init.constant_(self.heatmap_head[-1].bias, PRIOR_BIAS)  # type: ignore[arg-type]

    def forward(self, bev: Tensor) -> HeadOutput:
        """Predict from the BEV map [B, C, X, Y]."""
        shared = self.shared_conv(bev)
        dense_heatmap = self.heatmap_head(shared)
        labels, cells, scores = self.propose(dense_heatmap)
        memory = shared.permute(0, 2, 3, 1).flatten(1, 2)
        query = memory.gather(1, cells[..., None].expand(-1, -1, memory.shape[-1]))
        one_hot = F.one_hot(labels, self.config.num_classes).to(query.dtype)
        query = query + self.class_encoding(one_hot.transpose(1, 2)).transpose(1, 2)
        positions = self.bev_positions[0][cells]
        for layer in self.decoder:
            query = layer(query, memory, positions, self.bev_positions)
        predictions: dict[str, Tensor] = self.prediction_heads[0](query.transpose(1, 2))
        predictions["center"] = predictions["center"] + positions.transpose(1, 2)
        return HeadOutput(
            **predictions,
            query_heatmap_score=scores,
            query_labels=labels,
            query_cells=cells,
            dense_heatmap=dense_heatmap,
        )

    def propose(self, dense_heatmap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the highest local maxima of the heat map.

        A cell on the border of the grid is no maximum, except of a point class.

        Args:
            dense_heatmap: logits [B, classes, X, Y].

        Returns:
            int64 [B, Q] class, int64 [B, Q] cell (x * Y + y), float [B, classes, Q]
            suppressed heat map of every class at the cell.
        """
        heat = dense_heatmap.detach().sigmoid()
        highest = F.pad(F.max_pool2d(heat, 3, stride=1), (1, 1, 1, 1))
        heat = (heat * ((heat == highest) | self.is_point_class)).flatten(2)
        _, index = heat.flatten(1).topk(self.config.num_proposals, dim=1)
        cells = heat.shape[2]
        labels, cell = index // cells, index % cells
        scores = heat.gather(2, cell[:, None].expand(-1, heat.shape[1], -1))
        return labels, cell, scores


def _branch(config: HeadConfig, out_channels: int) -> nn.Sequential:
    hidden = config.prediction_channels
    conv = nn.Conv1d(config.hidden_channels, hidden, 1, bias=False)
    return nn.Sequential(
        ConvModule(conv, nn.BatchNorm1d(hidden)), nn.Conv1d(hidden, out_channels, 1)
    )

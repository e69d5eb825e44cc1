"""PETR's head: features and queries get positions in 3-D, a decoder brings them together."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bevquant.data.frame import CAMERAS
from bevquant.models.petr.config import PETRConfig
from bevquant.models.petr.decoder import Decoder
from bevquant.models.petr.position import sines, view_sines
from bevquant.models.se_layer import SELayer

PRIOR_BIAS = -4.595
"""Bias that makes a sigmoid start at 0.01 (focal loss prior)."""

HIDDEN = 2
"""Hidden layers of a prediction branch."""

CODE = 10


class PETROutput(NamedTuple):
    """Raw predictions of L decoder layers, one in evaluation mode, for Q queries.

    Attributes:
        logits: class logits [L, B, Q, classes].
        codes: [L, B, Q, 10]: x, y, z of the gravity centre in metres, natural logarithm of
            length, width, height, sine and cosine of the yaw, velocity x, y.
    """

    logits: Tensor
    codes: Tensor


class PETRHead(nn.Module):
    """Position embeddings, decoder, predictions (Liu et al., ECCV 2022, section 3)."""

    view_sines: Tensor

    def __init__(self, in_channels: int, config: PETRConfig) -> None:
        super().__init__()
        head, channels = config.head, config.head.channels
        self.config = head
        height, width = (size // config.stride for size in config.image_size)
        self.input_proj = nn.Conv2d(in_channels, channels, 1)
        self.position_encoder = _two_convs(3 * config.position.bins, channels)
        self.fpe = SELayer(channels) if head.guided_positions else None
        self.adapt_pos3d = _two_convs(3 * channels // 2, channels)
        self.reference_points = nn.Embedding(head.num_queries, 3)
        self.query_embedding = nn.Sequential(
            nn.Linear(3 * channels // 2, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.transformer = nn.ModuleDict({"decoder": Decoder(head)})
        self.cls_branches = nn.ModuleList([_branch(channels, head.num_classes, normed=True)])
        self.reg_branches = nn.ModuleList([_branch(channels, CODE, normed=False)])
        codes = view_sines(len(CAMERAS), (height, width), channels // 2)
        self.register_buffer("view_sines", codes, persistent=False)
        nn.init.uniform_(self.reference_points.weight)
        nn.init.constant_(self.get_parameter(f"cls_branches.0.{3 * HIDDEN}.bias"), PRIOR_BIAS)
        for weight in self.transformer.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)

    def forward(self, features: Tensor, positions: Tensor) -> PETROutput:
        """Predict.

        Args:
            features: [B * N, C, h, w] of the image neck.
            positions: [B, N, 3 D, h, w] of :func:`~bevquant.models.petr.position.positions`.
        """
        return self.predict(*self.memory(features, positions), self.reference_points.weight)

    @property
    def cross_products(self) -> list[nn.Module]:
        """The products of queries and keys in each layer's cross-attention."""
        layers = range(self.config.num_layers)
        name = "transformer.decoder.layers.{}.attentions.1.attn.q_k_matmul"
        return [self.get_submodule(name.format(layer)) for layer in layers]

    def memory(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, N * h * w, channels] of what :meth:`forward` gets."""
        frames = len(positions)
        value = self.input_proj(features)
        views = self.adapt_pos3d(self.view_sines).repeat(frames, 1, 1, 1)
        place = self.position_encoder(positions.flatten(0, 1))
        if self.fpe is not None:
            place = self.fpe(place, value)
        key = value + place + views
        if self.config.placed:
            value = key
        return _tokens(key, frames), _tokens(value, frames)

    def predict(self, key: Tensor, value: Tensor, reference: Tensor) -> PETROutput:
        """Predict from keys and values by queries at places from 0 to 1, [Q, 3] or [B, Q, 3]."""
        code = self.query_embedding(sines(reference[..., [1, 0, 2]], self.config.channels // 2))
        query = code if self.config.placed else torch.zeros_like(code)
        query = query.expand(len(key), -1, -1)
        layers = self.transformer["decoder"](query, code, key, value)
        logits = [self.cls_branches[0](y) for y in layers]
        codes = [self._placed(self.reg_branches[0](y), reference) for y in layers]
        return PETROutput(torch.stack(logits), torch.stack(codes))

    def _placed(self, code: Tensor, reference: Tensor) -> Tensor:
        """Turn what a branch says [B, Q, 10] relative to the queries' places into metres."""
        low, high = code.new_tensor(self.config.point_range).view(2, 3)
        offset = self.config.offset_scale * code[..., :3]
        center = (offset + reference.logit(1e-5)).sigmoid() * (high - low) + low
        return torch.cat((center, code[..., 3:]), -1)


def _tokens(maps: Tensor, frames: int) -> Tensor:
    """Turn maps [B * N, C, h, w] into tokens [B, N * h * w, C]."""
    return maps.permute(0, 2, 3, 1).reshape(frames, -1, maps.shape[1])


def _two_convs(in_channels: int, out_channels: int) -> nn.Sequential:
    hidden = 4 * out_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, out_channels, 1)
    )


def _branch(channels: int, out_channels: int, *, normed: bool) -> nn.Sequential:
    branch = nn.Sequential()
    for _ in range(HIDDEN):
        branch.append(nn.Linear(channels, channels))
        if normed:
            branch.append(nn.LayerNorm(channels))
        branch.append(nn.ReLU())
    return branch.append(nn.Linear(channels, out_channels))

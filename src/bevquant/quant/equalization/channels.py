"""Channels that have to be scaled together, and by how much."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from bevquant.quant.affine import Range
from bevquant.quant.equalization.flow import Flow
from bevquant.quant.kinds import kind_of, weight_of


class SharedChannels:
    """The channels that a :class:`~bevquant.quant.equalization.flow.Flow` found, tied ones as one.

    Attributes:
        flow: the ids of the channels of each module.
        root: id -> a number that tied ids share, int64 [count].
        free: root -> whether factors other than 1 are possible, bool [count].
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.root = _components(flow.count, flow.tied)
        self.free = torch.ones(flow.count, dtype=torch.bool)
        self.free[self.root[[0, *flow.blocked]]] = False

    def of(self, ids: Tensor) -> Tensor:
        """Return the free roots of some channels."""
        roots = self.root[ids]
        return roots[self.free[roots]]

    def sets(self) -> list[tuple[list[nn.Module], Tensor]]:
        """Return the sets of consumers that share channels, and the roots of these."""
        reached = {layer: self.of(ids) for layer, ids in self.flow.consumed.items()}
        reached = {layer: roots for layer, roots in reached.items() if len(roots)}
        links = [(roots[:1].expand_as(roots), roots) for roots in reached.values()]
        linked = _components(self.flow.count, links)
        found: dict[int, list[nn.Module]] = {}
        for layer, roots in reached.items():
            found.setdefault(int(linked[roots[0]]), []).append(layer)
        return [
            (layers, torch.unique(torch.cat([reached[layer] for layer in layers])))
            for layers in found.values()
        ]

    def why_not(self, ids: Tensor) -> str:
        """Return why none of some channels is free."""
        roots = set(self.root[ids[ids > 0]].tolist())
        reasons = (why for i, why in self.flow.blocked.items() if int(self.root[i]) in roots)
        return next(reasons, "its input comes from no layer or norm that can be scaled")

    def factors(
        self,
        ranges: Mapping[nn.Module, Range],
        layers: Sequence[nn.Module],
        roots: Tensor,
        strength: float,
        limit: float,
    ) -> Tensor:
        """Return the factor of each root, float64 [count]; 1 for all but ``roots``.

        Args:
            ranges: range of each input channel of ``layers``, [C, 1, ...].
            layers: that read ``roots``.
            roots: what to scale.
            strength: see :func:`~bevquant.quant.equalization.equalize.equalize`.
            limit: see there.
        """
        activations = torch.zeros(self.flow.count, dtype=torch.float64)
        weights = torch.zeros_like(activations)
        for layer in layers:
            low, high = (value.flatten().double() for value in ranges[layer])
            read = self.root[self.flow.consumed[layer]]
            span = high.clamp(min=0) - low.clamp(max=0)
            activations.scatter_reduce_(0, read, span, "amax")
            largest = _largest_weights(layer, len(read))
            weights.scatter_reduce_(0, read, largest, "amax")
        logs = (strength * activations.log() - (1 - strength) * weights.log())[roots]
        sound = logs.isfinite()  # a channel that is always 0 has nothing to even out
        centre = logs[sound].mean() if sound.any() else 0.0
        factors = torch.ones_like(activations)
        factors[roots] = (logs - centre).exp().clamp(1 / limit, limit).where(sound, 1.0)
        return factors


def _largest_weights(layer: nn.Module, count: int) -> Tensor:
    """Return the largest magnitude of the weights of each of ``count`` input channels."""
    kind, weight = kind_of(layer), weight_of(layer).detach().abs().cpu().double()
    assert kind is not None
    axis = kind.input_axis % weight.ndim
    groups = count // weight.shape[axis]  # of a grouped convolution: [groups * out, in, ...]
    parts = weight.chunk(groups) if axis else [weight]
    return torch.cat([part.movedim(axis, 0).flatten(1).amax(1) for part in parts])


def _components(count: int, links: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the number of the connected component of each of ``count`` nodes."""
    pairs = [torch.stack(link) for link in links]
    start, end = torch.cat(pairs, 1).numpy() if pairs else torch.zeros(2, 0).long().numpy()
    graph = coo_array(([1.0] * len(start), (start, end)), (count, count))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()

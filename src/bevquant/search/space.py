"""What a search may choose: for each layer, or group of layers, one of several precisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from bevquant.errors import BevquantError
from bevquant.quant.genes import thesis_genes
from bevquant.quant.inventory import LayerInfo, layers
from bevquant.quant.layers import quant_modules
from bevquant.quant.policy import BitPolicy, matching
from bevquant.quant.spec import W2A8, W4A8, W8A8, W16A16, Precision

Genome = tuple[int, ...]
"""For each gene the index of the chosen precision."""

THESIS_CHOICES = (W2A8, W4A8, W8A8, W16A16)
"""Precisions of the thesis: activations have 8 bits, 16 where the weights have 16."""


@dataclass(frozen=True)
class Gene:
    """Layers that always have the same precision, and what that may be.

    Attributes:
        layers: names; one, unless layers are tied.
        choices: in rising order of bits.
    """

    layers: tuple[str, ...]
    choices: tuple[Precision, ...]


@dataclass(frozen=True)
class Space:
    """All bit policies that a search may return.

    Attributes:
        genes: what is chosen.
        pinned: precision of every other layer, ``None`` for float.
    """

    genes: tuple[Gene, ...]
    pinned: Mapping[str, Precision | None]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices of each gene."""
        return tuple(len(gene.choices) for gene in self.genes)

    @property
    def size(self) -> int:
        """Number of genomes."""
        return prod(self.sizes)

    @property
    def lowest(self) -> Genome:
        """The genome of the fewest bits."""
        return (0,) * len(self.genes)

    @property
    def highest(self) -> Genome:
        """The genome of the most bits."""
        return tuple(size - 1 for size in self.sizes)

    def assign(self, genome: Genome) -> dict[str, Precision | None]:
        """Return the precision of every layer, pinned ones included."""
        assigned = dict(self.pinned)
        for gene, choice in zip(self.genes, genome, strict=True):
            assigned.update(dict.fromkeys(gene.layers, gene.choices[choice]))
        return assigned

    def policy(self, genome: Genome) -> BitPolicy:
        """Return what :func:`~bevquant.quant.prepare.apply` takes."""
        return BitPolicy(self.assign(genome))

    def only(self, names: Sequence[str], others: Precision | None = None) -> "Space":
        """Return the space of the genes of these layers; ``others`` pins those of all others."""
        kept = tuple(gene for gene in self.genes if set(gene.layers) & set(names))
        dropped = {name: others for gene in self.genes if gene not in kept for name in gene.layers}
        if not kept:
            raise BevquantError("space: none of the named layers has a gene")
        return Space(kept, {**self.pinned, **dropped})


def space(
    model: nn.Module,
    choices: Sequence[Precision] | Mapping[str, Sequence[Precision]] = THESIS_CHOICES,
    pinned: Mapping[str, Precision | None] | None = None,
    tied: Sequence[str] = (),
) -> Space:
    """Return the space of all quantizable layers of a model.

    A product of activations has no weights, so that only choices that differ in activation
    bits differ for it; with fewer than two of them it is pinned.

    Args:
        model: quantized.
        choices: precisions of every layer, or for each kind of layer, with ``"*"`` for all
            kinds that are not named.
        pinned: pattern of layer names -> their precision, ``None`` for float; the last
            match wins.
        tied: patterns; the layers that match one of them share a gene.

    Raises:
        BevquantError: ``model`` is not quantized, a pattern or kind matches no layer, a kind
            has no choice, or all layers are pinned.
    """
    infos = quantizable(model)
    names = [info.name for info in infos]
    fixed = _pinned(pinned or {}, names)
    alphabets = dict(choices) if isinstance(choices, Mapping) else {"*": choices}
    for kind in set(alphabets) - {"*"} - {info.kind for info in infos}:
        known = ", ".join(sorted({info.kind for info in infos}))
        raise BevquantError(f"space: choices for kind {kind!r}, which no layer has; kinds: {known}")

    matches = {pattern: matching(pattern, names) for pattern in tied}
    groups: dict[str, list[LayerInfo]] = {}
    used = set()
    for info in infos:
        if info.name in fixed:
            continue
        pattern = next((p for p, named in matches.items() if info.name in named), None)
        used.add(pattern)
        groups.setdefault(info.name if pattern is None else f"tied {pattern}", []).append(info)
    for pattern in tied:
        if pattern not in used:
            raise BevquantError(f"space: tied pattern {pattern!r} matches no free layer")

    genes = []
    for group in groups.values():
        options = _options(group, alphabets)
        if len(options) > 1:
            genes.append(Gene(tuple(info.name for info in group), options))
        else:
            fixed.update(dict.fromkeys((info.name for info in group), options[0]))
    if not genes:
        raise BevquantError("space: every layer is pinned, there is nothing to search")
    return Space(tuple(genes), fixed)


def thesis_space(model: nn.Module) -> Space:
    """Return the thesis' space: a gene of 2, 4, 8 or 16 bits for each layer it counts.

    All other layers stay float. For the public BEVFusion that are 108 genes. The 24 of
    products of activations have four choices each here too, although the first three are
    one and the same: so the thesis counts.

    Args:
        model: quantized.
    """
    names = {info.name: None for info in quantizable(model)}
    genes = thesis_genes(model)
    if not genes:
        raise BevquantError("space: the model has no layer that the thesis counts")
    pinned = {name: None for name in names if name not in set(genes)}
    return Space(tuple(Gene((name,), THESIS_CHOICES) for name in genes), pinned)


def quantizable(model: nn.Module) -> list[LayerInfo]:
    """Return the layers of a quantized model in order of definition.

    Raises:
        BevquantError: ``model`` is not quantized.
    """
    order = [layer.name for layer in quant_modules(model)]
    if not order:
        raise BevquantError("search: the model has no quantized layer; call quantize first")
    infos = {info.name: info for info in layers(model)}
    return [infos[name] for name in order]


def _pinned(
    rules: Mapping[str, Precision | None], names: Sequence[str]
) -> dict[str, Precision | None]:
    BitPolicy(rules).assign(names)  # refuses a rule that matches nothing
    fixed: dict[str, Precision | None] = {}
    for pattern, precision in rules.items():
        fixed.update(dict.fromkeys(matching(pattern, names), precision))
    return fixed


def _options(
    group: Sequence[LayerInfo], alphabets: Mapping[str, Sequence[Precision]]
) -> tuple[Precision, ...]:
    kind = group[0].kind
    choices = alphabets.get(kind, alphabets.get("*", ()))
    if not choices:
        raise BevquantError(f"space: no choices for kind {kind!r} and none for '*'")
    ordered = sorted(set(choices), key=lambda p: (p.weights, p.activations))
    if all(info.weight_shape is None for info in group):
        by_activations = {p.activations: p for p in ordered}
        ordered = [by_activations[bits] for bits in sorted(by_activations)]
    return tuple(ordered)

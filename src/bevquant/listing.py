"""What a network consists of, as a table: the verb ``layers``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bevquant.files import write_json
from bevquant.models.shapes import shapes_only
from bevquant.models.zoo import network
from bevquant.progress import console
from bevquant.quant.genes import thesis_genes
from bevquant.quant.inventory import LayerInfo, find_layers, layers

WEIGHT_BITS = (32, 16, 8, 4, 2)


def list_layers(model: str, *, everything: bool, json: Path | None) -> list[LayerInfo]:
    """Print the layers of a network that can be quantized, and write them to ``json``.

    MACs are exact for one frame at the network's full size: they come from a forward pass
    of tensors that have shapes only. Those of sparse convolutions depend on where the LiDAR
    points of a frame are and stay open.

    Args:
        model: name of the network.
        everything: also the layers that have no gene in the thesis.
        json: file to write, or ``None``.

    Raises:
        BevquantError: there is no such network, or ``json`` cannot be written.
    """
    module, inputs = shapes_only(network(model).build)
    counted = layers(module, inputs, lambda _, shapes: module.network(shapes))
    by_name = {info.name: info for info in counted}
    names = [name for name, _, _ in find_layers(module)] if everything else thesis_genes(module)
    infos = [_without_points(by_name[name]) for name in names]
    if json is not None:
        write_json(json, {"model": model, "layers": [asdict(i) for i in infos], **totals(infos)})
    genes = set(thesis_genes(module))
    console.print("\n".join(_lines(infos, genes)), soft_wrap=True, highlight=False, markup=False)
    return infos


def totals(infos: Sequence[LayerInfo]) -> dict[str, Any]:
    """Return the sums over layers: count of each kind, weights, MACs, bits of the weights."""
    weights = sum(info.weights for info in infos)
    return {
        "kinds": dict(Counter(info.kind for info in infos)),
        "weights": weights,
        "macs": sum(info.macs or 0 for info in infos),
        "weight_bits": {str(bits): bits * weights for bits in WEIGHT_BITS},
    }


def _without_points(info: LayerInfo) -> LayerInfo:
    return replace(info, macs=None) if info.kind == "sparse_conv" else info


def _lines(infos: Sequence[LayerInfo], genes: set[str]) -> list[str]:
    rows = [("#", "layer", "kind", "weight", "weights", "MACs", "main module", "gene")]
    for number, info in enumerate(infos, 1):
        shape = "x".join(map(str, info.weight_shape or ())) or "-"
        macs = "-" if info.macs is None else f"{info.macs:,}"
        gene = "thesis" if info.name in genes else "-"
        numbers = (str(number), info.name, info.kind, shape, f"{info.weights:,}", macs)
        rows.append((*numbers, info.main_module, gene))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {0, 4, 5}
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if any(info.macs is None for info in infos):
        lines.append("MACs of sparse convolutions depend on where the LiDAR points are.")
    total = totals(infos)
    kinds = ", ".join(f"{count} {kind}" for kind, count in total["kinds"].items())
    lines.append(f"{len(infos)} layers: {kinds}; {total['macs']:,} MACs")
    bits = ", ".join(f"{count:.3e} at {bits}" for bits, count in total["weight_bits"].items())
    return [*lines, f"{total['weights']:,} weights; weight bits: {bits}"]

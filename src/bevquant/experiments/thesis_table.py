"""Table 3.3 of the thesis, with its per-class tables 3.4 to 3.12 and figure 3.1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from bevquant.data.world.settings import WorldSettings
from bevquant.experiments.tables import markdown
from bevquant.experiments.variants import Bench, Variant, measure
from bevquant.files import write_json, write_text
from bevquant.progress import console
from bevquant.provenance import provenance
from bevquant.quant.genes import thesis_genes
from bevquant.quant.inventory import layers
from bevquant.quant.spec import W2A8, W4A8, W8A8, W16A16
from bevquant.report.alphas import draw_alphas
from bevquant.report.figures import metric
from bevquant.run import load_small

PRECISIONS = (W2A8, W4A8, W8A8, W16A16)
"""Activations have 8 bits, or 16 where the weights have 16."""

METRICS = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
PER_CLASS = ("AP", "ATE", "ASE", "AOE", "AVE", "AAE")


class ThesisTable33(BaseModel):
    """What the table is measured on.

    Attributes:
        experiment: names this table.
        world: the generated data: calibration from its training split, metrics from the
            other. Never nuScenes' own figures.
        frames: to calibrate on.
        seed: of the choice of these frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: Literal["thesis_table_3_3"]
    world: WorldSettings
    frames: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: as in the thesis (NQ float, 2Q min-max, 2AQ with its alphas); "2R" are ours:
            measured alphas and learned weights.
        bits: of each weight that the thesis counts.
        figures: detection metrics.
    """

    name: str
    bits: int
    figures: Mapping[str, Any]


def run_thesis_table(recipe: ThesisTable33, out: Path, jobs: int) -> None:
    """Measure all models of the table; write tables.md, tables.json and alphas.png to ``out``."""
    bench = Bench(out, recipe.world, recipe.frames)
    methods = {
        "Q": Variant("thesis", thesis_scheme=True, seed=recipe.seed),
        "AQ": Variant("thesis", thesis_scheme=True, alphas="thesis", seed=recipe.seed),
        "R": Variant(
            "thesis", thesis_scheme=True, alphas="measured", reconstructed=True, seed=recipe.seed
        ),
    }
    measure(bench, [(variant, PRECISIONS) for variant in methods.values()], jobs)
    models = [Model("NQ", 32, bench.float())]
    models += [
        Model(f"{p.weights}{letters}", p.weights, bench.figures(variant, p))
        for p in PRECISIONS
        for letters, variant in methods.items()
    ]
    weights = _counted_weights()
    where = (
        f"generated world (seed {recipe.world.seed}), {models[0].figures['frames']} validation "
        "key frames; small BEVFusion"
    )
    write_text(out / "tables.md", _markdown(models, weights, where))
    write_json(
        out / "tables.json",
        {
            "recipe": recipe.model_dump(mode="json"),
            "provenance": provenance(recipe.seed, bench.validation.fingerprint()).to_json(),
            "counted_weights": weights,
            "models": {model.name: dict(model.figures) for model in models},
        },
    )
    factors = {
        f"{letters}, {p}": bench.figures(methods[letters], p)["alphas"]
        for letters in ("AQ", "R")
        for p in PRECISIONS
    }
    draw_alphas(factors, out / "alphas.png")
    console.print(_terminal(models, weights, where))
    console.print(f"{out / 'tables.md'}, {out / 'alphas.png'}", highlight=False)


def _counted_weights() -> int:
    model = load_small()
    genes = set(thesis_genes(model))
    return sum(layer.weights for layer in layers(model) if layer.name in genes)


def _cells(model: Model, weights: int) -> list[str]:
    """Return a row of table 3.3."""
    return [
        model.name,
        *(metric(model.figures[name]) for name in METRICS),
        f"{model.bits * weights:.3g}",
        f"{model.bits / 32:.4f}",
        f"{32 / model.bits:g}x",
    ]


HEADER = ("model", *METRICS, "bits", "relative", "ratio")


def _terminal(models: Sequence[Model], weights: int, where: str) -> Table:
    title = f"Table 3.3 on the {where}"
    table = Table(*HEADER, title=title, box=None, padding=(0, 1, 0, 0))  # fits 80 columns
    for model in models:
        table.add_row(*_cells(model, weights))
    return table


def _markdown(models: Sequence[Model], weights: int, where: str) -> str:
    """Return the tables as a page."""
    parts = [
        f"# Table 3.3, on the {where}",
        "NQ: float. Q: min-max. AQ: with the thesis' alphas. R: measured alphas, learned weights "
        "(not in the thesis). Weights and activations per channel, asymmetric (simulation); "
        "activations 8 bits, 16 for 16-bit weights. Bits: of the layers that the thesis counts; "
        "all others are float.",
        markdown(HEADER, [_cells(model, weights) for model in models]),
    ]
    for number, model in enumerate(models, start=4):
        # The thesis ends at 3.12, after NQ and the eight Q and AQ models.
        parts.append(f"## {model.name}: each class (tables 3.4 to 3.12, part {number - 3})")
        rows = [
            [name, *(metric(values[key]) for key in PER_CLASS)]
            for name, values in model.figures["per_class"].items()
        ]
        parts.append(markdown(("class", *PER_CLASS), rows))
    return "\n\n".join(parts) + "\n"

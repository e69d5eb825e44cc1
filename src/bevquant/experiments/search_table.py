"""Table 4.1 of the thesis: fourteen models, found by NSGA-II and by chance; figures 4.1, 4.2."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from bevquant.box_error import QueryBoxError
from bevquant.data import preprocess
from bevquant.data.world.settings import WorldSettings
from bevquant.evaluate import evaluate, float_predictor
from bevquant.experiments.variants import Bench
from bevquant.files import write_json, write_text
from bevquant.mixed import heatmap_cosine, run_network
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.encoder import NetworkInput
from bevquant.progress import console
from bevquant.provenance import provenance
from bevquant.quant.inventory import layers
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply
from bevquant.quant.refinement.refine import refine
from bevquant.quant.spec import THESIS, W8A8
from bevquant.report.search import draw_evolution
from bevquant.run import ensure_world, load_small, quantize_small
from bevquant.search.errors import OutputOf, cosine_error
from bevquant.search.evaluator import ErrorFunction
from bevquant.search.executors import Executor, Processes, Serial
from bevquant.search.front import Front, Point
from bevquant.search.nsga2 import NSGA2
from bevquant.search.random_search import Random
from bevquant.search.search import search
from bevquant.search.space import THESIS_CHOICES, Space, thesis_space
from bevquant.search.strategy import Strategy

HEAD = "bbox_head"
COLUMNS = ("NDS", "mAP", "weight_bits", "relative")


class ThesisTable41(BaseModel):
    """What the table is measured on, and how long is searched.

    Attributes:
        experiment: names this table.
        world: the generated data: calibration and search use its training split, metrics the
            other. Never nuScenes' own figures.
        frames: to calibrate on.
        compared: how many of them genomes are compared on.
        population: of NSGA-II; 100 in the thesis.
        generations: of NSGA-II; 50 in the thesis. Random search draws as many genomes.
        mutation: see :class:`~bevquant.search.nsga2.NSGA2`.
        seed: of the frames and of the searches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: Literal["thesis_table_4_1"]
    world: WorldSettings
    frames: int = Field(ge=1)
    compared: int = Field(ge=1)
    population: int = Field(default=100, ge=2)
    generations: int = Field(default=50, ge=1)
    mutation: Literal["any", "neighbour"] = "neighbour"
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class _Laboratory:
    """The network with (A) or without (Q) the thesis' alphas, and what to search it with."""

    letter: str
    model: BEVFusion
    inputs: list[NetworkInput]
    recipe: ThesisTable41
    folder: Path
    executor: Executor

    @property
    def nsga2(self) -> NSGA2:
        return NSGA2(self.recipe.population, self.recipe.generations, self.recipe.mutation)

    def search(
        self,
        name: str,
        strategy: Strategy,
        error: ErrorFunction,
        space: Space | None = None,
        forward: Callable[..., Any] = run_network,
    ) -> Front:
        console.print(f"search {name}", highlight=False)
        return search(
            self.model,
            self.inputs,
            error=error,
            space=space or thesis_space(self.model),
            strategy=strategy,
            seed=self.recipe.seed,
            forward=forward,
            ledger=self.folder / "search" / f"{name}.sqlite",
            executor=self.executor,
        )

    def modules(self) -> list[Front]:
        """Search main module by main module, each on its float inputs."""
        names: dict[str, list[str]] = {}
        for info in layers(self.model):
            names.setdefault(info.main_module, []).append(info.name)
        whole = thesis_space(self.model)
        counted = {layer for gene in whole.genes for layer in gene.layers}
        return [
            self.search(
                f"{module}-{self.letter}",
                self.nsga2,
                heatmap_cosine if module == HEAD else cosine_error,
                whole.only(members),
                OutputOf(module, run_network),
            )
            for module, members in names.items()
            if counted & set(members)
        ]


def run_table_4_1(recipe: ThesisTable41, out: Path, jobs: int) -> None:
    """Search and measure the models; write tables.md, tables.json and the figures to ``out``.

    Stopped at any moment, the same call continues.
    """
    bench = Bench(out, recipe.world, recipe.frames)
    ensure_world(out / "world", recipe.world, jobs)
    settings = recipe.model_dump(mode="json", include={"population", "generations", "mutation"})
    tag = "-".join(str(value) for value in (*settings.values(), recipe.compared, recipe.seed))
    rows: dict[str, dict[str, Any]] = {}
    nq = bench.float()
    for letter in ("A", "Q"):
        laboratory = _laboratory(letter, bench, recipe, out, jobs)
        for name, policy in _policies(laboratory, out).items():
            work = partial(_measure, laboratory.model, policy, bench)
            rows[name] = bench.steps.run(f"{name}-{tag}", work)
    counted = _counted_bits(laboratory.model, None)
    rows = {"NQ": {**nq, "weight_bits": counted}, **rows}
    for row in rows.values():
        row["relative"] = row["weight_bits"] / counted
    _write(rows, recipe, bench, out)


def _laboratory(
    letter: str, bench: Bench, recipe: ThesisTable41, out: Path, jobs: int
) -> _Laboratory:
    model, batches = load_small(), bench.batches(recipe.seed)
    quantize_small(model, batches, W8A8, THESIS)
    if letter == "A":
        refine(model, batches, precisions=THESIS_CHOICES, method="thesis")
    torch.set_num_threads(1)
    inputs = [model.prepare(batch) for batch in batches[: recipe.compared]]
    executor = Processes(jobs) if jobs > 1 else Serial()
    return _Laboratory(letter, model, inputs, recipe, out, executor)


def _policies(laboratory: _Laboratory, out: Path) -> dict[str, BitPolicy]:
    """Return the models of one letter in the table's order."""
    letter, recipe = laboratory.letter, laboratory.recipe
    drawn = Random(recipe.population * recipe.generations)
    whole = laboratory.search(f"C{letter}", laboratory.nsga2, heatmap_cosine)
    chance = laboratory.search(f"RC{letter}", drawn, heatmap_cosine)
    modules = laboratory.modules()
    counted = _counted_bits(laboratory.model, None)
    generations = partial(_generations, counted=counted, population=recipe.population)
    draw_evolution(generations(whole), _pairs(chance, counted), out / f"C{letter}.png")
    found: dict[str, BitPolicy] = {}
    if letter == "A":
        boxes = QueryBoxError(laboratory.model.config.bbox_head)
        distance = laboratory.search("DE-CA", laboratory.nsga2, boxes)
        draw_evolution(generations(distance), [], out / "DE-CA.png")
        found["MPQ-DE_CAE"] = distance.error_first()
    for prefix, front in ((f"C{letter}", whole), (f"RC{letter}", chance)):
        found[f"MPQ-{prefix}E"] = front.error_first()
        found[f"MPQ-{prefix}W"] = front.weight_first()
    found[f"MPQ-{letter}E"] = _joined([front.error_first() for front in modules])
    found[f"MPQ-{letter}W"] = _joined([front.weight_first() for front in modules])
    return found


def _joined(points: list[Point]) -> BitPolicy:
    """Return one policy of what was chosen for each main module."""
    rules = dict(points[0].rules)
    for point in points[1:]:
        rules.update({name: bits for name, bits in point.rules.items() if bits is not None})
    return BitPolicy(rules)


def _measure(model: BEVFusion, policy: BitPolicy, bench: Bench) -> dict[str, Any]:
    apply(model, policy)
    metrics = evaluate(
        float_predictor(model), bench.validation, preprocess.SMALL, description="evaluate"
    )
    return {
        **metrics.to_json(),
        "weight_bits": _counted_bits(model, policy),
        "policy": policy.to_json(),
    }


def _counted_bits(model: BEVFusion, policy: BitPolicy | None) -> int:
    """Return the bits of the weights that the thesis counts; at 32 bits without a policy."""
    weights = {info.name: info.weights for info in layers(model)}
    bits = policy.assign(weights) if policy else {}
    total = 0
    for gene in thesis_space(model).genes:
        for name in gene.layers:
            precision = bits.get(name)
            total += weights[name] * (precision.weights if precision else 32)
    return total


def _pairs(front: Front, counted: int) -> list[tuple[float, float]]:
    """Return relative weight bits, of the ``counted`` ones as in the table, and errors."""
    rest = front.float_costs["weight_bits"] - counted
    costs = [(point.costs["weight_bits"] - rest) / counted for point in front.evaluated]
    return [(cost, max(p.error, 1e-9)) for cost, p in zip(costs, front.evaluated, strict=True)]


def _generations(front: Front, counted: int, population: int) -> list[list[tuple[float, float]]]:
    points = _pairs(front, counted)
    return [points[start : start + population] for start in range(0, len(points), population)]


def _write(rows: dict[str, dict[str, Any]], recipe: ThesisTable41, bench: Bench, out: Path) -> None:
    where = f"generated world (seed {recipe.world.seed}), {rows['NQ']['frames']} key frames"
    table = Table("model", *COLUMNS, title=f"Table 4.1, {where}; small BEVFusion")
    lines = [f"# Table 4.1 on the {where}; small BEVFusion\n"]
    lines += [f"| model | {' | '.join(COLUMNS)} |", "|---" * 5 + "|"]
    for name, row in rows.items():
        nds, mean_ap, share = (f"{row[column]:.4f}" for column in ("NDS", "mAP", "relative"))
        cells = nds, mean_ap, f"{row['weight_bits']:.3e}", share
        table.add_row(name, *cells)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_text(out / "tables.md", "\n".join(lines) + "\n")
    record = provenance(recipe.seed, bench.validation.fingerprint()).to_json()
    settings = recipe.model_dump(mode="json")
    write_json(out / "tables.json", {"recipe": settings, "provenance": record, "models": rows})
    console.print(table)

"""Mixed precision for the small BEVFusion: the verb ``search``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from bevquant.box_error import QueryBoxError
from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.errors import BevquantError
from bevquant.files import read_json
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.encoder import NetworkInput
from bevquant.models.bevfusion.transfusion import HeadOutput
from bevquant.progress import console
from bevquant.quant.inventory import layers
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.spec import DEPLOY, W2A8, W4A8, W8A8, Precision, Scheme
from bevquant.report.search import draw_bits, draw_fronts
from bevquant.run import calibration_batches, deployable, load_small, quantize_small
from bevquant.search.bayes import Bayes
from bevquant.search.costs import CostMaker, latency
from bevquant.search.errors import cosine_error, mse_error
from bevquant.search.evaluator import ErrorFunction
from bevquant.search.executors import Executor, Processes, Serial
from bevquant.search.front import Front
from bevquant.search.front_file import write_front
from bevquant.search.ilp import ILP
from bevquant.search.nsga2 import NSGA2
from bevquant.search.random_search import Random
from bevquant.search.ray_executor import Ray
from bevquant.search.search import search
from bevquant.search.space import Space, space, thesis_space
from bevquant.search.strategy import Strategy
from bevquant.search.surrogate import Surrogate

LEARNED = (W2A8, W4A8, W8A8)
"""Precisions whose integers or biases are learned before the search."""

LEDGER = "ledger.sqlite"
"""The ledger's name in a run folder."""

FRONT = "front.json"
"""The front's name in a run folder."""

EXECUTORS: Mapping[str, Callable[[int, str], Executor]] = {
    "processes": lambda workers, _: Processes(workers) if workers > 1 else Serial(),
    "ray": Ray,
}
"""Executors by name, made from a number of workers and the address of a cluster."""

STRATEGIES: Mapping[str, Callable[[int | None], Strategy]] = {
    "default": lambda n: Surrogate() if n is None else Surrogate(evaluations=n),
    "ilp": lambda n: ILP() if n is None else ILP(points=n),
    "bayes": lambda n: Bayes() if n is None else Bayes(evaluations=n),
    "nsga2": lambda n: NSGA2() if n is None else NSGA2(generations=max(1, n // 100)),
    "random": lambda n: Random() if n is None else Random(evaluations=n),
}
"""Strategies by name, made from a number of evaluations or ``None`` for their own."""


@dataclass(frozen=True)
class SmallProblem:
    """The calibrated small BEVFusion and the frames that bit policies are compared on.

    Attributes:
        model: quantized, calibrated and reconstructed; products of attention stay float.
        inputs: prepared frames.
        space: 2, 4, 8 or 16 bits for every layer with weights.
        error: the box error of its queries.
    """

    model: BEVFusion
    inputs: list[NetworkInput]
    space: Space
    error: QueryBoxError

    @classmethod
    def of(
        cls, model: BEVFusion, calibration: Sequence[Batch], frames: int, scheme: Scheme = DEPLOY
    ) -> "SmallProblem":
        """Quantize ``model`` in place; compare on ``frames`` of the calibration frames.

        The search sees weights as they would be shipped, with learned integers: with
        integers that are merely rounded all layers of 2 bits look worse than they are.
        """
        quantize_small(model, calibration, deployable(W8A8), scheme)
        reconstruct(model, calibration, precisions=LEARNED)
        inputs = [model.prepare(batch) for batch in compared(calibration, frames)]
        free = space(model, pinned={"*matmul*": None})
        return cls(model, inputs, free, QueryBoxError(model.config.bbox_head))

    def search(self, strategy: Strategy, **options: Any) -> Front:
        """Search with the box error, unless ``options`` of :func:`search` say otherwise."""
        defaults = {"error": self.error, "space": self.space, "forward": run_network}
        return search(self.model, self.inputs, strategy=strategy, **{**defaults, **options})


def compared(calibration: Sequence[Batch], frames: int) -> list[Batch]:
    """Return ``frames`` evenly spread calibration frames, on which genomes are compared."""
    return [*calibration[:: max(1, len(calibration) // frames)][:frames]]


def run_network(model: nn.Module, inputs: NetworkInput) -> HeadOutput:
    """Run the layers on a prepared frame: what depends on the points alone is done once."""
    assert isinstance(model, BEVFusion)
    return model.network(inputs)


def heatmap_cosine(output: HeadOutput, reference: HeadOutput) -> float:
    """Return the cosine error of the dense heat map.

    That of the queries would compare objects with others: each network picks its own.
    """
    return cosine_error(output.dense_heatmap, reference.dense_heatmap)


def heatmap_mse(output: HeadOutput, reference: HeadOutput) -> float:
    """Return the relative squared error of the dense heat map, see :func:`heatmap_cosine`."""
    return mse_error(output.dense_heatmap.sigmoid(), reference.dense_heatmap.sigmoid())


def search_small(
    out: Path,
    data: Path,
    version: str,
    split: str,
    frames: int,
    calibration_frames: int,
    checkpoint: Path | None,
    strategy: str,
    evaluations: int | None,
    costs: Sequence[str],
    latency_table: Path | None,
    error: str,
    counted: str,
    seed: int,
    executor: str,
    workers: int,
    address: str,
) -> Front:
    """Search bit-widths for the small BEVFusion; write the front to the folder ``out``.

    Raises:
        BevquantError: an unknown name, or what a part of the search refuses.
    """
    errors: dict[str, ErrorFunction] = {"cosine": heatmap_cosine, "mse": heatmap_mse}
    _known("strategy", strategy, STRATEGIES)
    _known("error", error, ("box", *errors))
    _known("space", counted, ("all", "thesis"))
    _known("executor", executor, EXECUTORS)
    makers: list[str | CostMaker] = [*costs]
    if latency_table is not None:
        makers.append(latency(read_json(latency_table)))
    dataset = NuScenesDataset(data, version, split, sweeps=preprocess.SMALL.sweeps)
    dataset.check()
    batches = calibration_batches(dataset, calibration_frames)
    problem = SmallProblem.of(load_small(checkpoint), batches, frames)
    torch.set_num_threads(1)
    options: dict[str, Any] = {"error": errors[error]} if error != "box" else {}
    if counted == "thesis":
        options["space"] = thesis_space(problem.model)
    front = problem.search(
        STRATEGIES[strategy](evaluations),
        cost=makers,
        seed=seed,
        ledger=out / LEDGER,
        executor=EXECUTORS[executor](workers, address),
        **options,
    )
    _write(front, problem.model, out)
    return front


def _known(what: str, name: str, names: Sequence[str] | Mapping[str, Any]) -> None:
    if name not in names:
        raise BevquantError(f"search: {what} {name!r} is unknown; choose {', '.join(names)}")


def _write(front: Front, model: BEVFusion, out: Path) -> None:
    picks = {
        "knee": front.knee(),
        "error first": front.error_first(),
        "weight first": front.weight_first(),
    }
    write_front(front, out / FRONT)
    first = next(iter(front.float_costs))
    draw_fronts(
        {"front": [(front.relative(p)[first], max(p.error, 1e-9)) for p in front.points]},
        [(front.relative(p)[first], p.error) for p in front.evaluated if 0 < p.error < 1e6],
        out / "front.png",
    )
    infos = [info for info in layers(model) if info.weight_shape is not None]
    bits = front.knee().assign(info.name for info in layers(model))
    widths = {info.name: _bits(bits[info.name]) for info in infos}
    draw_bits(widths, [info.main_module for info in infos], out / "bits.png")
    table = Table("pick", "error", *front.float_costs, title=f"{len(front.points)} points")
    for name, point in picks.items():
        shares = (f"{share:.4f}" for share in front.relative(point).values())
        table.add_row(name, f"{point.error:.4g}", *shares)
    console.print(table)
    console.print(f"{out / FRONT}, {out / 'front.png'}, {out / 'bits.png'}", highlight=False)
    console.print(f"next: bevquant search pick {out} policy.json", highlight=False)


def _bits(precision: Precision | None) -> int:
    return 32 if precision is None else precision.weights

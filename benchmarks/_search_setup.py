"""The problem of the search benchmarks: the shipped network on a world it has not seen."""

import argparse
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bevquant as bq
from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.world.settings import WorldSettings
from bevquant.evaluate import evaluate, float_predictor
from bevquant.experiments.variants import Bench, cores, start_worker
from bevquant.mixed import SmallProblem, compared, heatmap_cosine, heatmap_mse
from bevquant.progress import track
from bevquant.quant.fingerprint import fingerprint
from bevquant.quant.policy import BitPolicy
from bevquant.run import ensure_world, load_small, quantize_small
from bevquant.search.evaluator import ErrorFunction
from bevquant.search.executors import Processes
from bevquant.search.front import Front
from bevquant.search.strategy import Strategy

WORLD = WorldSettings(scenes=36, keyframes=5, seed=1000, val_fraction=20 / 36)
CALIBRATION_FRAMES = 24


@dataclass(frozen=True)
class Options:
    """What the benchmarks of the search share on their command lines.

    Attributes:
        folder: of the world, the ledgers and the figures; what is finished is kept.
        frames: that genomes are compared on, of those to calibrate on.
        seeds: of calibration frames and searches.
        evaluations: of NSGA-II.
    """

    folder: Path
    frames: int
    seeds: int
    evaluations: int

    @classmethod
    def read(cls, options: argparse.ArgumentParser) -> tuple["Options", Path | None]:
        """Return the options, and the file to write the rows to."""
        options.add_argument("--folder", type=Path, default=Path("runs/benchmark_search"))
        options.add_argument("--frames", type=int, default=2)
        options.add_argument("--seeds", type=int, default=3)
        options.add_argument("--evaluations", type=int, default=5000)
        known = vars(options.parse_args())
        return cls(**{name: known[name] for name in cls.__dataclass_fields__}), known["json"]

    @property
    def bench(self) -> Bench:
        return Bench(self.folder, WORLD, CALIBRATION_FRAMES)

    def problem(self, seed: int) -> SmallProblem:
        """Calibrate, and learn integers, on the frames of ``seed``."""
        torch.set_num_threads(1)
        ensure_world(self.folder / "world", WORLD, cores())
        return SmallProblem.of(load_small(), self.bench.batches(seed), self.frames)

    def compared(self, seed: int) -> list[Batch]:
        """Return the frames that genomes are compared on, as the data set has them."""
        return compared(self.bench.batches(seed), self.frames)

    def search(
        self, problem: SmallProblem, strategy: Strategy, seed: int, error: str = "box"
    ) -> Front:
        errors = errors_of(problem)
        return problem.search(
            strategy,
            seed=seed,
            error=errors[error],
            ledger=self.folder / f"{error}-{self.frames}-{seed}.sqlite",
            executor=Processes(cores()),
        )

    def nds(self, policies: Sequence[tuple[int, BitPolicy | None]]) -> list[float]:
        """Return the NDS of policies (``None`` for float), reconstructed on a seed's frames."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(cores(), context, initializer=start_worker) as pool:
            waiting = [pool.submit(_nds, self, *each) for each in policies]
            return [future.result() for future in track(waiting, "NDS")]


def errors_of(problem: SmallProblem) -> Mapping[str, ErrorFunction]:
    """Return the errors that are compared, by name."""
    return {"box": problem.error, "cosine": heatmap_cosine, "mse": heatmap_mse}


def _nds(options: Options, seed: int, policy: BitPolicy | None) -> float:
    bench, rules = options.bench, None if policy is None else policy.to_json()

    def measure() -> Any:
        model = load_small()
        if policy is not None:
            batches = bench.batches(seed)
            quantize_small(model, batches, policy)
            bq.reconstruct(model, batches)
        predict = float_predictor(model)
        metrics = evaluate(predict, bench.validation, preprocess.SMALL, description="evaluate")
        return {**metrics.to_json(), "policy": rules}

    name = "float" if rules is None else f"nds-{seed}-{fingerprint(rules)}"
    return float(bench.steps.run(name, measure)["NDS"])

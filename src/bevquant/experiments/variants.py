"""Measuring ways to quantize the small BEVFusion: one after another, resumable, in parallel."""

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.errors import BevquantError
from bevquant.evaluate import evaluate, float_predictor
from bevquant.files import sha256
from bevquant.memory import keep_freed_memory
from bevquant.models.bevfusion import BEVFusion
from bevquant.progress import console, track
from bevquant.quant.genes import thesis_genes
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import Method, Refinement, refine
from bevquant.quant.spec import DEPLOY, THESIS, W8A8, Precision
from bevquant.run import SHIPPED, ends_at_8_bits, ensure_world, load_small, quantize_small
from bevquant.steps import Steps

Layers = Literal["all", "thesis", "ends at 8 bits"]


@dataclass(frozen=True)
class Variant:
    """A way to quantize, at several precisions.

    Attributes:
        layers: which layers are quantized: all; those that the thesis counts; or all, with
            those that read the network's inputs or write its outputs at 8 bits.
        thesis_scheme: asymmetric weights, a scale for each channel of activations (which is
            simulation only) rather than the scheme that engines run.
        alphas: how stage 2 is done; ``None`` leaves it out.
        reconstructed: whether weights are learned.
        seed: of the frames to calibrate on.
    """

    layers: Layers = "all"
    thesis_scheme: bool = False
    alphas: Method | None = None
    reconstructed: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """What distinguishes the variant, as a file name."""
        scheme = "thesis" if self.thesis_scheme else "deploy"
        method = f"{self.alphas or 'minmax'}{'-reconstructed' if self.reconstructed else ''}"
        return f"{self.layers}-{scheme}-{method}-{self.seed}".replace(" ", "-")

    def policy(self, model: BEVFusion, precision: Precision) -> BitPolicy:
        """Return the bits of every layer."""
        if self.layers == "thesis":
            return BitPolicy(dict.fromkeys(thesis_genes(model), precision))
        if self.layers == "ends at 8 bits":
            return ends_at_8_bits(precision)
        return BitPolicy.of(precision)


class Bench:
    """A generated world, and the figures measured on its validation split so far.

    Args:
        folder: of the world and of the figures, each kept as soon as it is there.
        world: the data; frames to calibrate on come from its training split.
        frames: to calibrate on.
    """

    def __init__(self, folder: Path, world: WorldSettings, frames: int) -> None:
        self.folder = folder
        self.world = world
        self.frames = frames
        setup = {"world": world.model_dump(mode="json"), "frames": frames}
        self.steps = Steps(folder / "figures", {**setup, "checkpoint": sha256(SHIPPED)})

    def split(self, name: str) -> NuScenesDataset:
        """Return a split of the world."""
        sweeps = preprocess.SMALL.sweeps
        return NuScenesDataset(self.folder / "world", VERSION, name, sweeps=sweeps)

    @cached_property
    def validation(self) -> NuScenesDataset:
        """The frames that figures are measured on."""
        return self.split("world_val")

    def batches(self, seed: int) -> list[Batch]:
        """Return random frames of the training split, each a batch.

        Raises:
            BevquantError: there are fewer than asked for.
        """
        dataset = self.split("world_train")
        if len(dataset) < self.frames:
            raise BevquantError(
                f"calibration frames: {self.frames} asked for, {len(dataset)} there; ask for "
                "fewer, or generate more training scenes"
            )
        chosen = np.random.default_rng(seed).choice(len(dataset), self.frames, replace=False)
        return [collate([dataset.frame(int(i))], preprocess.SMALL) for i in chosen]

    def float(self) -> dict[str, Any]:
        """Return the metrics of the float network."""
        metrics: dict[str, Any] = self.steps.run("float", lambda: self._evaluate(load_small()))
        return metrics

    def figures(self, variant: Variant, precision: Precision) -> dict[str, Any]:
        """Return what was measured of a variant at a precision."""
        figures: dict[str, Any] = self.steps.value(_step(variant, precision))
        return figures

    def measure(self, variant: Variant, precisions: Sequence[Precision]) -> None:
        """Measure a variant at each precision that has no figures yet.

        Figures are the detection metrics, and as ``alphas`` the factors that stage 2 found.
        """
        todo = [p for p in precisions if not self.steps.has(_step(variant, p))]
        if not todo:
            return
        model, batches = load_small(), self.batches(variant.seed)
        scheme = THESIS if variant.thesis_scheme else DEPLOY
        quantize_small(model, batches, variant.policy(model, W8A8), scheme)
        rows = (
            refine(model, batches, precisions=todo, method=variant.alphas) if variant.alphas else []
        )
        for precision in todo:
            apply(model, variant.policy(model, precision))
            if variant.reconstructed:
                reconstruct(model, batches)
            found = [row for row in rows if row.precision == precision]
            self.steps.run(_step(variant, precision), partial(self._evaluate, model, found))

    def _evaluate(self, model: BEVFusion, found: Sequence[Refinement] = ()) -> dict[str, Any]:
        predict = float_predictor(model)
        metrics = evaluate(predict, self.validation, preprocess.SMALL, description="evaluate")
        alphas = [
            {"weight": row.weight_alphas, "inputs": row.input_alphas, "kept": row.kept}
            for row in found
        ]
        return {**metrics.to_json(), "alphas": alphas}


def measure(
    bench: Bench, variants: Iterable[tuple[Variant, Sequence[Precision]]], jobs: int
) -> None:
    """Measure the float network and all variants that have no figures yet.

    Args:
        bench: what to measure on.
        variants: each with the precisions of interest.
        jobs: worker processes, of one thread each.
    """
    ensure_world(bench.folder / "world", bench.world, jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=start_worker) as pool:
        waiting: list[Future[Any]] = [pool.submit(bench.float)]
        waiting += [pool.submit(bench.measure, *each) for each in variants]
        try:
            for future in track(as_completed(waiting), "variants", total=len(waiting)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def cores() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Prepare a worker process: one thread, no bars, an allocator that keeps its memory."""
    console.quiet = True  # several bars in one terminal overwrite each other
    keep_freed_memory()
    torch.set_num_threads(1)


def _step(variant: Variant, precision: Precision) -> str:
    return f"{variant.name}-{precision}"

"""From the shipped float BEVFusion to a measured, deployed INT8 file and a report."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import bevquant
from bevquant.data import preprocess
from bevquant.data.frame import Batch, Boxes
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.demo.pictures import best_score, choose, picture, seen
from bevquant.deploy.bench import bench
from bevquant.deploy.export import export, export_float
from bevquant.deploy.measurement import Candidate
from bevquant.deploy.runtime import load
from bevquant.errors import BevquantError
from bevquant.evaluate import Prediction, Predictor, evaluate, float_predictor, predict_split, score
from bevquant.files import sha256
from bevquant.models.bevfusion import BEVFusion
from bevquant.progress import console
from bevquant.provenance import provenance
from bevquant.quant.inventory import layers, unquantized
from bevquant.quant.prepare import apply
from bevquant.quant.spec import DEPLOY, THESIS, W8A8, Precision
from bevquant.report.claims import check_claims
from bevquant.report.page import render
from bevquant.report.results import (
    SIMULATED,
    Ablation,
    Dataset,
    DeployedMetrics,
    FloatMetrics,
    Provenance,
    Results,
    Score,
    SimulatedMetrics,
    Unquantized,
    save_results,
)
from bevquant.report.scene import FramePicture, count
from bevquant.report.terminal import show
from bevquant.run import (
    SHIPPED,
    calibration_batches,
    deployable,
    ensure_world,
    load_small,
    quantize_small,
)
from bevquant.steps import Steps

SEED = 1000
"""Of the demo's world; the shipped network was trained on seed 0."""

PER_TENSOR = "W8A8 per tensor"
"""The simulated network with the arithmetic of the deployed file."""

KEPT_SCORE = 0.05
"""Boxes below are measured but not kept for the pictures."""


@dataclass(frozen=True)
class Size:
    """How much the demo measures.

    Attributes:
        scenes: generated scenes, one in six of them to calibrate on.
        keyframes: of each scene.
        calibration: frames that the ranges are taken from.
        rounds: timed runs of each deployed file.
    """

    scenes: int
    keyframes: int
    calibration: int
    rounds: int

    @property
    def world(self) -> WorldSettings:
        """The generated data."""
        return WorldSettings(
            scenes=self.scenes, keyframes=self.keyframes, seed=SEED, val_fraction=5 / 6
        )


STANDARD = Size(scenes=24, keyframes=5, calibration=20, rounds=30)
QUICK = Size(scenes=12, keyframes=2, calibration=4, rounds=10)


def run_demo(out: Path, quick: bool, checkpoint: Path = SHIPPED) -> Results:
    """Run every step that ``out`` does not hold yet, write the results, show them.

    Raises:
        BevquantError: ``out`` holds another run, or cannot be written.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "steps").is_dir():
        raise BevquantError(f"{out}: holds something else than a demo; choose another folder")
    size = QUICK if quick else STANDARD
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    torch.set_num_threads(threads)
    setup = {"quick": quick, "world": size.world.model_dump(mode="json")}
    code = _digest_of_code()
    steps = Steps(out / "steps", {**setup, "checkpoint": sha256(checkpoint), "code": code})
    steps.run("world", lambda: ensure_world(out / "world", size.world, threads))
    road = _Road(out, size, steps, checkpoint)
    results, pictures = road.measure(quick)
    save_results(results, out / "results.json")
    render(results, pictures, out / "report.html")
    show(results, out / "report.html")
    return results


def _digest_of_code() -> str:
    """Return a digest of the package's own code: figures of other code are not reused."""
    package = Path(bevquant.__file__).parent
    digests = [sha256(path) for path in sorted(package.rglob("*.py"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class _Road:
    """The measurements of one demo, in their order; each is a step that is kept."""

    def __init__(self, out: Path, size: Size, steps: Steps, checkpoint: Path) -> None:
        self.out = out
        self.size = size
        self.steps = steps
        self.checkpoint = checkpoint
        self.validation = self._split("world_val")

    def _split(self, split: str, beam_step: int = 1) -> NuScenesDataset:
        sweeps = preprocess.SMALL.sweeps
        return NuScenesDataset(
            self.out / "world", VERSION, split, sweeps=sweeps, beam_step=beam_step
        )

    @cached_property
    def batches(self) -> list[Batch]:
        """Calibration data: scenes that are not evaluated."""
        return calibration_batches(self._split("world_train"), self.size.calibration)

    @cached_property
    def thesis(self) -> BEVFusion:
        """The network with the thesis' scheme, calibrated once for all bits."""
        model = load_small(self.checkpoint)
        return quantize_small(model, self.batches, W8A8, THESIS)

    @cached_property
    def deployable(self) -> BEVFusion:
        """The network with the arithmetic that engines have."""
        return quantize_small(load_small(self.checkpoint), self.batches, deployable(W8A8), DEPLOY)

    def measure(self, quick: bool) -> tuple[Results, list[FramePicture]]:
        """Measure everything that is not kept yet."""
        float_model = load_small(self.checkpoint)
        predict = float_predictor(float_model)
        weights = sum(layer.weights for layer in layers(float_model))
        before = self.steps.run("float", lambda: self._predict(predict, "float"))
        ablation = Ablation(
            images_blanked=self._score("images blanked", _blanked(predict), self.validation),
            lidar_half_beams=self._score(
                "half of the LiDAR beams", predict, self._split("world_val", beam_step=2)
            ),
        )
        float_ = FloatMetrics(**before["metrics"], weight_bits=32 * weights)
        simulated = {
            name: self._simulated(name, Precision.parse(name), weights) for name in SIMULATED
        }
        per_tensor = self.steps.run(PER_TENSOR, self._per_tensor)
        simulated[PER_TENSOR] = SimulatedMetrics(
            **per_tensor["metrics"],
            scheme="per-tensor activations",
            weight_bits=8 * weights,
            relative_weight_bits=8 / 32,
        )
        files = self.steps.run("export", self._export)
        after = self.steps.run("deployed", self._deployed)
        deployed = DeployedMetrics(
            **after["metrics"], **self.steps.run("bench", self._bench), simulated=PER_TENSOR
        )
        pictures = self._pictures(_boxes(before["boxes"]), _boxes(after["boxes"]))
        results = Results(
            network="BEVFusion small",
            dataset=Dataset(
                name=f"generated world, seed {SEED}",
                version=VERSION,
                split=self.validation.split,
                kind="generated world",
                scenes=round(self.size.scenes * 5 / 6),
                frames=len(self.validation),
            ),
            float=float_,
            simulated=simulated,
            deployed=deployed,
            ablation=ablation,
            claims=check_claims(float_, simulated, deployed, ablation),
            unquantized=tuple(Unquantized(**layer) for layer in files["unquantized"]),
            pictures=tuple(map(count, pictures)),
            seconds=self.steps.seconds(),
            provenance=Provenance(
                **provenance(SEED, self.validation.fingerprint()).to_json(),
                command="bevquant demo" + (" --quick" if quick else ""),
                checkpoint_sha256=sha256(self.checkpoint),
                quick=quick,
            ),
        )
        return results, pictures

    def _predict(self, predict: Predictor, description: str) -> dict[str, Any]:
        predictions = predict_split(
            predict, self.validation, preprocess.SMALL, description=description
        )
        metrics = score(self.validation, predictions)
        return {"metrics": metrics.to_json(), "boxes": _plain(predictions)}

    def _score(self, name: str, predict: Predictor, dataset: NuScenesDataset) -> Score:
        metrics = self.steps.run(
            name,
            lambda: evaluate(predict, dataset, preprocess.SMALL, description=name).to_json(),
        )
        return Score(NDS=metrics["NDS"], mAP=metrics["mAP"], frames=metrics["frames"])

    def _simulated(self, name: str, precision: Precision, weights: int) -> SimulatedMetrics:
        def measure() -> dict[str, Any]:
            model = apply(self.thesis, precision)
            return evaluate(
                float_predictor(model), self.validation, preprocess.SMALL, description=name
            ).to_json()

        return SimulatedMetrics(
            **self.steps.run(name, measure),
            scheme="per-channel activations",
            weight_bits=precision.weights * weights,
            relative_weight_bits=precision.weights / 32,
        )

    def _per_tensor(self) -> dict[str, Any]:
        return self._predict(float_predictor(self.deployable), PER_TENSOR)

    @property
    def _file(self) -> Path:
        return self.out / "bevfusion_small.w8a8.onnx"

    @property
    def _float_file(self) -> Path:
        return self.out / "bevfusion_small.fp32.onnx"

    def _export(self) -> dict[str, Any]:
        console.print("export")
        sample = self.deployable.prepare(self.batches[0])
        export(self.deployable, sample, preprocess.SMALL, self._file)
        export_float(self.deployable, sample, preprocess.SMALL, self._float_file)
        return {"unquantized": [asdict(layer) for layer in unquantized(self.deployable)]}

    def _deployed(self) -> dict[str, Any]:
        deployed = load(self._file, threads=torch.get_num_threads())
        return self._predict(deployed, "deployed")

    def _bench(self) -> dict[str, Any]:
        files = [Candidate(self._float_file), Candidate(self._file)]
        fp32, int8 = bench(files, self.validation, threads=1, rounds=self.size.rounds)
        return {
            "precision": str(W8A8),
            "engine": "OpenVINO",
            "threads": int8.threads,
            "latency_ms": int8.network.median_ms,
            "latency_spread_ms": int8.network.spread_ms,
            "fp32_latency_ms": fp32.network.median_ms,
            "fp32_latency_spread_ms": fp32.network.spread_ms,
            "memory_bytes": int8.footprint.peak_bytes,
            "fp32_memory_bytes": fp32.footprint.peak_bytes,
            "file_bytes": int8.file_bytes,
            "fp32_file_bytes": fp32.file_bytes,
            "integer_layers": int8.integer_layers,
            "quantizable_layers": int8.quantizable_layers,
        }

    def _pictures(
        self, before: Sequence[Prediction], after: Sequence[Prediction]
    ) -> list[FramePicture]:
        frames = (self.validation.frame(index) for index in range(len(self.validation)))
        truths = {frame.token: seen(frame) for frame in frames}
        min_score = best_score(before, truths)
        chosen = choose(self.validation, before, after, truths, min_score)
        return [
            picture(self.validation, i, before[i][1], after[i][1], f"deployed {W8A8}", min_score)
            for i in chosen
        ]


def _blanked(predict: Predictor) -> Predictor:
    """Return ``predict`` on images without content: every pixel the data set's mean colour."""
    return lambda batch: predict(replace(batch, images=torch.zeros_like(batch.images)))


def _plain(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return predictions as JSON values, without the boxes that nobody would look at."""
    rows = []
    for token, boxes in predictions:
        assert boxes.scores is not None
        kept = (boxes.scores >= KEPT_SCORE) & boxes.values.isfinite().all(dim=1)
        rows.append(
            {
                "token": token,
                "values": boxes.values[kept].tolist(),
                "labels": boxes.labels[kept].tolist(),
                "scores": boxes.scores[kept].tolist(),
            }
        )
    return rows


def _boxes(rows: Sequence[dict[str, Any]]) -> list[Prediction]:
    return [
        (
            row["token"],
            Boxes(
                torch.tensor(row["values"]).reshape(-1, 9),
                torch.tensor(row["labels"], dtype=torch.int64),
                torch.tensor(row["scores"]),
            ),
        )
        for row in rows
    ]

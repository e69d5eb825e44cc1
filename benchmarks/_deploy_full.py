"""The public network, six images of 256 x 704 and ten LiDAR sweeps, as files on OpenVINO.

Random weights, which neither speed nor memory depend on, and a generated frame of the size of
a nuScenes frame: 1600 x 900 JPEGs, about 270,000 points. The engine's time is the sum of its
parts by its own counters; both files take turns on the same frame.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from _rows import Row, of_runs

from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.deploy.bench import bench
from bevquant.deploy.export import export, export_float
from bevquant.deploy.measurement import Candidate, Measurement
from bevquant.models.bevfusion import FULL, BEVFusion
from bevquant.quant.inventory import layers
from bevquant.quant.policy import BitPolicy
from bevquant.quant.prepare import apply
from bevquant.quant.size import model_size
from bevquant.quant.spec import W2A8, W4A8, W8A8
from bevquant.run import deployable, quantize_small

WORLD = WorldSettings(
    scenes=1, keyframes=2, val_fraction=0, image_size=(900, 1600), sweeps=9, azimuths=1085
)

PARTS = {
    "Swin": (("img_backbone",), 2.5),
    "BEV backbone and neck": (("pts_backbone", "pts_neck"), 3.6),
    "sparse encoder": (("pts_middle_encoder",), 2.5),
    "head": (("bbox_head",), 2.3),
}
"""Main modules of each part, and its goal."""


MIXED = (W4A8, W2A8, W2A8, W8A8, W4A8, W2A8, W4A8)
"""Precisions that layers have in turn."""


def measure(folder: Path, rounds: int) -> Iterator[Row]:
    generate(folder / "world", WORLD, jobs=1)
    dataset = NuScenesDataset(
        folder / "world", VERSION, "world_train", sweeps=preprocess.FULL.sweeps
    )
    fp32, int8, mixed = _export(folder, dataset)
    yield mixed
    for threads in (1, 2):
        before, after = bench([Candidate(fp32), Candidate(int8)], dataset, threads, rounds, 2)
        where = f"full network, {threads} threads"
        ratios = np.divide(before.network.runs, after.network.runs)
        yield of_runs(f"{where}: end to end, speed-up over FP32", "at least", 2.8, ratios)
        for name, (modules, goal) in PARTS.items():
            ratios = np.divide(_sum(before, modules), _sum(after, modules))
            yield of_runs(f"{where}: {name}, speed-up over FP32", "at least", goal, ratios)
        share = np.divide(after.stages["preprocess"].runs, after.network.runs)
        yield of_runs(f"{where}: preprocessing over INT8 inference", "at most", 0.15, share)
    weights = after.footprint.weight_bytes / before.footprint.weight_bytes
    yield of_runs("full network: weights in memory, part of FP32's", "at most", 0.30, [weights])


def _export(folder: Path, dataset: NuScenesDataset) -> tuple[Path, Path, Row]:
    torch.manual_seed(0)
    model = BEVFusion(FULL).eval()
    batch = collate([dataset.frame(1)], preprocess.FULL)
    sample = model.prepare(batch)
    quantize_small(model, [batch], deployable(W8A8))
    fp32, int8, mixed = (folder / f"full_{name}.onnx" for name in ("fp32", "int8", "mixed"))
    export(model, sample, preprocess.FULL, int8)
    export_float(model, sample, preprocess.FULL, fp32)
    # What the model has and no file needs, the frustum, is the same at all bits.
    unused = model_size(model).total - int8.stat().st_size

    weighted = [layer for layer in layers(model) if layer.weights]
    bits = {layer.name: precision for layer, precision in zip(weighted, cycle(MIXED))}
    apply(model, BitPolicy({**bits, "*matmul*": None}))
    export(model, sample, preprocess.FULL, mixed)
    mean = np.average([b.weights for b in bits.values()], weights=[w.weights for w in weighted])
    difference = mixed.stat().st_size / (model_size(model).total - unused) - 1
    figure = (
        f"full network, 2, 4 and 8 bits ({mean / 32:.4f} of FP32's): file from what is computed "
        "from the policy and the INT8 file"
    )
    return fp32, int8, of_runs(figure, "at most", 0.03, [abs(difference)])


def _sum(row: Measurement, modules: Sequence[str]) -> np.ndarray:
    return np.sum([row.modules[module].runs for module in modules], axis=0)

"""The shipped small network as a packed INT8 file, against FP32 of the same engine.

Each round runs both files on the same frame; a ratio is the median over rounds.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _rows import Row, report

from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.deploy.bench import bench
from bevquant.deploy.export import export, export_float
from bevquant.quant.spec import W8A8
from bevquant.run import calibration_batches, deployable, load_small, quantize_small

REPEATS = 3


def measure() -> Sequence[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "world", WorldSettings(scenes=2, keyframes=4, val_fraction=0), jobs=2)
        dataset = NuScenesDataset(
            folder / "world", VERSION, "world_train", sweeps=preprocess.SMALL.sweeps
        )
        batches = calibration_batches(dataset, 8)
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        model = load_small()
        sample = model.prepare(batches[0])
        quantize_small(model, batches, deployable(W8A8))
        export(model, sample, preprocess.SMALL, int8)
        export_float(model, sample, preprocess.SMALL, fp32)
        rows = []
        for threads in (1, 2):
            pairs = [bench((fp32, int8), batches, threads, rounds=20) for _ in range(REPEATS)]
            speed = [before.latency.median_ms / after.latency.median_ms for before, after in pairs]
            rows.append(_row(f"speed-up, {threads} threads", "at least", 2.0, speed))
        before, after = pairs[-1]
        size = after.file_bytes / before.file_bytes
        rows.append(_row("file size of FP32's", "at most", 0.30, [size]))
        return rows


def _row(figure: str, bound: str, goal: float, values: Sequence[float]) -> Row:
    low, median, high = np.percentile(values, (25, 50, 75))
    return Row(figure, bound, goal, float(median), float(high - low))


if __name__ == "__main__":
    report("deploy", measure)

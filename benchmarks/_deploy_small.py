"""The shipped trained network, deployed: against its simulation, and against other quantizers.

All at W8A8, calibrated on the same frames. Times are of the network alone on one thread,
interleaved on the same frames: our file and NNCF's on OpenVINO, ONNX Runtime's own on ONNX
Runtime with all its optimisations.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from _job import Job
from _peers_onnx import onnx_runtime, onnx_runtime_file
from _peers_openvino import nncf, nncf_graph
from _rows import Row, not_measured, of_runs

from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import VERSION, WorldSettings
from bevquant.deploy.export import export
from bevquant.deploy.runtime import flatten, load
from bevquant.evaluate import Predictor, evaluate, float_predictor
from bevquant.progress import track
from bevquant.quant.reconstruct import reconstruct
from bevquant.quant.refine import refine
from bevquant.quant.spec import W8A8
from bevquant.run import calibration_batches, deployable, load_small, quantize_small

WORLD = WorldSettings(scenes=12, keyframes=5, seed=1000, val_fraction=0.5)
"""The network was trained on seed 0."""

CALIBRATION = 8
WARM_UP = 2

Run = Callable[[Sequence[Any]], Any]


def measure(folder: Path, rounds: int) -> Iterator[Row]:
    generate(folder / "world", WORLD, jobs=2)
    splits = (
        NuScenesDataset(folder / "world", VERSION, split, sweeps=preprocess.SMALL.sweeps)
        for split in ("world_train", "world_val")
    )
    calibration, validation = splits
    batches = calibration_batches(calibration, CALIBRATION)
    job = Job(W8A8, batches, folder)

    model = quantize_small(load_small(), batches, deployable(W8A8))
    refine(model, batches)
    reconstruct(model, batches)
    file = folder / "ours.onnx"
    export(model, model.prepare(batches[0]), preprocess.SMALL, file)
    deployed = load(file)

    def nds(predict: Predictor, name: str) -> float:
        return 100 * evaluate(predict, validation, preprocess.SMALL, description=name).NDS

    ours = nds(deployed, "deployed")
    loss = abs(ours - nds(float_predictor(model), "simulated"))
    yield of_runs("small network: NDS, deployed from simulated, points", "at most", 0.3, [loss])

    inputs = [flatten(each) for each in job.inputs[:4]]
    peers: dict[str, tuple[Callable[[Job], Any], Callable[[Job], Run]]] = {
        "NNCF": (nncf, _nncf_run),
        "ONNX Runtime's quantizer": (onnx_runtime, _onnx_runtime_run),
    }
    for name, (quantizer, prepare) in peers.items():
        speed = f"small network, 1 thread: speed-up over {name}'s INT8"
        ahead = f"small network: NDS at W8A8, points ahead of {name}"
        try:
            peer, theirs = prepare(job), nds(quantizer(job).predict, name)
        except ImportError as error:
            yield not_measured(speed, "at least", 1.0, str(error))
            yield not_measured(ahead, "at least", 0.0, str(error))
            continue
        yield of_runs(speed, "at least", 1.0, _ratios(peer, deployed.network, inputs, rounds))
        yield of_runs(ahead, "at least", 0.0, [ours - theirs])


def _ratios(peer: Run, ours: Run, inputs: Sequence[Sequence[Any]], rounds: int) -> np.ndarray:
    seconds = np.empty((WARM_UP + rounds, 2))
    for number in track(range(len(seconds)), "side by side"):
        for i, run in enumerate((peer, ours)):
            start = time.perf_counter()
            run(inputs[number % len(inputs)])
            seconds[number, i] = time.perf_counter() - start
    return seconds[WARM_UP:, 0] / seconds[WARM_UP:, 1]


def _nncf_run(job: Job) -> Run:
    compiled = openvino.Core().compile_model(
        nncf_graph(job, fast=True),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": 1,
        },
    )
    request = compiled.create_infer_request()
    return lambda arrays: request.infer(list(arrays), share_inputs=True)


def _onnx_runtime_run(job: Job) -> Run:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_runtime_file(job), options, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))

"""The shipped trained network, deployed: against its simulation, and against other quantizers.

All at W8A8, calibrated on the same frames, random ones for each seed. Times are of the network
alone on one thread, interleaved on the same frames: our file and NNCF's on OpenVINO, ONNX
Runtime's own on ONNX Runtime with all its optimisations.
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
from _rows import Row, not_measured, of_runs, of_seeds

from bevquant.data import preprocess
from bevquant.data.world.settings import WorldSettings
from bevquant.deploy.export import export
from bevquant.deploy.runtime import flatten, load
from bevquant.evaluate import Predictor, evaluate, float_predictor
from bevquant.experiments.variants import Bench, cores
from bevquant.progress import track
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import refine
from bevquant.quant.spec import W8A8
from bevquant.run import deployable, ensure_world, load_small, quantize_small

WORLD = WorldSettings(scenes=36, keyframes=5, seed=1000, val_fraction=20 / 36)
"""The network was trained on seed 0."""

CALIBRATION = 24
SEEDS = 3
WARM_UP = 2

Run = Callable[[Sequence[Any]], Any]


def measure(folder: Path, rounds: int) -> Iterator[Row]:
    bench = Bench(folder, WORLD, CALIBRATION)
    ensure_world(folder / "world", WORLD, cores())
    jobs = [_job(bench, seed) for seed in range(SEEDS)]

    def nds(predict: Predictor, name: str) -> float:
        return 100 * evaluate(predict, bench.validation, preprocess.SMALL, description=name).NDS

    ours, lost = [], []
    for job in jobs:
        model = quantize_small(load_small(), job.batches, deployable(W8A8))
        refine(model, job.batches)
        reconstruct(model, job.batches)
        file = job.folder / "ours.onnx"
        export(model, model.prepare(job.batches[0]), preprocess.SMALL, file)
        ours.append(nds(load(file), "deployed"))
        lost.append(abs(ours[-1] - nds(float_predictor(model), "simulated")))
    figure = "small network: NDS, deployed from simulated, points, worst seed"
    yield of_seeds(figure, "at most", 0.3, lost, max(lost))

    deployed = load(jobs[0].folder / "ours.onnx")
    inputs = [flatten(each) for each in jobs[0].inputs[:4]]
    peers: dict[str, tuple[Callable[[Job], Any], Callable[[Job], Run]]] = {
        "NNCF": (nncf, _nncf_run),
        "ONNX Runtime's quantizer": (onnx_runtime, _onnx_runtime_run),
    }
    for name, (quantizer, prepare) in peers.items():
        speed = f"small network, 1 thread: speed-up over {name}'s INT8"
        ahead = f"small network: NDS at W8A8, points ahead of {name}, mean of the seeds"
        try:
            peer = prepare(jobs[0])
            theirs = [nds(quantizer(job).predict, name) for job in jobs]
        except ImportError as error:
            yield not_measured(speed, "at least", 1.0, str(error))
            yield not_measured(ahead, "at least", 0.0, str(error))
            continue
        yield of_runs(speed, "at least", 1.0, _ratios(peer, deployed.network, inputs, rounds))
        points = np.subtract(ours, theirs)
        yield of_seeds(ahead, "at least", 0.0, points, points.mean())


def _job(bench: Bench, seed: int) -> Job:
    folder = bench.folder / str(seed)
    folder.mkdir()
    return Job(W8A8, bench.batches(seed), folder)


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

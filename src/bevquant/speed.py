"""The verbs ``bench``, deployed files side by side, and ``latency``, layer by layer."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.deploy.bench import bench
from bevquant.deploy.engines import has_bf16
from bevquant.deploy.export import export, export_float
from bevquant.deploy.gpu import candidates_per_second, time_arithmetics
from bevquant.deploy.latency import latency_table
from bevquant.deploy.measurement import STAGES, Candidate, Measurement, Timing
from bevquant.deploy.qdq import FLOAT
from bevquant.deploy.runtime import flatten, load
from bevquant.files import write_json
from bevquant.progress import console
from bevquant.provenance import cpu_name
from bevquant.quant.spec import W8A8
from bevquant.run import calibration_batches, load_small, quantize_small


def bench_artefacts(
    files: Sequence[Path],
    data: Path,
    version: str,
    split: str,
    threads: Sequence[int],
    rounds: int,
    bf16: bool,
    json: Path | None,
) -> list[Measurement]:
    """Time deployed files on the same frames; print the comparison, write it to ``json``.

    With ``bf16`` the first file also runs in bfloat16, which OpenVINO would choose by itself.

    Raises:
        BevquantError: a file or the data cannot be used.
    """
    candidates = [Candidate(file) for file in files]
    if bf16 and has_bf16():
        candidates.insert(1, Candidate(files[0], "bf16"))
    elif bf16:
        console.print("bf16: skipped, this processor does not compute in bfloat16")
    settings = load(files[0]).preprocess
    dataset = NuScenesDataset(data, version, split, sweeps=settings.sweeps, limit=4)
    dataset.check()
    measured = []
    for count in threads:
        compared = bench(candidates, dataset, count, rounds)
        console.print(_table(compared))
        measured += compared
    gpu = _on_gpu(files[0], dataset, rounds)
    if json is not None:
        rows = list(map(describe, measured))
        write_json(json, {"cpu": cpu_name(), "measurements": rows, "gpu": gpu})
    return measured


def _on_gpu(file: Path, dataset: NuScenesDataset, rounds: int) -> dict[str, Any] | None:
    """Print and return what PyTorch does with the network of ``file`` on a GPU."""
    if not torch.cuda.is_available():
        console.print("PyTorch on a GPU: skipped, it sees none here")
        return None
    deployed = load(file)
    batches = [collate([dataset.frame(i)], deployed.preprocess) for i in range(len(dataset))]
    inputs = [deployed.model.prepare(batch) for batch in batches]
    timings = time_arithmetics(deployed.model, inputs, rounds=rounds)
    candidates = candidates_per_second(deployed.model, inputs[0], rounds=rounds)
    name = torch.cuda.get_device_name()
    table = Table("", *timings, title=f"PyTorch on {name}")
    times = list(timings.values())
    table.add_row("network, ms", *(_time(timing, times[0]) for timing in times))
    console.print(table)
    console.print(f"{candidates:.1f} simulated candidates a second")
    described = {arithmetic: _described(timing) for arithmetic, timing in timings.items()}
    return {"name": name, "network": described, "candidates_per_second": candidates}


def measure_latency(
    out: Path,
    data: Path,
    version: str,
    split: str,
    calibration_frames: int,
    checkpoint: Path | None,
    threads: int,
    rounds: int,
) -> None:
    """Measure the layers of the small BEVFusion; write what ``search --latency`` takes to ``out``.

    Raises:
        BevquantError: the checkpoint or the data cannot be used.
    """
    dataset = NuScenesDataset(data, version, split, sweeps=preprocess.SMALL.sweeps)
    dataset.check()
    batches = calibration_batches(dataset, calibration_frames)
    model = load_small(checkpoint)
    inputs = [model.prepare(batch) for batch in batches]
    quantize_small(model, batches, W8A8)
    with tempfile.TemporaryDirectory() as folder:
        original, quantized = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export_float(model, inputs[0], preprocess.SMALL, original)
        export(model, inputs[0], preprocess.SMALL, quantized, compare=False)
        table = latency_table(original, quantized, list(map(flatten, inputs)), threads, rounds)
    write_json(out, table)
    sums = ", ".join(
        f"{sum(times[precision] for times in table.values()):.1f} ms at {precision}"
        for precision in (FLOAT, str(W8A8))
    )
    console.print(f"{out}: {len(table)} layers, in all {sums}", highlight=False)


def describe(row: Measurement) -> dict[str, Any]:
    """Return a measurement as JSON values, times in milliseconds."""

    def times(timings: dict[str, Timing]) -> dict[str, Any]:
        return {name: _described(timing) for name, timing in timings.items()}

    return {
        "file": row.candidate.path.name,
        "arithmetic": row.candidate.arithmetic,
        "threads": row.threads,
        "latency": _described(row.latency),
        "network": _described(row.network),
        "stages": times(row.stages),
        "modules": times(row.modules),
        "frames_per_second": row.frames_per_second,
        "file_bytes": row.file_bytes,
        "load_seconds": row.footprint.load_seconds,
        "weight_bytes": row.footprint.weight_bytes,
        "loaded_bytes": row.footprint.loaded_bytes,
        "peak_bytes": row.footprint.peak_bytes,
        "integer_layers": row.integer_layers,
        "quantizable_layers": row.quantizable_layers,
    }


def _described(timing: Timing) -> dict[str, Any]:
    return {"median_ms": timing.median_ms, "spread_ms": timing.spread_ms, "runs": timing.runs}


def _table(rows: Sequence[Measurement]) -> Table:
    """Return one column for each file, relative to the first."""
    first = rows[0]
    table = Table("", *map(_name, rows), title=f"{first.threads} threads, OpenVINO")

    def times(name: str, read: Callable[[Measurement], Timing]) -> None:
        table.add_row(f"{name}, ms", *(_time(read(row), read(first)) for row in rows))

    def sizes(name: str, read: Callable[[Measurement], int | None]) -> None:
        table.add_row(f"{name}, MB", *(_size(read(row), read(first)) for row in rows))

    times("frame", lambda row: row.latency)
    table.add_row("frames a second", *(f"{row.frames_per_second:.2f}" for row in rows))
    times("network", lambda row: row.network)
    for stage in STAGES:
        times(stage, lambda row, stage=stage: row.stages[stage])  # type: ignore[misc]
    table.add_section()
    sizes("file", lambda row: row.file_bytes)
    sizes("weights", lambda row: row.footprint.weight_bytes)
    sizes("loaded", lambda row: row.footprint.loaded_bytes)
    sizes("peak", lambda row: row.footprint.peak_bytes)
    table.add_row("load, s", *(f"{row.footprint.load_seconds:.2f}" for row in rows))
    table.add_row(
        "integer layers", *(f"{row.integer_layers} of {row.quantizable_layers}" for row in rows)
    )
    return table


def _name(row: Measurement) -> str:
    suffix = "" if row.candidate.arithmetic == "f32" else f", {row.candidate.arithmetic}"
    return row.candidate.path.name + suffix


def _time(own: Timing, first: Timing) -> str:
    ratio = "" if own is first else f" {first.speed_up(of=own):.2f}x"
    return f"{own.median_ms:.1f} ±{own.spread_ms:.1f}{ratio}"


def _size(own: int | None, first: int | None) -> str:
    if own is None or first is None:
        return "not told"
    return f"{own / 1e6:.2f} ({own / first:.3f})"

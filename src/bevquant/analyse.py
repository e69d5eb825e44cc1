"""What the verbs that look into the quantized small BEVFusion do."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.progress import console
from bevquant.quant.diagnostics.debug import debug
from bevquant.quant.diagnostics.diagnosis import Diagnosis
from bevquant.quant.diagnostics.sensitivity import sensitivity
from bevquant.quant.diagnostics.sensitivity_rows import Sensitivity, write_csv
from bevquant.quant.spec import Precision
from bevquant.report.sensitivity import draw
from bevquant.run import calibration_batches, deployable, load_small, quantize_small

MOST = 15
"""Layers that the terminal shows."""


def analyse_sensitivity(
    out: Path,
    data: Path,
    version: str,
    split: str,
    frames: int,
    bits: str,
    checkpoint: Path | None,
    threads: int,
) -> list[Sensitivity]:
    """Quantize each layer alone; write rows.jsonl, sensitivity.csv and sensitivity.png."""
    precisions = [Precision.parse(text) for text in bits.split(",")]
    torch.set_num_threads(threads)
    batches = _frames(data, version, split, frames)
    model = quantize_small(load_small(checkpoint), batches, deployable(precisions[0]))
    rows = sensitivity(model, batches, precisions, log=out / "rows.jsonl")
    write_csv(rows, out / "sensitivity.csv")
    draw_sensitivity(rows, out / "sensitivity.png")
    console.print(_table(rows))
    console.print(f"All layers: {out / 'sensitivity.csv'}, {out / 'sensitivity.png'}")
    return rows


def draw_sensitivity(rows: Sequence[Sensitivity], path: Path) -> None:
    """Draw the model's and the layers' output at each precision as a heat map."""
    by_layer = _by_layer(rows)
    draw(
        layers=list(by_layer),
        groups=[found[0].main_module for found in by_layer.values()],
        precisions=[str(row.precision) for row in next(iter(by_layer.values()))],
        panels=[
            ("output of the model", [[r.model_output.sqnr for r in x] for x in by_layer.values()]),
            ("output of the layer", [[r.layer_output.sqnr for r in x] for x in by_layer.values()]),
        ],
        path=path,
    )


def analyse_faults(
    data: Path,
    version: str,
    split: str,
    frames: int,
    precision: str,
    checkpoint: Path | None,
    threads: int,
) -> Diagnosis:
    """Look for the first layer that fails, and print what was found."""
    policy = deployable(Precision.parse(precision))
    torch.set_num_threads(threads)
    batches = _frames(data, version, split, frames)
    model = load_small(checkpoint)
    diagnosis = debug(model, batches)  # a model that is broken cannot be calibrated
    if diagnosis.finding is None:
        diagnosis = debug(quantize_small(model, batches, policy), batches)
    console.print(str(diagnosis), markup=False, highlight=False, soft_wrap=True)
    return diagnosis


def _frames(data: Path, version: str, split: str, frames: int) -> list[Batch]:
    dataset = NuScenesDataset(data, version, split, sweeps=preprocess.SMALL.sweeps)
    dataset.check()
    return calibration_batches(dataset, frames)


def _by_layer(rows: Sequence[Sensitivity]) -> dict[str, list[Sensitivity]]:
    found: dict[str, list[Sensitivity]] = {}
    for row in rows:
        found.setdefault(row.layer, []).append(row)
    return found


def _table(rows: Sequence[Sensitivity]) -> Table:
    """The layers that cost the model's output most at the first precision."""
    by_layer = _by_layer(rows).values()
    worst = sorted(by_layer, key=lambda found: found[0].model_output.sqnr)[:MOST]
    names = [str(row.precision) for row in worst[0]]
    title = f"most sensitive at {names[0]}: SQNR of the model's (the layer's) output in dB"
    table = Table(title=title)
    table.add_column("layer", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for found in worst:
        figures = (f"{r.model_output.sqnr:.1f} ({r.layer_output.sqnr:.1f})" for r in found)
        table.add_row(found[0].layer, *figures)
    return table

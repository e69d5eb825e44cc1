"""Rows of a sensitivity analysis, and their files."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bevquant.files import write_text
from bevquant.quant.diagnostics.fidelity import Fidelity
from bevquant.quant.spec import Precision


@dataclass(frozen=True)
class Sensitivity:
    """One layer at one precision, everything else float.

    Attributes:
        layer: its name.
        main_module: that it is part of.
        weights: number of elements of its weight; 0 for a product of activations.
        precision: bits.
        layer_output: its own output, against float on the same input.
        model_output: the model's outputs, against those of the float model.
        task_error: mean over the batches; ``None`` if it was not asked for.
    """

    layer: str
    main_module: str
    weights: int
    precision: Precision
    layer_output: Fidelity
    model_output: Fidelity
    task_error: float | None


def write_csv(rows: Sequence[Sensitivity], path: Path) -> None:
    """Write ``rows`` as a table with one header line."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    measures = ("mse", "normalised_mse", "cosine", "sqnr")
    table.writerow(
        ["layer", "main_module", "weights", "precision"]
        + [f"{what}_{measure}" for what in ("layer", "model") for measure in measures]
        + ["task_error"]
    )
    for row in rows:
        found = (row.layer_output, row.model_output)
        table.writerow(
            [row.layer, row.main_module, row.weights, row.precision]
            + [getattr(fidelity, measure) for fidelity in found for measure in measures]
            + ["" if row.task_error is None else row.task_error]
        )
    write_text(path, text.getvalue())


def to_json(row: Sensitivity) -> dict[str, Any]:
    """Return plain JSON types."""
    return {**asdict(row), "precision": str(row.precision)}


def from_json(row: dict[str, Any]) -> Sensitivity:
    """Return what :func:`to_json` was given."""
    return Sensitivity(
        **{
            **row,
            "precision": Precision.parse(row["precision"]),
            "layer_output": Fidelity(**row["layer_output"]),
            "model_output": Fidelity(**row["model_output"]),
        }
    )

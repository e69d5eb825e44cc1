"""What training wins over the weights that the rows of a precision and a seed start from."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bevquant.experiments.ptqat_rules import PTQ
from bevquant.experiments.tables import markdown

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""The figures of each row, by its name; one mapping for each seed."""

HEADLINES = ("NDS", "mAP", "mIoU")
"""Metrics that a table shows, as far as the network's task has them, the one that counts first."""


def headlines(figures: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a row that are shown, the one that counts first."""
    return [name for name in HEADLINES if name in figures]


def points(rows: Rows, name: str) -> list[float]:
    """Return by how much a row is above PTQ, hundredths of NDS or mIoU, for each seed."""
    pairs = zip(rows[name], rows[PTQ], strict=True)
    return [100 * (row[key] - start[key]) for row, start in pairs for key in headlines(row)[:1]]


def loss_taken_off(rows: Rows, name: str) -> list[float]:
    """Return what a row takes off the loss of the frames kept back, % of PTQ's, for each seed."""
    losses = [row["loss"] for row in rows[name]]  # none where nothing was trained
    return [100 * (1 - loss[1] / loss[0]) if loss else 0.0 for loss in losses]


def side_by_side(networks: Mapping[str, Rows]) -> str:
    """Return a table of networks with the same rows: loss taken off and points, seeds' means.

    The last column is the mean over the networks.
    """
    names = [name for name in next(iter(networks.values())) if name != PTQ]
    lines = []
    for name in names:
        gains = [
            (fmean(loss_taken_off(rows, name)), fmean(points(rows, name)))
            for rows in networks.values()
        ]
        gains.append((fmean(loss for loss, _ in gains), fmean(more for _, more in gains)))
        lines.append([name, *(f"{loss:.1f} %, {more:+.2f}" for loss, more in gains)])
    return markdown(("", *networks, "mean"), lines)

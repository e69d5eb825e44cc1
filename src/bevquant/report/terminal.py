"""The same figures for the terminal: a summary, the metrics, the goals."""

from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bevquant.progress import console as default_console
from bevquant.report import figures
from bevquant.report.results import Results
from bevquant.report.rows import rows
from bevquant.report.summary import scope, summary, verdict


def show(results: Results, report: Path, console: Console = default_console) -> None:
    """Print what was measured, which goals hold, and where the report is."""
    console.print(
        Group(
            Text(summary(results), style="bold"),
            Text(scope(results)),
            _metrics(results),
            _deployed(results),
            _claims(results),
        )
    )
    console.print(f"Report: {report}", soft_wrap=True, highlight=False, markup=False)


def _metrics(results: Results) -> RenderableType:
    table = _table("network", "NDS", "change", "mAP", "change", "mATE", "mAOE", "mAVE", "weights")
    reference = results.float_
    for row in rows(results):
        metrics, is_float = row.metrics, row.metrics is reference
        table.add_row(
            row.name,
            figures.metric(metrics.NDS),
            figures.points(None if is_float else metrics.NDS - reference.NDS),
            figures.metric(metrics.mAP),
            figures.points(None if is_float else metrics.mAP - reference.mAP),
            figures.metric(metrics.mATE),
            figures.metric(metrics.mAOE),
            figures.metric(metrics.mAVE),
            figures.ratio(row.relative_weight_bits),
        )
    return table


def _deployed(results: Results) -> RenderableType:
    deployed = results.deployed
    table = _table(f"in {deployed.engine}", "FP32", deployed.precision, "of FP32")
    table.add_row(
        "latency",
        f"{deployed.fp32_latency_ms:.1f} ms",
        f"{deployed.latency_ms:.1f} ms",
        figures.ratio(deployed.latency_ms / deployed.fp32_latency_ms),
    )
    table.add_row(
        "file",
        figures.megabytes(deployed.fp32_file_bytes),
        figures.megabytes(deployed.file_bytes),
        figures.ratio(deployed.file_bytes / deployed.fp32_file_bytes),
    )
    return table


def _claims(results: Results) -> RenderableType:
    table = _table(verdict(results), "goal", "measured", "")
    for claim in results.claims:
        mark = Text("holds", "green") if claim.holds else Text("missed", "bold red")
        goal = figures.goal(claim.bound, claim.goal)
        table.add_row(claim.claim, goal, figures.metric(claim.measured), mark)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table

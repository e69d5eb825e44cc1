"""What ails a quantized network, layer by layer, as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

FLOAT = "float"
MAGNIFIED = 10.0
"""Decibels that are lost between two quantized layers before it is said."""

_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Histogram:
    """Values of a tensor.

    Attributes:
        low: smallest finite value.
        high: largest finite value.
        counts: of the finite values in bins of equal width from ``low`` to ``high``.
        central: share of ``high - low`` that the middle 99 % of the values take.
        not_finite: number of values that are NaN or infinite.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    central: float
    not_finite: int

    def __str__(self) -> str:
        """Return range and bars on one line; a bar's height is a logarithm."""
        most = max((count.bit_length() for count in self.counts), default=0) or 1
        bars = "".join(
            _BLOCKS[-(-count.bit_length() * (len(_BLOCKS) - 1) // most)] for count in self.counts
        )
        rest = f", {self.not_finite:,} NaN or infinite" if self.not_finite else ""
        return (
            f"{self.low:.4g} |{bars}| {self.high:.4g}, the middle 99 % in "
            f"{self.central:.2%} of the range{rest}"
        )


@dataclass(frozen=True)
class LayerHealth:
    """One module that was watched, over all its calls.

    Attributes:
        name: dotted path.
        kind: its class.
        precision: bits, or :data:`FLOAT`.
        finite: whether all that it returned is finite, float and quantized.
        input_sqnr: signal to quantization noise ratio of its input, the quantized network
            against the float one, in dB; ``None`` if it was not or cannot be compared.
        sqnr: that of its output.
    """

    name: str
    kind: str
    precision: str
    finite: bool
    input_sqnr: float | None
    sqnr: float | None


@dataclass(frozen=True)
class Finding:
    """Where it goes wrong first.

    Attributes:
        name: dotted path of the module.
        problem: what happens there.
        cause: why, as far as it can be told.
        input: values of its first input.
        weight: values of its weight, if it has one.
    """

    name: str
    problem: str
    cause: str
    input: Histogram
    weight: Histogram | None

    def __str__(self) -> str:
        """Return a few lines."""
        lines = [f"{self.name}: {self.problem}", f"  {self.cause}", f"  input  {self.input}"]
        return "\n".join([*lines, *([f"  weight {self.weight}"] if self.weight else [])])


@dataclass(frozen=True)
class Diagnosis:
    """All modules that were watched, and the first one that fails, if any does.

    ``print`` it.

    Attributes:
        layers: in order of their first call; up to the failing one if the float network
            itself fails.
        finding: ``None`` if nothing was found.
    """

    layers: tuple[LayerHealth, ...]
    finding: Finding | None

    def __str__(self) -> str:
        """Return a table, of the quantized modules if there are any, and the finding."""
        some = any(layer.precision != FLOAT for layer in self.layers)
        rows = [("module", "bits", "input dB", "output dB", "")]
        for layer in self.layers:
            here = self.finding is not None and layer.name == self.finding.name
            if some and layer.precision == FLOAT and layer.finite and not here:
                continue
            mark = "<- here" if here else ("" if layer.finite else "not finite")
            figures = (_decibels(layer.input_sqnr), _decibels(layer.sqnr))
            rows.append((f"{layer.name} ({layer.kind})", layer.precision, *figures, mark))
        return f"{_table(rows)}\n\n{self.finding or self._all_clear()}"

    def _all_clear(self) -> str:
        known = [layer for layer in self.layers if layer.sqnr is not None]
        if not known:
            return "Everything is finite. Nothing is quantized, so there is nothing to compare."
        worst = min(known, key=lambda layer: layer.sqnr or 0.0)
        return (
            "Everything is finite, and no layer falls off a cliff; the lowest output is that of "
            f"{worst.name}, {_decibels(worst.sqnr)} dB.{self._magnified()}"
        )

    def _magnified(self) -> str:
        """Say between which quantized layers errors grow, where they do so for the first time.

        A softmax does so: what is a small error of a score is a large one of a weight.
        """
        lowest = inf
        for before, after in pairwise(x for x in self.layers if x.precision != FLOAT):
            lowest = min(lowest, inf if before.sqnr is None else before.sqnr)
            if after.input_sqnr is not None and after.input_sqnr < lowest - MAGNIFIED:
                return (
                    f"\nErrors grow before {after.name}: all outputs up to there have at least "
                    f"{_decibels(lowest)} dB, its input {_decibels(after.input_sqnr)} dB. "
                    f"More bits for the inputs of {before.name} help."
                )
        return ""


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )

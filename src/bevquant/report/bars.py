"""A bar chart as SVG whose bars stretch with the page while its text keeps its size."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from bevquant.report.rows import Row

_ROW = 56
"""Pixels: a line for the name, a bar for NDS, a thinner one for mAP."""
_LONGEST = 82.0
"""Percent of the width of the longest bar; its value is written right of it."""


def bars(rows: Sequence[Row]) -> Markup:
    """Return NDS and mAP of each row as horizontal bars, the first row marked as reference.

    Widths are percentages and there is no view box, so that a phone shows the letters as
    large as a desktop does.
    """
    most = max(max(row.metrics.NDS, row.metrics.mAP) for row in rows)
    scale = _LONGEST / most if most else 0.0
    height = _ROW * len(rows)
    description = "; ".join(
        f"{row.name}: NDS {row.metrics.NDS:.3f}, mAP {row.metrics.mAP:.3f}" for row in rows
    )
    reference = f"{rows[0].metrics.NDS * scale:.2f}%"
    drawn = [
        f'<svg class="bars" width="100%" height="{height}" role="img" '
        f'aria-label="{escape(description)}">',
        f'<line class="reference" x1="{reference}" x2="{reference}" y1="0" y2="{height}"/>',
        *(
            f'<text class="name" y="{top + 14}">{escape(row.name)}</text>'
            + _bar("nds", top + 20, 16, row.metrics.NDS, scale)
            + _bar("map", top + 37, 9, row.metrics.mAP, scale)
            for top, row in zip(range(0, height, _ROW), rows, strict=True)
        ),
        "</svg>",
    ]
    return Markup("".join(drawn))


def _bar(kind: str, top: int, height: int, value: float, scale: float) -> str:
    width = f"{value * scale:.2f}%"
    middle = top + height / 2
    return (
        f'<rect class="{kind}" y="{top}" width="{width}" height="{height}"/>'
        f'<text class="{kind}" x="{width}" dx="7" y="{middle}">{value:.3f}</text>'
    )

"""How figures are written, the same on the page and in the terminal."""

DASH = "–"
"""Stands for a figure that is undefined or was not measured."""


def metric(value: float | None) -> str:
    """Return a metric with three decimals.

    >>> metric(0.55312), metric(None)
    ('0.553', '–')
    """
    return DASH if value is None else f"{value:.3f}"


def points(change: float | None) -> str:
    """Return a difference of two metrics in signed hundredths.

    >>> points(-0.0093), points(0.012), points(0.0002)
    ('−0.9', '+1.2', '±0.0')
    """
    if change is None:
        return DASH
    text = f"{100 * change:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def megabytes(size: int | None) -> str:
    """Return bytes in megabytes, with decimals as long as they say something.

    >>> megabytes(2_130_000), megabytes(263_400_000)
    ('2.13 MB', '263 MB')
    """
    return DASH if size is None else f"{size / 1e6:.{2 if size < 1e8 else 0}f} MB"


def goal(bound: str, value: float) -> str:
    """Return a goal as an inequality.

    >>> goal("at most", 0.3)
    '≤ 0.3'
    """
    return f"{'≥' if bound == 'at least' else '≤'} {value:.3g}"


def megabits(bits: int | None) -> str:
    """Return bits in megabits.

    >>> megabits(60_800_000)
    '60.8 Mbit'
    """
    return DASH if bits is None else f"{bits / 1e6:.1f} Mbit"


def ratio(value: float | None) -> str:
    """Return a ratio as a factor of up to three digits.

    >>> ratio(0.27163), ratio(0.5), ratio(None)
    ('0.272x', '0.5x', '–')
    """
    return DASH if value is None else f"{value:.3g}x"

import io
from pathlib import Path

import pytest
from rich.console import Console

from bevquant.report.results import Results
from bevquant.report.terminal import show


@pytest.mark.parametrize("width", [80, 120])
def test_the_figures_fit_the_terminal(results: Results, width: int) -> None:
    output = io.StringIO()
    report = Path("/some/where/report.html")
    show(results, report, Console(file=output, width=width))
    text = output.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert f"Report: {report}" in text
    for figure in ("0.558", "−57.1", "0.0625x", "41.3 ms", "2.20 MB", "≥ 0.55", "1.761"):
        assert figure in text
    assert text.count("holds") == 8 and text.count("missed") == 1

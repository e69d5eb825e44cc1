from xml.etree import ElementTree

import pytest

from bevquant.report.bars import bars
from bevquant.report.results import Results
from bevquant.report.rows import rows


def widths(svg: str, kind: str) -> list[float]:
    rectangles = ElementTree.fromstring(svg).findall(f"rect[@class='{kind}']")
    return [float(rectangle.get("width", "").rstrip("%")) for rectangle in rectangles]


def test_bars_are_as_long_as_their_values(results: Results) -> None:
    networks = rows(results)
    svg = bars(networks)
    nds, mean_ap = widths(svg, "nds"), widths(svg, "map")
    assert max(nds + mean_ap) == pytest.approx(82)
    for network, nds_width, map_width in zip(networks, nds, mean_ap, strict=True):
        assert nds_width == pytest.approx(network.metrics.NDS / 0.5713 * 82, abs=0.006)
        assert map_width == pytest.approx(network.metrics.mAP / 0.5713 * 82, abs=0.006)


def test_a_network_that_finds_nothing_has_a_bar_of_no_length(results: Results) -> None:
    nothing = results.float_.model_copy(update={"NDS": 0.0, "mAP": 0.0})
    row = rows(results.model_copy(update={"float_": nothing}))[0]
    assert widths(bars([row]), "nds") == [0.0]

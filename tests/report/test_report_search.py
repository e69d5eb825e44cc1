from pathlib import Path

import pytest
from PIL import Image

from bevquant.report.search import draw_bits, draw_curves, draw_evolution, draw_fronts

FRONT = [(0.1, 1.0), (0.2, 0.1), (0.5, 0.01)]


@pytest.mark.parametrize("points", [FRONT, [(0.1, 1.0), (0.3, 0.5)]])
def test_pictures_show_what_they_are_given(
    tmp_path: Path, points: list[tuple[float, float]]
) -> None:
    draw_fronts({"ours": points}, FRONT, tmp_path / "front.png")
    draw_evolution([FRONT, points], FRONT, tmp_path / "evolution.png")
    draw_curves({"ours": points}, tmp_path / "curves.png")
    for name in ("front", "evolution", "curves"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_bars_are_as_high_as_the_bits(tmp_path: Path) -> None:
    heights = []
    for bits in (2, 8):
        draw_bits({"a": bits, "b": 32}, ["first", "second"], tmp_path / "bits.png")
        with Image.open(tmp_path / "bits.png") as picture:
            pixels = picture.convert("RGB").getdata()
            heights.append(sum(pixel == (31, 119, 180) for pixel in pixels))
    assert heights[1] > 1.5 * heights[0]

import math
from pathlib import Path

import numpy as np
from PIL import Image

from bevquant.report.sensitivity import draw


def test_the_picture_is_as_large_as_its_table_and_darker_where_noise_is(tmp_path: Path) -> None:
    sizes, greys = [], []
    for layers, value in ((4, 60.0), (20, 60.0), (20, 0.0)):
        names = [f"part{i // 2}.layer{i}" for i in range(layers)]
        values = [[value, math.inf if value else -math.inf]] * layers
        draw(
            names,
            [name.split(".")[0] for name in names],
            ["W2A8", "W8A8"],
            [("output of the model", values), ("output of the layer", values)],
            tmp_path / "s.png",
        )
        with Image.open(tmp_path / "s.png") as image:
            sizes.append(image.size)
            greys.append(float(np.asarray(image.convert("L")).mean()))
    assert sizes[1][1] > 2 * sizes[0][1]
    assert greys[2] < greys[1] - 30

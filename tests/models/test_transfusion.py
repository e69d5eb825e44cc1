"""The head's proposals against a loop, and its decoding against the formulas."""

import math

import pytest
import torch

from bevquant.models.bevfusion import SMALL, HeadOutput
from bevquant.models.bevfusion.decode import decode
from bevquant.models.bevfusion.transfusion import TransFusionHead

CONFIG = SMALL.bbox_head.model_copy(update={"grid": (6, 7), "num_proposals": 8})


def test_proposals() -> None:
    torch.manual_seed(0)
    head = TransFusionHead(4, CONFIG)
    logits = torch.randn(1, 10, 6, 7)
    heat = logits.sigmoid()[0]
    candidates = []
    for label in range(10):
        for x in range(6):
            for y in range(7):
                around = heat[label, max(x - 1, 0) : x + 2, max(y - 1, 0) : y + 2]
                inside = 0 < x < 5 and 0 < y < 6
                if label in (8, 9) or (inside and heat[label, x, y] == around.max()):
                    candidates.append((heat[label, x, y].item(), label, x * 7 + y))
    expected = sorted(candidates, reverse=True)[:8]
    labels, cells, scores = head.propose(logits)
    found = list(zip(labels[0].tolist(), cells[0].tolist(), strict=True))
    assert found == [(label, cell) for _, label, cell in expected]
    for query, (score, label, _) in enumerate(expected):
        assert scores[0, label, query] == pytest.approx(score)


def test_decode() -> None:
    logits = torch.zeros(1, 10, 2)
    logits[0, 3] = 1.0
    heat = torch.full((1, 10, 2), 0.5)
    output = HeadOutput(
        center=torch.tensor([[[10.0, 0.0], [20.5, -100.0]]]),
        height=torch.tensor([[[-1.0, 0.0]]]),
        dim=torch.tensor([[4.0, 1.0], [2.0, 1.0], [1.5, 1.0]]).log()[None],
        rot=torch.tensor([[[math.sin(2.0), 0.0], [math.cos(2.0), 1.0]]]),
        vel=torch.tensor([[[3.0, 0.0], [-4.0, 0.0]]]),
        heatmap=logits,
        query_heatmap_score=heat,
        query_labels=torch.full((1, 2), 3),
        query_cells=torch.zeros(1, 2, dtype=torch.int64),
        dense_heatmap=torch.empty(0),
    )
    (boxes,) = decode(CONFIG, output)
    # The second box is 80 m beyond the edge of the grid.
    x, y = -44.8 + 10 * 0.8, -44.8 + 20.5 * 0.8
    expected = torch.tensor([[x, y, -1.0, 4.0, 2.0, 1.5, 2.0, 3.0, -4.0]])
    torch.testing.assert_close(boxes.values, expected)
    assert boxes.labels.tolist() == [3]
    assert boxes.scores is not None
    assert boxes.scores[0] == pytest.approx(0.5 / (1 + math.exp(-1)))

"""Targets of the head: codes, heat maps, IoU and the assignment."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion import SMALL, HeadOutput
from bevquant.models.bevfusion.decode import decode as decode_output
from bevquant.models.bevfusion.targets import (
    assign,
    decode,
    encode,
    gaussian_heatmaps,
    gaussian_radius,
    inside_grid,
    iou_3d,
)

HEAD = SMALL.bbox_head


def random_boxes(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 9, generator=random)
    values[:, :2] *= 15
    values[:, 3:6] = values[:, 3:6].mul(0.4).exp() * 2
    values[:, 6].clamp_(-3, 3)
    return values


def test_decode_inverts_encode() -> None:
    values = random_boxes(50)
    torch.testing.assert_close(decode(encode(values, HEAD), HEAD), values)


def test_the_head_decodes_an_encoded_box() -> None:
    values = random_boxes(HEAD.num_proposals)
    center, height, dim, rot, vel = encode(values, HEAD).T[None].split((2, 1, 3, 2, 2), dim=1)
    queries = len(values)
    output = HeadOutput(
        center=center,
        height=height,
        dim=dim,
        rot=rot,
        vel=vel,
        heatmap=torch.zeros(1, 10, queries),
        query_heatmap_score=torch.ones(1, 10, queries),
        query_labels=torch.zeros(1, queries, dtype=torch.int64),
        query_cells=torch.zeros(1, queries, dtype=torch.int64),
        dense_heatmap=torch.zeros(1, 10, *HEAD.grid),
    )
    kept = (values[:, :2].abs() < 51).all(dim=1)
    torch.testing.assert_close(decode_output(HEAD, output)[0].values, values[kept])


def test_box_on_the_upper_border_is_outside() -> None:
    values = torch.zeros(3, 9)
    values[:, 0] = torch.tensor([-44.8, 44.79, 44.81])
    kept = inside_grid(Boxes(values, torch.arange(3)), HEAD)
    assert kept.labels.tolist() == [0, 1]


@pytest.mark.parametrize("overlap", [0.1, 0.7])
def test_gaussian_radius_solves_the_three_equations_of_cornernet(overlap: float) -> None:
    length, width = 6.0, 3.0
    area, total = length * width, length + width
    # One corner in, one out; both corners inside; both outside (divisor 2 as published).
    first = (total + math.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    second = (2 * total + math.sqrt(4 * total**2 - 16 * (1 - overlap) * area)) / 2
    a, b, c = 4 * overlap, -2 * overlap * total, (overlap - 1) * area
    third = (b + math.sqrt(b**2 - 4 * a * c)) / 2
    radius = gaussian_radius(torch.tensor(length), torch.tensor(width), overlap)
    assert radius.item() == pytest.approx(min(first, second, third), rel=1e-5)


def test_heatmap_of_two_neighbours() -> None:
    values = torch.zeros(2, 9)
    values[:, 3:6] = 0.5
    values[0, :2] = torch.tensor([0.1, 0.1])
    values[1, :2] = torch.tensor([0.9, 0.1])
    heat = gaussian_heatmaps([Boxes(values, torch.tensor([8, 8]))], HEAD, 0.1, 2)
    # 0.8 m cells from -44.8 m: cells (56, 56) and (57, 56); r = 2, sigma = 5 / 6.
    one = math.exp(-1 / (2 * (5 / 6) ** 2))
    four = math.exp(-4 / (2 * (5 / 6) ** 2))
    expected = [0, four, one, 1, 1, one, four, 0]
    assert heat[0, 8, 53:61, 56].tolist() == pytest.approx(expected, abs=1e-6)
    assert heat[0, 8, 56, 53:60].tolist() == pytest.approx(
        [0, four, one, 1, one, four, 0], abs=1e-6
    )
    assert heat[0, :8].sum() == 0
    assert (heat == 1).sum() == 2


def test_heatmaps_keep_frames_apart() -> None:
    values = torch.zeros(1, 9)
    values[:, 3:6] = 1
    none = Boxes(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))
    heat = gaussian_heatmaps([none, Boxes(values, torch.tensor([3]))], HEAD, 0.1, 2)
    assert heat[0].sum() == 0
    assert heat[1, 3, 56, 56] == 1


def box(x: float, y: float, length: float, width: float, yaw: float) -> list[float]:
    return [x, y, 0, length, width, 2, yaw, 0, 0]


def test_iou_of_hand_made_pairs() -> None:
    first = np.array([box(0, 0, 4, 2, 0)])
    second = np.array(
        [
            box(0, 0, 4, 2, 0),
            box(2, 0, 4, 2, 0),
            box(0, 0, 4, 2, math.pi / 2),
            box(9, 9, 4, 2, 0),
            box(0, 0, 2, 2, math.pi / 4),
        ]
    )
    # A square of side 2 turned by 45 degrees within |y| <= 1 loses two triangles.
    octagon = 4 - 2 * (math.sqrt(2) - 1) ** 2
    expected = [1, 4 / 12, 4 / 12, 0, octagon / (12 - octagon)]
    assert iou_3d(first, second)[0].tolist() == pytest.approx(expected)


def test_iou_counts_the_common_height() -> None:
    first, second = np.array([box(0, 0, 4, 2, 0)]), np.array([box(0, 0, 4, 2, 0)])
    second[0, 2] = 1.0
    assert iou_3d(first, second)[0, 0] == pytest.approx(1 / 3)


def test_assignment_gives_up_the_nearest_pair_for_a_better_total() -> None:
    """Two queries at 0 and 20 m, two objects at 1 and -30 m along x, all else equal.

    Far apart no IoU counts and the class costs cancel. Query 0 is nearest to the object at
    1 m, but 0 -> -30 and 20 -> 1 costs 30 + 19 m, and the greedy 0 -> 1 and 20 -> -30 51 m.
    """
    queries, objects = torch.zeros(2, 9), torch.zeros(2, 9)
    queries[:, 0], objects[:, 0] = torch.tensor([0.0, 20.0]), torch.tensor([1.0, -30.0])
    queries[:, 3:6] = objects[:, 3:6] = 0.5
    truth = Boxes(objects, torch.tensor([2, 2]))
    chosen, matched = assign(torch.zeros(2, 10), encode(queries, HEAD), truth, HEAD)
    assert dict(zip(chosen.tolist(), matched.tolist(), strict=True)) == {0: 1, 1: 0}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_assignment_is_the_cheapest_of_all(seed: int, objects: int) -> None:
    queries = 5
    random = torch.Generator().manual_seed(seed)
    values = random_boxes(objects, seed)
    labels = torch.randint(0, 10, (objects,), generator=random)
    logits = torch.randn(queries, 10, generator=random) * 2
    codes = encode(random_boxes(queries, seed + 1), HEAD)
    chosen, matched = assign(logits, codes, Boxes(values, labels), HEAD)

    predicted = decode(codes, HEAD)
    overlap = iou_3d(predicted.double().numpy(), values.double().numpy())
    p = logits.double().sigmoid()

    def cost(query: int, item: int) -> float:
        score = p[query, labels[item]].item()
        hit = -math.log(score) * 0.25 * (1 - score) ** 2
        alarm = -math.log(1 - score) * 0.75 * score**2
        distance = (predicted[query, :2] - values[item, :2]).abs().sum().item() / 89.6
        return 0.15 * (hit - alarm) + 0.25 * distance - 0.25 * float(overlap[query, item])

    def total(order: tuple[int, ...]) -> float:
        return sum(cost(query, item) for item, query in enumerate(order))

    best = min(total(order) for order in itertools.permutations(range(queries), objects))
    pairs = zip(chosen.tolist(), matched.tolist(), strict=True)
    assert sum(cost(query, item) for query, item in pairs) == pytest.approx(best, abs=1e-5)
    assert sorted(matched.tolist()) == list(range(objects))


def test_diverged_predictions_can_be_assigned() -> None:
    logits = torch.full((3, 10), torch.nan)
    codes = torch.full((3, 10), torch.inf)
    queries, _ = assign(logits, codes, Boxes(random_boxes(2), torch.tensor([0, 1])), HEAD)
    assert len(queries) == 2

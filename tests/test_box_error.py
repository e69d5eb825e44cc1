import math

import pytest
import torch

from bevquant.box_error import LOST_M, AssignedBoxError, QueryBoxError
from bevquant.data.frame import Boxes
from bevquant.models.bevfusion import SMALL
from bevquant.models.bevfusion.transfusion import HeadOutput


def boxes(*rows: tuple[float, ...], scores: tuple[float, ...] | None = None) -> list[Boxes]:
    """Rows of x, y, length, yaw, label."""
    values = torch.zeros(len(rows), 9)
    table = torch.tensor(rows).reshape(-1, 5)
    values[:, :2], values[:, 3], values[:, 6] = table[:, :2], table[:, 2], table[:, 3]
    weights = None if scores is None else torch.tensor(scores)
    return [Boxes(values, table[:, 4].long(), weights)]


def same(output: list[Boxes]) -> list[Boxes]:
    return output


ERROR = AssignedBoxError(same)


def test_equal_boxes_in_another_order() -> None:
    a, b = (1.0, 2.0, 4.0, 0.5, 0), (1.5, 2.0, 3.0, 0.1, 0)
    assert ERROR(boxes(a, b), boxes(b, a)) == 0


def test_centre_turn_and_size_by_hand() -> None:
    ours, theirs = boxes((3.0, 4.5, 4.0, 3.0, 0)), boxes((3.0, 4.0, 4.2, -3.0, 0))
    turn = 2 * math.pi - 6.0
    assert ERROR(ours, theirs) == pytest.approx(0.5 * 0.5 + 0.5 * (turn + 0.2), abs=1e-6)
    assert AssignedBoxError(same, alpha=1.0)(ours, theirs) == pytest.approx(0.5)


def test_lost_and_made_up_boxes() -> None:
    here, far, other = (0.0, 0, 4, 0, 0), (9.0, 0, 4, 0, 0), (0.0, 0, 4, 0, 1)
    assert ERROR(boxes(far), boxes(here)) == LOST_M
    assert ERROR(boxes(other), boxes(here)) == LOST_M
    assert ERROR(boxes(), boxes(here)) == LOST_M
    assert ERROR(boxes(here, far), boxes(here)) == 0


def test_scores_of_the_float_boxes_are_weights() -> None:
    theirs = boxes((0.0, 0, 4, 0, 0), (9.0, 0, 4, 0, 0), scores=(0.9, 0.1))
    assert ERROR(boxes((0.0, 0, 4, 0, 0)), theirs) == pytest.approx(0.1 * LOST_M)


def head_output(seed: int, queries: int = 5) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)

    def noise(channels: int) -> torch.Tensor:
        return torch.randn(1, channels, queries, generator=generator)

    return HeadOutput(
        center=noise(2).abs() * 10,
        height=noise(1),
        dim=noise(3),
        rot=noise(2),
        vel=noise(2),
        heatmap=noise(10),
        query_heatmap_score=noise(10).sigmoid(),
        query_labels=torch.arange(queries)[None] % 10,
        query_cells=torch.arange(queries)[None] * 3,
        dense_heatmap=torch.zeros(1, 10, 8, 8),
    )


def permuted(output: HeadOutput, order: list[int]) -> HeadOutput:
    dense = output.dense_heatmap
    return HeadOutput(*(value[..., order] for value in output[:-1]), dense_heatmap=dense)


def test_queries_are_matched_whatever_their_order() -> None:
    error, output = QueryBoxError(SMALL.bbox_head), head_output(0)
    assert error(permuted(output, [3, 0, 4, 1, 2]), output) == 0
    moved = output._replace(center=output.center + 0.1)
    shift = 0.1 * math.sqrt(2) * SMALL.bbox_head.cell_size
    assert error(moved, output) == pytest.approx(0.5 * shift, rel=1e-4)


def test_query_that_proposes_elsewhere_or_something_else_is_lost() -> None:
    error, output = QueryBoxError(SMALL.bbox_head), head_output(0)
    assert error(output._replace(query_cells=output.query_cells + 1), output) == LOST_M
    assert error(output._replace(query_labels=output.query_labels + 1), output) == LOST_M


def test_broken_outputs_are_lost() -> None:
    error, output = QueryBoxError(SMALL.bbox_head), head_output(0)
    assert error(output._replace(dim=output.dim * torch.nan), output) == LOST_M

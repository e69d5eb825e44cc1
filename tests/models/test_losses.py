"""Loss terms against cases worked out by hand."""

import math

import pytest
import torch

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion import SMALL, HeadOutput
from bevquant.models.bevfusion.losses import (
    LossSettings,
    focal_loss,
    gaussian_focal_loss,
    l1_loss,
    losses,
)
from bevquant.models.bevfusion.targets import encode

HEAD = SMALL.bbox_head.model_copy(
    update={"grid": (8, 8), "origin": (-4.0, -4.0), "cell_size": 1.0, "num_proposals": 3}
)
REFERENCE = LossSettings()
BOX = torch.tensor([[1.5, -0.5, 0.2, 4.0, 2.0, 1.5, 0.7, 3.0, -1.0]])


def output_for(codes: torch.Tensor, logits: torch.Tensor) -> HeadOutput:
    """Return the head's output for one frame: codes [Q, 10], class logits [Q, 10]."""
    center, height, dim, rot, vel = codes.T[None].split((2, 1, 3, 2, 2), dim=1)
    queries = len(codes)
    return HeadOutput(
        center=center,
        height=height,
        dim=dim,
        rot=rot,
        vel=vel,
        heatmap=logits.T[None],
        query_heatmap_score=torch.ones(1, 10, queries),
        query_labels=torch.zeros(1, queries, dtype=torch.int64),
        query_cells=torch.zeros(1, queries, dtype=torch.int64),
        dense_heatmap=torch.full((1, 10, 8, 8), -2.0),
    )


def test_focal_loss_of_a_hit_and_a_false_alarm() -> None:
    # p = 0.9: a hit costs 0.25 * 0.1^2 * -ln 0.9, a false alarm 0.75 * 0.9^2 * -ln 0.1.
    logit = math.log(9)
    expected = 0.25 * 0.1**2 * -math.log(0.9) + 0.75 * 0.9**2 * -math.log(0.1)
    value = focal_loss(torch.tensor([logit, logit]), torch.tensor([1.0, 0.0]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_gaussian_focal_loss_weighs_cells_by_their_distance_from_a_centre() -> None:
    # p = 0.9 everywhere; targets 1, 0.5, 0; one centre.
    logits = torch.full((3,), math.log(9))
    expected = -math.log(0.9) * 0.1**2 + -math.log(0.1) * 0.9**2 * (0.5**4 + 1)
    value = gaussian_focal_loss(logits, torch.tensor([1.0, 0.5, 0.0]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_gaussian_focal_loss_without_centres_is_not_divided_by_zero() -> None:
    value = gaussian_focal_loss(torch.tensor([0.0]), torch.tensor([0.0]))
    assert value.item() == pytest.approx(math.log(2) * 0.25)


def test_l1_loss_weighs_velocity_and_skips_unknown_ones() -> None:
    codes = torch.zeros(2, 10)
    targets = torch.ones(2, 10)
    targets[1, 8:] = torch.nan
    # 8 entries in each row, and two velocities of weight 0.2 in the first.
    assert l1_loss(codes, targets, 0.2).item() == pytest.approx(16.4)


def test_unknown_velocity_has_no_gradient() -> None:
    codes = torch.zeros(1, 10, requires_grad=True)
    targets = torch.ones(1, 10)
    targets[:, 8:] = torch.nan
    l1_loss(codes, targets, 1.0).backward()
    assert codes.grad is not None
    assert codes.grad[0].tolist() == [-1.0] * 8 + [0.0, 0.0]


def test_terms_of_one_object_and_three_queries() -> None:
    code = encode(BOX, HEAD)
    codes = torch.cat([code + 1.0, code, code - 1.0])
    logits = torch.full((3, 10), -2.0)
    truth = Boxes(BOX, torch.tensor([4]))
    terms = losses(HEAD, output_for(codes, logits), [truth], REFERENCE)
    # The second query is the object: no box error; its class 4 is a miss, 29 are right.
    p = 1 / (1 + math.exp(2))
    right = 0.75 * p**2 * -math.log(1 - p)
    miss = 0.25 * (1 - p) ** 2 * -math.log(p)
    assert terms["box"].item() == pytest.approx(0, abs=1e-5)
    assert terms["class"].item() == pytest.approx(29 * right + miss, rel=1e-5)
    assert terms["heatmap"].item() > 0


def test_weights_scale_their_terms() -> None:
    codes = encode(BOX, HEAD) + torch.tensor([[0.5] * 8 + [2.0, 2.0]])
    output, truth = output_for(codes, torch.zeros(1, 10)), Boxes(BOX, torch.tensor([0]))
    one = losses(HEAD, output, [truth], REFERENCE)
    settings = LossSettings(
        heatmap_weight=2, class_weight=3, box_weight=1, velocity_weight=1, min_radius=2
    )
    other = losses(HEAD, output, [truth], settings)
    assert other["heatmap"].item() == pytest.approx(2 * one["heatmap"].item())
    assert other["class"].item() == pytest.approx(3 * one["class"].item())
    assert one["box"].item() == pytest.approx(0.25 * (8 * 0.5 + 0.2 * 4), rel=1e-5)
    assert other["box"].item() == pytest.approx(8 * 0.5 + 4, rel=1e-5)


def test_frames_without_objects_and_objects_outside_the_grid() -> None:
    outside = BOX.clone()
    outside[:, 0] = 4.0
    output = output_for(torch.randn(3, 10), torch.zeros(3, 10))
    none = Boxes(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))
    for truth in (none, Boxes(outside, torch.tensor([1]))):
        terms = losses(HEAD, output, [truth], REFERENCE)
        assert terms["box"].item() == 0
        assert all(term.isfinite() for term in terms.values())

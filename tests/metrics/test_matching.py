import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection import algo
from nuscenes.eval.detection.data_classes import DetectionBox

from bevquant.data.frame import CLASSES, Boxes
from bevquant.metrics.matching import match


def boxes_at(places: list[tuple[float, float]], label: int = 0) -> Boxes:
    values = torch.zeros(len(places), 9)
    values[:, :2] = torch.tensor(places).reshape(-1, 2)
    scores = torch.linspace(0.9, 0.1, len(places))
    return Boxes(values, torch.full((len(places),), label), scores)


def test_the_better_score_chooses_first_and_takes_the_nearest():
    truth = boxes_at([(0, 0), (1.5, 0)])
    predictions = boxes_at([(1.0, 0), (1.4, 0), (1.6, 0)])
    matches = match(predictions, truth)
    assert matches.found.tolist() == [[0, 1], [1, 0]]
    assert matches.false.tolist() == [2]
    assert matches.lost.tolist() == []


def test_only_boxes_of_the_same_class_nearer_than_the_distance_match():
    truth = boxes_at([(0, 0)])
    assert match(boxes_at([(0, 0)], label=1), truth).lost.tolist() == [0]
    assert match(boxes_at([(2.0, 0)]), truth).lost.tolist() == [0]
    assert match(boxes_at([(1.99, 0)]), truth).lost.tolist() == []
    assert match(boxes_at([(0.6, 0)]), truth, distance=0.5).false.tolist() == [0]


def test_predictions_below_the_minimum_score_do_not_exist():
    matches = match(boxes_at([(9, 9), (0, 0)]), boxes_at([(0, 0)]), minimum_score=0.5)
    assert matches.lost.tolist() == [0]
    assert matches.false.tolist() == [0]


@pytest.mark.parametrize(("predictions", "truth"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_to_match(predictions: int, truth: int):
    matches = match(boxes_at([(0, 0)] * predictions), boxes_at([(50, 0)] * truth))
    assert matches.found.shape == (0, 2)
    assert len(matches.lost) == truth and len(matches.false) == predictions


@given(seed=st.integers(0, 2**32 - 1), predictions=st.integers(1, 12), truth=st.integers(1, 12))
def test_the_pairs_are_the_devkits(seed: int, predictions: int, truth: int):
    generator = np.random.default_rng(seed)

    def random_boxes(count: int) -> Boxes:
        values = torch.zeros(count, 9)
        values[:, :2] = torch.from_numpy(generator.uniform(0, 6, (count, 2)))
        labels = torch.from_numpy(generator.integers(0, 2, count))
        return Boxes(values, labels, torch.from_numpy(generator.permutation(count) / count))

    guesses, objects = random_boxes(predictions), random_boxes(truth)
    matches = match(guesses, objects)
    assert {tuple(pair) for pair in matches.found.tolist()} == devkit_pairs(guesses, objects)
    assert sorted([*matches.found[:, 0].tolist(), *matches.false.tolist()]) == [*range(predictions)]
    assert sorted([*matches.found[:, 1].tolist(), *matches.lost.tolist()]) == [*range(truth)]


def devkit_pairs(guesses: Boxes, objects: Boxes) -> set[tuple[int, int]]:
    """Let the devkit match; it works out the translation error of true positives only."""

    def devkit_boxes(boxes: Boxes) -> EvalBoxes:
        rows = EvalBoxes()
        rows.add_boxes(
            "sample",
            [
                DetectionBox(
                    sample_token="sample",
                    translation=(*values[:2].double().tolist(), float(index)),
                    size=(1, 1, 1),
                    rotation=(1, 0, 0, 0),
                    detection_name=CLASSES[label],
                    detection_score=float(score),
                )
                for index, (values, label, score) in enumerate(
                    zip(boxes.values, boxes.labels, boxes.scores, strict=True)
                )
            ],
        )
        return rows

    pairs = set()
    distance = algo.center_distance

    def remember(truth: DetectionBox, guess: DetectionBox) -> float:
        pairs.add((int(guess.translation[2]), int(truth.translation[2])))
        return distance(truth, guess)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algo, "center_distance", remember)
        for name in CLASSES[:2]:
            algo.accumulate(devkit_boxes(objects), devkit_boxes(guesses), name, distance, 2.0)
    return pairs

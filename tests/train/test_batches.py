"""Batches depend on the settings and the step alone."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_toys import PREPROCESS, ToyFrames

from bevquant.data.frame import Frame
from bevquant.errors import BevquantError
from bevquant.train.batches import TrainBatches, with_seen_boxes
from bevquant.train.settings import TrainSettings

SETTINGS = TrainSettings(epochs=3, batch_size=4, replicas=2, workers=0)


def test_every_epoch_shows_each_frame_once_in_an_order_of_its_own() -> None:
    batches = TrainBatches(ToyFrames(9), PREPROCESS, SETTINGS)
    assert len(batches) == 6
    epochs = [batches.indices(step) + batches.indices(step + 1) for step in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_from_the_middle_are_those_of_a_whole_run(workers: int) -> None:
    settings = SETTINGS.model_copy(update={"workers": workers})
    batches = TrainBatches(ToyFrames(8), PREPROCESS, settings)
    whole = [batches[step] for step in range(6)]
    rest = list(batches.loader(4))
    assert len(rest) == 2
    for expected, got in zip(whole[4:], rest, strict=True):
        assert len(got) == 2
        for one, other in zip(expected, got, strict=True):
            assert one.tokens == other.tokens
            assert torch.equal(one.images, other.images)
            assert all(map(torch.equal, one.points, other.points))


def test_points_moved_out_of_range_are_left_out() -> None:
    batches = TrainBatches(ToyFrames(4), PREPROCESS, SETTINGS)
    for part in batches[0]:
        assert all(points[:, :2].abs().max() < 8 for points in part.points)


def test_objects_without_points_are_left_out() -> None:
    frame = ToyFrames(1).frame(0)
    assert len(with_seen_boxes(frame).boxes or ()) == 1
    unseen = replace(frame, boxes_points=np.array([0]))
    assert len(with_seen_boxes(unseen).boxes or ()) == 0
    with pytest.raises(BevquantError, match="frame0: has no annotations"):
        with_seen_boxes(replace(frame, boxes=None))


def test_fewer_frames_than_a_batch_are_refused() -> None:
    with pytest.raises(BevquantError, match=r"train\.batch_size: 4 is more than the 3"):
        TrainBatches(ToyFrames(3), PREPROCESS, SETTINGS)


class BrokenFrames(ToyFrames):
    def frame(self, index: int) -> Frame:
        raise BevquantError(f"frame{index}.jpg: not a readable image; restore it")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_line_from_a_worker_too(workers: int) -> None:
    settings = SETTINGS.model_copy(update={"workers": workers})
    with pytest.raises(BevquantError) as caught:
        next(TrainBatches(BrokenFrames(8), PREPROCESS, settings).loader(0))
    assert re.fullmatch(r"frame\d\.jpg: not a readable image; restore it", str(caught.value))


def test_parts_must_be_equal() -> None:
    with pytest.raises(ValueError, match="batch_size 3 is no multiple of replicas 2"):
        TrainSettings(batch_size=3, replicas=2)

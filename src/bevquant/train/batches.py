"""The training batches: a function of the settings and the step, and of nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bevquant.data.frame import Batch, Boxes, Frame
from bevquant.data.preprocess import Preprocess, collate
from bevquant.errors import BevquantError
from bevquant.train.augment import augment
from bevquant.train.settings import TrainSettings


class Frames(Protocol):
    """Frames on disk, such as :class:`bevquant.data.nuscenes.NuScenesDataset`."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> Frame:
        """Read the frame at ``index``."""
        ...


class TrainBatches(Dataset[tuple[Batch, ...]]):
    """The batch of each step of a run, in one part per replica.

    Frame order and augmentation follow from the seed and the step, so a run that was
    stopped goes on with the very batches it would have seen.

    Raises:
        BevquantError: there are fewer frames than a batch holds.
    """

    def __init__(self, frames: Frames, preprocess: Preprocess, settings: TrainSettings) -> None:
        self.frames = frames
        self.preprocess = preprocess
        self.settings = settings
        self.steps_per_epoch = len(frames) // settings.batch_size
        if self.steps_per_epoch == 0:
            raise BevquantError(
                f"train.batch_size: {settings.batch_size} is more than the {len(frames)} training "
                "frames; lower it or generate more scenes"
            )

    def __len__(self) -> int:
        """Steps of the run."""
        return self.settings.epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        random = np.random.default_rng((self.settings.seed, 1, step))
        frames = [with_seen_boxes(self.frames.frame(index)) for index in self.indices(step)]
        size = len(frames) // self.settings.replicas
        parts = [frames[i : i + size] for i in range(0, len(frames), size)]
        return tuple(self._part(part, random) for part in parts)

    def _part(self, frames: Sequence[Frame], random: np.random.Generator) -> Batch:
        batch = augment(collate(frames, self.preprocess), self.settings.augment, random)
        return in_range(batch, self.preprocess)

    def indices(self, step: int) -> list[int]:
        """Return the frames of a step; every epoch has its own order of all frames."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.settings.seed, 0, epoch)).permutation(len(self.frames))
        size = self.settings.batch_size
        return [int(index) for index in order[position * size : (position + 1) * size]]

    def loader(self, start: int) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches from step ``start`` on, loaded by worker processes."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, len(self)),
            num_workers=self.settings.workers,
            multiprocessing_context="fork" if self.settings.workers else None,
        )
        try:
            yield from loader
        except BevquantError as error:
            # A worker process wraps the message into its traceback.
            message = str(error).strip().rpartition(f"{BevquantError.__name__}: ")[2]
            raise BevquantError(message) from error


def with_seen_boxes(frame: Frame) -> Frame:
    """Leave out the objects without a LiDAR point, which the nuScenes metric ignores too."""
    if frame.boxes is None or frame.boxes_points is None:
        raise BevquantError(f"sample {frame.token}: has no annotations to train on")
    seen = torch.from_numpy(frame.boxes_points > 0)
    return replace(
        frame,
        boxes=Boxes(frame.boxes.values[seen], frame.boxes.labels[seen]),
        boxes_points=frame.boxes_points[frame.boxes_points > 0],
    )


def in_range(batch: Batch, preprocess: Preprocess) -> Batch:
    """Leave out the points that augmentation moved out of the detection range."""
    low, high = torch.tensor(preprocess.point_range).view(2, 3)
    kept = [((p[:, :3] > low) & (p[:, :3] < high)).all(dim=1) for p in batch.points]
    return replace(batch, points=tuple(p[keep] for p, keep in zip(batch.points, kept, strict=True)))

"""The training batches: a function of the settings and the step, and of nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bevquant.data.frame import Batch, Boxes, Frame
from bevquant.data.preprocess import Preprocess, collate
from bevquant.errors import BevquantError
from bevquant.train.augment import augment
from bevquant.train.settings import DetectorSettings, OptimSettings

Part = TypeVar("Part")


class Frames(Protocol):
    """Frames on disk, such as :class:`bevquant.data.nuscenes.NuScenesDataset`."""

    def __len__(self) -> int: ...

    def frame(self, index: int) -> Frame:
        """Read the frame at ``index``."""
        ...


class StepBatches(Dataset[tuple[Part, ...]], ABC, Generic[Part]):
    """The batch of each step of a run, in one part per replica.

    Frame order and whatever is random follow from the seed and the step, so a run that was
    stopped goes on with the very batches it would have seen.

    Args:
        count: training frames.
        settings: how they make up batches.

    Raises:
        BevquantError: there are fewer frames than a batch holds.
    """

    def __init__(self, count: int, settings: OptimSettings) -> None:
        self.count = count
        self.optim = settings
        self.steps_per_epoch = count // settings.batch_size
        if self.steps_per_epoch == 0:
            raise BevquantError(
                f"train.batch_size: {settings.batch_size} is more than the {count} training "
                "frames; lower it or generate more scenes"
            )

    def __len__(self) -> int:
        """Steps of the run."""
        return self.optim.epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[Part, ...]:
        random = np.random.default_rng((self.optim.seed, 1, step))
        indices = self.indices(step)
        size = len(indices) // self.optim.replicas
        return tuple(self.part(indices[i : i + size], random) for i in range(0, len(indices), size))

    @abstractmethod
    def part(self, indices: Sequence[int], random: np.random.Generator) -> Part:
        """Return what one replica gets of a batch."""

    def indices(self, step: int) -> list[int]:
        """Return the frames of a step; every epoch has its own order of all frames."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.optim.seed, 0, epoch)).permutation(self.count)
        size = self.optim.batch_size
        return [int(index) for index in order[position * size : (position + 1) * size]]

    def loader(self, start: int) -> Iterator[tuple[Part, ...]]:
        """Yield the batches from step ``start`` on, loaded by worker processes."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, len(self)),
            num_workers=self.optim.workers,
            multiprocessing_context="fork" if self.optim.workers else None,
        )
        try:
            yield from loader
        except BevquantError as error:
            # A worker process wraps the message into its traceback.
            message = str(error).strip().rpartition(f"{BevquantError.__name__}: ")[2]
            raise BevquantError(message) from error


class TrainBatches(StepBatches[Batch]):
    """Augmented batches of sensor data with boxes."""

    def __init__(self, frames: Frames, preprocess: Preprocess, settings: DetectorSettings) -> None:
        super().__init__(len(frames), settings)
        self.frames = frames
        self.preprocess = preprocess
        self.settings = settings

    def part(self, indices: Sequence[int], random: np.random.Generator) -> Batch:
        """Return the frames of one replica, augmented."""
        frames = [with_seen_boxes(self.frames.frame(index)) for index in indices]
        batch = augment(collate(frames, self.preprocess), self.settings.augment, random)
        return in_range(batch, self.preprocess)


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

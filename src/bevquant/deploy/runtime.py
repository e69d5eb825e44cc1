"""A deployed BEVFusion: one file in, boxes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch.utils import _pytree as pytree

from bevquant.data.frame import Batch, Boxes, Frame
from bevquant.data.preprocess import Preprocess, collate
from bevquant.deploy.degraded import mend
from bevquant.deploy.engines import Arithmetic, Array, Engine, EngineName, open_engine
from bevquant.deploy.export import METADATA_KEY
from bevquant.errors import BevquantError
from bevquant.models.bevfusion import BEVFusion, BEVFusionConfig, HeadOutput, NetworkInput


@dataclass(frozen=True)
class Answer:
    """What a deployed network found in a frame.

    Attributes:
        boxes: in the LiDAR frame.
        degraded: what was missing from the frame; empty if nothing was. See
            :func:`~bevquant.deploy.degraded.mend`.
    """

    boxes: Boxes
    degraded: tuple[str, ...]


@dataclass(frozen=True)
class Deployed:
    """An exported BEVFusion on an engine; call it with a batch of one frame.

    Attributes:
        engine: runs the network.
        preprocess: what a frame goes through to become a batch.
        model: the network's code around its layers (voxels, neighbour tables, decoding);
            its weights are not used.
    """

    engine: Engine
    preprocess: Preprocess
    model: BEVFusion

    def __call__(self, batch: Batch) -> list[Boxes]:
        """Return the boxes of the one frame of ``batch``."""
        return self.model.decode(self.network(self.prepare(batch)))

    def detect(self, frame: Frame) -> Answer:
        """Answer from what the sensors gave: images, points and calibration.

        Where a sensor failed, the answer is that of the others, and says so.

        Raises:
            BevquantError: nothing was delivered at all, or the images are smaller than the
                network's.
        """
        mended, degraded = mend(frame, self.preprocess)
        (boxes,) = self(collate([mended], self.preprocess))
        return Answer(boxes, degraded)

    def prepare(self, batch: Batch) -> list[Array]:
        """Return the input arrays of the network for the one frame of ``batch``."""
        return flatten(self.model.prepare(batch))

    def network(self, arrays: Sequence[Array]) -> HeadOutput:
        """Run the layers.

        Raises:
            BevquantError: ``arrays`` are of several frames, or of other cameras than the
                file's.
        """
        return HeadOutput(*map(torch.from_numpy, self.engine(arrays)))


def load(
    path: Path,
    engine: EngineName | None = None,
    threads: int = 1,
    arithmetic: Arithmetic = "f32",
) -> Deployed:
    """Load a file that :func:`~bevquant.deploy.export.export` wrote; it needs nothing else.

    Args:
        path: the file.
        engine: see :func:`~bevquant.deploy.engines.open_engine`.
        threads: see there.
        arithmetic: see there.

    Raises:
        BevquantError: the file is missing, damaged, from another version or no BEVFusion,
            or the engine is not installed.
    """
    opened = open_engine(path, engine, threads, arithmetic)
    settings = opened.card.metadata.get(METADATA_KEY)
    if not isinstance(settings, dict):
        raise BevquantError(f"{path}: holds no BEVFusion; open it with open_engine")
    try:
        config = BEVFusionConfig.model_validate(settings.get("config"))
        preprocess = Preprocess.model_validate(settings.get("preprocess"))
    except ValidationError as error:
        raise BevquantError(f"{path}: written by another version; export it again") from error
    return Deployed(opened, preprocess, BEVFusion(config).eval())


def flatten(inputs: NetworkInput) -> list[Array]:
    """Return the arrays of ``inputs`` in the order of a file's inputs."""
    return [tensor.contiguous().numpy() for tensor in pytree.tree_leaves(inputs.with_tables())]

"""Training the part of a dense network behind the fused map, on fused maps computed once.

Everything up to the fusion stays as the detector learned it: a step costs a fifth of one
through the whole network, and each frame goes through the sensor branches once.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bevquant.data.frame import Array
from bevquant.data.labels import Occupancy
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import Preprocess, collate, stack_occupancy
from bevquant.evaluate import measure
from bevquant.files import atomic_path, write_json
from bevquant.models.bevfusion.encoder import FUSING
from bevquant.models.dense import DenseNetwork
from bevquant.models.weights import save_weights
from bevquant.progress import track
from bevquant.provenance import provenance
from bevquant.train.batches import StepBatches
from bevquant.train.loop import run_steps
from bevquant.train.settings import TailSettings


@dataclass(frozen=True)
class FusedPart:
    """Fused maps of b frames with their labels.

    Attributes:
        fused: float32 [b, C, X, Y].
        grid: see :attr:`~bevquant.models.dense.DenseInput.grid`.
        map_masks: see :class:`~bevquant.data.frame.Batch`.
        occupancy: the same.
    """

    fused: Tensor
    grid: Tensor
    map_masks: Tensor | None
    occupancy: Occupancy | None

    def to(self, device: torch.device) -> Self:
        """Return the same with the inputs on ``device``."""
        return type(self)(
            self.fused.to(device), self.grid.to(device), self.map_masks, self.occupancy
        )


class FusedBatches(StepBatches[FusedPart]):
    """Batches of fused maps, which lie in ``maps``, float16 [frames, C, X, Y]."""

    def __init__(
        self, model: DenseNetwork, dataset: NuScenesDataset, maps: Array, settings: TailSettings
    ) -> None:
        super().__init__(len(dataset), settings)
        self._model, self._dataset, self._maps = model, dataset, maps
        self._window = settings.window

    def part(self, indices: Sequence[int], random: np.random.Generator) -> FusedPart:
        """Return the frames of one replica."""
        data = self._dataset
        poses = np.stack([data.poses(data.tokens[index])[0] for index in indices])
        masks = [data.map_masks(index) for index in indices]
        voxels = [data.voxels(index) for index in indices]
        known = [mask for mask in masks if mask is not None]
        seen = [one for one in voxels if one is not None]
        still = torch.eye(4).repeat(len(indices), 1, 1)
        whole = FusedPart(
            torch.from_numpy(self._maps[list(indices)]).float(),
            self._model.grid(still, torch.from_numpy(poses).float()),
            torch.from_numpy(np.stack(known)) if known else None,
            stack_occupancy(seen) if seen else None,
        )
        if self._window is None:
            return whole
        sides = whole.grid.shape[1:3]
        corner = [int(random.integers(max(side - self._window, 0) + 1)) for side in sides]
        return cut(whole, corner[0], corner[1], self._window)


def cut(part: FusedPart, first_x: int, first_y: int, side: int) -> FusedPart:
    """Return the same frames with a square of their output cells only."""
    window = (slice(first_x, first_x + side), slice(first_y, first_y + side))
    masks, voxels = part.map_masks, part.occupancy
    return FusedPart(
        part.fused,
        part.grid[:, *window],
        None if masks is None else masks[:, :, *window],
        None
        if voxels is None
        else Occupancy(
            voxels.semantics[:, *window],
            voxels.mask_lidar[:, *window],
            voxels.mask_camera[:, *window],
        ),
    )


def train_tail(
    model: DenseNetwork,
    preprocess: Preprocess,
    train_set: NuScenesDataset,
    val_set: NuScenesDataset,
    settings: TailSettings,
    *,
    run_folder: Path,
) -> None:
    """Train BEV backbone, neck and head of ``model`` and leave the result in ``run_folder``.

    Stopped at any moment, the same call continues and ends with the very weights of an
    uninterrupted run on the same machine. Files: those of
    :func:`bevquant.train.loop.train`, and the fused maps.

    Args:
        model: its encoder trained; holds the averaged weights afterwards.
        preprocess: of the network.
        train_set: labelled frames to learn from.
        val_set: labelled frames to measure the result on.
        settings: everything else.
        run_folder: made if absent.

    Raises:
        BevquantError: the folder belongs to another run, a file of the data is missing or
            broken, or the loss became infinite or NaN.
    """
    fingerprint = train_set.fingerprint()
    source = provenance(settings.seed, fingerprint)
    for name in FUSING:
        model.get_submodule(name).requires_grad_(False)
    identity = {
        "data": fingerprint,
        "model": model.config.model_dump(mode="json"),
        "preprocess": preprocess.model_dump(mode="json"),
        "encoder": _digest(model),
        "train": settings.model_dump(mode="json"),
    }
    maps = fused_maps(model, train_set, preprocess, run_folder, identity)
    batches = FusedBatches(model, train_set, maps, settings)
    seconds = run_steps(model, batches, _terms, identity, run_folder)
    save_weights(model, run_folder / "weights.safetensors", {"train": settings.model_dump_json()})
    metrics = measure(model, val_set, preprocess, description="evaluating")
    write_json(
        run_folder / "card.json",
        {
            **identity,
            "frames": len(train_set),
            "seconds": round(seconds),
            "provenance": source.to_json(),
            "metrics": {"split": val_set.split, **metrics.to_json()},
        },
    )


def fused_maps(
    model: DenseNetwork,
    dataset: NuScenesDataset,
    preprocess: Preprocess,
    folder: Path,
    identity: dict[str, Any],
) -> Array:
    """Return the fused map of every frame, float16 [frames, C, X, Y], computed once.

    They are kept in ``folder``, under a name that says which encoder and data they are of.
    """
    key = json.dumps([identity[name] for name in ("data", "preprocess", "encoder")])
    path = folder / f"fused-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    if not path.exists():
        x, y = model.config.bev_grid
        shape = (len(dataset), model.config.fuser_channels, x, y)
        model.eval()
        with atomic_path(path) as temporary, torch.inference_mode():
            open_memmap: Any = np.lib.format.open_memmap
            maps = open_memmap(temporary, "w+", np.float16, shape)
            for index in track(range(len(dataset)), "fused maps"):
                batch = collate([dataset.frame(index)], preprocess)
                maps[index] = model.fused(model.prepare_sensors(batch))[0].half().numpy()
            maps.flush()
    maps = np.load(path, mmap_mode="r")
    return np.asarray(maps)


def _terms(model: DenseNetwork, part: FusedPart) -> dict[str, Tensor]:
    return model.losses(model.tail(part.fused, part.grid), part)


def _digest(model: DenseNetwork) -> str:
    """Return the SHA-256 over the weights that make the fused map."""
    digest = hashlib.sha256()
    for name in FUSING:
        for value in model.get_submodule(name).state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()

"""The shipped networks as tasks: data, loss, metric and error, by one name."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevquant.box_error import AssignedBoxError, QueryBoxError
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import Preprocess, collate
from bevquant.metrics.agreement import MapError, OccupancyError
from bevquant.models.bevdepth.model import BEVDepth, BEVDepthOutput
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.bevfusion.losses import LossSettings
from bevquant.models.bevfusion.transfusion import HeadOutput
from bevquant.models.camera import CameraDetector
from bevquant.models.dense import DenseNetwork
from bevquant.models.occupancy import BEVOccupancy
from bevquant.models.petr.head import PETROutput
from bevquant.models.segmentation import BEVSegmentation
from bevquant.models.zoo import network, shipped
from bevquant.ptqat.task import Task
from bevquant.quant.outputs import Outputs
from bevquant.train.batches import with_seen_boxes
from bevquant.train.loop import loss_terms


class Frames(Sequence[Batch]):
    """Random frames of a data set, each a batch with its labels, loaded when indexed.

    Args:
        dataset: opened by :meth:`~bevquant.models.zoo.Network.dataset`.
        preprocess: of the network.
        count: how many frames, all if there are fewer.
        seed: which ones.
        skip: how many of the seed's frames others have taken already.
    """

    def __init__(
        self,
        dataset: NuScenesDataset,
        preprocess: Preprocess,
        count: int,
        seed: int,
        *,
        skip: int = 0,
    ) -> None:
        order = np.random.default_rng((seed, 1)).permutation(len(dataset))
        self._chosen = [int(index) for index in order[skip : skip + count]]
        self._dataset, self._preprocess = dataset, preprocess

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frame = with_seen_boxes(self._dataset.frame(self._chosen[index]))
        return collate([frame], self._preprocess)


def shipped_task(
    name: str,
    dataset: NuScenesDataset,
    frames: int,
    *,
    seed: int = 0,
    validation: Sequence[Batch] = (),
) -> Task:
    """Return the task of a shipped network, with labels: its loss, and frames to train on.

    Args:
        name: of the network, for instance ``bevfusion_seg_small``.
        dataset: opened by :meth:`~bevquant.models.zoo.Network.dataset`.
        frames: how many.
        seed: which ones.
        validation: batches to judge weights on while they are trained.
    """
    batches = Frames(dataset, network(name).preprocess, frames, seed)
    return Task(
        batches,
        loss=task_loss(name),
        outputs=task_outputs(name),
        weights=task_weights,
        validation=validation,
    )


def task_outputs(name: str) -> Outputs:
    """Return the function that picks what a shipped network's outputs say.

    Probabilities, not logits: of two that mean "nothing here", it does not matter how far
    apart they are. And the codes of boxes.
    """
    net = network(name)
    if net.occupancy:
        return lambda output: [output.softmax(-1)]
    if net.map_grid:
        return lambda output: [output.sigmoid()]
    return _detections


def _detections(output: HeadOutput | BEVDepthOutput | PETROutput) -> list[Tensor]:
    if isinstance(output, BEVDepthOutput):
        return [output.heatmap.sigmoid(), output.codes]
    if isinstance(output, PETROutput):
        return [output.logits.sigmoid(), output.codes]
    cells, rows = output.query_cells, output.dense_heatmap.shape[-1]
    inside = output.center - torch.stack((cells // rows, cells % rows), 1)
    codes = torch.cat((inside, output.height, output.dim, output.rot, output.vel), 1)
    return [output.dense_heatmap.sigmoid(), output.heatmap.sigmoid(), codes]


def task_weights(model: nn.Module, output: Any) -> list[Tensor]:
    """Return how much the elements of :func:`task_outputs` count.

    Box codes as much as the float network believes in the box they belong to: the square of
    its best class's probability. All else the same.
    """
    if isinstance(output, BEVDepthOutput):
        assert isinstance(model, BEVDepth)
        groups = output.heatmap.sigmoid().split_with_sizes(model.config.head.groups, 1)
        belief = torch.stack([group.amax(1) for group in groups], 1)[:, :, None]
        return [belief.new_ones(()), belief.square()]
    if isinstance(output, PETROutput):
        belief = output.logits.sigmoid().amax(-1, keepdim=True)
        return [belief.new_ones(()), belief.square()]
    if isinstance(output, HeadOutput):
        belief = output.heatmap.sigmoid().amax(1, keepdim=True)
        return [belief.new_ones(()), belief.new_ones(()), belief.square()]
    return [output.new_ones(())]


def load_shipped(name: str) -> BEVFusion | CameraDetector | DenseNetwork:
    """Return a network with the weights that come with the package, in evaluation mode.

    Raises:
        BevquantError: none do, under this name.
    """
    model: BEVFusion | CameraDetector | DenseNetwork = network(name).load(shipped(name))
    return model


def task_loss(name: str) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the sum of the losses that the network called ``name`` was trained with.

    The weights of a BEVFusion's terms are those on the card of its shipped checkpoint; without
    one, the reference's. The function raises a BevquantError if a batch lacks the labels.
    """
    terms_of = loss_terms(_loss_settings(name))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if isinstance(model, BEVFusion):
            terms = terms_of(model, batch)
        else:
            assert isinstance(model, CameraDetector | DenseNetwork)
            terms = model.losses(model(batch), batch)
        return torch.stack(list(terms.values())).sum()

    return loss


def _loss_settings(name: str) -> LossSettings:
    card = shipped(name).with_suffix(".json")
    recipe = json.loads(card.read_text()) if card.exists() else {}
    return LossSettings.model_validate(recipe.get("train", {}).get("loss", {}))


def task_error(model: nn.Module) -> Callable[[Any, Any], float]:
    """Return the error between outputs that counts for the task, 0 or more.

    Boxes of a detector, labels of a dense network; the second output is the float network's.
    """
    if isinstance(model, BEVFusion):
        return QueryBoxError(model.config.bbox_head)
    if isinstance(model, CameraDetector):
        return AssignedBoxError(model.decode)
    if isinstance(model, BEVSegmentation):
        return MapError(model.decode)
    assert isinstance(model, BEVOccupancy)
    return OccupancyError(model.decode)

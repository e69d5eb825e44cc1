"""Run a network over a split and measure it with the metric of its task."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from bevquant.data.frame import Batch, Boxes
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import Preprocess, collate
from bevquant.errors import BevquantError
from bevquant.metrics.detection import DetectionMetrics, evaluate_submission, submission
from bevquant.metrics.occupancy import Mask, OccupancyMetrics, VoxelIoU
from bevquant.metrics.segmentation import MapIoU, SegmentationMetrics
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.camera import CameraDetector
from bevquant.models.occupancy import BEVOccupancy
from bevquant.models.segmentation import BEVSegmentation
from bevquant.progress import track

Predictor = Callable[[Batch], list[Boxes]]
"""Whatever turns a batch into boxes: a float network, a quantized one, a deployed file."""

Metrics = DetectionMetrics | SegmentationMetrics | OccupancyMetrics

Prediction = tuple[str, Boxes]
"""A sample token and the boxes predicted for it, in the LiDAR frame."""


def float_predictor(model: BEVFusion | CameraDetector) -> Predictor:
    """Return the predictor that runs ``model`` as it is, on its own device, in eval mode."""
    model.eval()
    device = next(model.parameters()).device

    def predict(batch: Batch) -> list[Boxes]:
        with torch.inference_mode():
            return model.decode(model(batch.to(device)))

    return predict


def predict_split(
    predict: Predictor, dataset: NuScenesDataset, preprocess: Preprocess, *, description: str
) -> list[Prediction]:
    """Predict every frame of ``dataset``, one at a time, under a progress bar.

    Raises:
        BevquantError: a file of the split is missing or broken; all files are looked at
            before the first prediction.
    """
    dataset.check()
    batches = track(_batches(dataset, preprocess), description, total=len(dataset))
    return [(batch.tokens[0], predict(batch)[0]) for batch in batches]


def score(dataset: NuScenesDataset, predictions: Sequence[Prediction]) -> DetectionMetrics:
    """Measure predictions for all frames of ``dataset`` with the nuScenes metric."""
    results = {
        token: submission(token, boxes, *dataset.poses(token)) for token, boxes in predictions
    }
    return evaluate_submission(dataset, results)


def evaluate(
    predict: Predictor, dataset: NuScenesDataset, preprocess: Preprocess, *, description: str
) -> DetectionMetrics:
    """Predict every frame of ``dataset`` and measure the predictions."""
    predictions = predict_split(predict, dataset, preprocess, description=description)
    return score(dataset, predictions)


def evaluate_map(
    model: BEVSegmentation, dataset: NuScenesDataset, preprocess: Preprocess, *, description: str
) -> SegmentationMetrics:
    """Label the map round every frame of ``dataset`` and measure it.

    Raises:
        BevquantError: the data set gives no map labels, or a file is missing or broken.
    """
    metric = MapIoU()
    for batch, probabilities in _decoded(model, dataset, preprocess, description):
        if batch.map_masks is None:
            raise BevquantError("map labels: the data set has none; open it with a map_grid")
        metric.add(probabilities, batch.map_masks)
    return metric.result()


def evaluate_occupancy(
    model: BEVOccupancy,
    dataset: NuScenesDataset,
    preprocess: Preprocess,
    *,
    description: str,
    mask: Mask = "camera",
) -> OccupancyMetrics:
    """Label the voxels round every frame of ``dataset`` and measure them.

    Raises:
        BevquantError: the data set gives no occupancy labels, or a file is missing or broken.
    """
    metric = VoxelIoU(mask)
    for batch, classes in _decoded(model, dataset, preprocess, description):
        if batch.occupancy is None:
            raise BevquantError("occupancy: the data set has none; open it with occupancy=True")
        metric.add(classes, batch.occupancy)
    return metric.result()


def measure(
    model: nn.Module, dataset: NuScenesDataset, preprocess: Preprocess, *, description: str
) -> Metrics:
    """Run a network of ours, quantized or not, and measure it with the metric of its task."""
    if isinstance(model, BEVSegmentation):
        return evaluate_map(model, dataset, preprocess, description=description)
    if isinstance(model, BEVOccupancy):
        return evaluate_occupancy(model, dataset, preprocess, description=description)
    assert isinstance(model, BEVFusion | CameraDetector)
    return evaluate(float_predictor(model), dataset, preprocess, description=description)


def _decoded(
    model: BEVSegmentation | BEVOccupancy,
    dataset: NuScenesDataset,
    preprocess: Preprocess,
    description: str,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield every frame with what the network makes of it, under a progress bar."""
    dataset.check()
    model.eval()
    device = next(model.parameters()).device
    for batch in track(_batches(dataset, preprocess), description, total=len(dataset)):
        with torch.inference_mode():
            yield batch, model.decode(model(batch.to(device)))


def _batches(dataset: NuScenesDataset, preprocess: Preprocess) -> Iterator[Batch]:
    """Yield batches of one frame; a thread prepares the next while one is in use."""

    def load(index: int) -> Batch:
        return collate([dataset.frame(index)], preprocess)

    with ThreadPoolExecutor(max_workers=1) as executor:
        upcoming = executor.submit(load, 0)
        for index in range(1, len(dataset) + 1):
            batch = upcoming.result()
            if index < len(dataset):
                upcoming = executor.submit(load, index)
            yield batch

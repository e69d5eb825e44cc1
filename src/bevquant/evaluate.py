"""Run a predictor over a split and measure it with the official metric."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from bevquant.data.frame import Batch, Boxes
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import Preprocess, collate
from bevquant.metrics.detection import DetectionMetrics, evaluate_submission, submission
from bevquant.models.bevfusion import BEVFusion
from bevquant.progress import track

Predictor = Callable[[Batch], list[Boxes]]
"""Whatever turns a batch into boxes: a float network, a quantized one, a deployed file."""

Prediction = tuple[str, Boxes]
"""A sample token and the boxes predicted for it, in the LiDAR frame."""


def float_predictor(model: BEVFusion) -> Predictor:
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

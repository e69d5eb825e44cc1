from pathlib import Path

import pytest
import torch

from bevquant.data.frame import Batch, Boxes
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import SMALL, collate
from bevquant.errors import BevquantError
from bevquant.evaluate import evaluate, float_predictor, predict_split, score
from bevquant.models.bevfusion import SMALL as SMALL_NETWORK
from bevquant.models.bevfusion import BEVFusion

PREPROCESS = SMALL.model_copy(update={"point_range": (-75.0, -75.0, -5.0, 75.0, 75.0, 5.0)})


@pytest.fixture(scope="module")
def dataset(tiny_world: Path) -> NuScenesDataset:
    return NuScenesDataset(tiny_world, "v1.0-world", "world_val", sweeps=1)


def oracle(batch: Batch) -> list[Boxes]:
    assert batch.boxes is not None
    return list(batch.boxes)


def test_every_frame_is_predicted_once_and_in_order(dataset: NuScenesDataset):
    seen = []

    def predict(batch: Batch) -> list[Boxes]:
        seen.append(batch)
        return oracle(batch)

    predictions = predict_split(predict, dataset, PREPROCESS, description="test")
    assert [token for token, _ in predictions] == list(dataset.tokens)
    assert [batch.tokens for batch in seen] == [(token,) for token in dataset.tokens]
    for index, batch in enumerate(seen):
        expected = collate([dataset.frame(index)], PREPROCESS)
        torch.testing.assert_close(batch.images, expected.images)
        torch.testing.assert_close(batch.points[0], expected.points[0])


def test_evaluate_scores_what_was_predicted(dataset: NuScenesDataset):
    metrics = evaluate(oracle, dataset, PREPROCESS, description="test")
    predictions = predict_split(oracle, dataset, PREPROCESS, description="test")
    assert metrics.to_json() == score(dataset, predictions).to_json()
    assert metrics.mAP > 0.3
    assert metrics.frames == len(dataset)


def test_damage_is_found_before_the_first_prediction(damaged_world: Path):
    dataset = NuScenesDataset(damaged_world, "v1.0-world", "world_val", sweeps=1)
    last = dataset.devkit.get("sample", dataset.tokens[-1])["data"]["CAM_FRONT"]
    Path(dataset.devkit.get_sample_data_path(last)).unlink()

    def predict(batch: Batch) -> list[Boxes]:
        raise AssertionError("predicted before the files were checked")

    with pytest.raises(BevquantError, match=r"CAM_FRONT.*cannot be read"):
        predict_split(predict, dataset, PREPROCESS, description="test")


def test_a_failure_while_reading_ahead_is_reported(dataset: NuScenesDataset):
    nowhere = PREPROCESS.model_copy(update={"point_range": (500.0, 500.0, 0.0, 501.0, 501.0, 1.0)})
    with pytest.raises(BevquantError, match=r"none of its .* LiDAR points"):
        predict_split(oracle, dataset, nowhere, description="test")


def test_the_float_predictor_runs_the_network_in_eval_mode(dataset: NuScenesDataset):
    torch.manual_seed(0)
    model = BEVFusion(SMALL_NETWORK).train()
    batch = collate([dataset.frame(0)], SMALL)
    (boxes,) = float_predictor(model)(batch)
    assert not model.training
    with torch.no_grad():
        (expected,) = model.decode(model(batch))
    assert boxes.scores is not None and expected.scores is not None
    torch.testing.assert_close(boxes.values, expected.values)
    torch.testing.assert_close(boxes.scores, expected.scores)
    assert not boxes.values.requires_grad

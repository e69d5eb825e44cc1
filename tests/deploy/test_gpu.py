import pytest
import torch

from bevquant.data.nuscenes import NuScenesDataset
from bevquant.deploy.gpu import ARITHMETICS, candidates_per_second, time_arithmetics
from bevquant.models.bevfusion import BEVFusion, NetworkInput
from bevquant.run import calibration_batches, load_small

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""The same code on the CPU where there is no GPU: only the figures mean nothing then."""


@pytest.fixture(scope="module")
def model() -> BEVFusion:
    return load_small()


@pytest.fixture(scope="module")
def frame(model, tiny_world) -> NetworkInput:
    dataset = NuScenesDataset(tiny_world, "v1.0-world", "world_train", sweeps=1)
    return model.prepare(calibration_batches(dataset, 1)[0])


def test_every_arithmetic_runs_and_leaves_the_model_as_it_was(model, frame):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    timings = time_arithmetics(model, [frame], DEVICE, rounds=1)
    assert set(timings) == set(ARITHMETICS)
    assert all(0 < timing.median_ms < 60_000 for timing in timings.values())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_candidates_are_counted_and_the_model_stays_float(model, frame):
    modules = dict(model.named_modules())
    assert 0.01 < candidates_per_second(model, frame, DEVICE, rounds=2) < 1e5
    assert dict(model.named_modules()) == modules

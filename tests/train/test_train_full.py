"""The public network learns too."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bevquant.data.frame import Boxes
from bevquant.models.bevfusion import FULL, BEVFusion
from bevquant.models.bevfusion.losses import LossSettings
from bevquant.train.loop import initial_state, loss_terms, train_step
from bevquant.train.parallel import Replicas
from bevquant.train.settings import TrainSettings


@pytest.mark.slow
def test_two_steps_of_the_public_network() -> None:
    rig = runpy.run_path(str(Path(__file__).parents[1] / "models" / "conftest.py"))
    torch.manual_seed(0)
    model = BEVFusion(FULL)
    values = torch.tensor([[10.0, 5, -1, 4.5, 2, 1.6, 0.5, 3, 0], [-20, 8, -1, 1, 1, 2, 0, 0, 0]])
    values[1, 7:] = torch.nan
    boxes = Boxes(values, torch.tensor([0, 8]))
    batch = replace(rig["synthetic_batch"](FULL), boxes=(boxes,))
    settings = TrainSettings(epochs=1, batch_size=1, replicas=1, lr=1e-3, warmup=0.5)
    state = initial_state(model, settings, steps=2)
    before = {name: value.clone() for name, value in model.named_parameters()}
    replicas = Replicas(model, 1, loss_terms(LossSettings()))
    rows = [train_step(state, replicas, [batch], settings.clip) for _ in range(2)]
    total = [row["heatmap"] + row["class"] + row["box"] for row in rows]
    assert total[1] < total[0]
    unmoved = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    constants = {"dx", "bx", "nx", "frustum"}
    assert {name.removeprefix("view_transform.") for name in unmoved} == constants

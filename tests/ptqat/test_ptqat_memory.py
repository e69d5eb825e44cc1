import torch
from torch import nn

import bevquant as bq
from bevquant.ptqat.memory import step_bytes


def test_frozen_layers_cost_no_memory() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    batches = [torch.randn(64, 16)]
    bq.quantize(model, bq.W4A8)
    bq.calibrate(model, batches)
    task = bq.Task(batches)
    last, both = (step_bytes(model, x, task, bq.Training()) for x in (["2"], ["0", "2"]))
    parameters = (16 * 16 + 16) * 4
    # The first layer's gradient and moments, and at least its input and its output.
    assert both - last >= 3 * parameters + 2 * 64 * 16 * 4
    assert last >= 3 * parameters

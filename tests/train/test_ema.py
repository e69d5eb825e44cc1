"""The moving average against its formula."""

import torch
from torch import nn

from bevquant.train.ema import averaged


def test_average_follows_the_formula() -> None:
    model = nn.Linear(3, 2)
    average, decay = averaged(model, 0.9), 0.9
    expected = None
    for step in range(5):
        nn.init.constant_(model.weight, float(step**2))
        average.update_parameters(model)
        value = float(step**2)
        expected = value if expected is None else decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight, torch.full((2, 3), expected))


def test_buffers_and_integers_are_copied_exactly() -> None:
    model = nn.BatchNorm1d(2)
    model.cells = nn.Parameter(torch.tensor([360, 7, 1]), requires_grad=False)
    model.register_buffer("index", torch.arange(100))
    average = averaged(model, 0.999)
    for _ in range(20):
        model(torch.randn(8, 2))
        average.update_parameters(model)
    assert average.module.cells.tolist() == [360, 7, 1]
    assert torch.equal(average.module.index, torch.arange(100))
    assert torch.equal(average.module.running_mean, model.running_mean)
    assert average.module.num_batches_tracked.item() == 20

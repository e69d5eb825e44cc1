import copy

import pytest
import torch
from quant_nets import ResNet, noise, seeded
from torch import Tensor, nn

import bevquant as bq
from bevquant.ptqat.layers import training
from bevquant.ptqat.memory import step_bytes
from bevquant.ptqat.objective import objective
from bevquant.ptqat.recompute import recomputing
from bevquant.ptqat.train import train
from bevquant.quant.layers import quant_modules


class Picks(nn.Module):
    """A backbone and a head that picks rows, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12))
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        picked: Tensor = self.head(self.backbone(x))
        return picked


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score, self.out = nn.Linear(12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.score(x).flatten(1).topk(5, dim=1).indices
        picked: Tensor = self.out(x.gather(1, rows[..., None].expand(-1, -1, 12)))
        return picked


NETS = {
    "picks": (Picks, [noise(4, 30, 6, seed=seed) for seed in range(3)]),
    "resnet": (ResNet, [noise(2, 3, 8, 8, seed=seed) for seed in range(3)]),
}


def prepared(name: str) -> tuple[nn.Module, list[Tensor]]:
    build, batches = NETS[name]
    model = seeded(build())
    bq.fold_batchnorm(model, batches[0])
    bq.calibrate(bq.quantize(model, bq.W2A8), batches)
    return model, batches


@pytest.mark.parametrize("name", NETS)
def test_the_same_gradients_from_less_memory(name: str) -> None:
    model, batches = prepared(name)
    layers = [layer.name for layer in quant_modules(model)]
    gradients = []
    for recompute in (False, True):
        with training(model, layers) as trained:
            if recompute:
                with recomputing(model):
                    objective(model, bq.Task(batches), batches[0], 1.0).backward()
            else:
                objective(model, bq.Task(batches), batches[0], 1.0).backward()
            learned = [p for layer in trained for p in layer.learned.values()]
            gradients.append([p.grad for p in learned if p.grad is not None])
    assert gradients[0]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-6, atol=1e-9)
    plain, less = (
        step_bytes(model, layers, bq.Task(batches), bq.Training(recompute=recompute))
        for recompute in (False, True)
    )
    assert less < plain
    assert "forward" not in {key for module in model.modules() for key in module.__dict__}


def test_training_comes_to_the_same_weights() -> None:
    model, batches = prepared("resnet")
    other = copy.deepcopy(model)
    layers = [layer.name for layer in quant_modules(model)]
    short = bq.Training(steps=4, lr=0.02)
    plain = train(model, layers, bq.Task(batches), short)
    recomputed = train(
        other, layers, bq.Task(batches), short.model_copy(update={"recompute": True})
    )
    assert recomputed.after == pytest.approx(plain.after, rel=1e-5)


def test_a_forward_of_the_users_stays() -> None:
    model, batches = prepared("picks")
    own = model.backbone.forward
    model.backbone.forward = own
    with recomputing(model):
        assert model.backbone.forward is not own
        model(batches[0])
    assert model.backbone.__dict__["forward"] is own
    with recomputing(model):
        pass
    assert "forward" not in model.head.__dict__

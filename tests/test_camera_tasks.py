"""The camera-only detectors through quantization, from sensors to metric, with random weights."""

from pathlib import Path

import pytest
import torch

import bevquant as bq
from bevquant.data.world import VERSION
from bevquant.evaluate import measure
from bevquant.listing import list_layers
from bevquant.models.zoo import network
from bevquant.run import quantize_small
from bevquant.tasks import Frames, shipped_task, task_error, task_loss

NAMES = ["bevdepth4d_small", "petr_small"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quantize_calibrate_train_measure(name: str, tiny_world: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = network(name)
    model = net.build().eval()
    train = net.dataset(tiny_world, VERSION, "world_train")
    val = net.dataset(tiny_world, VERSION, "world_val", limit=1)
    frames = Frames(train, net.preprocess, 2, seed=0)
    with torch.no_grad():
        reference = model(frames[0])
    error = task_error(model)
    assert error(reference, reference) == pytest.approx(0, abs=1e-6)

    quantize_small(model, list(frames), bq.W8A8)
    assert 0 <= measure(model, val, net.preprocess, description="W8A8").mAP < 0.5
    with torch.no_grad():
        assert error(model(frames[0]), reference) > 0
        assert task_loss(name)(model, frames[0]).isfinite()

    bq.apply(model, bq.BitPolicy({"*": bq.W4A8}))
    task = shipped_task(name, train, frames=2)
    found = bq.ptqat(model, task, training=bq.Training(steps=2, lr=1e-3), folder=tmp_path)
    assert found.trained.after <= found.trained.before


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_counted_without_numbers(name: str) -> None:
    infos = {info.name: info for info in list_layers(name, everything=True, json=None)}
    assert all(info.macs for info in infos.values())
    # 6 images of 32 x 88 patches, 4 x 4 x 3 pixels each, 24 channels.
    projection = next(n for n in infos if n.endswith("patch_embed.projection"))
    views = 12 if name == "bevdepth4d_small" else 6
    assert infos[projection].macs == views * 32 * 88 * 48 * 24

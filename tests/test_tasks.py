"""The shipped dense networks through quantization, from sensors to metric."""

from pathlib import Path

import pytest
import torch

import bevquant as bq
from bevquant.data.world import VERSION
from bevquant.errors import BevquantError
from bevquant.evaluate import measure
from bevquant.models.zoo import network
from bevquant.run import look_at_labels, quantize_small
from bevquant.tasks import Frames, load_shipped, shipped_task, task_error, task_loss

NAMES = ["bevfusion_seg_small", "bevfusion_occ_small"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quantize_calibrate_train_measure(name: str, tiny_world: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    net, model = network(name), load_shipped(name)
    train = net.dataset(tiny_world, VERSION, "world_train")
    val = net.dataset(tiny_world, VERSION, "world_val")
    before = measure(model, val, net.preprocess, description="float")
    assert before.mIoU > 0.2
    frames = Frames(train, net.preprocess, 2, seed=0)
    with torch.no_grad():
        reference = model(frames[0])
    assert task_error(model)(reference, reference) == pytest.approx(0, abs=1e-6)

    quantize_small(model, list(frames), bq.W8A8)
    after = measure(model, val, net.preprocess, description="W8A8")
    assert abs(before.mIoU - after.mIoU) < 0.02
    with torch.no_grad():
        assert 0 < task_error(model)(model(frames[0]), reference) < 0.3
    quantized = {layer.name for layer in bq.layers(model)} - {x.name for x in bq.unquantized(model)}
    assert {n for n in quantized if n.startswith(("map_head", "occ_head"))}

    task = shipped_task(name, train, frames=2)
    bq.apply(model, bq.BitPolicy({"*": bq.W4A8}))
    with torch.no_grad():
        rounded = task_loss(model, frames[0])
    found = bq.ptqat(model, task, training=bq.Training(steps=4, lr=1e-3), folder=tmp_path)
    assert found.trained.after <= found.trained.before
    assert rounded.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_look_from_above(name: str, tiny_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "above.png"
    look_at_labels(name, None, tiny_world, VERSION, "world_val", 0, out)
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BevquantError, match="ends at frame 1"):
        look_at_labels(name, None, tiny_world, VERSION, "world_val", 2, out)
    with pytest.raises(BevquantError, match="labels no cells"):
        look_at_labels("bevfusion_small", None, tiny_world, VERSION, "world_val", 0, out)


def test_a_task_without_its_labels_is_refused(tiny_world: Path) -> None:
    net = network("bevfusion_seg_small")
    unlabelled = network("bevfusion_small").dataset(tiny_world, VERSION, "world_val", limit=1)
    (batch,) = Frames(unlabelled, net.preprocess, 1, seed=0)
    torch.manual_seed(0)
    with pytest.raises(BevquantError, match="map_masks: the batch has none"):
        task_loss(net.build().eval(), batch)
    with pytest.raises(BevquantError, match="map labels: the data set has none"):
        measure(net.build().eval(), unlabelled, net.preprocess, description="")

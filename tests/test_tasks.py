"""The shipped dense networks through quantization, from sensors to metric."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import bevquant as bq
from bevquant.data.world import VERSION
from bevquant.errors import BevquantError
from bevquant.evaluate import measure
from bevquant.models.bevdepth.model import BEVDepthOutput
from bevquant.models.bevfusion.losses import LossSettings
from bevquant.models.bevfusion.transfusion import HeadOutput
from bevquant.models.petr.head import PETROutput
from bevquant.models.zoo import network
from bevquant.run import look_at_labels, quantize_small
from bevquant.tasks import (
    Frames,
    _loss_settings,
    load_shipped,
    shipped_task,
    task_error,
    task_loss,
    task_outputs,
    task_weights,
)

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
        rounded = task_loss(name)(model, frames[0])
    found = bq.ptqat(model, task, training=bq.Training(steps=4, lr=1e-3), folder=tmp_path)
    assert found.trained.after <= found.trained.before
    assert rounded.isfinite()


def test_labels_are_compared_by_their_probabilities() -> None:
    logits = torch.randn(1, 4, 4, 2, 18)
    (classes,) = task_outputs("bevfusion_occ_small")(logits)
    assert torch.allclose(classes.sum(-1), torch.ones(1, 4, 4, 2))
    (areas,) = task_outputs("bevfusion_seg_small")(logits)
    assert torch.allclose(areas, 1 / (1 + (-logits).exp()))


def test_a_box_counts_as_much_as_it_is_believed_in() -> None:
    codes = torch.ones(1, 1, 3, 10)
    logits = torch.tensor([[[[-30.0, -30], [-20, 0], [30, -30]]]])
    output = PETROutput(logits, codes)
    chance, same = task_outputs("petr_small")(output)
    assert torch.allclose(chance, torch.tensor([[[[0.0, 0], [0, 0.5], [1, 0]]]]), atol=1e-6)
    assert torch.equal(same, codes)
    alike, belief = task_weights(nn.Identity(), output)
    assert alike == 1
    assert torch.allclose(belief[0, 0, :, 0], torch.tensor([0.0, 0.25, 1]), atol=1e-6)

    # Each group of classes has boxes of its own; only the second believes in one.
    heatmap = torch.full((1, 10, 2, 3), -30.0)
    heatmap[:, 7] = 0
    deep = BEVDepthOutput(heatmap, torch.ones(1, 2, 10, 2, 3), torch.randn(1, 1, 4, 2, 3))
    _, belief = task_weights(network("bevdepth4d_small").build(), deep)
    assert belief.shape == (1, 2, 1, 2, 3)
    assert torch.allclose(belief[0, :, 0, 0, 0], torch.tensor([0.0, 0.25]))


def test_every_output_of_a_shipped_network_has_a_weight() -> None:
    for name in NAMES:
        assert task_weights(nn.Identity(), torch.zeros(1, 2, 3)) == [torch.ones(())]
        assert len(task_outputs(name)(torch.zeros(1, 2, 3))) == 1


def test_a_centre_is_compared_within_the_cell_that_proposed_it() -> None:
    # On a grid of 5 x 7 cells, cell 9 is (1, 2).
    one = torch.ones(1, 1, 1)
    output = HeadOutput(
        center=torch.tensor([[[1.25], [2.75]]]),
        height=one,
        dim=one.expand(1, 3, 1),
        rot=one.expand(1, 2, 1),
        vel=one.expand(1, 2, 1),
        heatmap=torch.zeros(1, 10, 1),
        query_heatmap_score=torch.rand(1, 10, 1),
        query_labels=torch.zeros(1, 1, dtype=torch.int64),
        query_cells=torch.tensor([[9]]),
        dense_heatmap=torch.zeros(1, 10, 5, 7),
    )
    dense, chance, codes = task_outputs("bevfusion_small")(output)
    assert dense.shape == (1, 10, 5, 7)
    assert torch.equal(chance, torch.full((1, 10, 1), 0.5))
    assert codes[0, :, 0].tolist() == [0.25, 0.75, *[1.0] * 8]
    *alike, belief = task_weights(nn.Identity(), output)
    assert alike == [1, 1]
    assert belief.tolist() == [[[0.25]]]


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


def test_the_loss_is_the_one_of_the_recipe() -> None:
    """The shipped BEVFusion was trained with other weights than the reference's."""
    recipe = yaml.safe_load(Path("recipes/bevfusion_small_world.yaml").read_text())
    wanted = LossSettings(**recipe["train"]["loss"])
    assert wanted != LossSettings()
    assert _loss_settings("bevfusion_small") == wanted
    assert _loss_settings("bevfusion") == LossSettings()


def test_a_task_without_its_labels_is_refused(tiny_world: Path) -> None:
    net = network("bevfusion_seg_small")
    unlabelled = network("bevfusion_small").dataset(tiny_world, VERSION, "world_val", limit=1)
    (batch,) = Frames(unlabelled, net.preprocess, 1, seed=0)
    torch.manual_seed(0)
    with pytest.raises(BevquantError, match="map_masks: the batch has none"):
        task_loss("bevfusion_seg_small")(net.build().eval(), batch)
    with pytest.raises(BevquantError, match="map labels: the data set has none"):
        measure(net.build().eval(), unlabelled, net.preprocess, description="")

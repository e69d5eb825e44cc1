"""BEVDepth4D: geometry by hand, box codes there and back, learning, quantization."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

import bevquant as bq
from bevquant.data.frame import Batch, Boxes
from bevquant.errors import BevquantError
from bevquant.models.bevdepth import FULL, SMALL, BEVDepth, BEVDepthConfig
from bevquant.models.bevdepth.centers import best_nearby, decode, targets
from bevquant.models.bevdepth.depth_loss import depth_bins
from bevquant.models.bevdepth.model import BEFORE, NOW
from bevquant.models.weights import load_camera
from bevquant.models.zoo import shipped

POINT_REACH = (0.0, 0.0, 0.0, 20.0)


def toy_config() -> BEVDepthConfig:
    """SMALL on a coarse grid, with few channels."""
    config = SMALL.model_dump()
    config["image_size"] = (64, 128)
    config["lift"] |= {
        "depth_bounds": (1.0, 21.0, 2.0),
        "x_bounds": (-24.0, 24.0, 1.5),
        "y_bounds": (-24.0, 24.0, 1.5),
    }
    config["depth_net"] |= {"channels": 16, "context_channels": 8}
    config["head"] |= {"grid": (16, 16), "origin": (-24.0, -24.0), "cell_size": 3.0}
    config["head"]["trunk"] |= {"in_channels": 16, "base_channels": 16}
    return BEVDepthConfig.model_validate(config)


def motion() -> torch.Tensor:
    """The key frame before in the key frame's LiDAR: 3 m behind, turned a little."""
    angle = torch.tensor(0.2)
    moved = torch.eye(4)
    moved[:2, :2] = torch.stack(
        (torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos())))
    )
    moved[:3, 3] = torch.tensor([0.4, -3.0, 0.1])
    return moved


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Two frames with the views of two times and three objects."""

    class Sizes:
        image_size = (64, 128)
        point_range = POINT_REACH

    one = make_batch(Sizes, frames=2, points=3000)
    other = make_batch(Sizes, frames=2, points=10, seed=1)
    parts = {
        name: torch.cat((getattr(one, name), getattr(one, name)), 1)
        for name in ("intrinsics", "image_augmentation")
    }
    past = motion() @ one.camera2lidar
    camera2lidar = torch.cat((one.camera2lidar, past), 1)
    values = torch.tensor(
        [
            [5.0, 7.0, -1.0, 4.2, 1.9, 1.6, 0.5, 3.0, -1.0],
            [-10.2, 3.3, -0.5, 8.0, 2.5, 3.0, -2.0, 0.0, 0.0],
            [4.1, -11.0, -1.2, 0.6, 0.7, 1.7, 3.0, float("nan"), float("nan")],
        ]
    )
    boxes = Boxes(values, torch.tensor([0, 4, 8]))
    return dataclasses.replace(
        one,
        **parts,
        images=torch.cat((one.images, other.images), 1),
        camera2lidar=camera2lidar,
        lidar2image=parts["intrinsics"] @ torch.inverse(camera2lidar),
        boxes=(boxes, boxes),
    )


def test_earlier_features_are_moved_by_the_ego_motion(batch: Batch) -> None:
    view = BEVDepth(toy_config()).backbone
    inputs = BEVDepth(toy_config()).prepare(batch)
    # As if the earlier key frame were the present one, then every point on its own.
    then = dataclasses.replace(
        batch.views(BEFORE), camera2lidar=torch.inverse(motion()) @ batch.camera2lidar[:, BEFORE]
    )
    points = torch.stack(view.geometry(then), -1).double()
    flat = points.flatten(0, -2)
    moved = flat @ motion()[:3, :3].double().T + motion()[:3, 3].double()
    cells = {}
    for index, (x, y, z) in enumerate(moved.tolist()):
        i, j = (x + 24.0) / 1.5, (y + 24.0) / 1.5
        if 0 <= i < 32 and 0 <= j < 32 and -10 <= z < 10:
            frame = index // (len(flat) // 2)
            cells[index] = (frame * 32 + int(i)) * 32 + int(j)
    found = dict(zip(inputs.pool_before[0].tolist(), inputs.pool_before[2].tolist(), strict=True))
    # Points on the border of a cell may fall on either side in float32, and those in (-1, 0) of
    # the first cell count in the reference.
    inner = {index: cell for index, cell in found.items() if index in cells}
    assert len(inner) > 0.9 * len(found) > 1000
    different = sum(cells[index] != cell for index, cell in inner.items())
    assert different < 0.001 * len(inner)
    assert found != dict(zip(inputs.pool[0].tolist(), inputs.pool[2].tolist(), strict=True))


def test_depth_bins_against_a_loop(batch: Batch) -> None:
    config = toy_config()
    now = batch.views(NOW)
    known, bins = depth_bins(now, config, 10)
    nearest: dict[tuple[int, ...], float] = {}
    for frame, cloud in enumerate(now.points):
        xyz1 = torch.cat((cloud[:, :3], torch.ones(len(cloud), 1)), 1)
        for camera in range(6):
            u, v, depth, _ = (xyz1 @ now.lidar2image[frame, camera].T).unbind(1)
            scale, shift = now.image_augmentation[frame, camera, 0, 0], now.image_augmentation
            column = (u / depth * scale + shift[frame, camera, 0, 3]) / 8
            row = (v / depth * scale + shift[frame, camera, 1, 3]) / 8
            seen = (depth > 0.1) & (column >= 0) & (column < 16) & (row >= 0) & (row < 8)
            for i in seen.nonzero().flatten().tolist():
                cell = (frame, camera, int(row[i]), int(column[i]))
                nearest[cell] = min(depth[i].item(), nearest.get(cell, 1e9))
    expected = {cell: int((d - 1) / 2) for cell, d in nearest.items() if 1 <= d < 21}
    found = {tuple(cell.tolist()): bins[tuple(cell)].item() for cell in known.nonzero()}
    # A pixel keeps its last point only, so that now and then a nearer one is lost.
    agree = sum(found.get(cell) == value for cell, value in expected.items())
    assert agree > 0.97 * len(expected) > 100
    assert len(found) > 0.97 * len(expected)


def test_decoded_targets_are_the_boxes(batch: Batch) -> None:
    config = toy_config().head
    assert batch.boxes is not None
    heat, places, codes = targets(config, batch.boxes)
    logits = torch.where(heat == 1, 8.0, -8.0)
    answers = torch.zeros(2, len(config.groups), 10, 16, 16)
    answers[places[:, 0], places[:, 1], :, places[:, 2], places[:, 3]] = codes
    for boxes, truth in zip(decode(config, logits, answers), batch.boxes, strict=True):
        torch.testing.assert_close(boxes.values, truth.values, equal_nan=True)
        assert boxes.labels.tolist() == truth.labels.tolist()


def test_of_close_boxes_the_best_stays() -> None:
    centers = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.2, 0.0], [5.0, 5.0]])
    # The second is suppressed by the first, and so does not suppress the third.
    assert best_nearby(centers, 1.0).tolist() == [0, 2, 3]
    assert best_nearby(centers[:0], 1.0).tolist() == []


def test_losses_fall_on_two_frames(batch: Batch) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = BEVDepth(toy_config())
    load_camera(model.camera, shipped("bevfusion_small"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(25):
        terms = model.losses(model(batch), batch)
        total = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({name: term.item() for name, term in terms.items()})
    for name in ("heatmap", "box", "depth"):
        assert history[-1][name] < 0.8 * history[0][name], name


def test_quantized_it_still_works(batch: Batch) -> None:
    torch.manual_seed(0)
    model = BEVDepth(toy_config()).eval()
    with torch.no_grad():
        before = model(batch)
        bq.fold_batchnorm(model, batch)
        bq.quantize(model, bq.W8A8)
        bq.calibrate(model, [batch])
        after = model(batch)
    assert not [layer.name for layer in bq.unquantized(model) if "conv" in layer.name]
    for name in ("heatmap", "codes", "depth"):
        ours, theirs = getattr(after, name), getattr(before, name)
        assert not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.2 * theirs.norm(), name


@pytest.mark.slow
def test_reconstruction_brings_4_bits_nearer(batch: Batch) -> None:
    torch.manual_seed(0)
    model = BEVDepth(toy_config()).eval()
    with torch.no_grad():
        before = model(batch)
    bq.fold_batchnorm(model, batch)
    bq.quantize(model, bq.W4A8)
    bq.calibrate(model, [batch])
    errors = []
    for step in range(2):
        if step:
            bq.reconstruct(model, [batch])
        with torch.no_grad():
            errors.append(float((model(batch).heatmap - before.heatmap).norm()))
    assert errors[1] < 0.8 * errors[0]


def test_views_of_one_time_are_refused(batch: Batch) -> None:
    with pytest.raises(BevquantError, match="open the data with past_images=1"):
        BEVDepth(toy_config()).prepare(batch.views(NOW))


def test_full_has_the_published_shapes() -> None:
    with torch.device("meta"):
        model = BEVDepth(FULL).eval()
        output = model.network(model.empty_input())
    assert output.heatmap.shape == (1, 10, 128, 128)
    assert output.codes.shape == (1, 6, 10, 128, 128)
    assert output.depth.shape == (1, 6, 112, 16, 44)
    names = model.state_dict()
    for name, shape in {
        "backbone.img_backbone.layer3.5.conv2.weight": (256, 256, 3, 3),
        "backbone.img_neck.deblocks.0.0.weight": (128, 256, 4, 4),
        "backbone.depth_net.depth_conv.3.aspp4.atrous_conv.weight": (512, 512, 3, 3),
        "backbone.depth_net.bn.weight": (27,),
        "head.trunk.conv1.weight": (160, 160, 7, 7),
        "head.neck.deblocks.3.0.weight": (640, 64, 8, 8),
        "head.shared_conv.conv.weight": (64, 256, 3, 3),
        "head.task_heads.5.heatmap.1.weight": (2, 64, 3, 3),
    }.items():
        assert names[name].shape == shape

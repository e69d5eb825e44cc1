"""PETR: positions by projecting back, matching by brute force, learning, quantization."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bevquant as bq
from bevquant.data.frame import Batch, Boxes
from bevquant.models.petr import FULL, PETR, SMALL, PETRConfig, PETROutput
from bevquant.models.petr.boxes import assign, decode, encode, losses
from bevquant.models.petr.denoise import NOISE, attention_loss, noisy
from bevquant.models.petr.position import line_depths, positions, sines, view_sines
from bevquant.models.weights import load_camera
from bevquant.models.zoo import shipped


def toy_config() -> PETRConfig:
    """SMALL with few channels, queries and points on a line."""
    config = SMALL.model_dump()
    config["image_size"] = (64, 128)
    config["position"] |= {"bins": 6, "span": (-30.0, -30.0, -10.0, 30.0, 30.0, 10.0)}
    config["head"] |= {"channels": 32, "num_queries": 20, "num_layers": 2, "ffn_channels": 32}
    return PETRConfig.model_validate(config)


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Two frames with three objects; the LiDAR frame of the second is turned and scaled."""

    class Sizes:
        image_size = (64, 128)
        point_range = (0.0, 0.0, 0.0, 20.0)

    plain = make_batch(Sizes, frames=2, points=10)
    augmentation = torch.eye(4).repeat(2, 1, 1)
    turn = torch.tensor([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]])
    augmentation[1, :2, :2] = 1.05 * turn
    augmentation[1, 2, 2] = 1.05
    values = torch.tensor(
        [
            [5.0, 7.0, -1.0, 4.2, 1.9, 1.6, 0.5, 3.0, -1.0],
            [-10.2, 3.3, -0.5, 8.0, 2.5, 3.0, -2.0, 0.0, 0.0],
            [4.1, -11.0, -1.2, 0.6, 0.7, 1.7, 3.0, float("nan"), float("nan")],
        ]
    )
    boxes = Boxes(values, torch.tensor([0, 4, 8]))
    return dataclasses.replace(plain, lidar_augmentation=augmentation, boxes=(boxes, boxes))


def test_depths_grow_by_a_constant_more() -> None:
    depths = line_depths(toy_config().position)
    assert depths[0] == 1
    assert depths[-1] < 30
    torch.testing.assert_close(depths.diff().diff(), torch.full((4,), 2 * 29 / 42))


def test_positions_project_back_onto_their_pixels(batch: Batch) -> None:
    config = toy_config().position
    model = PETR(toy_config())
    coordinates = positions(model.lines, batch, config)
    assert coordinates.shape == (2, 6, 18, 8, 16)
    low, high = torch.tensor(config.span).view(2, 3)
    place = coordinates.unflatten(2, (6, 3)).sigmoid()
    depths = line_depths(config)
    checked = 0
    for frame, camera, d, row, column in itertools.product(
        range(2), (0, 4), range(6), (0, 5), (3, 12)
    ):
        inside = place[frame, camera, d, :, row, column]
        if not ((inside > 1e-4) & (inside < 1 - 1e-4)).all():
            continue
        point = torch.ones(4)
        point[:3] = inside * (high - low) + low
        unmoved = torch.linalg.solve(batch.lidar_augmentation[frame], point)
        u, v, depth, _ = batch.lidar2image[frame, camera] @ unmoved
        stored = torch.stack((u / depth, v / depth, torch.tensor(1.0)))
        image = batch.image_augmentation[frame, camera]
        pixel = image[:2, :2] @ stored[:2] + image[:2, 3]
        torch.testing.assert_close(pixel, torch.tensor([column, row]) * 8.0, atol=0.1, rtol=0)
        torch.testing.assert_close(depth, depths[d], atol=0.01, rtol=0)
        checked += 1
    assert checked > 20


def test_sines() -> None:
    found = sines(torch.tensor([[0.3, 0.8]]), 4)[0]
    expected = [
        wave(2 * math.pi * x / 10_000 ** (k / 2))
        for x in (0.3, 0.8)
        for k in range(2)
        for wave in (math.sin, math.cos)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    code = view_sines(6, (8, 16), 4)
    assert code.shape == (6, 12, 8, 16)
    torch.testing.assert_close(code[2, :4, 3, 5], sines(torch.tensor([0.5]), 4))
    torch.testing.assert_close(code[2, 4:8, 3, 5], sines(torch.tensor([0.5]), 4))
    torch.testing.assert_close(code[2, 8:, 3, 5], sines(torch.tensor([6 / 16]), 4))


def test_assignment_is_the_cheapest_of_all() -> None:
    torch.manual_seed(0)
    logits, codes = torch.randn(4, 10), torch.randn(4, 10)
    labels, wanted = torch.tensor([2, 2, 7]), torch.randn(3, 10)

    def cost(query: int, number: int) -> float:
        p = logits[query, labels[number]].sigmoid()
        positive = -0.25 * (1 - p) ** 2 * p.log()
        negative = -0.75 * p**2 * (1 - p).log()
        distance = (codes[query, :8] - wanted[number, :8]).abs().sum()
        return float(2 * (positive - negative) + 0.25 * distance)

    best = min(
        itertools.permutations(range(4), 3),
        key=lambda queries: sum(cost(q, i) for i, q in enumerate(queries)),
    )
    queries, objects = assign(logits, codes, labels, wanted)
    assert [int(queries[objects == i]) for i in range(3)] == list(best)


def test_perfect_predictions_decode_to_the_boxes_and_cost_nothing(batch: Batch) -> None:
    config = toy_config().head
    assert batch.boxes is not None
    truth = batch.boxes[0]
    logits = torch.full((1, 1, 20, 10), -20.0)
    codes = torch.zeros(1, 1, 20, 10)
    codes[..., :3] = 200.0
    places = torch.tensor([11, 2, 7])
    logits[0, 0, places, truth.labels] = torch.tensor([9.0, 8.0, 7.0])
    codes[0, 0, places] = encode(truth.values).nan_to_num(3.0)
    output = PETROutput(logits, codes)
    (boxes,) = decode(config, output)
    assert boxes.scores is not None
    sure = boxes.scores > 0.5
    assert boxes.labels[sure].tolist() == truth.labels.tolist()
    torch.testing.assert_close(boxes.values[sure], truth.values.nan_to_num(3.0))
    terms = losses(output, [truth])
    assert all(term < 1e-5 for term in terms.values())
    worse = losses(output._replace(codes=codes + 0.5), [truth])
    # Half a unit in 8 entries and 0.2 of it in 2, less the velocity that is unknown.
    expected = 0.25 * 0.5 * (8 + 2 * 0.2 * 2 / 3)
    assert worse["box"].item() == pytest.approx(expected, rel=1e-4)


def test_losses_fall_on_two_frames(batch: Batch) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = PETR(toy_config())
    load_camera(model.camera, shipped("bevfusion_small"))
    optimizer = torch.optim.AdamW(model.pts_bbox_head.parameters(), lr=3e-3)
    totals = []
    for _ in range(20):
        output = model(batch)
        assert output.logits.shape == (2, 2, 20, 10)
        total = torch.stack(list(model.losses(output, batch).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_noisy_queries_are_near_their_objects(batch: Batch) -> None:
    config = toy_config().head
    assert batch.boxes is not None
    few = Boxes(batch.boxes[0].values[:1], batch.boxes[0].labels[:1])
    torch.manual_seed(0)
    found = noisy(config, [batch.boxes[0], few])
    assert found.counts == (3, 1)
    low, high = torch.tensor(config.point_range).view(2, 3)
    places = found.reference * (high - low) + low
    off = (places[0] - batch.boxes[0].values[:, :3]).abs()
    assert (off <= torch.tensor(NOISE) + 1e-4).all()
    assert off.max() > 0.3
    assert (found.reference[1, 1:] == 0.5).all()


def test_queries_shall_look_where_the_camera_sees_the_object(batch: Batch) -> None:
    model = PETR(toy_config())
    assert batch.boxes is not None
    height, width = 8, 16
    for frame, lines in enumerate(model._lines_to(batch.boxes, batch)):
        seen = 0
        for center, line in zip(batch.boxes[frame].values[:, :3], lines, strict=True):
            point = torch.cat((center, torch.ones(1)))
            unmoved = torch.linalg.solve(batch.lidar_augmentation[frame], point)
            cells = set()
            for camera in range(6):
                u, v, depth, _ = batch.lidar2image[frame, camera] @ unmoved
                stored = torch.stack((u / depth, v / depth, torch.tensor(1.0)))
                image = batch.image_augmentation[frame, camera]
                column, row = ((image[:2, :2] @ stored[:2] + image[:2, 3]) / 8).floor().int()
                if depth > 0 and 0 <= column < width and 0 <= row < height:
                    cells.add((camera * height + int(row)) * width + int(column))
            if cells:
                assert int(line) in cells
                seen += 1
        assert seen > 0


def test_attention_loss_is_small_where_one_head_looks_there() -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 4, 3, 50)
    wanted = [torch.tensor([7, 7, 30]), torch.tensor([49])]
    attention = scores.softmax(-1).mean(1)
    paid = [attention[0, 0, 7], attention[0, 1, 7], attention[0, 2, 30], attention[1, 0, 49]]
    expected = -torch.stack(paid).log().mean()
    torch.testing.assert_close(attention_loss([scores, scores], wanted), 2 * expected)
    none = [torch.empty(0, dtype=torch.int64)] * 2
    assert attention_loss([scores], none) == 0


def test_noisy_queries_leave_the_learned_ones_alone(batch: Batch) -> None:
    torch.manual_seed(0)
    model = PETR(toy_config())
    plain = model.losses(model(batch), batch)
    terms = model.training_terms(batch)
    assert {name: terms[name] for name in plain} == plain
    assert set(terms) - set(plain) == {"noisy class", "noisy box", "attention"}
    total = torch.stack(list(terms.values())).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_frames_without_objects_can_be_learned_from(batch: Batch) -> None:
    nothing = Boxes(torch.empty(0, 9), torch.empty(0, dtype=torch.int64))
    model = PETR(toy_config())
    terms = model.training_terms(dataclasses.replace(batch, boxes=(nothing, nothing)))
    assert all(term.isfinite() for term in terms.values())


def toy_with(**changes: Any) -> PETR:
    """The toy network with another head, of the same weights whatever ``changes``."""
    config = toy_config()
    torch.manual_seed(0)
    return PETR(config.model_copy(update={"head": config.head.model_copy(update=changes)})).eval()


def test_a_feature_weighs_its_position() -> None:
    torch.manual_seed(1)
    features, place = torch.randn(6, 48, 8, 16), torch.randn(1, 6, 18, 8, 16)
    model = toy_with().pts_bbox_head
    gate = model.fpe.conv_expand
    nn.init.zeros_(gate.weight)

    def key(gain: float, positions: Tensor) -> Tensor:
        nn.init.constant_(gate.bias, gain)
        return model.memory(features, positions)[0]

    with torch.no_grad():
        torch.testing.assert_close(key(-40, place), key(-40, -place))
        assert not torch.allclose(key(40, place), key(40, -place))
        half = (key(-40, place) + key(40, place)) / 2
        torch.testing.assert_close(key(0, place), half)


def test_a_query_knows_its_place() -> None:
    # With one query and one feature, attention has no choice: all else is the same everywhere.
    key = torch.randn(1, 1, 32)
    here, there = torch.full((1, 3), 0.4), torch.full((1, 3), 0.6)
    for placed in (True, False):
        head = toy_with(placed=placed).pts_bbox_head
        with torch.no_grad():
            logits = [head.predict(key, key, place).logits for place in (here, there)]
        assert torch.allclose(*logits) != placed


def test_an_offset_is_scaled() -> None:
    key = torch.randn(1, 5, 32)
    place = torch.full((4, 3), 0.3)
    moved = []
    for scale in (1.0, 0.1):
        head = toy_with(offset_scale=scale)
        low, high = torch.tensor(head.config.head.point_range).view(2, 3)
        with torch.no_grad():
            codes = head.pts_bbox_head.predict(key, key, place).codes
        moved.append(((codes[..., :3] - low) / (high - low)).logit() - place.logit())
    torch.testing.assert_close(moved[0], 10 * moved[1], rtol=1e-3, atol=1e-4)


def test_quantized_it_still_works(batch: Batch) -> None:
    torch.manual_seed(0)
    model = PETR(toy_config()).eval()
    with torch.no_grad():
        before = model(batch)
    assert before.logits.shape == (1, 2, 20, 10)
    bq.fold_batchnorm(model, batch)
    bq.quantize(model, bq.W8A8)
    bq.calibrate(model, [batch])
    with torch.no_grad():
        after = model(batch)
    for ours, theirs in zip(after, before, strict=True):
        assert not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.2 * theirs.norm()
    quantized = {layer.name for layer in bq.layers(model)} - {x.name for x in bq.unquantized(model)}
    head = "pts_bbox_head"
    assert {
        f"{head}.input_proj",
        f"{head}.position_encoder.2",
        f"{head}.transformer.decoder.layers.1.attentions.1.attn.value_proj",
    } <= quantized
    assert any(name.startswith(head) and "matmul" in name for name in quantized)


def test_full_has_the_published_shapes() -> None:
    with torch.device("meta"):
        model = PETR(FULL).eval()
        output = model.network(model.empty_input())
    assert output.logits.shape == (1, 1, 900, 10)
    names = model.state_dict()
    layer = "pts_bbox_head.transformer.decoder.layers.5"
    for name, shape in {
        "img_neck.lateral_convs.0.conv.weight": (256, 1024, 1, 1),
        "img_neck.fpn_convs.0.conv.bias": (256,),
        "pts_bbox_head.position_encoder.0.weight": (1024, 192, 1, 1),
        "pts_bbox_head.adapt_pos3d.0.weight": (1024, 384, 1, 1),
        "pts_bbox_head.reference_points.weight": (900, 3),
        "pts_bbox_head.query_embedding.0.weight": (256, 384),
        "pts_bbox_head.cls_branches.0.6.weight": (10, 256),
        "pts_bbox_head.reg_branches.0.4.bias": (10,),
        f"{layer}.attentions.1.attn.in_proj_weight": (768, 256),
        f"{layer}.ffns.0.layers.0.0.weight": (2048, 256),
        f"{layer}.norms.2.bias": (256,),
        "pts_bbox_head.transformer.decoder.post_norm.weight": (256,),
    }.items():
        assert names[name].shape == shape

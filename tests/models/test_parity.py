"""Every listed output of the public network against mmdetection3d's, within float noise.

The fixture was written by the reference code (mmdetection3d v1.4.0). Weights and images
follow a rule (below); the fixture stores the rest. Another fixture of the same form:
``BEVQUANT_PARITY=/path/to/fixture.npz pytest tests/models/test_parity.py``. If it lists points
on the border of a cell or a pixel, they are put where the reference's rounding put them.
"""

import dataclasses
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_places import (
    DEPTH_LISTS,
    FRUSTUM_LISTS,
    listed,
    place_depths,
    place_frustum,
    project,
)

from bevquant.data.frame import Batch
from bevquant.models.bevfusion import FULL, BEVFusion, NetworkInput
from bevquant.models.bevfusion.depth_lss import DepthLSSTransform, depth_map
from bevquant.models.bevfusion.voxelize import voxelize

DATA = Path(__file__).parent / "data"
MEAN = np.array([123.675, 116.28, 103.53], np.float32)[:, None, None]
STD = np.array([58.395, 57.12, 57.375], np.float32)[:, None, None]
TOLERANCES = json.loads((DATA / "parity_tolerances.json").read_text())


class Fixture:
    """The arrays and the facts of one fixture file."""

    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)
        self.meta = json.loads(str(self.arrays["meta_json"]))

    def __getitem__(self, key: str) -> Any:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def has(self, name: str) -> bool:
        """Tell whether anything of an output is stored, whole or in samples."""
        parts = ("", ".shape", ".full", ".idx", ".val")
        return any(f"out/{name}{part}" in self for part in parts)


# The rule of the weights


def gain(name: str) -> float:  # noqa: PLR0911
    ones = ("class_encoding.weight", "self_attn.attn.in_proj_weight", "out_proj.weight")
    ones += ("decoder.0.ffn.layers.1.weight", "position_embedding_head.3.weight")
    if name.startswith("img_backbone."):
        return 1.0
    if name in ("view_transform.depthnet.6.weight",) or name.endswith(
        "cross_attn.attn.in_proj_weight"
    ):
        return 1.5
    if name == "bbox_head.shared_conv.weight":
        return 0.25
    if name == "bbox_head.heatmap_head.1.weight":
        return 0.5
    if name.startswith("bbox_head.prediction_heads.0.") and name.endswith(".1.weight"):
        return 1.0
    if name.startswith("bbox_head.") and name.endswith(ones):
        return 1.0
    return math.sqrt(2)


def drawn(  # noqa: PLR0911
    name: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]], salt: str
) -> Any:
    """Return the value that the rule gives to one entry, or None where it draws nothing."""
    if name.endswith(("relative_position_index", "running_mean", "running_var")):
        return None
    if name.endswith("num_batches_tracked") or name in {
        f"view_transform.{constant}" for constant in ("dx", "bx", "nx", "frustum")
    }:
        return None
    seed = zlib.crc32(f"{salt}:{name}".encode())
    noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("relative_position_bias_table"):
        return np.float32(0.1) * noise
    if name.endswith("in_proj_weight") or (name.endswith(".weight") and len(shape) > 1):
        fan_in = shape[0] if name == "pts_neck.deblocks.1.0.weight" else math.prod(shape[1:])
        return noise * np.float32(gain(name) / math.sqrt(fan_in))
    if name.endswith(".weight"):
        return np.float32(1) + np.float32(0.05) * noise
    if name.endswith("in_proj_bias") or len(shapes[name.removesuffix("bias") + "weight"]) > 1:
        return np.float32(0.02) * noise
    return np.float32(0.05) * noise


def state_by_rule(model: BEVFusion, fixture: Fixture) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name, shape in shapes.items():
        if f"buffer/{name}" in fixture:
            state[name] = torch.from_numpy(fixture[f"buffer/{name}"])
            continue
        value = drawn(name, shape, shapes, fixture.meta["salt"])
        if value is None:
            continue
        crc, _ = fixture.meta["weight_crc32_and_sum"][name]
        assert zlib.crc32(value.tobytes()) == crc, name
        if f"override/{name}" in fixture:
            value = fixture[f"override/{name}"]
        state[name] = torch.from_numpy(value)
    return state


# The rule of the images


def images(fixture: Fixture) -> Any:
    """Return the normalised images [1, 6, 3, 256, 704]; stored ones may have channels last."""
    stored = next((key for key in ("in/imgs", "in/imgs_uint8") if key in fixture), None)
    pixels = fixture[stored] if stored else drawn_images()
    if pixels.shape[-1] == 3:
        pixels = np.moveaxis(pixels, -1, -3)
    if pixels.dtype == np.uint8:
        pixels = (pixels.astype(np.float32) - MEAN) / STD
    return pixels.astype(np.float32).reshape(1, 6, 3, *FULL.image_size)


def drawn_images() -> Any:
    random = np.random.RandomState(0)
    coarse, middle, fine = (
        random.random_sample((6, 3, 256 // step, 704 // step)) for step in (32, 4, 1)
    )
    coarse = coarse.repeat(32, 2).repeat(32, 3)
    middle = middle.repeat(4, 2).repeat(4, 3)
    return np.floor(200 * coarse + 80 * middle + 40 * fine - 32).clip(0, 255).astype(np.uint8)


def batch_of(fixture: Fixture) -> Batch:
    def matrices(key: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(fixture[f"in/{key}"].astype(np.float32)).reshape(shape)

    return Batch(
        images=torch.from_numpy(images(fixture)),
        points=(points_of(fixture),),
        lidar2image=matrices("lidar2image", 1, 6, 4, 4),
        intrinsics=matrices("cam_intrinsic", 1, 6, 4, 4),
        camera2lidar=matrices("camera2lidar", 1, 6, 4, 4),
        image_augmentation=matrices("img_aug_matrix", 1, 6, 4, 4),
        lidar_augmentation=matrices("lidar_aug_matrix", 1, 4, 4),
        lidar2ego=torch.eye(4).expand(1, 4, 4),
        tokens=("parity",),
    )


def points_of(fixture: Fixture) -> torch.Tensor:
    return torch.from_numpy(fixture["in/points"]).reshape(-1, 5)


# One forward pass with everything that the fixture lists


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(Path(os.environ.get("BEVQUANT_PARITY", DATA / "parity_public.npz")))


@pytest.fixture(scope="module")
def model(fixture: Fixture) -> BEVFusion:
    model = BEVFusion(FULL).eval()
    model.load_state_dict(state_by_rule(model, fixture), strict=True)
    return model


@pytest.fixture(scope="module")
def inputs(fixture: Fixture, model: BEVFusion) -> NetworkInput:
    """What the network is given, listed points where the reference put them."""
    batch = batch_of(fixture)
    given = model.prepare(batch)
    pooling = (given.pool_points, given.pool_pixels, given.pool_cells)
    points, pixels, cells = place_frustum(fixture, model.view_transform, batch, pooling)
    return given._replace(
        depth_map=place_depths(fixture, batch, given.depth_map),
        pool_points=points,
        pool_pixels=pixels,
        pool_cells=cells,
    )


@pytest.fixture(scope="module")
def results(fixture: Fixture, model: BEVFusion, inputs: NetworkInput) -> dict[str, torch.Tensor]:
    """All outputs under the fixture's names, queries in the fixture's order."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(name, output)

    watched = (
        "img_backbone.patch_embed",
        "img_backbone",
        "img_neck",
        "view_transform.dtransform",
        "view_transform.depthnet",
        "view_transform",
        "pts_middle_encoder",
        "fusion_layer",
        "pts_backbone",
        "pts_neck",
        "bbox_head.shared_conv",
        "bbox_head.decoder.0",
    )
    for name in watched:
        model.get_submodule(name).register_forward_hook(keep(name))
    model.view_transform.downsample.register_forward_pre_hook(
        lambda _module, inputs: found.__setitem__("view_transform.bev_pool", inputs[0])
    )
    batch = batch_of(fixture)
    with torch.inference_mode():
        output = model.network(inputs)
        found["view_transform.geometry"] = torch.stack(model.view_transform.geometry(batch), -1)
        found["view_transform.depth_map"] = inputs.depth_map[0]
    found["img_backbone.patch_embed"] = found["img_backbone.patch_embed"].flatten(1, 2)
    for name in ("img_backbone", "img_neck", "pts_backbone"):
        found |= {f"{name}.{i}": value for i, value in enumerate(found.pop(name))}
    found["bbox_head.dense_heatmap"] = output.dense_heatmap

    # The order of queries with nearly equal scores is float noise; their identity is not.
    ours = list(zip(output.query_labels[0].tolist(), output.query_cells[0].tolist(), strict=True))
    theirs = list(zip(fixture["out/head.query_label"], fixture["out/head.query_cell"], strict=True))
    assert sorted(ours) == sorted(theirs)
    order = torch.tensor([ours.index(query) for query in theirs])
    ordered = {
        name: value if name == "dense_heatmap" else value[..., order]
        for name, value in output._asdict().items()
    }
    decoded = found["bbox_head.decoder.0"].transpose(1, 2)
    found["bbox_head.decoder.0"] = decoded[..., order]
    for name in ("center", "height", "dim", "rot", "vel", "heatmap", "query_heatmap_score"):
        found[f"head.{name}"] = ordered[name]
    scores = ordered["query_heatmap_score"].gather(1, ordered["query_labels"][:, None])
    found["head.query_score"] = scores[0, 0]
    (boxes,) = model.decode(output._replace(**ordered))
    found["decoded.boxes"] = boxes.values
    bottom = boxes.values.clone()
    bottom[:, 2] -= boxes.values[:, 5] / 2
    found["decoded.boxes_bottom_centre"] = bottom
    found["decoded.scores"] = boxes.scores
    found["decoded.labels"] = boxes.labels
    return {name: value.detach() for name, value in found.items() if torch.is_tensor(value)}


def samples(fixture: Fixture, name: str) -> tuple[Any, Any]:
    """Return flat indices and expected values."""
    if name == "head.query_score":
        values = fixture["out/head.query_score"]
        return np.arange(len(values)), values
    if f"out/{name}.full" in fixture:
        values = fixture[f"out/{name}.full"].ravel()
        return np.arange(len(values)), values
    pairs = [(fixture[f"out/{name}.idx"], fixture[f"out/{name}.val"])]
    if f"out/{name}.nz_idx" in fixture:
        pairs.append((fixture[f"out/{name}.nz_idx"], fixture[f"out/{name}.nz_val"]))
    index, values = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return index, values


def test_our_own_fixture_has_every_output() -> None:
    stored = Fixture(DATA / "parity_public.npz")
    assert all(stored.has(name) for name in TOLERANCES)


@pytest.mark.parametrize("name", [name for name in TOLERANCES if name != "voxels.mean_features"])
def test_output(name: str, fixture: Fixture, results: dict[str, torch.Tensor]) -> None:
    if not fixture.has(name):
        pytest.skip(f"this fixture has no {name}")
    index, expected = samples(fixture, name)
    value = results[name].contiguous()
    if f"out/{name}.shape" in fixture:
        assert tuple(value.shape) == tuple(fixture[f"out/{name}.shape"])
    difference = np.abs(value.flatten().numpy()[index] - expected)
    if name.startswith("decoded.boxes"):
        turn = 2 * np.pi
        yaw = index % 9 == 6
        difference[yaw] = np.abs((difference[yaw] + np.pi) % turn - np.pi)
    rule = TOLERANCES[name]
    scale = 1.0
    if rule["relative"]:
        scale = fixture.meta["stats"][name]["std"] + np.abs(expected)
    worst = float((difference / scale).max())
    print(f"{name}: worst {worst:.1e}, tolerance {rule['tol']:.0e}")
    assert worst <= rule["tol"]


def test_labels(fixture: Fixture, results: dict[str, torch.Tensor]) -> None:
    expected = torch.from_numpy(fixture["out/decoded.labels_int"].astype(np.int64))
    assert torch.equal(results["decoded.labels"], expected)


def test_voxels(fixture: Fixture) -> None:
    voxels = voxelize(points_of(fixture), FULL)
    facts = fixture.meta["voxels"]
    keys = (voxels.coordinates[:, 0] * 1440 + voxels.coordinates[:, 1]) * 40
    keys += voxels.coordinates[:, 2]
    assert len(keys) == facts["voxels"]
    assert int(voxels.counts.sum()) == facts["num_points_sum"]
    assert zlib.crc32(np.sort(keys.numpy()).tobytes()) == facts["key_crc32"]
    x, y, z = fixture["out/voxels.xyz"].astype(np.int64).T
    row = torch.searchsorted(keys, torch.from_numpy((x * 1440 + y) * 40 + z))
    assert np.array_equal(voxels.counts[row].numpy(), fixture["out/voxels.num_points"])
    if fixture.has("voxels.mean_features"):
        difference = np.abs(voxels.features[row].numpy() - fixture["out/voxels.mean_features"])
        assert difference.max() <= TOLERANCES["voxels.mean_features"]["tol"]


def test_sparse_stages(fixture: Fixture, model: BEVFusion) -> None:
    """Sites exactly; features by their mean per channel."""
    encoder = model.pts_middle_encoder
    voxels = voxelize(points_of(fixture), FULL)
    _, size_y, size_z = encoder.shape
    x, y, z = voxels.coordinates.unbind(1)
    book = encoder.rulebook((x * size_y + y) * size_z + z)
    with torch.inference_mode():
        features = [
            encoder.conv_input(voxels.features, book.rules[0]),
            *encoder.stages(voxels.features, book.rules),
        ]
        features.append(encoder.conv_out(features[-1], book.rules[-1]))
    stages = [f"encoder_layers.encoder_layer{i}" for i in range(1, 5)]
    # The last stage keeps the sites of the one before.
    active = [*book.active[:-1], *book.active[-2:]]
    for name, value, sites in zip(
        ["conv_input", *stages, "conv_out"], features, active, strict=True
    ):
        facts = fixture.meta["stats"][f"pts_middle_encoder.{name}.features"]
        _, x, y, z = sites.coordinates()
        keys = np.sort(((x * 1440 + y) * 41 + z).numpy())
        assert len(keys) == facts["sites"] == len(value)
        assert zlib.crc32(keys.tobytes()) == facts["site_key_crc32"]
        mean = fixture[f"out/pts_middle_encoder.{name}.features.chan_mean"]
        assert np.abs(value.mean(0).numpy() - mean).max() <= 1e-4 * facts["std"]


def test_pooling_cells(fixture: Fixture, inputs: NetworkInput) -> None:
    cells = inputs.pool_cells
    facts = fixture.meta["view_transform"]
    fragile = 0 if listed(fixture, FRUSTUM_LISTS) else facts["fragile"]
    assert abs(len(cells) - facts["kept"]) <= fragile
    rows = torch.bincount(cells // 360, minlength=360).numpy()
    columns = torch.bincount(cells % 360, minlength=360).numpy()
    assert np.abs(rows - fixture["out/view_transform.cell_count_rows"]).sum() <= 2 * fragile
    assert np.abs(columns - fixture["out/view_transform.cell_count_cols"]).sum() <= 2 * fragile
    if not fragile:
        assert int(cells.sum()) == facts["cell_key_sum"]


def test_proposals(fixture: Fixture, model: BEVFusion) -> None:
    if "out/unit_proposals.label" not in fixture:
        pytest.skip("this fixture has no proposals of their own")
    heatmap = 0.5 * np.random.RandomState(22).standard_normal((10, 180, 180))
    border = np.ones((180, 180), bool)
    border[1:-1, 1:-1] = False
    heatmap[:, border] += 0.5
    logits = torch.from_numpy(heatmap.astype(np.float32))[None]
    labels, cells, scores = model.bbox_head.propose(logits)
    assert np.array_equal(labels[0], fixture["out/unit_proposals.label"])
    assert np.array_equal(cells[0], fixture["out/unit_proposals.cell"])
    assert np.allclose(scores[0], fixture["out/unit_proposals.query_heatmap_score"], atol=1e-6)


# Lists of points on a border: the public inputs, moved a little, with lists of where the points
# were before


def listing(names: tuple[str, str], *parts: Any) -> dict[str, Any]:
    return {f"out/view_transform.{x}": y for x, y in zip(names, parts, strict=True)}


def cells_of(view: DepthLSSTransform, batch: Batch) -> Any:
    """Return where all frustum points are, in cells [points, 3], in float64."""
    size = np.array([0.3, 0.3, 20.0])
    low = np.array([-54.0, -54.0, -10.0])
    xyz = torch.stack([x.flatten() for x in view.geometry(batch)], -1).double().numpy()
    return (xyz - low) / size


def test_listed_frustum_points_go_to_the_references_cells() -> None:
    stored = Fixture(DATA / "parity_public.npz")
    view = DepthLSSTransform(256, FULL.view_transform, FULL.image_size)
    reference = batch_of(stored)
    moved = reference.camera2lidar.clone()
    moved[..., :2, 3] += 2e-4  # metres, of cells of 0.3
    batch = dataclasses.replace(reference, camera2lidar=moved)
    cells, now = np.trunc(cells_of(view, reference)).astype(np.int64), cells_of(view, batch)
    near = np.flatnonzero((np.abs(now - now.round()) < 9e-4).any(1))
    assert 100 < (cells != np.trunc(now)).any(1).sum() < len(near)
    expected = view.pool_indices(reference)
    plain = view.pool_indices(batch)
    assert any(x.shape != y.shape or not x.equal(y) for x, y in zip(plain, expected, strict=True))
    lists = listing(FRUSTUM_LISTS, near.astype(np.int32), cells[near].astype(np.int16))
    placed = place_frustum(lists, view, batch, plain)
    for ours, theirs in zip(placed, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert place_frustum({}, view, batch, plain) is plain
    empty = listing(FRUSTUM_LISTS, np.zeros(0, np.int32), np.zeros((0, 3), np.int16))
    assert place_frustum(empty, view, batch, plain) is plain
    wrong = listing(FRUSTUM_LISTS, near, cells[near] + 1)  # a mistake, and no rounding
    with pytest.raises(AssertionError):
        place_frustum(wrong, view, batch, plain)


def pixels_of(batch: Batch) -> dict[tuple[int, int], tuple[int, int]]:
    """Return row and column of each camera and point, (-1, -1) where it is not seen."""
    height, width = FULL.image_size
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for camera in range(6):
        u, v, z = project(batch, camera, slice(None))
        last: dict[tuple[int, int], int] = {}
        for point in np.flatnonzero((u >= 0) & (u < width) & (v >= 0) & (v < height) & (z > 1e-5)):
            last[int(v[point]), int(u[point])] = int(point)
        found |= {(camera, point): pixel for pixel, point in last.items()}
    return found


def border(batch: Batch, distance: float) -> set[tuple[int, int]]:
    """Return cameras and points that may be seen, no farther than that from a pixel's border."""
    found = set()
    for camera in range(6):
        u, v, z = project(batch, camera, slice(None))
        near = np.minimum(np.abs(u - u.round()), np.abs(v - v.round())) < distance
        near &= (z > 1e-5) & (np.abs(u) < 1000) & (np.abs(v) < 1000)
        found |= {(camera, int(point)) for point in np.flatnonzero(near)}
    return found


def test_listed_lidar_points_go_to_the_references_pixels() -> None:
    stored = Fixture(DATA / "parity_public.npz")
    reference = batch_of(stored)
    moved = reference.image_augmentation.clone()
    moved[..., :2, 3] += 0.006  # pixels
    batch = dataclasses.replace(reference, image_augmentation=moved)
    theirs, ours = pixels_of(reference), pixels_of(batch)
    off = (-1, -1)
    other = {key for key in theirs | ours if theirs.get(key, off) != ours.get(key, off)}
    near = sorted(other | border(batch, 0.008))
    expected = depth_map(reference, FULL.image_size)
    plain = depth_map(batch, FULL.image_size)
    assert 100 < len(other) < len(near)
    assert any(theirs.get(key) is None or ours.get(key) is None for key in other)
    assert not torch.equal(plain > 0, expected > 0)
    places = [theirs.get(key, off) for key in near]
    lists = listing(DEPTH_LISTS, np.array(near, np.int32), np.array(places, np.int16))
    placed = place_depths(lists, batch, plain)
    assert torch.equal(placed > 0, expected > 0)
    torch.testing.assert_close(placed, expected, rtol=0, atol=1e-4)
    assert place_depths({}, batch, plain) is plain
    wrong = listing(DEPTH_LISTS, np.array(near), np.array(places) + 1)
    with pytest.raises(AssertionError):
        place_depths(wrong, batch, plain)

"""Labels of a generated world, against the geometry that the sensors see."""

import json
from pathlib import Path

import numpy as np
import pytest
from nuscenes.map_expansion import map_api
from scipy.ndimage import binary_dilation

from bevquant.data.frame import CAMERAS
from bevquant.data.label_files import RoadMap
from bevquant.data.labels import (
    FREE,
    MAP_CLASSES,
    OCCUPANCY_CLASSES,
    OCCUPANCY_ORIGIN,
    OCCUPANCY_SHAPE,
    VOXEL,
    MapGrid,
)
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.world import VERSION, WorldSettings, generate
from bevquant.data.world.ground import Surface
from bevquant.data.world.occupancy import camera_mask
from bevquant.data.world.rig import MOUNTS, mount_pose
from bevquant.data.world.roadmap import road_map
from bevquant.data.world.scene import make_scene

TINY = WorldSettings(scenes=2, keyframes=2, seed=3, sweeps=2, val_fraction=0.5, labels=True)
QUICK = WorldSettings(scenes=1, keyframes=2, sweeps=1, image_size=(40, 64), azimuths=90)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def dataset(tiny_world: Path) -> NuScenesDataset:
    return NuScenesDataset(
        tiny_world, VERSION, "world_train", sweeps=0, map_grid=MapGrid(40, 0.5), occupancy=True
    )


@pytest.fixture(scope="module")
def scene():
    return make_scene(TINY, 0)


def test_labels_change_nothing_else(tmp_path: Path) -> None:
    generate(tmp_path / "plain", QUICK)
    generate(tmp_path / "labelled", QUICK.model_copy(update={"labels": True}))
    plain, labelled = contents(tmp_path / "plain"), contents(tmp_path / "labelled")
    added = sorted(set(labelled) - set(plain))
    assert [name.partition("/")[0] for name in added] == ["gts", "gts", "maps"]
    assert {name for name in plain if plain[name] != labelled[name]} == {f"{VERSION}/settings.json"}


def test_map_of_the_ground(dataset: NuScenesDataset, scene) -> None:
    """Where all is of one surface within two cells, the map says what it is."""
    masks = dataset.map_masks(0)
    lidar2ego, ego2global = dataset.poses(dataset.tokens[0])
    pose = ego2global @ lidar2ego
    heading = np.arctan2(pose[1, 0], pose[0, 0])
    middle = -40 + (np.arange(160) + 0.5) * 0.5
    surfaces = []
    for dx in np.linspace(-1, 1, 5):
        for dy in np.linspace(-1, 1, 5):
            u, v = np.meshgrid(middle + dx, middle + dy, indexing="ij")
            x = pose[0, 3] + np.cos(heading) * u - np.sin(heading) * v
            y = pose[1, 3] + np.sin(heading) * u + np.cos(heading) * v
            surfaces.append(scene.block.town.surface(x, y))
    surfaces = np.stack(surfaces)
    road = np.isin(surfaces, (Surface.ROAD, Surface.MARKING))
    walkway = np.isin(surfaces, (Surface.WALKWAY, Surface.KERB))
    for name, there in (("drivable_area", road), ("walkway", walkway)):
        mask = masks[MAP_CLASSES.index(name)]
        assert there.all(axis=0).sum() > 200
        assert mask[there.all(axis=0)].all()
        assert not mask[~there.any(axis=0)].any()


def test_crossings_are_where_the_zebras_are_painted(scene) -> None:
    """A fine grid over the whole town: a marking away from lane lines is inside a crossing."""
    content = road_map("town", scene.block)
    nodes = {node["token"]: (node["x"], node["y"]) for node in content["node"]}
    polygons = {polygon["token"]: polygon for polygon in content["polygon"]}
    town = scene.block.town
    x, y = np.meshgrid(np.arange(0.05, town.size, 0.35), np.arange(0.05, town.size, 0.35))
    dx, dy = town.offsets(x, y)
    painted = (town.surface(x, y) == Surface.MARKING) & (np.maximum(dx, dy) < 10.5)
    inside = np.zeros_like(painted)
    for crossing in content["ped_crossing"]:
        tokens = polygons[crossing["polygon_token"]]["exterior_node_tokens"]
        (x0, y0), (x1, y1) = (f([nodes[t] for t in tokens], axis=0) for f in (np.min, np.max))
        inside |= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    assert painted.sum() > 1000
    assert inside[painted].all()
    assert 0.4 < painted[inside].mean() < 0.6  # bars and gaps are equally wide


def test_drivers_stop_on_their_side_of_the_street(scene) -> None:
    content = road_map("town", scene.block)
    nodes = {node["token"]: np.array([node["x"], node["y"]]) for node in content["node"]}
    polygons = {polygon["token"]: polygon for polygon in content["polygon"]}
    crossings = {crossing["token"]: crossing for crossing in content["ped_crossing"]}

    def middle(record):
        tokens = polygons[record["polygon_token"]]["exterior_node_tokens"]
        return np.mean([nodes[token] for token in tokens], axis=0)

    for stop in content["stop_line"]:
        here = middle(stop)
        there = middle(crossings[stop["ped_crossing_tokens"][0]])
        junction = [
            min(s, key=lambda p: abs(p - c))
            for s, c in zip((scene.block.town.xs, scene.block.town.ys), there, strict=True)
        ]
        ahead = np.array(junction) - there
        right = np.array([ahead[1], -ahead[0]]) / np.hypot(*ahead)
        assert (here - there) @ right == pytest.approx(3.5, abs=1e-3)
        assert (here - there) @ ahead < 0


def test_car_parks_have_no_trees(scene) -> None:
    content = road_map("town", scene.block)
    nodes = {node["token"]: (node["x"], node["y"]) for node in content["node"]}
    polygons = {polygon["token"]: polygon for polygon in content["polygon"]}
    trees = scene.block.posts.discs[scene.block.posts.trees, :2]
    assert len(content["carpark_area"]) > 5
    for park in content["carpark_area"]:
        tokens = polygons[park["polygon_token"]]["exterior_node_tokens"]
        low, high = (f([nodes[t] for t in tokens], axis=0) for f in (np.min, np.max))
        assert not ((trees > low) & (trees < high)).all(axis=1).any()
        assert scene.block.town.surface(*np.array([low, high]).mean(axis=0)) == Surface.GRASS


def test_the_devkit_opens_the_map_and_draws_the_same(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "world-3-0000"
    monkeypatch.setattr(map_api, "locations", [name])
    official = map_api.NuScenesMap(str(tiny_world), name)
    x, y, angle = 112.3, 115.7, 0.3
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:2, 3] = x, y
    masks = RoadMap(tiny_world / "maps" / "expansion" / f"{name}.json").raster(
        pose, MapGrid(50, 0.5)
    )
    layers = ["drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area"]
    layers += ["road_divider", "lane_divider"]
    shapes = official.explorer.get_map_geom((x, y, 100, 100), np.degrees(angle), layers)
    drawn = official.explorer.map_geom_to_mask(shapes, (0, 0, 100, 100), (200, 200))
    drawn = drawn.swapaxes(1, 2).astype(bool)
    wanted = [*drawn[:5], drawn[5] | drawn[6]]
    for mask, devkit in zip(masks, wanted, strict=True):
        assert mask.any()
        # The devkit cuts shapes at the border first, which tilts their rounded outlines a little.
        inner = (slice(2, -2), slice(2, -2))
        assert (mask != devkit)[inner].mean() < 0.01
        for one, other in ((mask, devkit), (devkit, mask)):
            assert not (one & ~binary_dilation(other, np.ones((3, 3))))[inner].any()


def test_voxels_of_objects(dataset: NuScenesDataset, scene) -> None:
    """The middle of every annotated object's body is a voxel of its class."""
    semantics = dataset.voxels(0).semantics.numpy()
    ego = scene.ego(0.0)
    seen = 0
    for owner, actor in enumerate(scene.actors):
        solids = scene.solids(0.0)
        middles = ego.inverse(solids.centre[solids.owner == owner])
        index = np.floor((middles - OCCUPANCY_ORIGIN) / VOXEL).astype(int)
        inside = ((index >= 0) & (index < OCCUPANCY_SHAPE)).all(axis=1)
        name = "manmade" if actor.kind.category is None else actor.kind.name
        for i, j, k in index[inside]:
            seen += 1
            assert OCCUPANCY_CLASSES[semantics[i, j, k]] == name
    assert seen > 50


def test_voxels_of_the_ground(dataset: NuScenesDataset, scene) -> None:
    """Columns that hold nothing but ground have one voxel, of the class of the surface."""
    semantics = dataset.voxels(0).semantics.numpy()
    i, j = np.nonzero((semantics != FREE).sum(axis=2) == 1)
    k = (semantics[i, j] != FREE).argmax(axis=1)
    ego = scene.ego(0.0)
    middles = (np.stack([i, j, k], axis=1) + 0.5) * VOXEL + OCCUPANCY_ORIGIN
    places = middles @ ego.rotation.T + ego.translation
    names = np.array(["terrain", "driveable_surface", "sidewalk", "driveable_surface", "sidewalk"])
    wanted = names[scene.block.town.surface(places[:, 0], places[:, 1])]
    found = np.array(OCCUPANCY_CLASSES)[semantics[i, j, k]]
    assert len(i) > 10_000
    assert (wanted == found).mean() > 0.99  # a tilted car moves borders by centimetres
    assert np.abs(places[:, 2] - scene.plane.height(*places[:, :2].T)).max() < VOXEL


def test_lidar_points_lie_on_occupied_voxels(dataset: NuScenesDataset) -> None:
    frame = dataset.frame(0)
    places = frame.points[:, :3] @ frame.lidar2ego[:3, :3].T + frame.lidar2ego[:3, 3]
    index = np.floor((places - OCCUPANCY_ORIGIN) / VOXEL).astype(int)
    index = index[((index >= 0) & (index < OCCUPANCY_SHAPE)).all(axis=1)]
    cells = tuple(index.T)
    assert (frame.occupancy.semantics.numpy()[cells] != FREE).mean() > 0.9
    assert frame.occupancy.mask_lidar.numpy()[cells].mean() > 0.99


def test_cameras_see_what_is_before_a_wall_and_not_what_is_behind() -> None:
    """All depths are 10 m: a voxel is seen if some camera has it in view and nearer."""
    depths = {camera: np.full((99, 176), 10.0, dtype=np.float32) for camera in CAMERAS}
    seen = camera_mask(depths)
    axes = [
        low + (np.arange(count) + 0.5) * VOXEL
        for low, count in zip(OCCUPANCY_ORIGIN, OCCUPANCY_SHAPE, strict=True)
    ]
    middles = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    within, near = np.zeros_like(seen), np.zeros_like(seen)
    for camera in CAMERAS:
        local = mount_pose(camera).inverse(middles)
        matrix = MOUNTS[camera].camera_matrix((99, 176))
        with np.errstate(divide="ignore", invalid="ignore"):
            u = local[..., 0] / local[..., 2] * matrix[0, 0] + matrix[0, 2]
            v = local[..., 1] / local[..., 2] * matrix[1, 1] + matrix[1, 2]
        view = (u > 0) & (u < 175) & (v > 0) & (v < 98)
        within |= view & (local[..., 2] > 2) & (local[..., 2] < 9.5)
        near |= local[..., 2] < 10.5
    assert seen[within].mean() > 0.99
    assert not seen[~near].any()


def test_same_settings_same_map(tiny_world: Path, scene) -> None:
    path = tiny_world / "maps" / "expansion" / "world-3-0000.json"
    assert path.read_text() == json.dumps(road_map("world-3-0000", scene.block))

"""Heads that label grids: where their cells lie, what they are called, what they minimise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bevquant.data.frame import Batch
from bevquant.data.labels import FREE, Occupancy
from bevquant.errors import BevquantError
from bevquant.models import occupancy, segmentation
from bevquant.models.bevfusion.depth_lss import LSSTransform
from bevquant.models.dense import DenseNetwork
from bevquant.models.occupancy import BEVOccupancy
from bevquant.models.segmentation import BEVSegmentation
from bevquant.models.shapes import shapes_only
from bevquant.models.weights import import_checkpoint, load_encoder, save_weights
from bevquant.models.zoo import NETWORKS, network

NAMES = [name for name in NETWORKS if name not in ("bevfusion", "bevfusion_small")]


class Labels:
    def __init__(self, map_masks=None, occupancy=None) -> None:
        self.map_masks, self.occupancy = map_masks, occupancy


def turned(angle: float, shift: tuple[float, float, float] = (0, 0, 0)) -> torch.Tensor:
    matrix = torch.eye(4)
    cos, sin = torch.tensor(angle).cos(), torch.tensor(angle).sin()
    matrix[:2, :2] = torch.stack((torch.stack((cos, -sin)), torch.stack((sin, cos))))
    matrix[:3, 3] = torch.tensor(shift)
    return matrix


def position_map(model: DenseNetwork) -> torch.Tensor:
    """Features whose two channels are x and y of the middle of each cell."""
    view = model.config.view_transform
    axes = []
    for cells, (low, high, _) in zip(
        model.config.bev_grid, (view.x_bounds, view.y_bounds), strict=True
    ):
        step = (high - low) / cells
        axes.append(torch.linspace(low + step / 2, high - step / 2, cells))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


@pytest.fixture(scope="module")
def maps() -> BEVSegmentation:
    torch.manual_seed(0)
    return BEVSegmentation(segmentation.SMALL).eval()


@pytest.fixture(scope="module")
def voxels() -> BEVOccupancy:
    torch.manual_seed(0)
    return BEVOccupancy(occupancy.SMALL).eval()


def test_map_cells_without_augmentation_are_those_of_the_public_code(
    maps: BEVSegmentation,
) -> None:
    grid = maps.grid(torch.eye(4)[None], torch.eye(4)[None])
    v = (torch.arange(-40 + 0.25, 40, 0.5) + 44.8) / 89.6 * 2 - 1
    u, w = torch.meshgrid(v, v, indexing="ij")
    torch.testing.assert_close(grid, torch.stack([w, u], -1)[None], atol=1e-5, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.0])
def test_map_cells_follow_the_augmentation(maps: BEVSegmentation, angle: float) -> None:
    """Features that hold their own place, sampled: cell (i, j) finds its augmented place."""
    move = turned(angle)
    grid = maps.grid(move[None], torch.eye(4)[None])
    found = F.grid_sample(position_map(maps), grid, align_corners=False)[0]
    middle = -40 + (torch.arange(160) + 0.5) * 0.5
    x, y = torch.meshgrid(middle, middle, indexing="ij")
    wanted = torch.stack((move[0, 0] * x + move[0, 1] * y, move[1, 0] * x + move[1, 1] * y))
    inside = wanted.abs().amax(0) < 44
    assert inside.sum() > 15_000
    torch.testing.assert_close(found[:, inside], wanted[:, inside], atol=1e-3, rtol=0)


def test_voxels_go_with_the_car(voxels: BEVOccupancy) -> None:
    """nuScenes' LiDAR: x to the right of the car, y ahead, 0.94 m before the axle."""
    lidar2ego = turned(-torch.pi / 2, (0.94, 0.0, 1.84))
    grid = voxels.grid(torch.eye(4)[None], lidar2ego[None])
    assert grid.shape == (1, 200, 200, 2)
    found = F.grid_sample(position_map(voxels), grid, align_corners=False)[0]
    ahead = -40 + (torch.arange(200) + 0.5) * 0.4
    x, y = torch.meshgrid(ahead, ahead, indexing="ij")
    torch.testing.assert_close(found[0], -y, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1], x - 0.94, atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bevfusion_seg_small", "bevfusion_occ_small"])
def test_a_batch_of_two_is_two_frames(name: str, make_batch: Callable[..., Batch]) -> None:
    torch.manual_seed(0)
    model = network(name).build().eval()
    both = make_batch(model.config, frames=2)
    one = {key: value[1:] for key, value in vars(both).items() if value is not None}
    together, alone = model(both), model(Batch(**one))
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)
    decoded = model.decode(together)
    assert decoded.shape == together.shape[: decoded.ndim]


@pytest.mark.parametrize(
    "name, shape",
    [
        ("bevfusion_seg", (1, 6, 200, 200)),
        ("bevfusion_seg_small", (1, 6, 160, 160)),
        ("bevfusion_occ", (1, 200, 200, 16, 18)),
        ("bevfusion_occ_small", (1, 200, 200, 16, 18)),
    ],
)
def test_output_shapes(name: str, shape: tuple[int, ...]) -> None:
    model, inputs = shapes_only(network(name).build)
    assert model.network(inputs).shape == shape


def test_public_names() -> None:
    """Names and shapes of the public heads and of the view transform without depth."""
    with torch.device("meta"):
        maps = BEVSegmentation(segmentation.FULL)
        voxels = BEVOccupancy(occupancy.FULL)
    assert type(maps.view_transform) is LSSTransform
    shapes = {name: tuple(value.shape) for name, value in maps.state_dict().items()}
    assert shapes["map_head.classifier.0.weight"] == (512, 512, 3, 3)
    assert shapes["map_head.classifier.6.bias"] == (6,)
    assert shapes["view_transform.depthnet.weight"] == (118 + 80, 256, 1, 1)
    assert shapes["view_transform.frustum"] == (118, 32, 88, 3)
    assert "map_head.classifier.0.bias" not in shapes
    shapes = {name: tuple(value.shape) for name, value in voxels.state_dict().items()}
    assert shapes["occ_head.final_conv.conv.weight"] == (256, 512, 3, 3)
    assert shapes["occ_head.predicter.0.weight"] == (512, 256)
    assert shapes["occ_head.predicter.2.bias"] == (16 * 18,)


def test_a_checkpoint_under_the_authors_names(maps: BEVSegmentation, tmp_path: Path) -> None:
    ours = maps.state_dict()
    theirs = {
        "img_backbone": "encoders.camera.backbone",
        "img_neck": "encoders.camera.neck",
        "view_transform": "encoders.camera.vtransform",
        "pts_middle_encoder": "encoders.lidar.backbone",
        "fusion_layer": "fuser",
        "pts_backbone": "decoder.backbone",
        "pts_neck": "decoder.neck",
        "map_head": "heads.map",
    }
    state = {}
    for name, value in ours.items():
        part, _, rest = name.partition(".")
        sparse = value.ndim == 5 and value.shape[1] in (1, 3)
        state[f"{theirs[part]}.{rest}"] = value.permute(1, 2, 3, 4, 0) if sparse else value
    torch.save({"state_dict": state}, tmp_path / "seg.pth")
    torch.manual_seed(1)
    other = BEVSegmentation(segmentation.SMALL)
    import_checkpoint(other, tmp_path / "seg.pth")
    assert all(torch.equal(value, ours[name]) for name, value in other.state_dict().items())


def test_load_encoder_leaves_the_head(maps: BEVSegmentation, tmp_path: Path) -> None:
    torch.manual_seed(1)
    detector = network("bevfusion_small").build()
    save_weights(detector, tmp_path / "detector.safetensors")
    model = BEVSegmentation(segmentation.SMALL)
    head = {name: value.clone() for name, value in model.map_head.state_dict().items()}
    load_encoder(model, tmp_path / "detector.safetensors")
    assert all(torch.equal(v, head[name]) for name, v in model.map_head.state_dict().items())
    state = detector.state_dict()
    assert all(
        torch.equal(value, state[name])
        for name, value in model.state_dict().items()
        if not name.startswith("map_head")
    )
    save_weights(model.map_head, tmp_path / "head.safetensors")
    with pytest.raises(BevquantError, match="weights of another model"):
        load_encoder(model, tmp_path / "head.safetensors")


def test_map_loss(maps: BEVSegmentation) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, 4, generator=generator)
    masks = torch.rand(2, 6, 4, 4, generator=generator) < 0.3
    losses = maps.losses(logits, Labels(map_masks=masks))
    assert list(losses) == [
        *("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
    ]
    p = logits[:, 2].sigmoid()
    right = torch.where(masks[:, 2], p, 1 - p)
    torch.testing.assert_close(losses["walkway"], (-((1 - right) ** 2) * right.log()).mean())
    with pytest.raises(BevquantError, match="map_grid"):
        maps.losses(logits, Labels())


def test_occupancy_loss_counts_what_a_camera_sees(voxels: BEVOccupancy) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 3, 2, 18, generator=generator)
    semantics = torch.full((1, 3, 3, 2), FREE, dtype=torch.uint8)
    semantics[0, 1, 1, 0] = 4
    seen = torch.zeros(1, 3, 3, 2, dtype=torch.bool)
    seen[0, 1, 1] = True
    labels = Labels(occupancy=Occupancy(semantics, ~seen, seen))
    log = logits[0, 1, 1].log_softmax(-1)
    weights = voxels.config.occ_head.class_weights
    assert weights[4] > weights[FREE] == 1
    expected = -(weights[4] * log[0, 4] + log[1, FREE]) / (weights[4] + 1)
    torch.testing.assert_close(voxels.losses(logits, labels)["occupancy"], expected)
    logits[0, 0] = 100.0
    torch.testing.assert_close(voxels.losses(logits, labels)["occupancy"], expected)
    with pytest.raises(BevquantError, match="occupancy=True"):
        voxels.losses(logits, Labels())

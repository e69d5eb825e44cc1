"""Training behind the fused map: what is frozen, what is computed once, what comes out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bevquant.data import preprocess
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.data.preprocess import collate
from bevquant.data.world import VERSION
from bevquant.errors import BevquantError
from bevquant.files import read_json
from bevquant.models.bevfusion.encoder import FUSING
from bevquant.models.weights import load_weights
from bevquant.models.zoo import DENSE
from bevquant.train.fused import FusedBatches, cut, train_tail
from bevquant.train.settings import TailSettings

SETTINGS = TailSettings(epochs=1, batch_size=2, replicas=1, workers=0)
NET = DENSE["bevfusion_seg_small"]


def model(seed: int = 0):
    torch.manual_seed(seed)
    return NET.build().eval()


@pytest.fixture(scope="module")
def dataset(tiny_world: Path) -> NuScenesDataset:
    return NET.dataset(tiny_world, VERSION, "world_train")


def run(folder: Path, dataset: NuScenesDataset, seed: int = 0):
    trained = model(seed)
    train_tail(
        trained,
        preprocess.SMALL,
        dataset,
        NET.dataset(Path(dataset.devkit.dataroot), VERSION, "world_val", limit=1),
        SETTINGS,
        run_folder=folder,
    )
    return trained


def test_only_the_tail_learns(dataset: NuScenesDataset, tmp_path: Path) -> None:
    before = model().state_dict()
    trained = run(tmp_path, dataset)
    for name, value in trained.state_dict().items():
        if name.startswith(FUSING):
            assert torch.equal(value, before[name]), name
    changed = [n for n, v in trained.state_dict().items() if not torch.equal(v, before[n])]
    assert {name.partition(".")[0] for name in changed} == {"pts_backbone", "pts_neck", "map_head"}

    copy = model(1)
    load_weights(copy, tmp_path / "weights.safetensors")
    assert all(torch.equal(v, copy.state_dict()[n]) for n, v in trained.state_dict().items())
    card = read_json(tmp_path / "card.json")
    assert card["metrics"]["frames"] == 1
    assert card["frames"] == 2

    # The fused maps on disk are those of the network, and lead to what the whole network says.
    (path,) = tmp_path.glob("fused-*.npy")
    batch = collate([dataset.frame(1)], preprocess.SMALL)
    inputs = trained.prepare(batch)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(np.load(path)[1:]).float(),
            trained.fused(inputs.sensors),
            rtol=1e-3,
            atol=1e-3,
        )
        part = FusedBatches(trained, dataset, np.load(path), SETTINGS).part(
            [1], np.random.default_rng()
        )
        torch.testing.assert_close(
            trained.tail(part.fused, part.grid), trained(batch), rtol=0.05, atol=0.02
        )
        # A window of the cells says what all of them say there.
        window = cut(part, 20, 30, 50)
        whole = trained.tail(part.fused, part.grid)[:, :, 20:70, 30:80]
        inner = (..., slice(3, -3), slice(3, -3))  # the head looks two cells around
        torch.testing.assert_close(trained.tail(window.fused, window.grid)[inner], whole[inner])
    assert torch.equal(part.map_masks, batch.map_masks)
    assert torch.equal(window.map_masks, batch.map_masks[:, :, 20:70, 30:80])

    # The same again elsewhere, with maps computed before: the same weights to the bit.
    again = tmp_path / "again"
    again.mkdir()
    (again / path.name).write_bytes(path.read_bytes())
    repeated = run(again, dataset)
    assert all(torch.equal(v, repeated.state_dict()[n]) for n, v in trained.state_dict().items())

    with pytest.raises(BevquantError, match="differs in encoder"):
        run(tmp_path, dataset, seed=1)

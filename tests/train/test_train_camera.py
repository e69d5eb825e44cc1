"""Training of a detector without LiDAR: its start, its stop, its end."""

from pathlib import Path

import pytest
import torch
from train_toys import PREPROCESS, RANGE, ToyFrames

from bevquant.errors import BevquantError
from bevquant.models.petr import PETR, SMALL, PETRConfig
from bevquant.models.weights import load_camera, load_weights
from bevquant.models.zoo import CAMERA, shipped
from bevquant.recipe import CameraRecipe, load_recipe
from bevquant.run import load_small
from bevquant.train import loop
from bevquant.train.settings import DetectorSettings

SETTINGS = DetectorSettings(epochs=1, batch_size=2, replicas=1, workers=0, checkpoint_steps=1)
FRAMES = ToyFrames(8)


def toy_config() -> PETRConfig:
    config = SMALL.model_dump()
    config["image_size"] = PREPROCESS.image_size
    config["img_backbone"]["embed_dims"] = 8
    config["img_neck"]["channels"] = 8
    config["position"]["bins"] = 4
    config["head"] |= {"channels": 16, "num_queries": 6, "num_layers": 1, "point_range": RANGE}
    return PETRConfig.model_validate(config)


def run(folder: Path) -> dict[str, torch.Tensor]:
    """Train the toy network and return the weights on disk."""
    torch.manual_seed(0)
    model = PETR(toy_config())
    loop.train(model, PREPROCESS, FRAMES, None, SETTINGS, run_folder=folder)  # type: ignore[arg-type]
    load_weights(model, folder / "weights.safetensors")
    return model.state_dict()


def test_stopped_run_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tmp_path / "whole")
    step = loop.train_step

    def stopped(state, *rest):
        if state.step == 2:
            raise KeyboardInterrupt
        return step(state, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", stopped)
        run(tmp_path / "stopped")
    continued = run(tmp_path / "stopped")
    assert all(torch.equal(continued[name], value) for name, value in expected.items())
    assert len((tmp_path / "stopped" / "curves.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("name", ["bevdepth4d_small", "petr_small"])
def test_image_branch_starts_as_bevfusions(name: str) -> None:
    trained = load_small()
    torch.manual_seed(0)
    model = CAMERA[name].build()
    load_camera(model.camera, shipped("bevfusion_small"))
    for part in ("img_backbone", "img_neck"):
        ours = model.camera.get_submodule(part).state_dict()
        theirs = trained.get_submodule(part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_another_image_branch_is_refused() -> None:
    with pytest.raises(BevquantError, match="of another shape"):
        load_camera(PETR(toy_config()), shipped("bevfusion_small"))


@pytest.mark.parametrize("name", ["bevdepth4d_small", "petr_small"])
def test_shipped_recipes_are_valid(name: str) -> None:
    path = Path(__file__).parents[2] / f"recipes/{name}_world.yaml"
    recipe = load_recipe(path, CameraRecipe)
    assert recipe.model == name

"""A recipe is checked as a whole before any work, and a slip is answered with its mend."""

from pathlib import Path

import pytest

from bevquant.errors import BevquantError
from bevquant.recipe import TrainRecipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_shipped_training_recipe_is_valid() -> None:
    recipe = load_recipe(RECIPES / "bevfusion_small_world.yaml", TrainRecipe)
    assert recipe.name == "bevfusion_small_world"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nmodel: bevfusion_small\nworld: {}\ntrian: {}\n",
            "'trian'; did you mean 'train'",
        ),
        ("name: a\nmodel: bevfusion_small\nworld: {scnes: 2}\ntrain: {}\n", "mean 'scenes'"),
        ("name: a\nmodel: bevfusion_small\nworld: {zzz: 2}\ntrain: {}\n", "valid keys: scenes"),
        ("name: a\nmodel: vgg\nworld: {}\ntrain: {}\n", "model: Input should be"),
        ("model: bevfusion_small\nworld: {}\ntrain: {}\n", "name: Field required"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("a: [1, 2\n", "not valid YAML"),
    ],
)
def test_slip_is_named_with_its_mend(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BevquantError, match=message) as caught:
        load_recipe(write(tmp_path, text), TrainRecipe)
    assert str(caught.value).startswith(str(tmp_path / "recipe.yaml"))
    assert "\n" not in str(caught.value)


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(BevquantError, match=r"nowhere\.yaml: cannot be read"):
        load_recipe(tmp_path / "nowhere.yaml", TrainRecipe)

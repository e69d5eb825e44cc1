"""The figures of the rows are means over the seeds."""

import json
from pathlib import Path

import pytest
import yaml

from bevquant.errors import BevquantError
from bevquant.experiments.ptqat import COMPARED, PTQ, PtqatTable, run_ptqat_table
from bevquant.experiments.start import run_recipe
from bevquant.experiments.variants import Bench
from bevquant.files import sha256
from bevquant.recipe import load_recipe
from bevquant.run import SHIPPED
from bevquant.steps import Steps

RECIPE = {
    "experiment": "ptqat_bevfusion_small",
    "world": {"scenes": 2, "keyframes": 2, "seed": 5, "val_fraction": 0.5},
    "frames": 2,
    "train_frames": 2,
    "training": {"steps": 2, "checks": 1},
    "seeds": 2,
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_means_and_spread(recipe: Path, tmp_path: Path) -> None:
    settings, out = load_recipe(recipe, PtqatTable), tmp_path / "out"
    Bench(out, settings.world, settings.frames).steps.run("float", lambda: {"NDS": 0.6, "mAP": 0.5})
    setup = {**settings.model_dump(mode="json"), "checkpoint": sha256(SHIPPED)}
    steps = Steps(out / "rows", setup)
    for place, name in enumerate((PTQ, *COMPARED)):
        for seed in range(2):
            row = {"NDS": 0.3 + place / 100 + seed / 50, "mAP": 0.25, "layers": ["a"] * place}
            row |= {"parameters": 1000 * place, "seconds": 3.0 + seed, "bytes": 2_000_000}
            steps.run(f"{name}-{seed}", lambda row=row: row)
    run_recipe(recipe, out, jobs=1)
    rows = [line.strip("|").split(" | ") for line in (out / "table.md").read_text().splitlines()]
    table = {row[0].strip(): row[1:] for row in rows if len(row) > 5}
    assert table["float"][:2] == ["0.600", "0.500"]
    # Of 0.30 and 0.32: mean 0.31, standard deviation 0.01.
    assert table[PTQ][:2] == ["0.310 ± 0.010", "0.250 ± 0.000"]
    assert table["QAT"][2:] == ["1", "1,000", "4", "2 MB "]
    kept = json.loads((out / "table.json").read_text())
    assert list(kept["rows"]) == [PTQ, *COMPARED]
    assert kept["recipe"]["seeds"] == 2


@pytest.mark.slow
def test_the_command_from_nothing_to_the_table(recipe: Path, tmp_path: Path) -> None:
    run_ptqat_table(load_recipe(recipe, PtqatTable), tmp_path / "run", jobs=2)
    page = (tmp_path / "run" / "table.md").read_text()
    assert all(f"| {name} |" in page for name in ("float", PTQ, *COMPARED))


def test_an_unknown_rule_is_refused(recipe: Path) -> None:
    recipe.write_text(yaml.safe_dump({**RECIPE, "rules": ["PTQAT", "best"]}))
    with pytest.raises(BevquantError, match="'best' is no rule; choose from QAT, PTQAT"):
        load_recipe(recipe, PtqatTable)

"""The table's rows come from the kept figures; nothing is measured twice."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bevquant import BevquantError
from bevquant.cli import app
from bevquant.experiments.start import run_recipe
from bevquant.experiments.thesis_table import METRICS, PER_CLASS, PRECISIONS, ThesisTable33
from bevquant.experiments.variants import Bench, Variant
from bevquant.quant.genes import thesis_genes
from bevquant.recipe import load_recipe
from bevquant.run import load_small

RECIPE = {
    "experiment": "thesis_table_3_3",
    "world": {"scenes": 2, "keyframes": 2, "seed": 5, "val_fraction": 0.5},
    "frames": 2,
    "seed": 3,
}
METHODS = {
    "Q": Variant("thesis", thesis_scheme=True, seed=3),
    "AQ": Variant("thesis", thesis_scheme=True, alphas="thesis", seed=3),
    "R": Variant("thesis", thesis_scheme=True, alphas="measured", reconstructed=True, seed=3),
}


def figures(nds: float, alphas: int) -> dict[str, object]:
    """Figures as if measured, told apart by their NDS."""
    return {
        **dict.fromkeys(METRICS, 0.5),
        "NDS": nds,
        "frames": 2,
        "per_class": {"car": {**dict.fromkeys(PER_CLASS, 0.25), "AP": nds}},
        "alphas": [{"weight": [0.8, 0.9], "inputs": [1.0], "kept": True}] * alphas,
    }


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture
def out(recipe: Path, tmp_path: Path) -> Path:
    """A run folder in which everything has been measured."""
    settings = load_recipe(recipe, ThesisTable33)
    bench = Bench(tmp_path / "out", settings.world, settings.frames)
    bench.steps.run("float", lambda: figures(0.6, 0))
    for method, variant in METHODS.items():
        for precision in PRECISIONS:
            nds = precision.weights / 100 + {"Q": 0.001, "AQ": 0.002, "R": 0.003}[method]
            name = f"{variant.name}-{precision}"
            bench.steps.run(name, lambda nds=nds, n=method != "Q": figures(nds, 3 * n))
    return tmp_path / "out"


def test_rows_bits_and_classes(recipe: Path, out: Path) -> None:
    run_recipe(recipe, out, jobs=1)
    page = (out / "tables.md").read_text()
    rows = {
        cells[0]: cells[1:]
        for line in page.split("\n## ")[0].splitlines()
        if line.startswith("|")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert list(rows)[2:] == [
        *("NQ", "2Q", "2AQ", "2R", "4Q", "4AQ", "4R", "8Q", "8AQ", "8R", "16Q", "16AQ", "16R")
    ]
    assert rows["2Q"][0] == "0.021"
    assert rows["16AQ"][0] == "0.162"

    model = load_small()
    modules = dict(model.named_modules())
    counted = [modules[name] for name in thesis_genes(model)]
    weights = sum(m.weight.numel() for m in counted if hasattr(m, "weight"))
    for name, bits in (("NQ", 32), ("2AQ", 2), ("4R", 4), ("8Q", 8), ("16Q", 16)):
        assert rows[name][-3:] == [f"{weights * bits:.3g}", f"{bits / 32:.4f}", f"{32 / bits:g}x"]
    assert "generated world" in page
    assert "nuScenes" not in page
    assert page.count("\n| car |") == 13
    kept = json.loads((out / "tables.json").read_text())
    assert kept["counted_weights"] == weights
    assert kept["recipe"]["seed"] == 3
    assert (out / "alphas.png").read_bytes().startswith(b"\x89PNG")


def test_a_recipe_of_no_experiment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("name: x\n")
    with pytest.raises(BevquantError, match=r"train.yaml: experiment: None is none of thesis_"):
        run_recipe(path, tmp_path / "out", jobs=1)


def test_too_few_training_frames_are_refused(recipe: Path, tmp_path: Path) -> None:
    settings = load_recipe(recipe, ThesisTable33)
    bench = Bench(tmp_path / "few", settings.world, frames=99)
    from bevquant.run import ensure_world

    ensure_world(tmp_path / "few" / "world", settings.world, 1)
    with pytest.raises(BevquantError, match="99 asked for, 2 there"):
        bench.batches(seed=0)


@pytest.mark.slow
def test_the_command_from_nothing_to_the_table(recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), "--jobs", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2AQ" in (tmp_path / "run" / "tables.md").read_text()


def test_an_experiment_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("experiment: [a]")
    with pytest.raises(BevquantError, match=r"r\.yaml: experiment: \['a'\] is none of"):
        run_recipe(tmp_path / "r.yaml", tmp_path / "out", jobs=1)

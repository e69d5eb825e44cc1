from pathlib import Path

import pytest

import bevquant as bq
from bevquant.experiments import search_table
from bevquant.experiments.search_table import ThesisTable41, run_table_4_1
from bevquant.experiments.start import EXPERIMENTS
from bevquant.files import read_json
from bevquant.recipe import load_recipe
from bevquant.report.search import draw_evolution

RECIPES = Path(__file__).parents[2] / "recipes"

THESIS_ROWS = {
    "NQ", "MPQ-DE_CAE", "MPQ-CAE", "MPQ-CAW", "MPQ-CQE", "MPQ-CQW", "MPQ-AE", "MPQ-AW",
    "MPQ-QE", "MPQ-QW", "MPQ-RCAE", "MPQ-RCAW", "MPQ-RCQE", "MPQ-RCQW",
}  # fmt: skip


def test_the_recipe_searches_as_long_as_the_thesis() -> None:
    recipe = load_recipe(RECIPES / "thesis_table_4_1.yaml", ThesisTable41)
    assert recipe.population * recipe.generations == 5000
    quick = load_recipe(RECIPES / "thesis_table_4_1_quick.yaml", ThesisTable41)
    assert quick.population * quick.generations == 100
    assert EXPERIMENTS[quick.experiment] == (ThesisTable41, run_table_4_1)


def test_misspelt_key(tmp_path: Path) -> None:
    text = (RECIPES / "thesis_table_4_1.yaml").read_text().replace("mutation", "mutations")
    (tmp_path / "r.yaml").write_text(text + "populaton: 3\n")
    with pytest.raises(bq.BevquantError, match="did you mean 'population'"):
        load_recipe(tmp_path / "r.yaml", ThesisTable41)


@pytest.mark.slow
def test_fourteen_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}

    def draw(generations, baseline, path):
        drawn[path.name] = [cost for points in generations for cost, _ in points]
        draw_evolution(generations, baseline, path)

    monkeypatch.setattr(search_table, "draw_evolution", draw)
    recipe = ThesisTable41(
        experiment="thesis_table_4_1",
        world={"scenes": 2, "keyframes": 2, "sweeps": 2, "val_fraction": 0.5},
        frames=1,
        compared=1,
        population=4,
        generations=2,
    )
    run_table_4_1(recipe, tmp_path, jobs=1)
    rows = read_json(tmp_path / "tables.json")["models"]
    assert set(rows) == THESIS_ROWS
    assert rows["NQ"]["relative"] == 1
    for name in THESIS_ROWS - {"NQ"}:
        assert 2 / 32 <= rows[name]["relative"] <= 16 / 32
    assert rows["MPQ-CAW"]["weight_bits"] <= rows["MPQ-CAE"]["weight_bits"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"CA.png", "CQ.png", "DE-CA.png"}
    # The pictures' costs are the table's.
    assert min(drawn["CA.png"]) == pytest.approx(rows["MPQ-CAW"]["relative"])

"""The figures of the rows are means over the seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bevquant.errors import BevquantError
from bevquant.experiments.ptqat import run_ptqat_table
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.experiments.ptqat_rows import finished
from bevquant.experiments.ptqat_rules import COMPARED, PTQ, RANDOM, select
from bevquant.experiments.start import run_recipe
from bevquant.ptqat.cuts import Candidate
from bevquant.recipe import load_recipe

RECIPE: dict[str, Any] = {
    "experiment": "ptqat",
    "network": "bevfusion_seg_small",
    "world": {"scenes": 2, "keyframes": 2, "seed": 5, "val_fraction": 0.5, "labels": True},
    "frames": 1,
    "train_frames": 1,
    "judge_frames": 1,
    "curve_frames": 1,
    "precisions": ["W4A8", "W4A16"],
    "training": {"steps": 2, "checks": 1},
    "seeds": 2,
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def keep_figures(recipe: PtqatTable, out: Path, names: tuple[str, ...]) -> None:
    """Write figures as if they had been measured."""
    steps = finished(recipe, out)
    steps.run("float", lambda: {**dict.fromkeys(names, 0.6), "frames": 2})
    for place, name in enumerate((PTQ, *COMPARED)):
        for seed in range(2):
            row = dict.fromkeys(names, 0.3 + place / 100 + seed / 50) | {"layers": ["a"] * place}
            row |= {"parameters": 1000 * place, "seconds": 3.0 + seed, "bytes": 2_000_000}
            row |= {"loss": [8.0, 6.0 - 2 * seed] if place else []}
            for precision in recipe.precisions:
                steps.run(f"{precision}-{name}-{seed}", lambda row=row: row)


@pytest.mark.parametrize(
    ("network", "names"),
    [("bevfusion_small", ("NDS", "mAP")), ("bevfusion_seg_small", ("mIoU",))],
)
def test_means_and_spread(network: str, names: tuple[str, ...], tmp_path: Path) -> None:
    recipe, out = tmp_path / "table.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump({**RECIPE, "network": network}))
    keep_figures(load_recipe(recipe, PtqatTable), out, names)
    run_recipe(recipe, out, jobs=1)
    lines = (out / "table.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    table = {row[0]: row[1:] for row in rows}
    count = len(names)
    assert table[""][:count] == [*names]
    assert table["float"][:count] == ["0.600"] * count
    # Of 0.30 and 0.32: mean 0.31, standard deviation 0.01.
    assert table[PTQ][:count] == ["0.310 ± 0.010"] * count
    # The first metric is a hundredth above PTQ's in both seeds; of the loss go 25 and 50 %.
    gains = ["+1.00 ± 0.00", "37.5 ± 12.5 %"]
    assert table["QAT"][count:] == [*gains, "1", "1,000", "4", "2 MB"]
    assert table[PTQ][count : count + 2] == ["+0.00 ± 0.00", "0.0 ± 0.0 %"]
    kept = json.loads((out / "table.json").read_text())
    assert {each: list(rows) for each, rows in kept["rows"].items()} == {
        "W4A8": [PTQ, *COMPARED],
        "W4A16": [PTQ, *COMPARED],
    }
    assert kept["recipe"]["seeds"] == 2
    assert lines.index("## W4A8") < lines.index("## W4A16")
    assert (out / "gains-W4A16.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_from_nothing_to_the_table(recipe: Path, tmp_path: Path) -> None:
    rules = ("QAT", "promising half")
    changes = {"seeds": 1, "rules": rules, "precisions": ("W4A8",)}
    settings = load_recipe(recipe, PtqatTable).model_copy(update=changes)
    run_ptqat_table(settings, tmp_path / "run", jobs=2)
    page = (tmp_path / "run" / "table.md").read_text()
    assert all(f"| {name} |" in page for name in ("float", PTQ, *rules))
    rows = json.loads((tmp_path / "run" / "table.json").read_text())["rows"]["W4A8"]
    (first,) = rows["QAT"]
    (line, *_, last) = (tmp_path / "run/W4A8/QAT-0/curves.jsonl").read_text().splitlines()
    assert json.loads(line)["validation"] == first["loss"][0]
    assert 0 < json.loads(last)["metric"] < 1
    assert all(row["parameters"] < first["parameters"] for row in rows["promising half"])


def test_random_layers_are_those_of_the_seed() -> None:
    candidates = [Candidate(str(index), 1, 0.0) for index in range(20)]
    chosen = {select(RANDOM, candidates, seed).layers for seed in (0, 0, 1)}
    assert len(chosen) == 2
    assert {len(layers) for layers in chosen} == {10}


def test_an_unknown_rule_is_refused(recipe: Path) -> None:
    recipe.write_text(yaml.safe_dump({**RECIPE, "rules": ["PTQAT", "best"]}))
    with pytest.raises(BevquantError, match="'best' is no rule; choose from QAT, PTQAT"):
        load_recipe(recipe, PtqatTable)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precisions": []}, "precisions"),
        ({"precisions": ["W5A8"]}, "table.yaml: precisions: .*5 bits for weights"),
        ({"network": "bevfusion"}, "'bevfusion' comes without weights; choose from bevfusion_sm"),
        ({"world": {**RECIPE["world"], "labels": False}}, "world.labels must be true"),
        ({"judge_frames": 9}, "judge_frames: 10 asked for, 2 in the training split"),
    ],
)
def test_a_network_that_cannot_be_measured_is_refused(
    change: dict[str, Any], message: str, recipe: Path
) -> None:
    recipe.write_text(yaml.safe_dump({**RECIPE, **change}))
    with pytest.raises(BevquantError, match=message):
        load_recipe(recipe, PtqatTable)

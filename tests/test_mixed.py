"""The verbs ``search``, ``search status`` and ``search pick``, as a user runs them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bevquant.cli import app
from bevquant.data.world.generate import generate
from bevquant.data.world.settings import WorldSettings
from bevquant.errors import BevquantError
from bevquant.quant.policy import BitPolicy
from bevquant.search.front_file import read_front


@pytest.mark.slow
def test_search_status_and_pick(tmp_path: Path) -> None:
    world, run = tmp_path / "world", tmp_path / "run"
    generate(world, WorldSettings(scenes=1, keyframes=2, val_fraction=0), jobs=1)
    call = f"search --data {world} --out {run} --frames 1 --calibration 2 --strategy random"
    runner = CliRunner()
    result = runner.invoke(app, f"{call} --evaluations 4 --cost weight_bits,bytes".split())
    assert result.exit_code == 0, result.output
    front = read_front(run / "front.json")
    assert {*front.float_costs} == {"weight_bits", "bytes"}
    status = runner.invoke(app, ["search", "status", str(run)])
    assert "4 evaluations" in status.output
    picked = tmp_path / "policy.json"
    chosen = runner.invoke(app, ["search", "pick", str(run), str(picked), "--error-first"])
    assert chosen.exit_code == 0, chosen.output
    assert BitPolicy.from_json(json.loads(picked.read_text())).rules == front.error_first().rules
    two = runner.invoke(
        app, ["search", "pick", str(run), str(picked), "--under", "1", "--error-first"]
    )
    assert isinstance(two.exception, BevquantError)


def test_unknown_names_are_refused_before_any_work(tmp_path: Path) -> None:
    for option in ("--strategy", "--error", "--space", "--executor"):
        call = ["search", "--data", str(tmp_path), option, "unheard-of"]
        result = CliRunner().invoke(app, call)
        assert isinstance(result.exception, BevquantError)
        assert "'unheard-of' is unknown; choose" in str(result.exception)

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from bevquant.errors import BevquantError
from bevquant.report.results import Results, Score, load_results, save_results

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


@pytest.fixture
def file(results: Results, tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    save_results(results, path)
    return path


def test_a_saved_file_reads_back_equal(results: Results, file: Path) -> None:
    assert load_results(file) == results


def test_the_file_has_the_promised_keys(file: Path) -> None:
    data = json.loads(file.read_text())
    metrics = ["NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "per_class"]
    for entry in (data["float"], data["deployed"], *data["simulated"].values()):
        assert set(metrics) <= set(entry)
    assert {"W2A8", "W4A8", "W8A8", "W16A16"} <= set(data["simulated"])
    measured = "engine latency_ms fp32_latency_ms file_bytes fp32_file_bytes integer_layers"
    assert {*measured.split(), "quantizable_layers"} <= set(data["deployed"])
    assert "mAP" in data["ablation"]["images_blanked"]
    assert {"versions", "seed", "commit", "data_fingerprint"} <= set(data["provenance"])
    assert data["float"]["per_class"]["traffic_cone"]["AOE"] is None


@pytest.mark.parametrize(
    "field",
    ["deployed.latency_ms", "float.NDS", "simulated.W4A8.per_class.car.ATE", "provenance.seed"],
)
def test_a_missing_field_is_named(file: Path, field: str) -> None:
    data = json.loads(file.read_text())
    *parents, last = field.split(".")
    entry = data
    for parent in parents:
        entry = entry[parent]
    del entry[last]
    file.write_text(json.dumps(data))
    with pytest.raises(BevquantError, match=re.escape(f"{file}: {field} is missing")) as caught:
        load_results(file)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_named(file: Path) -> None:
    data = json.loads(file.read_text())
    data["deployed"]["latency"] = 3
    file.write_text(json.dumps(data))
    with pytest.raises(BevquantError, match=r"deployed\.latency is not a known field"):
        load_results(file)


def test_every_promised_precision_must_be_there(file: Path) -> None:
    data = json.loads(file.read_text())
    del data["simulated"]["W4A8"]
    file.write_text(json.dumps(data))
    with pytest.raises(BevquantError, match="simulated lacks W4A8"):
        load_results(file)


def test_figures_of_other_frames_are_refused(file: Path) -> None:
    data = json.loads(file.read_text())
    data["simulated"]["W2A8"]["frames"] = 10
    file.write_text(json.dumps(data))
    with pytest.raises(BevquantError, match="W2A8 was measured on other frames"):
        load_results(file)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_is_a_number_from_0_to_1(value: float) -> None:
    with pytest.raises(ValidationError):
        Score(NDS=value, mAP=0.5, frames=1)


def test_a_missing_or_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(BevquantError, match="cannot be read"):
        load_results(path)
    path.write_text("{")
    with pytest.raises(BevquantError, match="not valid JSON"):
        load_results(path)


def test_every_field_is_documented() -> None:
    text = DOCUMENT.read_text()
    missing = [name for name in field_names(Results) if f"`{name}`" not in text]
    assert not missing


def field_names(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name
        for part in models_in(field.annotation):
            yield from field_names(part)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from models_in(part)

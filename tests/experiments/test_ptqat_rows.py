"""Rules that choose the same layers share a training; those that differ in the cut, the scores."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bevquant.experiments import ptqat_rows
from bevquant.experiments.ptqat_recipe import PtqatTable
from bevquant.ptqat.cuts import Candidate
from bevquant.ptqat.selection import Rule

RULES = ("QAT", "PTQAT", "theta 0.02", "inverted", "low half, mse", "promising half")


def test_nothing_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = PtqatTable.model_validate(
        {
            "experiment": "ptqat",
            "network": "bevfusion_seg_small",
            "world": {"labels": True},
            "frames": 1,
            "train_frames": 1,
            "rules": RULES,
        }
    )
    series = ptqat_rows.Series(recipe, tmp_path, "W4A8", seed=0)
    scored, trained = [], []

    def candidates(_model: Any, _task: Any, rule: Rule, _distillation: float) -> list[Candidate]:
        scored.append(rule.measure)
        # All below 0.01: the thresholds take every layer, their inversion none.
        return [Candidate(name, 10, place / 1000) for place, name in enumerate("cabd")]

    def train(*arguments: Any) -> dict[str, Any]:
        trained.append(tuple(arguments[-1]))
        return {"layers": arguments[-1], "figure": len(trained)}

    monkeypatch.setattr(ptqat_rows, "candidates", candidates)
    monkeypatch.setattr(ptqat_rows, "_trained", train)
    monkeypatch.setattr(ptqat_rows, "start", lambda *_: None)
    monkeypatch.setattr(ptqat_rows, "task_of", lambda *_: SimpleNamespace())
    ptqat_rows.measure_rows(series)
    assert sorted(scored) == ["mse", "promise"]
    assert trained == [(), tuple("abcd"), tuple("ac"), tuple("bd")]
    steps = ptqat_rows.finished(recipe, tmp_path)
    figures = {name: steps.value(f"W4A8-{name}-0")["figure"] for name in ("PTQ", *RULES)}
    assert figures == dict(zip(("PTQ", *RULES), (1, 2, 2, 2, 1, 3, 4), strict=True))
    ptqat_rows.measure_rows(series)
    assert len(trained) == 4

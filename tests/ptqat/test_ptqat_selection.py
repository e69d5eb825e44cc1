from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bevquant.errors import BevquantError
from bevquant.ptqat.cuts import Budget, Candidate, Knee, Quantile, Theta
from bevquant.ptqat.selection import EVERYTHING, INVERTED, PAPER, Rule
from bevquant.ptqat.show import draw_selection, selection_table

CANDIDATES = [
    Candidate("stem", 10, 0.02),
    Candidate("a", 100, 0.001),
    Candidate("b", 50, 0.01),
    Candidate("c", 40, 0.009),
    Candidate("head", 20, 3.0),
]

candidates = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(1e-6, 1e3)), min_size=1, max_size=12
).map(lambda rows: [Candidate(f"layer{i}", *row) for i, row in enumerate(rows)])


def test_the_papers_threshold_and_its_inversion() -> None:
    assert PAPER.select(CANDIDATES).layers == ("a", "c")
    assert INVERTED.select(CANDIDATES).layers == ("stem", "b", "head")
    assert [choice.reason for choice in PAPER.select(CANDIDATES).choices][:2] == [
        "not: mse < 0.01",
        "mse < 0.01",
    ]


@given(candidates, st.floats(1e-6, 1e3))
def test_a_threshold_and_its_inversion_split_the_layers(
    rows: list[Candidate], theta: float
) -> None:
    low = Rule(Theta(theta)).select(rows)
    high = Rule(Theta(theta), lowest=False).select(rows)
    assert sorted(low.layers + high.layers) == sorted(row.layer for row in rows)
    assert (
        low.trained_parameters + high.trained_parameters
        == low.parameters
        == sum(r.parameters for r in rows)
    )


def test_a_share_of_the_layers() -> None:
    assert Rule(Quantile(0.4)).select(CANDIDATES).layers == ("a", "c")
    assert Rule(Quantile(0.4), lowest=False).select(CANDIDATES).layers == ("stem", "head")
    assert len(EVERYTHING.select(CANDIDATES).layers) == 5
    assert Rule(Quantile(0.0)).select(CANDIDATES).layers == ()


@given(candidates, st.floats(0, 1), st.booleans())
def test_a_budget_is_kept_and_used(rows: list[Candidate], share: float, lowest: bool) -> None:
    selection = Rule(Budget(share), lowest=lowest).select(rows)
    room = share * selection.parameters - selection.trained_parameters
    assert room >= -1e-9 * selection.parameters
    assert all(c.trained or c.candidate.parameters > room - 1e-6 for c in selection.choices)


def test_a_budget_passes_over_what_does_not_fit() -> None:
    # 110 of 220 parameters: a (100) and, after c and b are passed over, stem (10).
    assert Rule(Budget(0.5)).select(CANDIDATES).layers == ("stem", "a")


def test_the_knee_adapts_to_the_scale() -> None:
    scores = [1.0, 1.1, 1.2, 1.3, 50.0, 400.0]
    for scale in (1e-4, 1.0, 1e4):
        rows = [Candidate(str(i), 1, score * scale) for i, score in enumerate(scores)]
        assert Rule(Knee()).select(rows).layers == ("0", "1", "2", "3")


def test_a_share_beyond_all_is_refused() -> None:
    with pytest.raises(BevquantError, match=r"Budget: share 1\.5"):
        Budget(1.5)
    with pytest.raises(BevquantError, match="Quantile: share -1"):
        Quantile(-1)


def test_the_choice_is_shown(tmp_path: Path) -> None:
    selection = PAPER.select(CANDIDATES)
    console = Console(record=True, width=120)
    console.print(selection_table(selection))
    text = console.export_text()
    assert "2 of 5 layers are trained: 140 of 220 parameters (64%)" in text
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert "trained" in lines["a"]
    assert "frozen" in lines["head"]
    draw_selection(selection, tmp_path / "selection.png")
    assert (tmp_path / "selection.png").read_bytes().startswith(b"\x89PNG")


def test_the_knee_of_decibels_is_on_a_linear_scale() -> None:
    rows = [Candidate(str(i), 1, -db) for i, db in enumerate([60.0, 58.0, 56.0, 54.0, 20.0, 3.0])]
    assert Rule(Knee(), "sqnr").select(rows).layers == ("0", "1", "2", "3")


def test_what_has_nothing_to_win_is_not_trained() -> None:
    rows = [Candidate("a", 10, 0.5), Candidate("b", 10, 0.4), Candidate("aux", 1, 0.0)]
    rows += [Candidate("c", 30, 0.001), Candidate("d", 30, 0.0009)]
    assert "aux" not in Rule(Budget(0.9), "promise", lowest=False).select(rows).layers
    assert Rule(Knee(), "promise", lowest=False).select(rows).layers == ("a", "b", "c")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule(Quantile(0.5), "mes"), "'mes' is no measure; choose from mse, "),
        (lambda: Rule(Quantile(0.5), granularity="chanel"), "'chanel' is no granularity"),
        (lambda: Rule(Quantile(0.5), "promise", upstream=True), "are the pre-check's"),
        (lambda: Theta(float("nan")), "Theta: the threshold is NaN"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(make: Any, message: str) -> None:
    with pytest.raises(BevquantError, match=message):
        make()

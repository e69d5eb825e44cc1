from pathlib import Path

import pytest
from search_toys import batches, quantized

import bevquant as bq
from bevquant.progress import console
from bevquant.search.nsga2 import NSGA2
from bevquant.search.records import Evaluation, Run
from bevquant.search.search import search
from bevquant.search.status import front_of, print_status, time_left


def test_status_of_a_search(tmp_path: Path) -> None:
    ledger = tmp_path / "l.sqlite"
    front = search(quantized(), batches(), error="mse", strategy=NSGA2(10, 2), ledger=ledger)
    with console.capture() as captured:
        print_status(ledger)
    text = captured.get()
    assert "NSGA2(population=10, generations=2, mutation='neighbour'), seed 0: 20 of 20" in text
    assert "finished" in text
    assert "weight_bits" in text
    assert f"{front.weight_first().error:.5g}" in text
    assert f"{len(front.points)} points on the front" in text


def evaluation(finished: float, *errors: float, bits: float = 1.0) -> Evaluation:
    return Evaluation((int(finished),), errors, {"bits": bits}, 1.0, "here", finished)


def test_time_left_at_the_speed_of_late() -> None:
    run = Run("s", budget=110, asked=10, started=100.0, updated=120.0, finished=False)
    found = [evaluation(1.0, 0.1), *(evaluation(100.0 + 2 * i, 0.1) for i in range(10))]
    assert time_left(run, found, now=120.0) == pytest.approx(100 * 2.0)
    assert time_left(run, found[:2], now=120.0) is None


def test_evaluations_that_were_stopped_are_not_on_the_front() -> None:
    rows = [evaluation(1, 0.1), evaluation(2, 0.5, 0.7, bits=2.0)]
    assert [point.error for point in front_of(rows)] == [pytest.approx(0.6)]


def test_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(bq.BevquantError, match="there is no such ledger"):
        print_status(tmp_path / "l.sqlite")

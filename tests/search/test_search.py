import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from search_toys import batches, quantized, squared_error

import bevquant as bq
from bevquant.files import read_json, write_json
from bevquant.quant.layers import floating, quant_modules
from bevquant.search.front import Front
from bevquant.search.ilp import ILP
from bevquant.search.ledger import Ledger
from bevquant.search.nsga2 import NSGA2
from bevquant.search.search import search
from bevquant.search.space import space
from bevquant.search.surrogate import Surrogate

SMALL = Surrogate(evaluations=20, start=8, at_once=4)

FORK = multiprocessing.get_context("fork")


def slow(outputs: torch.Tensor, float_outputs: torch.Tensor) -> float:
    time.sleep(0.005)
    return squared_error(outputs, float_outputs)


def run(ledger: Path, result: Path) -> None:
    """What a forked process does that may be killed."""
    torch.set_num_threads(1)  # the threads of the parent's pool do not come along
    front = search(quantized(), batches(), error=slow, ledger=ledger, strategy=SMALL)
    write_json(result, described(front))


def described(front: Front) -> list[tuple[object, ...]]:
    return [(point.genome, point.error, point.costs) for point in front.points]


def test_finds_the_front_and_leaves_the_model_as_it_was() -> None:
    model = quantized()
    front = search(model, batches(), error=squared_error, strategy=SMALL)
    assert {layer.precision for layer in quant_modules(model)} == {bq.W8A8}
    knee = bq.apply(model, front.knee())
    with torch.no_grad():
        errors = []
        for batch in batches():
            outputs = knee(batch)
            with floating(model):
                errors.append(squared_error(outputs, model(batch)))
    assert sum(errors) / 3 == front.knee().error
    assert front.passes < len(front.evaluated)


def test_every_cost_by_name() -> None:
    front = search(
        quantized(), batches(), error="mse", cost=["weight_bits", "bytes", "bops"], strategy=ILP(8)
    )
    assert set(front.points[0].costs) == {"weight_bits", "bytes", "bops"}
    assert front.under(bops=front.float_costs["bops"]).error == front.error_first().error


def test_same_call_continues_and_evaluates_nothing_twice(tmp_path: Path) -> None:
    calls = []

    def counting(outputs: torch.Tensor, float_outputs: torch.Tensor) -> float:
        calls.append(1)
        return squared_error(outputs, float_outputs)

    arguments = {"error": counting, "strategy": SMALL, "ledger": tmp_path / "l.sqlite"}
    first = search(quantized(), batches(), **arguments)
    known = len(calls)
    again = search(quantized(), batches(), **arguments)
    assert len(calls) == known
    assert described(again) == described(first)
    assert again.passes == first.passes
    rows = Ledger(tmp_path / "l.sqlite", None).all()
    assert sum(len(row.errors) for row in rows) == known
    other = search(quantized(), batches(), **{**arguments, "strategy": NSGA2(10, 3)})
    assert len(calls) - known < 3 * len(other.evaluated), "strategies share what is known"
    assert described(search(quantized(), batches(), **arguments)) == described(first)


def test_killed_at_random_moments_ends_with_the_identical_front(tmp_path: Path) -> None:
    expected = described(search(quantized(), batches(), error=slow, strategy=SMALL))
    ledger, result = tmp_path / "l.sqlite", tmp_path / "front.json"
    chance = random.Random(0)
    kills = 0
    for _ in range(60):
        process = FORK.Process(target=run, args=(ledger, result))
        process.start()
        enough = _rows(ledger) + chance.randrange(1, 6)
        while process.is_alive() and _rows(ledger) < enough:
            time.sleep(chance.random() * 0.01)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
    assert kills >= 5
    run(ledger, result)
    assert read_json(result) == json.loads(json.dumps(expected))


def _rows(ledger: Path) -> int:
    try:
        return len(Ledger(ledger, None).all())
    except bq.BevquantError:
        return 0


def test_two_processes_share_a_ledger(tmp_path: Path) -> None:
    results = [tmp_path / "first.json", tmp_path / "second.json"]
    ledger = tmp_path / "l.sqlite"
    processes = [FORK.Process(target=run, args=(ledger, result)) for result in results]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = described(search(quantized(), batches(), error=slow, strategy=SMALL))
    assert [read_json(result) for result in results] == 2 * [json.loads(json.dumps(expected))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": batches(seed=1)}, "what differs: batches;"),
        ({"model": quantized(seed=1)}, "what differs: calibration, weights;"),
        ({"error": "mse"}, "what differs: error;"),
        ({"cost": "bops"}, "what differs: costs;"),
        ({"threads": 2}, "what differs: threads;"),
    ],
)
def test_changed_setup_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments = {"error": squared_error, "strategy": ILP(4), "ledger": tmp_path / "l.sqlite"}
    model, data = quantized(), batches()
    search(model, data, **arguments)
    changed = {**arguments, **change}
    model, data = changed.pop("model", model), changed.pop("batches", data)
    with pytest.raises(bq.BevquantError, match=message):
        search(model, data, **changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "no batch"),
        ({"model": bq.quantize(torch.nn.Sequential(torch.nn.Linear(2, 2)), bq.W4A8)},
         "not calibrated"),
        ({"error": "kosine"}, "error 'kosine' is unknown; choose cosine, mse"),
        ({"cost": "bits"}, "cost 'bits' is unknown; choose weight_bits, bytes, bops"),
        ({"space": space(bq.quantize(torch.nn.Sequential(torch.nn.Linear(2, 2)), bq.W4A8))},
         "another model's"),
    ],
)  # fmt: skip
def test_mistakes_are_named_before_any_work(change: dict[str, object], message: str) -> None:
    changed = dict(change)
    model, data = changed.pop("model", quantized()), changed.pop("batches", batches())
    with pytest.raises(bq.BevquantError, match=message):
        search(model, data, **changed)
